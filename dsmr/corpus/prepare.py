"""Preparation of a token store, from MIDI files or from the built-in pianist.

Whatever the number of processes, equal input makes a store of equal bytes. A file that cannot be used never stops the
run: it is left out, and the report says why.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dsmr.corpus.alike import Sketch, alike_across, sketch
from dsmr.corpus.left_out import SAME_MUSIC
from dsmr.corpus.parallel import ProcessDied, ProcessesError, map_in_order
from dsmr.corpus.sources import (
    LeftOut,
    Member,
    MidiFile,
    folder_files,
    groups_by_folder,
    groups_in_table,
    maestro_files,
)
from dsmr.corpus.store import SPLITS, Return, StoreWriter
from dsmr.music.midi import MidiError, read_midi
from dsmr.music.tokens import BEGIN, END, Ids, encode, encode_indexed
from dsmr.pianist import FEWEST_TOKENS, compose
from dsmr.pianist.dice import Dice
from dsmr.progress import Progress

StrPath = str | os.PathLike[str]
GroupBy = Literal["name", "parent"] | os.PathLike[str]
"""Which files of a folder go into one split: those of one name; those of one folder; those of one group in a table."""

MAX_READING_SECONDS = 60.0
"""Processor time for one MIDI file; those that take longest, of 65,535 tracks, take a few seconds."""


@dataclass(frozen=True)
class PrepareReport:
    """What a run put into the store, and what it left out.

    Args:
        path: the store.
        pieces: how many pieces each split got.
        tokens: how many tokens each split got, BEGIN and END counted.
        seconds: how long all the music lasts.
        longest: the tokens of the longest piece.
        left_out: every file that is not in the store, and why, in the order of the corpus.
        straddling: pairs of sources that are nearly the same music and lie in different splits (see
            :mod:`dsmr.corpus.alike`): what is measured on one was seen in the other.
    """

    path: Path
    pieces: dict[str, int]
    tokens: dict[str, int]
    seconds: float
    longest: int
    left_out: tuple[LeftOut, ...]
    straddling: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Encoded:
    """A piece ready to be stored; ``ids`` run from BEGIN to END."""

    ids: Ids
    title: str
    composer: str
    source: str
    returns: tuple[Return, ...] = ()
    sketch: Sketch = field(default_factory=lambda: np.empty(0, np.uint64))


def prepare_maestro(
    path: StrPath, out: StrPath, *, workers: int | None = None, progress: Progress | None = None
) -> PrepareReport:
    """Prepare a MAESTRO release, with the splits of its table.

    Args:
        path: its folder or zip file (see :func:`dsmr.corpus.sources.maestro_files`).
        out: the store to write.
        workers: how many processes; None takes all cores, 0 none but the calling one.
        progress: called with the files done and the files there are.

    Raises:
        FileNotFoundError, ValueError: the path is no MAESTRO release, or not one of its files can be used.
    """
    files = maestro_files(path)
    split: dict[str, str] = {}
    for file in files:
        if isinstance(file, MidiFile) and file.split is not None:
            split.setdefault(file.source, file.split)  # a file listed twice is stored once, as it is listed first
    return _store(out, _encode_files(files, path, workers, progress), split)


def prepare_folder(
    path: StrPath,
    out: StrPath,
    *,
    validation: float = 0.05,
    test: float = 0.05,
    group_by: GroupBy = "name",
    workers: int | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Prepare every MIDI file in a folder and the folders below.

    A piece's title is its file's name; files of one group fall into one split (see :func:`draw_splits`).

    Args:
        path: the folder.
        out: the store to write.
        validation, test: which part of the groups goes into these splits.
        group_by: what makes a group: "name", files of one name; "parent", those of one folder (see
            :func:`dsmr.corpus.sources.groups_by_folder`); or the path of a table (see
            :func:`dsmr.corpus.sources.groups_in_table`).
        workers: how many processes; None takes all cores, 0 none but the calling one.
        progress: called with the files done and the files there are.

    Raises:
        OSError, ValueError: there is no such folder, no file in it can be used, the table is none, or the parts are
            impossible.
    """
    _check_parts(validation, test)
    files = folder_files(path)
    group = dict(zip((file.source for file in files), _groups(files, group_by), strict=True))
    encoded = _encode_files(files, path, workers, progress)
    sources = [entry.source for entry in encoded if isinstance(entry, _Encoded)]
    split = draw_splits([group[source] for source in sources], validation, test)
    return _store(out, encoded, {source: split[group[source]] for source in sources})


