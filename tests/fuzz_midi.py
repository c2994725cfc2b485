"""Damage MIDI files at random, and see that each is read, or refused with a MidiError, and nothing else happens.

    python -m tests.fuzz_midi --count 20000                     # starts from files of our own making
    python -m tests.fuzz_midi --count 20000 --first 20000 --folder ~/midi --keep finds

Input number n is the same on every machine. Inputs are read in processes of their own: one that crashes or takes more
than a minute of processor time is a find like any other, and ``--keep`` says where to put finds.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dsmr.corpus.parallel import ProcessDied, map_in_order
from dsmr.music.midi import MAX_SECONDS, MidiError, read_midi, write_midi
from dsmr.music.tokens import NOTE_DTYPE, Performance, decode, encode
from tests.hostile_midi import FILES
from tests.midi_bytes import file as midi_file
from tests.midi_bytes import varlen

READING_SECONDS = 60.0
LARGEST_START = 100_000  # bytes: a change in a larger file is one among too many that do nothing

# Bytes at which a reader's decisions turn: ends of ranges, statuses, continued quantities, kinds of meta events.
EDGES = (0x00, 0x01, 0x3C, 0x40, 0x7F, 0x80, 0x81, 0x90, 0x99, 0xB0, 0xC0, 0xE0, 0xF0, 0xF7, 0xFE, 0xFF, 0x2F, 0x51)
WORDS = (
    *(b"MThd", b"MTrk", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00\x00\x00\x00"),
    *(b"\x00\xff\x2f\x00", b"\x00\xff\x51\x03\x00\x00\x00", b"\x00\xff\x51\x03\xff\xff\xff", b"\x00\xb0\x40\x7f"),
)


def overwrite_byte(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] = dice.choice(EDGES)


def overwrite_data_byte(data: bytearray, dice: random.Random) -> None:
    """Put a value where a value was, so that the events stay events."""
    at = dice.randrange(len(data))
    if data[at] < 0x80:
        data[at] = dice.randrange(0x80)


def flip_bit(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def insert_bytes(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data) + 1)
    data[at:at] = dice.choice((dice.choice(WORDS), dice.randbytes(dice.randint(1, 8))))


def overwrite_word(data: bytearray, dice: random.Random) -> None:
    word = dice.choice(WORDS)
    at = dice.randrange(len(data))
    data[at : at + len(word)] = word


def delete_span(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice((1, 2, 3, 8, 100))]


def repeat_span(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    span = data[at : at + dice.choice((1, 4, 30, 400))]
    data[at:at] = span * dice.choice((1, 2, 50))


def move_span(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    span = data[at : at + dice.choice((4, 30, 400))]
    del data[at : at + len(span)]
    to = dice.randrange(len(data) + 1)
    data[to:to] = span


def change_header(data: bytearray, dice: random.Random) -> None:
    if len(data) >= 14:
        data[dice.randrange(4, 14)] = dice.choice(EDGES)


def change_length_of_track(data: bytearray, dice: random.Random) -> None:
    tracks = [match.end() for match in re.finditer(b"MTrk", data) if match.end() + 4 <= len(data)]
    if tracks:
        at = dice.choice(tracks)
        length = int.from_bytes(data[at : at + 4], "big") + dice.choice((-1000, -4, -1, 1, 4, 1000, 2**31))
        data[at : at + 4] = (length % 2**32).to_bytes(4, "big")


def cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


# What breaks a file as a whole is the rarer: it is found at once, and hides what else there is to find.
MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(overwrite_data_byte, overwrite_byte, flip_bit, insert_bytes, overwrite_word, delete_span, repeat_span) * 3,
    *(move_span, change_header, change_length_of_track, cut),
)


def own_files() -> list[bytes]:
    """Files to start from: four that write_midi makes, and of the hostile ones those that are small and can be read."""
    files = []
    with TemporaryDirectory() as folder:
        for seed in range(4):
            dice = np.random.default_rng(seed)
            notes = np.empty(50 * (seed + 1), NOTE_DTYPE)
            notes["onset"] = np.cumsum(dice.exponential(0.1, len(notes)))
            notes["offset"] = notes["onset"] + dice.exponential(0.5, len(notes))
            notes["pitch"] = dice.integers(21, 109, len(notes))
            notes["velocity"] = dice.integers(1, 128, len(notes))
            write_midi(Performance(notes), path := Path(folder) / "piece.mid")
            files.append(path.read_bytes())
    return files + [file.build() for file in FILES.values() if isinstance(file.outcome, int) and not file.large]


@lru_cache(maxsize=1)
def starts(folder: str) -> list[bytes]:
    """Files to start from: those of a folder, if one is named, else our own."""
    if not folder:
        return own_files()
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    return [path.read_bytes() for path in paths if path.stat().st_size <= LARGEST_START]


def grown(dice: random.Random) -> bytes:
    """A file of random events that are well formed, with values at the ends of their ranges."""

    def byte() -> int:
        return dice.choice((0, 1, 60, 63, 64, 127, dice.randrange(128)))

    def event() -> bytes:
        gap = varlen(dice.choice((0, 0, 1, dice.randrange(500), dice.randrange(500), dice.choice((2**14, 2**28 - 1)))))
        channel = dice.choice((0, 0, 1, 9, 15))
        return gap + dice.choice(
            (
                *[bytes([0x90 | channel, dice.choice((60, byte())), byte()])] * 4,
                *[bytes([0x80 | channel, dice.choice((60, byte())), byte()])] * 4,
                *[bytes([0xB0 | channel, 64, byte()])] * 2,
                bytes([0xB0 | channel, dice.choice((120, 121, 123, 127)), 0]),
                bytes([0xC0 | channel, byte()]),
                b"\xf0\x02\x41\xf7",
                b"\xff\x51\x03" + dice.choice((b"\x00\x00\x01", b"\xff\xff\xff", dice.randbytes(3))),
            )
        )

    tracks = [b"".join(event() for _ in range(dice.randrange(60))) for _ in range(dice.choice((1, 1, 2, 5)))]
    return midi_file(*tracks, division=dice.choice((1, 480, 32_767)))


def repair(data: bytearray) -> None:
    """Make the tracks' lengths right, so that a reader comes to their events."""
    words = [match.start() for match in re.finditer(b"MTrk", data)]
    for word, following in pairwise([*words, len(data)]):
        if (length := following - word - 8) >= 0:
            data[word + 4 : word + 8] = length.to_bytes(4, "big")


