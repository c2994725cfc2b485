"""Progress of long work, as it is told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all: files, bytes or tokens."""


def of_pass(progress: Progress | None, number: int, passes: int) -> Progress | None:
    """What tells the progress of pass `number`, from 0 on, of so many passes over equally much."""
    return progress and (lambda done, total: progress(number * total + done, passes * total))
