from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.corpus.pianist import FEWEST_TOKENS, Composition, Return, compose
from dsmr.corpus.pianist.character import CHARACTERS, Character, draw_composer
from dsmr.corpus.pianist.dice import Dice
from dsmr.corpus.pianist.form import FORMS
from dsmr.corpus.pianist.harmony import HIGHEST_KEY, LOWEST_KEY, Key, chord, lead, parallel_symbol
from dsmr.corpus.pianist.melody import Motif, Range, draw_motif, realise
from dsmr.corpus.pianist.ornament import ornamented
from dsmr.corpus.pianist.passage import (
    FEWEST_LABELLED,
    Passage,
    Placement,
    assemble,
    find_returns,
    token_count,
    transposed,
)
from dsmr.corpus.pianist.progressions import DIALECTS, progression
from dsmr.corpus.pianist.rhythm import MANNERS, METRES, Metre, draw_bar, draw_palette
from dsmr.corpus.pianist.texture import LEFT_HANDS, RIGHT_HANDS, Hands, Texture, arrange
from dsmr.corpus.pianist.theme import Idea, lay
from dsmr.corpus.pianist.workshop import Workshop
from dsmr.tokens import NOTE_OFF, STEPS_PER_SECOND, TIME_SHIFT, encode, encode_indexed, fold_pedal

CORPUS = tuple((seed, (2_000, 4_000, 8_000, 16_000, 30_000)[seed % 5]) for seed in range(30))
KEYS = [Key(tonic, minor) for tonic in range(12) for minor in (False, True)]


@cache
def piece(seed: int, tokens: int) -> Composition:
    return compose(seed, tokens)


@cache
def tokens_of(seed: int, tokens: int) -> np.ndarray:
    return encode(piece(seed, tokens).performance)


