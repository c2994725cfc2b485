"""Sources: the MIDI files of a MAESTRO release or of any folder, what they are, and where each lies."""

from __future__ import annotations

import csv
import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from dsmr.corpus.store import SPLITS
from dsmr.music.midi import MAX_BYTES, MidiError

MIDI_SUFFIXES = (".mid", ".midi", ".rmi")
TABLE_COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename")
"""The columns of a MAESTRO table that are used; the others (year, audio_filename, duration) need not be there."""
GROUP_COLUMNS = ("path", "group")
"""The columns of a table that says which files of a folder belong together."""
MAX_TABLE_BYTES = 16 * 2**20
"""No larger table is read: MAESTRO's has 0.3 MB."""

_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


@dataclass(frozen=True)
class Member:
    """A file in a zip archive; ``changed`` is the archive's time of modification in ns."""

    archive: Path
    changed: int
    name: str

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            MidiError: it is damaged.
        """
        try:
            return _opened(self.archive, self.changed).read(self.name)
        except Exception as error:  # zipfile has no common class for what a damaged archive makes it raise
            raise MidiError(f"cannot be unpacked: {error}") from error


@dataclass(frozen=True)
class MidiFile:
    """A MIDI file to prepare: ``content`` is where it lies.

    ``source`` names it in the store and in reports; ``split`` is None where the corpus does not say.
    """

    source: str
    title: str
    composer: str
    split: str | None
    content: Path | Member


@dataclass(frozen=True)
class LeftOut:
    """A file that did not become a piece, and why."""

    source: str
    reason: str


def folder_files(path: str | os.PathLike[str]) -> list[MidiFile]:
    """Return every ``.mid``, ``.midi`` and ``.rmi`` file in a folder and the folders below, sorted by path.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: expected a folder of MIDI files, found none")
    files = [file for file in root.rglob("*") if file.suffix.lower() in MIDI_SUFFIXES and file.is_file()]
    named = sorted((_text(file.relative_to(root).as_posix()), file) for file in files)
    return [MidiFile(source, _text(file.stem), "", None, file) for source, file in named]


def groups_by_folder(files: Sequence[MidiFile]) -> list[str]:
    """Name the group of each file of a folder: the folder that holds it.

    Where folders that hold files lie in one another, it is the outermost of them, so that the versions of a piece in a
    folder beside it belong to it. A file that no folder below holds has its title for a group.
    """
    holders = {PurePosixPath(file.source).parent for file in files}
    groups = []
    for file in files:
        *_, top = [file.title, *(str(up) for up in PurePosixPath(file.source).parents[:-1] if up in holders)]
        groups.append(top)
    return groups


def groups_in_table(files: Sequence[MidiFile], table: str | os.PathLike[str]) -> list[str]:
    """Find the group of each file of a folder in a ``.csv`` table with (at least) ``GROUP_COLUMNS``.

    Its paths are those below the folder, with forward slashes; those of other files do not matter.

    Raises:
        OSError: the table cannot be read.
        ValueError: it lacks a column, a file or its group, is damaged, or puts a file into two groups.
    """
    with open(table, "rb") as file:
        content = file.read(MAX_TABLE_BYTES + 1)
    group: dict[str, str] = {}
    try:
        for number, row in _rows(content, GROUP_COLUMNS):
            if not row["group"].strip():
                raise ValueError(f"row {number}: expected a group for {row['path']}, got none")
            if group.setdefault(path := row["path"].removeprefix("./"), row["group"]) != row["group"]:
                raise ValueError(f"row {number}: expected one group for {path}, got {group[path]} before")
    except ValueError as error:
        raise ValueError(f"{os.fspath(table)}: {error}") from error
    if missing := [each.source for each in files if each.source not in group]:
        raise ValueError(f"{os.fspath(table)}: expected every file, got none for {missing[0]}, {len(missing)} in all")
    return [group[each.source] for each in files]


def _text(name: str) -> str:
    """A file's name as text, whatever its bytes: those that are no UTF-8 are written as \\xff."""
    return os.fsencode(name).decode(errors="backslashreplace")


def maestro_files(path: str | os.PathLike[str]) -> list[MidiFile | LeftOut]:
    """Return the files in the table of a MAESTRO release, in its order; rows that lead to no file are left out.

    The table is a ``.csv`` file with (at least) ``TABLE_COLUMNS``, in the folder or archive or one folder below, as in
    ``maestro-v3.0.0-midi.zip``. Nothing is ever unpacked to the disk, and of an archive only files that are plain,
    stored or deflated, and not larger than a MIDI file may be.

    Args:
        path: the folder, or the ``.zip`` file as downloaded.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it is no folder and no zip file, or does not hold exactly one such table, or one that is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return list(_files_in_table(_Folder(path)))
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a MAESTRO folder or zip file, found nothing")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a MAESTRO folder or zip file, got a file that is neither")
    return list(_files_in_table(_Archive(path)))


class _Folder:
    """A folder, as the table reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tables(self) -> list[PurePosixPath]:
        found = [*self.path.glob("*.csv"), *self.path.glob("*/*.csv")]
        return _visible(PurePosixPath(file.relative_to(self.path).as_posix()) for file in found if file.is_file())

    def read_table(self, name: PurePosixPath) -> bytes:
        with open(self.path / name, "rb") as file:
            return file.read(MAX_TABLE_BYTES + 1)

    def find(self, name: PurePosixPath) -> Path | str:
        file = self.path / name
        return file if file.is_file() else "in the table, but missing"


