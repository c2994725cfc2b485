"""What a ring's last call found out, for the next one like it: to find it out again takes longer than a small call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dsmr_kernels.ring import RingMemory


class Remembered:
    """What the last call found out about a ring, and the next one need not find out again.

    `signature`: all of a call that was examined, that is everything but addresses, values and ragged lanes. `backend`:
    who serves such calls. `repeat`: what does so at once, `(q, k, v, ring) -> o`, or None (see `backends.Repeat`).
    """

    __slots__ = ("backend", "repeat", "signature")

    def __init__(self) -> None:
        self.examined(None)

    def examined(self, signature: tuple[object, ...] | None) -> None:
        """Calls of this signature are right; no back end has been chosen for them yet."""
        self.signature = signature
        self.backend: str | None = None
        self.repeat: Callable[[Tensor, Tensor, Tensor, RingMemory], Tensor | None] | None = None
