"""Ctrl-C and SIGTERM, which end a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignals:
    """While this is entered, the first Ctrl-C or SIGTERM is only noted, in `received`.

    The second ends the process at once, as either would without this. Signals that are ignored (a background job's
    Ctrl-C) stay ignored. In a thread other than the main one Python can handle no signals, and this does nothing.

    Args:
        notify: called at the first signal, to say what happens now.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.received: int | None = None
        self._notify = notify
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        self._notify()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
