"""What a ring's last call found out, for the next one like it: to find it out again takes longer than a small call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dsmr_kernels.ring import RingMemory

Signature = tuple[object, ...]
"""All of a call that is examined: everything but addresses, values and ragged lanes."""


class Remembered:
    """One ring's last signature, and who serves such calls.

    `signature`: the last that was examined. `backend`: who serves such calls, by name. `repeat`: what does so at once,
    or None (see `backends.Backend`).
    """

    __slots__ = ("backend", "repeat", "signature")

    def __init__(self) -> None:
        self.examined(None)

    @staticmethod
    def of(ring: RingMemory) -> Remembered:
        """What is known of calls over this ring, however they see it."""
        try:
            found: Remembered = ring.cache[Remembered]
        except KeyError:
            found = ring.cache.setdefault(Remembered, Remembered())
        return found

    def examined(self, signature: Signature | None) -> None:
        """Calls of this signature are right; no back end has been chosen for them yet."""
        self.signature = signature
        self.backend: str | None = None
        self.repeat: Callable[[Tensor, Tensor, Tensor, RingMemory], Tensor | None] | None = None

    def recognise(self, q: Tensor, k: Tensor, v: Tensor, options: tuple[object, ...]) -> Signature:
        """A call's signature: the very object that was examined, if it is the same."""
        # One flat expression: where a small call finds nothing in the caches, unpacking takes as long as all the rest.
        # fmt: off
        signature = (
            q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
            q.is_cpu or q.device, k.is_cpu or k.device, v.is_cpu or v.device, options,
        )
        # fmt: on
        last = self.signature
        return last if last is not None and signature == last else signature