def assert_returns_are_repeats(
    performance_ids: np.ndarray, note_token: np.ndarray, returns: tuple[Return, ...]
) -> None:
    for each in returns:
        start, stop, source_start, source_stop = each.token_spans(note_token)
        again = performance_ids[start:stop].astype(int)
        source = performance_ids[source_start:source_stop].astype(int)
        moved = np.where(source < TIME_SHIFT, source + each.semitones, source)
        np.testing.assert_array_equal(again, moved, err_msg=str(each))
        assert (source // NOTE_OFF == again // NOTE_OFF)[source < TIME_SHIFT].all(), each


# The piece


def test_two_processes_compose_the_same_piece() -> None:
    program = (
        "import hashlib; from dsmr.corpus.pianist import compose; from dsmr.tokens import encode\n"
        "for seed, tokens in ((1, 3000), (2**40 + 7, 9000)):\n"
        "    piece = compose(seed, tokens)\n"
        "    print(hashlib.sha256(encode(piece.performance)).hexdigest(), piece.title, piece.form, piece.returns)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert hashlib.sha256(encode(compose(1, 3000).performance)).hexdigest() in printed[0]


@pytest.mark.parametrize(("seed", "tokens"), CORPUS, ids=lambda value: str(value))
def test_length_is_the_one_asked_for(seed: int, tokens: int) -> None:
    assert 0.8 * tokens <= len(tokens_of(seed, tokens)) <= 1.2 * tokens


@settings(max_examples=20)
@given(seed=st.integers(0, 2**64), tokens=st.integers(2_000, 12_000))
def test_any_seed_gives_a_playable_piece_with_true_labels(seed: int, tokens: int) -> None:
    composition = compose(seed, tokens)
    notes, pedal = composition.performance.notes, composition.performance.pedal
    ids, note_token = encode_indexed(composition.performance)
    assert 0.8 * tokens <= len(ids) <= 1.2 * tokens
    assert notes["pitch"].min() >= LOWEST_KEY
    assert notes["pitch"].max() <= HIGHEST_KEY
    assert notes["velocity"].min() >= 10
    assert notes["velocity"].max() <= 120
    assert (notes["offset"] - notes["onset"]).min() >= 0.009
    assert list(np.lexsort((notes["pitch"], notes["onset"]))) == list(range(len(notes)))
    for seconds in (notes["onset"], notes["offset"], pedal["time"]):
        np.testing.assert_allclose(seconds * STEPS_PER_SECOND, np.rint(seconds * STEPS_PER_SECOND), atol=1e-6)
    assert not len(pedal) or pedal["value"][-1] == 0
    assert_returns_are_repeats(ids, note_token, composition.returns)


@pytest.mark.parametrize(
    ("seed", "tokens", "error", "message"),
    [
        (-1, 2000, ValueError, "seed: expected at least 0, got -1"),
        (0, FEWEST_TOKENS - 1, ValueError, f"tokens: expected at least {FEWEST_TOKENS}"),
        (0.5, 2000, TypeError, "seed: expected an integer, got float"),
        (0, "2000", TypeError, "tokens: expected an integer, got str"),
        (True, 2000, TypeError, "seed: expected an integer, got bool"),
    ],
    ids=["negative seed", "too short", "seed no integer", "tokens no integer", "bool"],
)
def test_bad_arguments_are_refused(seed: object, tokens: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compose(seed, tokens)  # type: ignore[arg-type]  # that is what is tested


# Returns


@pytest.mark.parametrize(("seed", "tokens"), CORPUS, ids=lambda value: str(value))
def test_labelled_returns_are_token_for_token_repeats(seed: int, tokens: int) -> None:
    composition = piece(seed, tokens)
    assert composition.returns
    assert_returns_are_repeats(*encode_indexed(composition.performance), composition.returns)


def test_labels_are_in_order_disjoint_and_after_their_sources() -> None:
    for seed, tokens in CORPUS:
        returns = piece(seed, tokens).returns
        for each in returns:
            assert 0 <= each.source_start < each.source_stop <= each.start < each.stop
            assert each.stop - each.start == each.source_stop - each.source_start >= FEWEST_LABELLED
            assert (each.kind == "exact") == (each.semitones == 0)
        assert all(before.stop <= after.start for before, after in itertools.pairwise(returns))


def test_returns_lie_at_every_distance() -> None:
    labelled: Counter[str] = Counter()
    by_distance: Counter[int] = Counter()
    total = 0
    for seed, tokens in CORPUS:
        composition = piece(seed, tokens)
        ids, note_token = encode_indexed(composition.performance)
        total += len(ids)
        for each in composition.returns:
            start, stop, source_start, _ = each.token_spans(note_token)
            by_distance[int(start - source_start).bit_length()] += stop - start
            labelled[each.kind] += stop - start
    # Distances of 64..127, 128..255, ..., 16384..32767 tokens.
    for length in range(7, 16):
        assert by_distance[length] > 0.003 * total, length
    far = sum(count for length, count in by_distance.items() if length > 12)
    assert far > 0.05 * total
    assert 0.35 * total < labelled.total() < 0.8 * total
    assert labelled["transposed"] > 0.03 * total


class CellsOfOnePiece:
    """Cells of all textures and places, and a way to put them in any order."""

    def __init__(self, seed: int) -> None:
        dice = Dice(seed)
        workshop = Workshop(dice, draw_composer(dice))
        key = workshop.composer.key
        passage = workshop.section(key, 1500).passage + workshop.section(key, 1500, contrast=True).passage
        self.cells = list(dict.fromkeys(placement.cell for placement in passage))

    def passage(self, order: list[tuple[int, int]]) -> Passage:
        return tuple(
            itertools.chain.from_iterable(
                transposed((Placement(self.cells[index % len(self.cells)], 0),), semitones)
                for index, semitones in order
            )
        )


PIECES_OF_CELLS = [CellsOfOnePiece(seed) for seed in (0, 3, 11)]


@given(
    source=st.sampled_from(PIECES_OF_CELLS),
    order=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 3, -5])), min_size=1, max_size=14),
)
def test_a_cell_encodes_alike_among_any_neighbours(source: CellsOfOnePiece, order: list[tuple[int, int]]) -> None:
    passage = source.passage(order)
    returns = find_returns(passage)
    assert_returns_are_repeats(*encode_indexed(assemble(passage)), returns)

    # Every cell that was there before is labelled, and nothing else; that cells have notes enough is checked, too.
    first_note = np.cumsum([0] + [len(placement.cell.notes) for placement in passage])
    labelled = np.zeros(first_note[-1], bool)
    for each in returns:
        labelled[each.start : each.stop] = True
    seen = set()
    for at, placement in enumerate(passage):
        there_before = placement.cell in seen and len(placement.cell.notes) >= FEWEST_LABELLED
        if there_before or placement.cell not in seen:
            assert labelled[first_note[at] : first_note[at + 1]].all() == there_before
        seen.add(placement.cell)


