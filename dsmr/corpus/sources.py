"""Which MIDI files a corpus has, what they are, and where each lies: a MAESTRO release or any folder."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsmr.corpus.store import SPLITS
from dsmr.midi import MAX_BYTES

MIDI_SUFFIXES = (".mid", ".midi")
TABLE_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
"""The columns of a MAESTRO table that are used; the others (year, audio_filename, duration) need not be there."""


@dataclass(frozen=True)
class MidiFile:
    """A MIDI file to prepare: ``content`` is its path, or its bytes if it comes from an archive.

    ``source`` names it in the store and in reports; ``split`` is None where the corpus does not say.
    """

    source: str
    title: str
    composer: str
    split: str | None
    content: Path | bytes


@dataclass(frozen=True)
class LeftOut:
    """A file that did not become a piece, and why."""

    source: str
    reason: str


def folder_files(path: str | os.PathLike[str]) -> list[MidiFile]:
    """Return every ``.mid`` and ``.midi`` file in a folder and the folders below, sorted by path.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected a folder of MIDI files, found none")
    files = [file for file in root.rglob("*") if file.suffix.lower() in MIDI_SUFFIXES and file.is_file()]
    named = sorted((file.relative_to(root).as_posix(), file) for file in files)
    return [MidiFile(source, file.stem, "", None, file) for source, file in named]


def maestro_files(path: str | os.PathLike[str]) -> list[MidiFile | LeftOut]:
    """Return the files in the table of a MAESTRO release, in its order; rows that lead to no file are left out.

    The table is a ``.csv`` file with (at least) ``TABLE_COLUMNS``, in the folder or archive or one folder below, as in
    ``maestro-v3.0.0-midi.zip``. Members of an archive are read into memory; nothing is unpacked.

    Args:
        path: the folder, or the ``.zip`` file as downloaded.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it is no folder and no zip file, or does not hold exactly one such table.
    """
    path = Path(path)
    if path.is_dir():
        return list(_files_in_table(_Folder(path)))
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a MAESTRO folder or zip file, found nothing")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a MAESTRO folder or zip file, got a file that is neither")
    with zipfile.ZipFile(path) as archive:
        return list(_files_in_table(_Archive(path, archive)))


class _Folder:
    """A folder, as the table reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tables(self) -> list[PurePosixPath]:
        found = [*self.path.glob("*.csv"), *self.path.glob("*/*.csv")]
        return _visible(PurePosixPath(file.relative_to(self.path).as_posix()) for file in found)

    def read(self, name: PurePosixPath) -> bytes:
        return (self.path / name).read_bytes()

    def find(self, name: PurePosixPath) -> Path | LeftOut:
        file = self.path / name
        return file if file.is_file() else LeftOut(str(name), "in the table, but missing")


class _Archive:
    """A zip file, as the table reader sees it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        self.members = {name for name in archive.namelist() if not name.endswith("/")}

    def tables(self) -> list[PurePosixPath]:
        found = [PurePosixPath(name) for name in self.members if name.endswith(".csv")]
        return _visible(name for name in found if len(name.parts) <= 2)

    def read(self, name: PurePosixPath) -> bytes:
        return self.archive.read(str(name))

    def find(self, name: PurePosixPath) -> bytes | LeftOut:
        if str(name) not in self.members:
            return LeftOut(str(name), "in the table, but missing")
        try:
            with self.archive.open(str(name)) as member:
                return member.read(MAX_BYTES + 1)  # a member may claim to be small and unpack without end
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            return LeftOut(str(name), f"cannot be unpacked: {error}")


def _visible(names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    return sorted(name for name in names if not name.name.startswith("."))  # macOS adds files named ._x to archives


def _rows(table: bytes) -> list[dict[str, str]]:
    # Another .csv file that lies about may have any encoding; its columns will not match.
    return list(csv.DictReader(io.StringIO(table.decode("utf-8-sig", errors="replace")), restval=""))


def _files_in_table(release: _Folder | _Archive) -> Iterator[MidiFile | LeftOut]:
    tables = {name: _rows(release.read(name)) for name in release.tables()}
    tables = {name: rows for name, rows in tables.items() if rows and set(TABLE_COLUMNS) <= set(rows[0])}
    if len(tables) != 1:
        columns, found = ", ".join(TABLE_COLUMNS), ", ".join(map(str, tables)) or "none"
        raise ValueError(f"{release.path}: expected one .csv table with the columns {columns}, got {found}")
    ((table, rows),) = tables.items()
    for row in rows:
        name = row["midi_filename"]
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
            yield LeftOut(name, "not a path inside the release")
        elif row["split"] not in SPLITS:
            yield LeftOut(name, f"expected a split of {', '.join(SPLITS)}, got {row['split']!r}")
        else:
            content = release.find(table.parent / inside)
            if isinstance(content, LeftOut):
                yield LeftOut(name, content.reason)
            else:
                yield MidiFile(name, row["canonical_title"], row["canonical_composer"], row["split"], content)