def prepare_pianist(
    out: StrPath,
    *,
    seed: int = 0,
    tokens: int = 2_000_000,
    shortest: int = 2_000,
    longest: int = 30_000,
    validation: float = 0.1,
    test: float = 0.1,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Let the built-in pianist compose a corpus, its returns labelled.

    Lengths are drawn evenly on a logarithmic scale, until the pieces add up to the tokens asked for.

    Args:
        out: the store to write.
        seed: at least 0; another seed makes other pieces.
        tokens: about how many tokens to compose altogether.
        shortest, longest: between how many tokens a piece is to have, about.
        validation, test: which part of the pieces goes into these splits.
        workers: how many processes; None takes all cores, 0 none but the calling one.
        progress: called with the pieces done and the pieces there are.

    Raises:
        ValueError: a number out of its range.
    """
    _check_parts(validation, test)
    if not FEWEST_TOKENS <= shortest <= longest:
        raise ValueError(
            f"shortest, longest: expected {FEWEST_TOKENS} <= shortest <= longest, got {shortest}, {longest}"
        )
    if seed < 0 or tokens < 1:
        raise ValueError(f"seed, tokens: expected seed >= 0 and tokens >= 1, got {seed}, {tokens}")
    orders = _pianist_orders(seed, tokens, shortest, longest)
    pieces = [_unless_died(result) for result in map_in_order(_compose, orders, workers, progress)]
    return _store(out, pieces, draw_splits([piece.source for piece in pieces], validation, test))


def draw_splits(names: Sequence[str], validation: float, test: float) -> dict[str, str]:
    """Assign each name to "train", "validation" or "test", by a hash that depends on nothing but the name.

    Names are ordered by hash; the first ones validate, the next ones test, the rest train. Equal names, whatever their
    case, go together; a new name moves three others at most. A part above 0 gets at least one name, as long as one is
    left to train on.
    """
    ordered = sorted({name.casefold() for name in names}, key=lambda name: hashlib.sha256(name.encode()).digest())
    validating = min(math.ceil(validation * len(ordered)), len(ordered) - 1)
    testing = min(math.ceil(test * len(ordered)), len(ordered) - 1 - validating)
    split = dict.fromkeys(ordered, "train")
    split.update(dict.fromkeys(ordered[:validating], "validation"))
    split.update(dict.fromkeys(ordered[validating : validating + testing], "test"))
    return {name: split[name.casefold()] for name in names}


def _groups(files: Sequence[MidiFile], group_by: GroupBy) -> list[str]:
    if group_by == "name":
        return [file.title for file in files]
    if group_by == "parent":
        return groups_by_folder(files)
    return groups_in_table(files, group_by)


def _encode_files(
    files: Sequence[MidiFile | LeftOut], path: StrPath, workers: int | None, progress: Progress | None
) -> list[_Encoded | LeftOut]:
    """Encode files, in their order; leave out those that fail and those whose tokens were there before."""
    to_read = [file for file in files if isinstance(file, MidiFile)]
    results = iter(map_in_order(_encode_file, to_read, workers, progress, MAX_READING_SECONDS))
    entries: list[_Encoded | LeftOut] = []
    first_source: dict[bytes, str] = {}
    for file in files:
        entry = file if isinstance(file, LeftOut) else next(results)
        if isinstance(entry, ProcessDied):
            entry = LeftOut(file.source, f"cannot be read: {entry}")
        elif isinstance(entry, _Encoded):
            music = hashlib.sha256(entry.ids.tobytes()).digest()
            if music in first_source:
                entry = LeftOut(file.source, f"{SAME_MUSIC} {first_source[music]}")
            else:
                first_source[music] = file.source
        entries.append(entry)
    if all(isinstance(entry, LeftOut) for entry in entries):
        first = next(
            (f"; the first: {entry.source}: {entry.reason}" for entry in entries if isinstance(entry, LeftOut)), ""
        )
        raise ValueError(f"{os.fspath(path)}: expected MIDI files, got {len(entries)} of which none can be used{first}")
    return entries


def _encode_file(file: MidiFile) -> _Encoded | LeftOut:
    try:
        performance = read_midi(file.content.read() if isinstance(file.content, Member) else file.content)
        ids = encode(performance)
    except Exception as error:  # whatever one file provokes, the others are to be prepared; the report names it
        kind = "" if isinstance(error, MidiError) else f"{type(error).__name__}: "
        reason = str(error).removeprefix("MIDI data: ").removeprefix(f"{file.content}: ")
        return LeftOut(file.source, kind + reason)
    return _Encoded(_framed(ids), file.title, file.composer, file.source, sketch=sketch(performance))


def _pianist_orders(seed: int, tokens: int, shortest: int, longest: int) -> list[tuple[int, int, str]]:
    """What to compose: (seed of the piece, its tokens, its source), pieces that add up to at least `tokens`."""
    dice = Dice(seed)
    orders: list[tuple[int, int, str]] = []
    ordered = 0
    while ordered < tokens:
        piece_seed = dice.integer(0, 2**32 - 1)
        length = round(math.exp(dice.between(math.log(shortest), math.log(longest))))
        orders.append((piece_seed, length, f"pianist, seed {piece_seed}, {length} tokens"))
        ordered += length
    return orders


def _compose(order: tuple[int, int, str]) -> _Encoded:
    seed, tokens, source = order
    composition = compose(seed, tokens)
    ids, note_token = encode_indexed(composition.performance)
    after_begin = note_token + 1
    returns = tuple(Return(each.kind, each.semitones, *each.token_spans(after_begin)) for each in composition.returns)
    return _Encoded(_framed(ids), composition.title, "Pianist", source, returns)


def _framed(ids: Ids) -> Ids:
    return np.concatenate([[BEGIN], ids, [END]]).astype(np.uint16)


def _unless_died(result: _Encoded | ProcessDied) -> _Encoded:
    if isinstance(result, ProcessDied):
        raise ProcessesError("the pianist's process died, perhaps for want of memory; try fewer workers") from result
    return result


def _store(out: StrPath, entries: Sequence[_Encoded | LeftOut], split: Mapping[str, str]) -> PrepareReport:
    """Write the pieces, each into the split of its source, and report."""
    encoded = [entry for entry in entries if isinstance(entry, _Encoded)]
    straddling = alike_across([entry.sketch for entry in encoded], [split[entry.source] for entry in encoded])
    with StoreWriter(out) as store:
        pieces = [
            store.add(
                entry.ids,
                split=split[entry.source],
                title=entry.title,
                composer=entry.composer,
                source=entry.source,
                returns=entry.returns,
            )
            for entry in encoded
        ]
    return PrepareReport(
        path=Path(out),
        pieces={split: sum(piece.split == split for piece in pieces) for split in SPLITS},
        tokens={split: sum(piece.length for piece in pieces if piece.split == split) for split in SPLITS},
        seconds=sum(piece.duration for piece in pieces),
        longest=max(piece.length for piece in pieces),
        left_out=tuple(entry for entry in entries if isinstance(entry, LeftOut)),
        straddling=tuple((encoded[one].source, encoded[other].source) for one, other in straddling),
    )


def _check_parts(validation: float, test: float) -> None:
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"validation, test: expected parts >= 0 that leave some to train on, got {validation}, {test}")
