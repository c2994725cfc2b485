"""Passages: cells in a row. Playing phrases, playing them again otherwise, and finding what returned exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import HIGHEST_KEY, LOWEST_KEY, Performance
from dsmr.pianist.character import Composer
from dsmr.pianist.dice import Dice
from dsmr.pianist.performance import Cell, Grid, Nuances, Place, Score, Setting, perform, to_performance
from dsmr.pianist.texture import Hands, Texture, arrange
from dsmr.pianist.theme import Idea, Phrase


class Placement(NamedTuple):
    """A cell at its place in the piece, moved up by semitones."""

    cell: Cell
    semitones: int


Passage = tuple[Placement, ...]

FEWEST_LABELLED = 12
"""Notes below which a return is not labelled: a few notes match somewhere by chance."""


def token_count(passage: Iterable[Placement]) -> int:
    """Return about how many tokens a passage encodes to; only the seams between cells are not counted exactly."""
    return sum(placement.cell.tokens for placement in passage)


def transposed(passage: Passage, semitones: int) -> Passage:
    """Return the passage moved by semitones, in another octave or not at all where the keyboard would end."""
    low = min(int(p.cell.notes[:, 2].min()) + p.semitones for p in passage)
    high = max(int(p.cell.notes[:, 2].max()) + p.semitones for p in passage)
    octaves = (semitones, semitones - 12, semitones + 12, 0)
    shift = next(s for s in octaves if low + s >= LOWEST_KEY and high + s <= HIGHEST_KEY)
    return tuple(Placement(p.cell, p.semitones + shift) for p in passage)


class Player:
    """Plays phrases with one composer's touch and remembers what it has played.

    Args:
        dice: the piece's dice.
        composer: whose touch and language it has.
    """

    def __init__(self, dice: Dice, composer: Composer) -> None:
        self.dice = dice
        self.composer = composer
        self._hands = Hands()
        self._nuances: dict[Setting, Nuances] = {}
        self._played: dict[tuple[Idea, Setting, bool], Cell] = {}

    def play(self, phrases: Iterable[Phrase], setting: Setting, rest: int) -> Passage:
        """Play phrases one after the other; an idea that comes back in them mostly comes back as the same cell.

        Args:
            phrases: what to play.
            setting: how.
            rest: steps to breathe after the last phrase; the others breathe less.
        """
        passage: list[Placement] = []
        phrases = tuple(phrases)
        for number, phrase in enumerate(phrases):
            for at, idea in enumerate(phrase):
                last = at == len(phrase) - 1
                breath = (rest if number == len(phrases) - 1 else rest // 3 + 1) if last else 0
                place = Place(at / len(phrase), (at + 1) / len(phrase), breath)
                passage.append(Placement(self._cell(idea, setting, place), 0))
        return tuple(passage)

    def replay(
        self, passage: Passage, new_idea: Callable[[Idea], Idea], new_setting: Callable[[Setting], Setting]
    ) -> Passage:
        """Play a passage again, its ideas or its settings changed; what was repeated in it still is."""
        ideas: dict[Idea, Idea] = {}
        settings: dict[Setting, Setting] = {}
        cells: dict[Cell, Cell] = {}
        for cell, _ in passage:
            if cell not in cells:
                if cell.idea is None:
                    cells[cell] = cell
                    continue
                if cell.idea not in ideas:
                    ideas[cell.idea] = new_idea(cell.idea)
                if cell.setting not in settings:
                    settings[cell.setting] = new_setting(cell.setting)
                cells[cell] = self._perform(ideas[cell.idea], settings[cell.setting], cell.place)
        return tuple(Placement(cells[p.cell], p.semitones) for p in passage)

    def density(self, ideas: Iterable[Idea], texture: Texture) -> float:
        """Return how many notes a beat a texture makes of some ideas."""
        notes, beats = 0, 0.0
        for idea in ideas:
            notes += len(arrange(self.dice, idea, texture, Hands(), 0))
            beats += idea.ticks / idea.metre.beat
        return notes / beats

    def _cell(self, idea: Idea, setting: Setting, place: Place) -> Cell:
        known = self._played.get((idea, setting, place.rest > 0))
        if known is None or not self.dice.chance(0.5 + 0.5 * self.composer.language.literal):
            known = self._perform(idea, setting, place)
            self._played[idea, setting, place.rest > 0] = known
        return known

    def _perform(self, idea: Idea, setting: Setting, place: Place) -> Cell:
        notes = arrange(self.dice, idea, setting.texture, self._hands, setting.octave)
        score = Score(notes, [slot.start for slot in idea.harmony], idea.ticks, idea.metre)
        touch = self.composer.touch
        if setting not in self._nuances:
            self._nuances[setting] = Nuances(self.dice, touch)
        return perform(touch, self._nuances[setting], score, setting, place, idea)


def louder(setting: Setting, by: float) -> Setting:
    """Return the setting with more velocity, or less."""
    return replace(setting, level=setting.level + by)


def assemble(passage: Passage) -> Performance:
    """Join a passage's cells into one performance; notes sorted by onset, then pitch."""
    notes: list[Grid] = []
    pedal: list[Grid] = []
    step = 0
    for cell, semitones in passage:
        notes.append(cell.notes + np.array([step, step, semitones, 0]))
        pedal.append(cell.pedal + np.array([step, 0]))
        step += cell.length
    return to_performance(np.concatenate(notes), np.concatenate(pedal))


