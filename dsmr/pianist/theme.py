"""Themes: two-bar ideas, the phrases they make (periods and sentences), and what can be derived from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Key, chord, parallel_symbol
from dsmr.pianist.melody import (
    Compass,
    Motif,
    Slot,
    Tone,
    concatenated,
    draw_motif,
    inverted,
    parallel,
    realise,
)
from dsmr.pianist.ornament import ornamented
from dsmr.pianist.progressions import progression
from dsmr.pianist.rhythm import Lengths, Metre, Palette, calm, draw_bar, draw_palette

IDEA_BARS = 2


@dataclass(frozen=True, eq=False)
class Idea:
    """Two bars of melody and harmony: the smallest thing that is composed, performed and repeated as a whole.

    Ideas are equal only when they are the same object: a repeat in the score is the same idea again.
    """

    metre: Metre
    key: Key
    melody: tuple[Tone, ...]
    harmony: tuple[Slot, ...]
    cadence: bool = False

    @property
    def ticks(self) -> int:
        """How long it lasts."""
        return IDEA_BARS * self.metre.bar


Phrase = tuple[Idea, ...]


@dataclass(frozen=True)
class Language:
    """How one composer writes, whatever the theme.

    Args:
        metre: the metre of the piece.
        dialect: of harmony, see ``progressions.DIALECTS``.
        chords: how many chords two bars should have.
        leaps: 0..1, how readily melodies leap.
        dissonance: price of non-chord tones in melodies, 1 being average.
        literal: 0..1, how often a repeat is left as it was.
        ornaments: 0..1, the share of long melody notes that are divided into turns, runs and trills.
    """

    metre: Metre
    dialect: str
    chords: int
    leaps: float
    dissonance: float
    literal: float
    ornaments: float


@dataclass(frozen=True)
class Material:
    """What the phrases of one theme have in common.

    Args:
        palette: its rhythmic cells.
        basic: the motif of the basic idea, two bars.
        contrast: the motif that answers it, two bars.
        voice: the range of its melody.
    """

    palette: Palette
    basic: Motif
    contrast: Motif
    voice: Compass


@dataclass(frozen=True)
class Theme:
    """Phrases that belong together, and the material they were made of."""

    key: Key
    material: Material
    phrases: tuple[Phrase, ...]


def draw_material(dice: Dice, language: Language, manner: str, voice: Compass, kin: Material | None = None) -> Material:
    """Invent the material of a theme; with kin, derive it from another theme's: its motif upside down, its rhythm."""
    metre = language.metre
    palette = dict(kin.palette) if kin and dice.chance(0.5) else draw_palette(dice, manner, metre)
    if kin is not None and dice.chance(0.4):
        basic = inverted(kin.basic)
    else:
        bar = draw_bar(dice, palette, metre)
        alike = dice.weighted({"same": 3, "calmer": 4, "other": 3})
        second = {"same": bar, "calmer": calm(bar, metre.beat), "other": draw_bar(dice, palette, metre)}[alike]
        first_half = draw_motif(dice, bar, language.leaps)
        if alike == "same" and dice.chance(0.6):
            second_half = first_half if dice.chance(0.5) else inverted(first_half)
        else:
            second_half = draw_motif(dice, second, language.leaps)
        basic = concatenated(first_half, second_half)
    bar = draw_bar(dice, palette, metre)
    contrast = concatenated(
        draw_motif(dice, bar, language.leaps), draw_motif(dice, draw_bar(dice, palette, metre), language.leaps)
    )
    return Material(palette, basic, contrast, voice)


def write_theme(
    dice: Dice, language: Language, key: Key, material: Material, phrase_bars: int, away: Key | None
) -> Theme:
    """Compose a period: a phrase to a half cadence, and one that begins alike and ends with a full cadence.

    Args:
        dice: the piece's dice.
        language: the composer's.
        key: where the theme begins and, unless told otherwise, ends.
        material: of the theme.
        phrase_bars: 4 (basic idea, cadence) or 8 (a sentence: presentation, continuation, cadence).
        away: the key the second phrase goes to, if the theme modulates.
    """
    first = write_phrase(dice, language, key, material, phrase_bars, "half")
    shared = first[:-1] if dice.chance(0.6) else first[:1]
    second = write_phrase(dice, language, key, material, phrase_bars, "full", shared, away)
    return Theme(key, material, (first, second))


