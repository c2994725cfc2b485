"""Frame of a piece: how it is introduced and how it ends."""

from __future__ import annotations

from dataclasses import replace

from dsmr.pianist.harmony import Key, chord, ladder
from dsmr.pianist.passage import Passage, Placement, louder, token_count
from dsmr.pianist.performance import Nuances, Place, Score, Setting, perform
from dsmr.pianist.texture import BASS, INNER, MELODY, ScoreNote
from dsmr.pianist.theme import Idea, lay, write_idea
from dsmr.pianist.workshop import Section, Workshop

_LONG_VAMP = 400  # steps; a vamp of more bores before the piece has begun


def introduction(workshop: Workshop, key: Key, section: Section, budget: float) -> Passage:
    """Return nothing, the first theme's accompaniment alone, or a run, as the budget of tokens allows."""
    dice, metre = workshop.dice, workshop.language.metre
    if budget < 3 * workshop.bar_tokens:
        return ()
    kind = dice.weighted({"none": 3, "vamp": 4, "run": 2 if workshop.composer.character.freedom > 0.4 else 0})
    if kind == "none":
        return ()
    if kind == "run":
        return _run(workshop, key, section.setting)
    tonic = "i" if key.minor else "I"
    vamp = Idea(metre, key, (), lay(key, metre, ((tonic,), (tonic,))))
    played = workshop.player.play(((vamp,),), louder(section.setting, -6), 0)
    short = played[0].cell.length < _LONG_VAMP and budget > 6 * workshop.bar_tokens
    return played + played if short and dice.chance(0.5) else played


def coda(workshop: Workshop, key: Key, section: Section, budget: float) -> Passage:
    """Return cadences, each twice in the same words, as many as the budget of tokens allows, and last chords."""
    dice, material, setting = workshop.dice, section.theme.material, section.setting
    last = _last_chords(workshop, key, setting)
    room = budget - token_count(last)
    passage: Passage = ()
    while room - token_count(passage) > 1.5 * workshop.bar_tokens:
        start = sum(material.voice) // 2
        closing = write_idea(dice, workshop.language, key, material, "close", material.basic, start)
        played = workshop.player.play(((closing,),), louder(setting, dice.between(-12, 14)), 2)
        passage += played
        if room - token_count(passage) > 1.5 * workshop.bar_tokens:
            passage += played
    if passage and dice.chance(0.5 * workshop.composer.character.freedom + 0.1):
        passage += _run(workshop, key, setting)
    return passage + last


def _run(workshop: Workshop, key: Key, setting: Setting) -> Passage:
    """A run over the keyboard, up or up and down, on the dominant seventh chord or its scale."""
    dice, metre = workshop.dice, workshop.language.metre
    harmony = chord("V7", key)
    rungs = [p for p in ladder(harmony.scale if dice.chance(0.4) else harmony.tones) if 36 <= p <= 98]
    start = dice.integer(0, len(rungs) // 4)
    line = rungs[start:] if dice.chance(0.5) else rungs[start:] + rungs[-2:start:-1]
    step = 4 if metre.compound else metre.beat // 8
    notes = [ScoreNote(k * step, step, p, MELODY if k % 4 == 0 else INNER) for k, p in enumerate(line[:-1])]
    notes.append(ScoreNote((len(line) - 1) * step, step + metre.beat, line[-1], MELODY))
    notes.append(ScoreNote(0, metre.beat, line[0] - 12 if line[0] > 40 else line[0] + 7, BASS))
    setting = replace(setting, hold=0.9, accompaniment_hold=0.9, pedal="bar")
    return _piece_of_score(workshop, notes, len(line) * step + metre.beat, setting, Place(0, 1, dice.integer(10, 40)))


def _last_chords(workshop: Workshop, key: Key, setting: Setting) -> Passage:
    """The end: dominant and tonic, or tonic, dominant and tonic, the last chord held."""
    dice, metre = workshop.dice, workshop.language.metre
    tonic = "i" if key.minor and dice.chance(0.8) else "I"
    symbols, starts = dice.pick(
        (
            (("V7", tonic), (0, metre.beat)),
            (("V7", tonic), (0, metre.bar)),
            ((tonic, "V7", tonic), (0, metre.beat, metre.bar)),
        )
    )
    notes: list[ScoreNote] = []
    for symbol, start, stop in zip(symbols, starts, (*starts[1:], 2 * metre.bar), strict=True):
        harmony = chord(symbol, key)
        low = 28 + (harmony.bass - 28) % 12
        middle = [p for p in ladder(harmony.tones) if 52 <= p <= 64][:3]
        top = [p for p in ladder(harmony.tones) if 65 <= p <= 77][:3]
        notes += [ScoreNote(start, stop - start, p, BASS) for p in (low, low + 12)]
        notes += [ScoreNote(start, stop - start, p, INNER) for p in middle + top[:-1]]
        notes.append(ScoreNote(start, stop - start, top[-1], MELODY))
    setting = replace(setting, hold=0.95, accompaniment_hold=0.95, pedal="bar", level=setting.level + 6)
    return _piece_of_score(workshop, notes, 2 * metre.bar, setting, Place(0.4, 1, 60))


def _piece_of_score(workshop: Workshop, notes: list[ScoreNote], ticks: int, setting: Setting, place: Place) -> Passage:
    touch = workshop.composer.touch
    score = Score(notes, (0,), ticks, workshop.language.metre)
    return (Placement(perform(touch, Nuances(workshop.dice, touch), score, setting, place), 0),)
