"""Files that appear whole or not at all, and that outlast a power cut where it is asked for."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PARTIAL = re.compile(r"\.partial-[a-z0-9_]{8}")
"""The folders in which files wait until they are whole; one that nobody writes into is what a killed process left."""
HALF_WRITTEN = re.compile(r"\.(?P<file>.+)\.\d+\.partial")
"""What a killed process left of a `file` that it was writing durably."""
IN_USE = ".in-use.lock"
"""A file in each of them, which its writer keeps locked; the system releases the lock when the process ends."""


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Yield a folder; what the block writes into it is moved to `folder` when the block ends without an error.

    An error or a full disk leaves the files that were there before as they were. A link is replaced, not followed.
    What processes left that were killed here in the middle is removed.

    Args:
        folder: made if missing, with the folders above it.

    Raises:
        OSError: the files cannot be written; the error names `folder`, wherever the disk was full.
    """
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with _partial(folder) as partial:
            yield partial
            for written in sorted(path for path in partial.iterdir() if path.name != IN_USE):
                with open(written, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(written, folder / written.name)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, in use until the block ends, and then removed."""
    while True:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            try:
                in_use = FileLock(Path(partial) / IN_USE).acquire()
            except FileNotFoundError:  # in the moment before it was locked somebody took it for left and removed it
                continue
            with in_use:
                yield Path(partial)
            return


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in `folder`: whoever can lock it knows that its writer has ended."""
    for path in folder.glob(".partial-*"):
        with suppress(Timeout, OSError):  # its writer is alive, or it is another user's
            if PARTIAL.fullmatch(path.name) and not path.is_symlink() and (path / IN_USE).is_file():
                with FileLock(path / IN_USE).acquire(blocking=False):
                    shutil.rmtree(path)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The same for one file: yield where to write it, under its own name in another folder.

    Raises:
        OSError: it cannot be written; the error names `path`, wherever the disk was full.
    """
    with _named(path), filled(path.parent) as folder:
        yield folder / path.name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within, what the system says of a file is said of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def write_durably(file: Path, content: bytes) -> None:
    """Replace `file` by `content` in one step that outlasts a power cut; until then, whatever happens, it is as it was.

    Written here because `atomicwrites`, the library for it, is no longer maintained.

    What a killed process leaves is a file (see `HALF_WRITTEN`), not a folder as `filled` makes: a folder could hold
    something of somebody else's, too.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # of a process that had this number and crashed
    try:
        with open(partial, "xb") as opened:  # follows no link
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(file.parent)


def flush_folder(folder: Path) -> None:
    """Let what was made, renamed and removed in `folder` outlast a power cut."""
    if os.name == "posix":  # elsewhere folders cannot be flushed
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
