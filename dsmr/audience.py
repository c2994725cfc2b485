"""Whoever watches a run: lines and a progress bar, for as long as somebody is there to read them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

REFRESH = 0.1
"""Seconds between two pictures of the progress bar."""


class Audience:
    """Prints on a console. That nobody reads any more, of a closed terminal or a broken pipe, is no error of the run.

    Signal handlers may print: what comes in the middle of another line waits for its end.

    Args:
        console: where to print; None: nowhere.
    """

    def __init__(self, console: Console | None) -> None:
        self.gone = False
        self._console = console
        self._was_terminal = console is not None and console.is_terminal
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = False
        self._progress: Any = None
        self._shown = 0.0

    @property
    def terminal_gone(self) -> bool:
        """Whether there was a terminal, and it went away."""
        return self.gone and self._was_terminal

    def __enter__(self) -> Self:
        if self._console is not None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, auto_refresh=False)
            self._task = self._progress.add_task("", total=1.0)
            self._tell(self._progress.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._tell(self._progress.stop)

    def print(self, text: str) -> None:
        """Lines above the progress bar."""
        if (console := self._console) is not None:
            self._tell(lambda: console.print(*text.split("\n"), sep="\n", markup=False, highlight=False))

    def show(self, completed: float, description: str) -> None:
        """Bring the progress bar up to date; `completed` is a fraction."""
        if self._progress is None:
            return
        self._progress.update(self._task, completed=completed, description=description)
        if time.monotonic() - self._shown >= REFRESH:
            self._tell(self._progress.refresh)
            self._shown = time.monotonic()

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