def test_neighbouring_cells_make_one_return_and_the_nearest_source_counts() -> None:
    a, b, c = PIECES_OF_CELLS[0].cells[:3]
    sizes = [len(cell.notes) for cell in (a, b, c)]
    passage = tuple(Placement(cell, semitones) for cell, semitones in ((a, 0), (b, 0), (c, 0), (a, 2), (b, 2), (b, 2)))
    start = sum(sizes)
    assert find_returns(passage) == (
        Return("transposed", 2, start, start + sizes[0] + sizes[1], 0, sizes[0] + sizes[1]),
        Return(
            "exact",
            0,
            start + sizes[0] + sizes[1],
            start + sizes[0] + 2 * sizes[1],
            start + sizes[0],
            start + sizes[0] + sizes[1],
        ),
    )


def test_a_transposed_passage_stays_on_the_keyboard() -> None:
    for cells in PIECES_OF_CELLS:
        for cell in cells.cells:
            for semitones in range(-11, 12):
                ((_, moved),) = transposed((Placement(cell, 0),), semitones)
                assert (moved - semitones) % 12 == 0 or moved == 0
                assert cell.notes[:, 2].min() + moved >= LOWEST_KEY
                assert cell.notes[:, 2].max() + moved <= HIGHEST_KEY


# Repetition at every scale, told from the tokens alone


def repeated_share(ids: np.ndarray, length: int, nearest: int, farthest: int) -> float:
    """The share of positions whose last `length` tokens were last seen between `nearest` and `farthest` tokens ago."""
    raw, last, hits = ids.tobytes(), {}, 0
    for end in range(length, len(ids) + 1):
        window = raw[2 * (end - length) : 2 * end]
        hits += nearest <= end - last.get(window, end - farthest - 1) <= farthest
        last[window] = end
    return hits / len(ids)


@pytest.mark.parametrize(
    ("length", "nearest", "farthest", "least"),
    [(3, 1, 128, 0.05), (12, 1, 256, 0.04), (24, 256, 1024, 0.12), (24, 1024, 4096, 0.08), (24, 4096, 32768, 0.05)],
    ids=["motif", "bar", "phrase", "section", "piece"],
)
def test_music_repeats_at_every_scale(length: int, nearest: int, farthest: int, least: float) -> None:
    pieces = [tokens_of(seed, tokens) for seed, tokens in CORPUS if tokens >= 8_000]
    share = np.mean([repeated_share(ids, length, nearest, farthest) for ids in pieces])
    rng = np.random.default_rng(0)
    by_chance = np.mean([repeated_share(rng.permutation(ids), length, nearest, farthest) for ids in pieces[:3]])
    assert share > least
    assert by_chance < 0.01


# Music by numbers


def test_numbers_are_those_of_piano_music() -> None:
    """Compared with real performances (mean over pieces): 11 notes a second, 4.1 tokens a note, 9 % silence."""
    rows = []
    for seed, tokens in CORPUS:
        notes = fold_pedal(piece(seed, tokens).performance).notes
        seconds = notes["offset"].max()
        order = np.argsort(notes["onset"], kind="stable")
        sounding_until = np.maximum.accumulate(notes["offset"][order])
        silence = np.maximum(notes["onset"][order][1:] - sounding_until[:-1], 0).sum()
        rows.append(
            (
                len(notes) / seconds,
                len(tokens_of(seed, tokens)) / len(notes),
                silence / seconds,
                (notes["offset"] - notes["onset"]).sum() / seconds,
                np.median(notes["pitch"]),
                np.percentile(notes["pitch"], 95) - np.percentile(notes["pitch"], 5),
                np.median(notes["velocity"]),
                np.std(notes["velocity"]),
            )
        )
    density, per_note, silence_share, sounding, middle, compass, loudness, dynamics = np.array(rows).T
    assert density.min() > 4
    assert density.max() < 20
    assert 7 < density.mean() < 12
    assert 3.7 < per_note.mean() < 4.4
    assert silence_share.max() < 0.35
    assert 2 < sounding.mean() < 8
    assert 58 < middle.mean() < 70
    assert compass.min() > 24
    assert 48 < loudness.mean() < 76
    assert dynamics.min() > 6


