"""Stop signals: Ctrl-C, SIGTERM and a terminal that goes away end a run between two steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
"""What a terminal that goes away sends."""


class StopSignals:
    """While this is entered, the first Ctrl-C, SIGTERM or SIGHUP is only noted, in `received`.

    The second ends the process at once, as any would without this. Signals that are ignored (a background job's
    Ctrl-C) stay ignored. In a thread other than the main one Python can handle no signals, and this does nothing.

    Args:
        notify: called at the first signal, to say what happens now.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.received: int | None = None
        self._received_at = math.inf
        self._notify = notify
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, HANG_UP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    @property
    def waiting(self) -> float:
        """Seconds since a signal came; below 0 if none has."""
        return time.monotonic() - self._received_at

    def hang_up(self) -> None:
        """The terminal is gone, whether it said so or not: as if it had, and nothing where that is ignored."""
        if HANG_UP in self._before:
            self._handle(HANG_UP, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received, self._received_at = number, time.monotonic()
        self._restore()
        self._notify()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
