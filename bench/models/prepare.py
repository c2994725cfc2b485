"""Corpus preparation, `python -m bench prepare`: how fast music that the built-in pianist plays becomes a corpus.

Its pieces in all transpositions of two octaves stand for a corpus of recorded music: as many different files.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import measure
from bench.harness.case import Contender, Work, judge
from bench.harness.machine import commit
from bench.harness.measure import Trial
from bench.harness.results import Row
from bench.harness.settings import Part, Settings
from dsmr.music.tokens import BEGIN, END, Ids, Performance, decode, encode
from dsmr.pianist import FEWEST_TOKENS, compose

PIECES, LENGTH = 6, 8_000
"""Of the pianist's: how many, and their tokens, about. Recorded ones have 12,800 on average."""
TRANSPOSITIONS = range(-12, 12)
MIDI_LIBRARIES = ("mido", "pretty_midi")


@dataclass(frozen=True)
class Music:
    """Pieces in every form that they have on the way to a store, all in the same order."""

    performances: list[Performance]
    ids: list[Ids]
    length: int
    paths: list[Path] = field(default_factory=list)

    @classmethod
    def played(cls, pieces: int, length: int) -> Music:
        """By the pianist; no files."""
        performances = [compose(seed, length).performance for seed in range(pieces)]
        return cls(performances, [encode(performance) for performance in performances], length)

    def in_files(self, folder: Path) -> Music:
        """Each piece in all transpositions, written as MIDI files."""
        from dsmr.music.midi import read_midi, write_midi

        paths = []
        for number, performance in enumerate(self.performances):
            for semitones in TRANSPOSITIONS:
                paths.append(folder / f"{number:02d}{semitones:+03d}.mid")
                notes = performance.notes.copy()
                notes["pitch"] = notes["pitch"].astype(np.int64) + semitones
                write_midi(Performance(notes, performance.pedal), paths[-1])
        performances = [read_midi(path) for path in paths]
        return Music(performances, [encode(performance) for performance in performances], self.length, paths)

    @property
    def tokens(self) -> int:
        """Of all pieces."""
        return sum(map(len, self.ids))


def into_store(music: Music, processes: int) -> list[Ids]:
    """MIDI files to a token store on disk: read, tokenised, compared for doubles, split and written."""
    from dsmr.corpus.prepare import prepare_folder
    from dsmr.corpus.store import TokenStore

    with tempfile.TemporaryDirectory() as folder:
        prepare_folder(music.paths[0].parent, Path(folder) / "store", workers=processes)
        store = TokenStore.open(Path(folder) / "store")
        return [np.array(store.piece(index)) for index in range(len(store.pieces))]


def read_files(music: Music, _: int) -> list[Performance]:
    """MIDI files to notes."""
    from dsmr.music.midi import read_midi

    return [read_midi(path) for path in music.paths]


def tokenise(music: Music, _: int) -> list[Ids]:
    """Notes to tokens."""
    return [encode(performance) for performance in music.performances]


def detokenise(music: Music, _: int) -> list[Performance]:
    """Tokens to notes."""
    return [decode(ids) for ids in music.ids]


def play(music: Music, _: int) -> list[Performance]:
    """The pianist composes and performs the same pieces again."""
    return [compose(seed, music.length).performance for seed in range(len(music.ids))]


@dataclass(frozen=True)
class PrepareCase:
    """One kind of work; `files`: on MIDI files, which need the extra `music`."""

    what: str
    work: Callable[[Music, int], list[Any]]
    files: bool
    pieces: int
    length: int
    most_processes: int = 1
    task: str = "prepare"

    @property
    def name(self) -> str:
        """What is done."""
        return self.what

    @property
    def fields(self) -> dict[str, Any]:
        """What tells this case from others."""
        return {"what": self.what, "pieces": self.pieces * (len(TRANSPOSITIONS) if self.files else 1)}

    def music(self, folder: Path) -> Music:
        """What the work is done on."""
        music = Music.played(self.pieces, self.length)
        return music.in_files(folder) if self.files else music

    def wrong(self, on: Processes, device: torch.device) -> str | None:
        """Compare what comes out, as tokens, with what went in."""
        with tempfile.TemporaryDirectory() as folder:
            smaller = replace(self, pieces=1, length=FEWEST_TOKENS).music(Path(folder))
            made = [x if isinstance(x, np.ndarray) else encode(x) for x in self.work(smaller, on.count)]
        made = [x[1:-1] if (x[0], x[-1]) == (BEGIN, END) else x for x in made]  # a store frames its pieces
        got, want = (sorted(x.tobytes() for x in ids) for ids in (made, smaller.ids))
        return None if got == want else f"{len(set(got) & set(want))} of {len(want)} pieces came out right"


@dataclass(frozen=True, kw_only=True)
class Processes(Contender):
    """The same work on so many processes."""

    count: int


def processes(count: int) -> Processes:
    """A contender that works on so many processes, where there are as many cores and what MIDI files need."""
    name = f"{count} process" + "es" * (count > 1)
    return Processes(
        name=name, version=f"commit {commit()}", ours=True, unavailable=partial(_missing, count), count=count
    )


def _missing(count: int, case: PrepareCase, device: torch.device) -> str | None:
    missing = [name for name in MIDI_LIBRARIES if importlib.util.find_spec(name) is None]
    if case.files and missing:
        return f"reading and writing MIDI files needs {', '.join(missing)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"this process may use {cores} core" if count > cores else None


def cases(quick: bool) -> list[PrepareCase]:
    """The whole way, and its parts one by one."""
    size = {"pieces": 1, "length": FEWEST_TOKENS} if quick else {"pieces": PIECES, "length": LENGTH}
    return [
        PrepareCase("MIDI files to a token store", into_store, True, **size, most_processes=2),
        PrepareCase("MIDI files to notes", read_files, True, **size),
        PrepareCase("notes to tokens", tokenise, False, **size),
        PrepareCase("tokens to notes", detokenise, False, **size),
        PrepareCase("the pianist plays", play, False, **size),
    ]


def parts(settings: Settings) -> list[Part]:
    """One part a kind of work."""
    return [(case, partial(_measure, case, settings)) for case in cases(settings.quick)]


def _measure(case: PrepareCase, settings: Settings) -> list[Row]:
    contenders = settings.chosen(processes(count) for count in range(1, case.most_processes + 1))
    rows = {each.name: judge(case, each, settings.device) for each in contenders}
    right = [each for each in contenders if rows[each.name].status == "right"]
    if not right:
        return list(rows.values())
    with tempfile.TemporaryDirectory() as folder:
        music = case.music(Path(folder))
        trials = [Trial(each.name, [partial(case.work, music, each.count)]) for each in right]
        limits = settings.limits.for_all(len(trials))
        samples = measure.rounds(trials, torch.device("cpu"), False, limits)
    for name, own in samples.items():
        rows[name].time(own, Work(0, 0, music.tokens)._asdict(), samples)
        rows[name].extra["tokens_per_second"] = measure.rates(music.tokens, own)
        rows[name].extra["pieces_per_second"] = measure.rates(len(music.ids), own)
    return list(rows.values())
