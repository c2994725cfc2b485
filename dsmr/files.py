"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; what the block writes into it is moved to `folder` when the block ends without an error.

    An error or a full disk leaves the files that were there before as they were. A link is replaced, not followed.

    Args:
        folder: made if missing, with the folders above it.

    Raises:
        OSError: the files cannot be written.
    """
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
    try:
        with filled(path.parent) as folder:
            yield folder / path.name
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
