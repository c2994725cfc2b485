"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = re.compile(r"\.partial-[a-z0-9_]{8}")
"""The folders in which files wait until they are whole; one that nobody writes into is what a killed process left."""


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; what the block writes into it is moved to `folder` when the block ends without an error.

    An error or a full disk leaves the files that were there before as they were. A link is replaced, not followed.

    Args:
        folder: made if missing, with the folders above it.

    Raises:
        OSError: the files cannot be written; the error names `folder`, wherever the disk was full.
    """
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            yield Path(partial)
            for written in sorted(Path(partial).iterdir()):
                with open(written, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(written, folder / written.name)


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