class _Archive:
    """A zip file, as the table reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = path.stat().st_mtime_ns
        try:
            members = _opened(path, self.changed).infolist()
        except Exception as error:  # as in Member.read
            raise ValueError(f"{path}: expected a zip file that is whole: {error}") from error
        self.members = {member.filename: member for member in members if not member.is_dir()}
        self.count = Counter(member.filename for member in members)

    def tables(self) -> list[PurePosixPath]:
        found = [PurePosixPath(name) for name in self.members if name.endswith(".csv")]
        return _visible(name for name in found if len(name.parts) <= 2)

    def read_table(self, name: PurePosixPath) -> bytes:
        if (reason := self._refusal(str(name), MAX_TABLE_BYTES)) is not None:
            raise _AnotherTable(reason)
        try:
            return Member(self.path, self.changed, str(name)).read()
        except MidiError as error:
            raise _AnotherTable(str(error)) from error

    def find(self, name: PurePosixPath) -> Member | str:
        return self._refusal(str(name), MAX_BYTES) or Member(self.path, self.changed, str(name))

    def _refusal(self, name: str, most: int) -> str | None:
        """Why a member is not even opened, if so."""
        if name not in self.members:
            return "in the table, but missing"
        member = self.members[name]
        if self.count[name] > 1:
            return f"expected one file of this name in the archive, got {self.count[name]}"
        mode = member.external_attr >> 16  # as Unix has it; other systems write 0
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            return "expected a plain file in the archive, got a link or a device"
        if member.compress_type not in _METHODS:  # zipfile unpacks other methods in blocks of any size
            return f"expected a file that is {' or '.join(_METHODS.values())}, got method {member.compress_type}"
        if member.file_size > most:  # zipfile unpacks no more than is stated here, whatever there is
            return f"expected at most {most} bytes, got {member.file_size}"
        return None


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int) -> zipfile.ZipFile:
    """An archive, opened once a process; `changed` tells apart what lay at its path."""
    return zipfile.ZipFile(path)


def _visible(names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    return sorted(name for name in names if not name.name.startswith("."))  # macOS adds files named ._x to archives


def _files_in_table(release: _Folder | _Archive) -> Iterator[MidiFile | LeftOut]:
    table, rows = _only_table(release)
    first_row: dict[PurePosixPath, int] = {}
    for number, row in rows:
        name = row["midi_filename"]
        inside = PurePosixPath(name)
        content: Path | Member | str
        if not name or inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
            content = "not a path inside the release"
        elif row["split"] not in SPLITS:
            content = f"expected a split of {', '.join(SPLITS)}, got {row['split']!r}"
        elif (first := first_row.setdefault(inside, number)) != number:
            content = f"listed before, in row {first}"
        else:
            content = release.find(table.parent / inside)
        if isinstance(content, str):
            yield LeftOut(name, f"row {number} of {table}: {content}")
        else:
            yield MidiFile(name, row["canonical_title"], row["canonical_composer"], row["split"], content)


def _only_table(release: _Folder | _Archive) -> tuple[PurePosixPath, list[tuple[int, dict[str, str]]]]:
    """The one table with the columns wanted: its name, and its rows with their numbers."""
    found: list[tuple[PurePosixPath, list[tuple[int, dict[str, str]]]]] = []
    others: list[str] = []
    for name in release.tables():
        try:
            found.append((name, _rows(release.read_table(name), TABLE_COLUMNS)))
        except _AnotherTable as error:
            others.append(f"{name}: {error}")
        except ValueError as error:
            raise ValueError(f"{release.path}: {name}: {error}") from error
    if len(found) != 1:
        got = ", ".join([str(name) for name, _ in found] or others or ["none"])
        raise ValueError(
            f"{release.path}: expected one .csv table with the columns {', '.join(TABLE_COLUMNS)}, got {got}"
        )
    return found[0]


class _AnotherTable(ValueError):
    """A .csv file that is not the table looked for."""


def _rows(table: bytes, wanted: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """A table's rows with their numbers: the columns' names are row 1, and empty rows count."""
    # Another .csv file that lies about may have any size and encoding; its columns will not match.
    if len(table) > MAX_TABLE_BYTES:
        raise _AnotherTable(f"expected at most {MAX_TABLE_BYTES} bytes, got more")
    reader = csv.reader(io.StringIO(table.decode("utf-8-sig", errors="replace"), newline=""), strict=True)
    columns = _columns(reader, wanted)
    rows: list[tuple[int, dict[str, str]]] = []
    number = 1
    try:
        for number, fields in enumerate(reader, start=2):
            if fields and len(fields) != len(columns):
                raise ValueError(f"row {number}: expected {len(columns)} fields as in row 1, got {len(fields)}")
            if fields:
                rows.append((number, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        raise ValueError(f"row {number + 1}: {error}") from error
    return rows


def _columns(reader: Iterator[list[str]], wanted: Sequence[str]) -> list[str]:
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise _AnotherTable(f"row 1: {error}") from error
    if missing := [column for column in wanted if column not in columns]:
        raise _AnotherTable(f"row 1 lacks {', '.join(missing)}")
    for column in wanted:
        if (count := columns.count(column)) > 1:
            raise ValueError(f"row 1: expected each column once, got {column} {count} times")
    return columns
