"""Claimed folders: one writer at a time, in a folder that is empty or has been that writer's kind's before.

Such a folder is known by a file of its own, its mark. Whoever writes holds a lock on the mark, which the system
releases when the process ends, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

DROPPINGS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Of macOS and of Windows."""


class OccupiedError(FileExistsError):
    """A folder that is not free to be written into: it holds somebody else's files, or another process writes there."""


class SaveError(OSError):
    """Something that cannot be written."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Within, an OSError means that `path` cannot be written: it becomes a `SaveError` that says so."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path}: cannot be written: {error.strerror or error}; what was saved before is as it was"
        ) from error


@contextmanager
def claimed(folder: Path, mark: str, owner: str) -> Iterator[None]:
    """Within, `folder` is this process's alone; made if missing, together with its mark.

    Args:
        folder: missing, empty, or one that has the mark.
        mark: the name of the file by which it is known.
        owner: what writes such folders, for messages.

    Raises:
        OccupiedError: the folder is not empty and has no mark, or another process, or this one, has claimed it.
        SaveError: the folder or the mark cannot be written.
    """
    check_own(folder, mark, owner)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / mark)
    if not _lock_now(lock, folder):
        raise OccupiedError(f"{folder}: expected a folder that nobody writes into, got one that {owner} is using")
    try:
        yield
    finally:
        lock.release()


def _lock_now(lock: BaseFileLock, folder: Path) -> bool:
    """Take the lock, or say that somebody else has it."""
    with saving(folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
    return True


def check_own(folder: Path, mark: str, owner: str) -> None:
    """OccupiedError unless `folder` is missing, empty but for what desktops drop, or has the mark."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OccupiedError(f"{folder}: expected a folder, got {kind(folder)}")
    with saving(folder):
        there = sorted(path.name for path in folder.iterdir() if not is_dropping(path))
    if there and not is_file(folder / mark):
        raise OccupiedError(
            f"{folder}: expected an empty folder or that of {owner}, which has a file {mark}, got one with {there[0]}"
        )


def is_dropping(path: Path) -> bool:
    """Whether `path` is a file that a desktop drops into every folder that is looked at: nobody's, and soon back."""
    return path.name in DROPPINGS and is_file(path)


def is_file(path: Path) -> bool:
    """Whether `path` is a file itself, not a link to one."""
    return path.is_file() and not path.is_symlink()


def is_single_file(path: Path) -> bool:
    """Whether `path` is a file itself and its only name: what is written into it appears nowhere else."""
    return is_file(path) and path.stat().st_nlink == 1


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def kind(path: Path) -> str:
    """What lies at `path`, for messages."""
    if path.is_symlink():
        return "a link"
    if path.is_file() and not is_single_file(path):
        return "a file that has another name, too"
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "something that is neither file nor folder"