def damaged(number: int, files: list[bytes]) -> bytes:
    """Input ``number``: a file of random events, or one of these files, mutated, spliced with another, and repaired, or
    some of that.
    """
    dice = random.Random(number)
    data = bytearray(grown(dice) if dice.random() < 0.2 else dice.choice(files))
    if dice.random() < 0.1:
        other = dice.choice(files)
        data = data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]
    for _ in range(dice.choice((0, 1, 1, 2, 2, 3, 8))):
        if data:
            dice.choice(MUTATIONS)(data, dice)
    if dice.random() < 0.7:
        repair(data)
    return bytes(data)


def check(data: bytes) -> str:
    """Read a file and require what holds for every performance; return "read", or why the file was refused.

    Raises:
        Exception: whatever should not have happened.
    """
    try:
        performance = read_midi(data)
    except MidiError as error:
        reason = str(error).removeprefix("MIDI data: ").removeprefix("expected a MIDI file, got ")
        return re.sub(r"b['\"].*|(0x)?\d[\da-f.]*", "#", reason)[:70]
    notes, pedal = performance.notes, performance.pedal
    assert len(notes) > 0
    for times in (notes["onset"], notes["offset"], pedal["time"]):
        assert np.isfinite(times).all()
        assert ((times >= 0) & (times <= MAX_SECONDS)).all()
    assert (notes["onset"] <= notes["offset"]).all()
    assert (notes["pitch"] <= 127).all()
    assert ((notes["velocity"] >= 1) & (notes["velocity"] <= 127)).all()
    ids = encode(performance)
    again = decode(ids)
    assert len(again.notes) == len(notes)
    assert (np.diff(again.notes["onset"]) >= 0).all()
    np.testing.assert_array_equal(encode(again), ids)
    return "read"


def try_input(task: tuple[int, str]) -> tuple[str, bool]:
    """What became of an input, and whether that is as it should be."""
    number, folder = task
    try:
        return check(damaged(number, starts(folder))), True
    except Exception as error:
        return f"{type(error).__name__}: {error}", False


def main() -> int:
    """Try inputs, print what became of them, and return how many finds there were, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="how many inputs (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: %(default)s)")
    parser.add_argument("--folder", default="", help="start from the MIDI files of this folder")
    parser.add_argument("--keep", type=Path, help="the folder to put finds in")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    options = parser.parse_args()
    tasks = [(number, options.folder) for number in range(options.first, options.first + options.count)]
    results = map_in_order(try_input, tasks, options.workers, seconds=READING_SECONDS)
    fates: Counter[str] = Counter()
    finds = 0
    for (number, folder), result in zip(tasks, results, strict=True):
        fate, good = (str(result), False) if isinstance(result, ProcessDied) else result
        fates[fate if good else f"FIND: {fate}"] += 1
        if not good:
            finds += 1
            print(f"input {number}: {fate}")
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{number}.mid").write_bytes(damaged(number, starts(folder)))
    for fate, count in fates.most_common():
        print(f"{count:>8,}  {fate}")
    print(f"{len(tasks):,} inputs, {finds:,} finds")
    return min(finds, 1)


if __name__ == "__main__":
    sys.exit(main())