def write_phrase(
    dice: Dice,
    language: Language,
    key: Key,
    material: Material,
    bars: int,
    cadence: str,
    opening: Phrase = (),
    away: Key | None = None,
) -> Phrase:
    """Compose one phrase of 4 or 8 bars.

    Args:
        dice: the piece's dice.
        language: the composer's.
        key: of the phrase.
        material: of the theme.
        bars: a multiple of 2.
        cadence: ``half``, ``full`` or ``evade``.
        opening: ideas to begin with instead of new ones.
        away: the key of the cadence, if it is another one.
    """
    ideas = list(opening)
    wanted = bars // IDEA_BARS - 1
    middle = sum(material.voice) // 2
    while len(ideas) < wanted:
        last = ideas[-1].melody[-1].pitch if ideas and ideas[-1].melody else middle
        near_end = away if away is not None and len(ideas) == wanted - 1 and ideas else None
        if not ideas:
            ideas.append(
                write_idea(dice, language, key, material, "open", material.basic, middle + dice.integer(-4, 4))
            )
        elif len(ideas) == 1:  # the presentation: the basic idea again, or a reply
            if dice.chance(0.8 * language.literal):
                ideas.append(ideas[0])
            else:
                motif = material.basic if dice.chance(0.65) else material.contrast
                start = ideas[0].melody[0].pitch + dice.pick((-5, -2, 2, 3, 5)) if motif is material.basic else last
                ideas.append(write_idea(dice, language, near_end or key, material, "answer", motif, start))
        else:  # the continuation: one bar of the idea, twice
            fragment = _first_bar(dice.pick((material.basic, material.contrast)), language.metre)
            motif = concatenated(fragment, fragment)
            ideas.append(write_idea(dice, language, near_end or key, material, "go on", motif, last))
    last = ideas[-1].melody[-1].pitch if ideas[-1].melody else middle
    closing = material.contrast if dice.chance(0.6) else material.basic
    ideas.append(write_idea(dice, language, away or key, material, cadence, closing, last))
    return tuple(ideas)


def write_idea(
    dice: Dice, language: Language, key: Key, material: Material, purpose: str, motif: Motif, start: int
) -> Idea:
    """Compose two bars for a purpose (see ``progressions.progression``) from a motif that begins near a pitch."""
    metre = language.metre
    harmony = lay(key, metre, progression(dice, language.dialect, key, purpose, language.chords))
    cadence = purpose in ("half", "full", "evade", "close")
    ending: tuple[int, ...] = ()
    if cadence:
        first = _first_bar(motif, metre)
        final = calm(draw_bar(dice, material.palette, metre), metre.bar // 2)
        if purpose != "half" and dice.chance(0.5):
            final = (metre.bar,)
        motif = concatenated(first, draw_motif(dice, final, language.leaps / 2))
        ending = (key.tonic,) if purpose == "full" and dice.chance(0.8) else harmony[-1].chord.tones[:3]
    tones = realise(dice, motif, harmony, metre, start, material.voice, ending, language.dissonance)
    if language.ornaments:
        tones = ornamented(dice, tones, harmony, metre, language.ornaments)
    return Idea(metre, key, tuple(tones), harmony, cadence)


def lay(key: Key, metre: Metre, bars: tuple[tuple[str, ...], ...]) -> tuple[Slot, ...]:
    """Put a progression's chords in time."""
    return tuple(
        Slot(number * metre.bar + start, length, symbol, chord(symbol, key))
        for number, symbols in enumerate(bars)
        for symbol, (start, length) in zip(symbols, metre.shares(len(symbols)), strict=True)
    )


def varied(dice: Dice, idea: Idea, busy: float) -> Idea:
    """Return the idea with its melody ornamented; busy is the share of notes that are divided."""
    return replace(idea, melody=tuple(ornamented(dice, idea.melody, idea.harmony, idea.metre, busy)))


def in_parallel_key(idea: Idea) -> Idea:
    """Return the idea in the other mode of its tonic."""
    key = idea.key.parallel
    harmony = tuple(
        Slot(s.start, s.length, symbol, chord(symbol, key))
        for s in idea.harmony
        for symbol in (parallel_symbol(s.symbol, key.minor),)
    )
    return replace(idea, key=key, harmony=harmony, melody=tuple(parallel(idea.melody, idea.key)))


def _first_bar(motif: Motif, metre: Metre) -> Motif:
    """The part of a motif that fills one bar; a note across the bar line is cut at it."""
    lengths: Lengths = ()
    left = metre.bar
    for length in motif.lengths:
        if left == 0:
            break
        taken = min(abs(length), left)
        lengths += (taken if length > 0 else -taken,)
        left -= taken
    return Motif(lengths, motif.steps[: sum(length > 0 for length in lengths)])
