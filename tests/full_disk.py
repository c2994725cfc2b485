"""A disk that is full, for whoever runs the tests: the system's own limit on the size of files."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within, no file can grow beyond `size` bytes. Python ignores the signal that comes with it: an error is raised.

    No fixture: between a test and the end of its fixtures pytest writes to its own output, which may be a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
