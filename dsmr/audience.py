"""Audience of long work: lines, and a line of progress, for as long as somebody is there to read them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dsmr.text import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

    from dsmr.progress_line import ProgressLine

REFRESH = 0.1
"""Seconds between two pictures of progress on a terminal."""
LOG = 60.0
"""Seconds between two lines where there is no terminal: in a file, a pipe, or the log of a machine."""


class Audience:
    """Prints on a console, and shows progress there: on a terminal a line that moves, elsewhere a line a minute.

    That nobody reads any more, of a closed terminal or a broken pipe, is no error of the work. Signal handlers may
    print: what comes in the middle of another line waits for its end.

    Args:
        console: where to print; None: nowhere.
        what: the work, in a word.
        unit: of what there is so much, for notes.
        clock: seconds by which its pace is measured; by default those that go by.
    """

    def __init__(
        self, console: Console | None, what: str = "", unit: str = "", clock: Callable[[], float] | None = None
    ) -> None:
        self.gone = False
        self._console, self._what, self._unit = console, what, unit
        self._clock = clock or (lambda: time.monotonic())
        self._was_terminal = console is not None and console.is_terminal
        # FORCE_COLOR makes a terminal of a file for rich, and that is no place for a line that moves.
        self._live = console is not None and console.is_interactive and console.file.isatty()
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = False
        self._progress: ProgressLine | None = None
        self._said: float | None = None
        self._news = False

    @property
    def terminal_gone(self) -> bool:
        """Whether there was a terminal, and it went away."""
        return self.gone and self._was_terminal

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is None:
            return
        if self._live:
            self._tell(self._progress.stop)
        elif self._news and error is None:
            self._say_progress()

    def print(self, text: str) -> None:
        """Lines above the line of progress, or in place of the next one."""
        if (console := self._console) is not None:
            lines, wrapped = text.split("\n"), self._live  # in a file a line stays a line, however long
            self._tell(lambda: console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=not wrapped))
            if self._said is not None:
                self._said = time.monotonic()

    def show(self, done: float, total: float, *notes: str) -> None:
        """Bring progress up to date.

        Args:
            done, total: how much is done of how much there is.
            notes: what else there is to say, the most important first; the last ones are left out if room is scarce.
                By default how much of how much.
        """
        if self._console is None:
            return
        notes = notes or (f"{done:,} of {total:,} {self._unit}",)
        notes = tuple(escaped(note, self._console.encoding) for note in notes)
        if self._progress is None:
            from dsmr.progress_line import ProgressLine

            self._progress = ProgressLine(self._console, self._clock, self._live)
            self._progress.add_task(self._what, total=total, notes=notes)
            self._tell(self._progress.start)
        (task,) = self._progress.tasks
        was_finished = task.finished
        self._progress.update(task.id, completed=done, total=total, notes=notes)
        self._news = True
        if (task.finished and not was_finished) or self._due(task):
            self._say_progress()

    def _due(self, task: Task) -> bool:
        """Whether it is time to say how far the work is: at once, as soon as the time left is known, and then again."""
        if self._said is None and (self._live or task.time_remaining is not None):
            return True
        last = self._begun if self._said is None else self._said
        return time.monotonic() - last >= (REFRESH if self._live else LOG)

    def _say_progress(self) -> None:
        progress, console = self._progress, self._console
        assert progress is not None
        assert console is not None
        self._tell(progress.refresh if self._live else lambda: console.print(progress.get_renderable()))
        self._said, self._news = time.monotonic(), False

    def _tell(self, action: Callable[[], object]) -> None:
        self._waiting.append(action)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._waiting.popleft()()
        except (OSError, SystemExit):  # the latter is what rich makes of a broken pipe
            self._let_go()
        finally:
            self._busy = False

    def _let_go(self) -> None:
        """From now on the stream leads nowhere; else what it still holds would fail again, at the latest at the end."""
        assert self._console is not None
        self.gone = True
        self._waiting.clear()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._console.file.fileno())
        os.close(nowhere)
