"""What the pianist composes with: harmony, rhythm, melody, texture and character."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsmr.music.tokens import HIGHEST_KEY, LOWEST_KEY
from dsmr.pianist.character import CHARACTERS, Character, draw_composer
from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Key, chord, lead, parallel_symbol
from dsmr.pianist.melody import Compass, Motif, draw_motif, realise
from dsmr.pianist.ornament import ornamented
from dsmr.pianist.progressions import DIALECTS, progression
from dsmr.pianist.rhythm import MANNERS, METRES, Metre, draw_bar, draw_palette
from dsmr.pianist.texture import LEFT_HANDS, RIGHT_HANDS, Hands, Texture, arrange
from dsmr.pianist.theme import Idea, lay
from dsmr.pianist.workshop import Workshop

KEYS = [Key(tonic, minor) for tonic in range(12) for minor in (False, True)]


# Harmony


@pytest.mark.parametrize(
    ("symbol", "key", "bass", "tones"),
    [
        ("I", Key(0, False), "C", "CEG"),
        ("ii65", Key(0, False), "F", "DFAC"),
        ("V7", Key(9, True), "E", "EgBD"),
        ("viio7", Key(9, True), "g", "gBDF"),
        ("iiø65", Key(9, True), "D", "BDFA"),
        ("V65/ii", Key(0, False), "c", "AcEG"),
        ("viio7/V", Key(0, False), "f", "fACd"),
        ("bII6", Key(9, True), "D", "aDF"),
        ("Ger", Key(9, True), "F", "FACd"),
        ("IV7", Key(7, False), "C", "CEGB"),
        ("I+", Key(0, False), "C", "CEg"),
        ("V42/IV", Key(0, False), "a", "CEGa"),
        ("I64", Key(5, False), "C", "FAC"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_numerals_mean_what_theory_says(symbol: str, key: Key, bass: str, tones: str) -> None:
    names = "CcDdEFfGgAaB"  # small letters are the black keys
    meant = chord(symbol, key)
    assert sorted(meant.tones) == sorted(names.index(name) for name in tones)
    assert meant.bass == names.index(bass)


@pytest.mark.parametrize("symbol", ["", "VIII", "V8", "iio/", "H", "Cm", "V7/"])
def test_what_is_no_numeral_is_refused(symbol: str) -> None:
    with pytest.raises(ValueError, match="symbol: expected a Roman numeral"):
        chord(symbol, Key(0, False))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_progressions_are_chords_of_a_seven_note_scale_in_every_key(dialect: str) -> None:
    dice = Dice(0)
    for key in KEYS:
        for purpose in ("open", "answer", "go on", "half", "full", "evade", "close", "stand"):
            bars = progression(dice, dialect, key, purpose, 4)
            assert len(bars) == 2
            for symbol in itertools.chain.from_iterable(bars):
                meant = chord(symbol, key)
                assert len(set(meant.scale)) == 7
                assert set(meant.tones) <= set(meant.scale)
                assert meant.bass in meant.tones
                assert len(set(chord(parallel_symbol(symbol, not key.minor), key.parallel).scale)) == 7


def test_full_cadences_end_on_the_tonic_and_half_cadences_do_not() -> None:
    dice = Dice(1)
    for dialect, key in itertools.product(DIALECTS, KEYS):
        assert chord(progression(dice, dialect, key, "full", 4)[-1][-1], key).tones[0] == key.tonic
        assert chord(progression(dice, dialect, key, "half", 4)[-1][-1], key).tones[0] != key.tonic


@given(
    symbols=st.lists(st.sampled_from(["I", "ii", "iii", "IV", "V", "vi", "V7", "viio7"]), min_size=2, max_size=8),
    tonic=st.integers(0, 11),
)
def test_voices_move_little(symbols: list[str], tonic: int) -> None:
    voicing: tuple[int, ...] = ()
    for symbol in symbols:
        tones = chord(symbol, Key(tonic, False)).tones
        following = lead(tones, 3, 52, 67, voicing)
        assert {pitch % 12 for pitch in following} <= set(tones)
        assert list(following) == sorted(set(following))
        if voicing:
            assert max(abs(a - b) for a, b in zip(voicing, following, strict=True)) <= 9
        voicing = following


# Rhythm, melody, texture


@pytest.mark.parametrize("metre", METRES.values(), ids=lambda metre: metre.name)
@pytest.mark.parametrize("manner", MANNERS)
def test_rhythms_fill_the_bar(metre: Metre, manner: str) -> None:
    for seed in range(20):
        dice = Dice(seed)
        palette = draw_palette(dice, manner, metre)
        assert sum(abs(length) for length in draw_bar(dice, palette, metre)) == metre.bar


@pytest.mark.parametrize("metre", METRES.values(), ids=lambda metre: metre.name)
def test_chords_share_a_bar_without_gaps(metre: Metre) -> None:
    for count in range(1, 5):
        shares = metre.shares(count)
        assert shares[0][0] == 0
        assert all(start + length == after for (start, length), (after, _) in itertools.pairwise(shares))
        assert sum(length for _, length in shares) == metre.bar
        assert all(length > 0 for _, length in shares)


@given(seed=st.integers(0, 1000), leaps=st.floats(0, 1), key=st.sampled_from(KEYS))
@example(seed=303, leaps=1.0, key=Key(1, False))  # asked for places far beyond the compass, near which none is in it
def test_melodies_stay_in_range_end_as_told_and_rest_on_the_harmony(seed: int, leaps: float, key: Key) -> None:
    dice, metre = Dice(seed), METRES["4/4"]
    rhythm = (*draw_bar(dice, draw_palette(dice, "flowing", metre), metre), 48, 48)
    motif = draw_motif(dice, rhythm, leaps)
    assert isinstance(motif, Motif)
    harmony = lay(key, metre, (("i", "V7"), ("i",)) if key.minor else (("I", "V7"), ("I",)))
    tones = realise(dice, motif, harmony, metre, 72, Compass(60, 84), (key.tonic,))
    assert sum(tone.length for tone in tones) == 2 * metre.bar - sum(-length for length in rhythm if length < 0)
    assert all(56 <= tone.pitch <= 88 for tone in tones)
    assert tones[-1].pitch % 12 == key.tonic
    for tone in tones:
        chord_now = next(slot.chord for slot in reversed(harmony) if slot.start <= tone.start)
        assert tone.pitch % 12 in chord_now.scale


@given(seed=st.integers(0, 1000), busy=st.floats(0, 1))
def test_ornaments_take_the_time_of_the_notes_they_divide(seed: int, busy: float) -> None:
    dice, metre = Dice(seed), METRES["3/4"]
    harmony = lay(Key(2, False), metre, (("I",), ("V7",)))
    motif = draw_motif(dice, (24, 24, 24, 48, 12, 12), 0.3)
    plain = realise(dice, motif, harmony, metre, 72, Compass(60, 84))
    tick = 0
    for tone in ornamented(dice, plain, harmony, metre, busy):
        assert tone.start == tick
        assert tone.length > 0
        tick += tone.length
    assert tick == 2 * metre.bar


@cache
def ideas_in(metre: Metre) -> tuple[Idea, ...]:
    dice = Dice(len(metre.name) + metre.bar)
    composer = draw_composer(dice)
    language = replace(composer.language, metre=metre)
    theme = Workshop(dice, replace(composer, language=language)).theme(composer.key, 8)
    return theme.phrases[0]


@pytest.mark.parametrize("left", LEFT_HANDS)
@pytest.mark.parametrize("right", RIGHT_HANDS)
def test_textures_keep_to_the_keyboard_the_bars_and_the_harmony(right: str, left: str) -> None:
    for metre in METRES.values():
        for idea in ideas_in(metre):
            score = arrange(Dice(0), idea, Texture(right, left), Hands(), 0)
            assert len(score) > len(idea.melody)
            for note in score:
                assert LOWEST_KEY <= note.pitch <= HIGHEST_KEY
                assert 0 <= note.start < note.start + note.length <= idea.ticks
            lowest = min(note.pitch for note in score if note.start == 0)
            assert lowest % 12 == idea.harmony[0].chord.bass


@pytest.mark.parametrize("character", CHARACTERS, ids=lambda character: character.name)
def test_characters_name_only_what_exists(character: Character) -> None:
    assert set(character.metres) <= set(METRES)
    assert set(character.dialects) <= set(DIALECTS)
    assert set(character.manners) <= set(MANNERS)
    for rights, lefts in (character.textures, character.contrasts):
        assert set(rights) <= set(RIGHT_HANDS)
        assert set(lefts) <= set(LEFT_HANDS)
    assert set(character.pedals) <= {"none", "harmony", "bar", "touch"}