def test_harmony_is_mostly_consonant_and_in_a_key() -> None:
    scales = np.array(
        [[(degree - tonic) % 12 in (0, 2, 4, 5, 7, 9, 11) for degree in range(12)] for tonic in range(12)]
    )
    in_scale, notes_heard = 0, 0
    pairs = np.zeros(12)
    for seed, tokens in CORPUS[:15]:
        notes = piece(seed, tokens).performance.notes
        for window in range(0, int(notes["onset"].max()), 8):
            inside = (notes["onset"] >= window) & (notes["onset"] < window + 8)
            heard = np.bincount(notes["pitch"][inside] % 12, minlength=12)
            in_scale += (scales @ heard).max()
            notes_heard += heard.sum()
            # Which intervals are struck together, within 30 ms.
            onset, pitch = notes["onset"][inside], notes["pitch"][inside].astype(int)
            together = np.triu(np.abs(onset[:, None] - onset) < 0.03, 1)
            pairs += np.bincount(np.abs(pitch[:, None] - pitch)[together] % 12, minlength=12)
    assert in_scale / notes_heard > 0.85  # by chance 0.58, real performances 0.89
    dissonant = pairs[[1, 6, 11]].sum() / pairs.sum()
    assert dissonant < 0.1  # by chance 0.25


def test_tokens_are_no_trivial_signal() -> None:
    counts = np.zeros((NOTE_OFF * 4, NOTE_OFF * 4))
    for seed, tokens in CORPUS:
        ids = tokens_of(seed, tokens)
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    given_last = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    unigram = counts.sum(0) / counts.sum()
    bigram_nll = -np.sum(counts[counts > 0] * np.log(given_last[counts > 0])) / counts.sum()
    unigram_nll = -np.sum(unigram[unigram > 0] * np.log(unigram[unigram > 0]))
    assert 25 < np.exp(bigram_nll) < 60  # real performances: about 50
    assert 100 < np.exp(unigram_nll) < 150  # real performances: about 127


def test_different_seeds_are_different_pieces() -> None:
    compositions = [piece(seed, tokens) for seed, tokens in CORPUS]
    assert len({composition.title for composition in compositions}) == len(CORPUS)
    assert len({composition.title.split(" in ")[-1].split(",")[0] for composition in compositions}) >= 12  # keys
    assert len({composition.form for composition in compositions}) == len(FORMS)
    windows = []
    for seed, tokens in CORPUS:
        raw = tokens_of(seed, tokens).tobytes()
        windows.append({raw[i : i + 32] for i in range(0, len(raw) - 32, 2)})  # of 16 tokens
    for ours, theirs in itertools.combinations(windows, 2):
        assert len(ours & theirs) < 0.01 * min(len(ours), len(theirs))


def test_the_same_seed_at_another_length_is_the_same_composer() -> None:
    short, long = piece(4, 30_000), compose(4, 3_000)
    assert short.title.split(" in ")[1].split(",")[0] == long.title.split(" in ")[1].split(",")[0]


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
def test_melodies_stay_in_range_end_as_told_and_rest_on_the_harmony(seed: int, leaps: float, key: Key) -> None:
    dice, metre = Dice(seed), METRES["4/4"]
    rhythm = (*draw_bar(dice, draw_palette(dice, "flowing", metre), metre), 48, 48)
    motif = draw_motif(dice, rhythm, leaps)
    assert isinstance(motif, Motif)
    harmony = lay(key, metre, (("i", "V7"), ("i",)) if key.minor else (("I", "V7"), ("I",)))
    tones = realise(dice, motif, harmony, metre, 72, Range(60, 84), (key.tonic,))
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
    plain = realise(dice, motif, harmony, metre, 72, Range(60, 84))
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


def test_counting_a_passage_is_counting_its_tokens() -> None:
    passage = tuple(Placement(cell, 0) for cell in PIECES_OF_CELLS[1].cells)
    assert abs(token_count(passage) - len(encode(assemble(passage)))) <= 2 * len(passage)  # a shift or velocity a seam