@dataclass(frozen=True)
class Restatement:
    """A stretch of a piece that is an earlier stretch again, note for note and step for step.

    Indices count the performance's notes, which are sorted by onset, then pitch. ``stop`` and ``source_stop`` are
    exclusive. The source is the nearest earlier occurrence and ends before the return begins.

    Args:
        kind: ``exact``, or ``transposed`` where all pitches are moved by the same interval.
        semitones: by how much it lies above its source; 0 for an exact return.
        start: its first note.
        stop: one past its last note.
        source_start: the first note of what it repeats.
        source_stop: one past the last note of what it repeats.
    """

    kind: Literal["exact", "transposed"]
    semitones: int
    start: int
    stop: int
    source_start: int
    source_stop: int

    def token_spans(self, note_token: NDArray[np.int64]) -> tuple[int, int, int, int]:
        """Return start, stop, source start and source stop as offsets among the encoded events.

        Each span runs from the note-on of its first note to the note-on of its last one, both included. Within them the
        tokens are equal, up to the transposition of note-ons and note-offs.

        Args:
            note_token: int64 [N], where each note's note-on went, as ``dsmr.music.tokens.encode_indexed`` returns it.
        """
        return (
            int(note_token[self.start]),
            int(note_token[self.stop - 1]) + 1,
            int(note_token[self.source_start]),
            int(note_token[self.source_stop - 1]) + 1,
        )


def find_returns(passage: Passage) -> tuple[Restatement, ...]:
    """Find every stretch of cells that repeats earlier cells, in order of their beginnings.

    Neighbouring cells that repeat neighbouring cells make one return, as long as it does not reach into itself.
    """
    first_note = np.cumsum([0] + [len(p.cell.notes) for p in passage]).tolist()
    latest: dict[Cell, int] = {}
    returns: list[Restatement] = []
    begin = source = shift = -1  # the return being followed: its first placement, its source's, its semitones
    for at, (cell, semitones) in enumerate((*passage, Placement(passage[-1].cell, 0))):
        earlier = latest.get(cell, -1) if at < len(passage) else -1
        moved = semitones - passage[earlier].semitones
        follows = begin >= 0 and earlier == source + at - begin and earlier < begin and moved == shift
        if not follows:
            if begin >= 0:
                length = at - begin
                start, stop = first_note[begin], first_note[at]
                source_start, source_stop = first_note[source], first_note[source + length]
                if stop - start >= FEWEST_LABELLED:
                    kind: Literal["exact", "transposed"] = "transposed" if shift else "exact"
                    returns.append(Restatement(kind, shift, start, stop, source_start, source_stop))
            begin, source, shift = (at, earlier, moved) if earlier >= 0 else (-1, -1, 0)
        latest[cell] = at
    return tuple(returns)
