"""Where the lanes stand, and when that last changed: what a backward pass must know before it reads a memory again."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor

from dsmr_kernels import autograd
from dsmr_kernels.checks import check_clock


class Clock:
    """Where every lane stands: int64 `state [3, B]` with rows position, length and phase, on the rings' device.

    `position`: tokens since the lane's stream began (picks slots). `length`: tokens since its piece began (bounds what
    is visible). `phase`: tokens of the open segment already fed; 0 unless segments are fed piecemeal.

    Calls of `recurrent_attention` read the clock; only `MemoryStack` moves it. A clock that a backward pass may still
    need is replaced when time moves on, and from then on `superseded`: one that a graph has (`in_graph`), and any while
    gradients are enabled, because reentrant checkpointing runs its first pass without a graph. Any other is moved in
    place, so that a captured CUDA graph replays.

    What replays in a backward pass ask for: `moved`, when the clock was made or last moved (`autograd.now`); `made_in`,
    the backward pass in which it was made; `left`, how often each ring, by the address of its keys, had been written
    when the clock was superseded; `threads`, those that have called with any clock of the stack.

    Raises TypeError or ValueError for a state of another type or shape. Its numbers may be written; the tensor itself
    stays, because back ends rely on what was checked here.
    """

    __slots__ = ("__weakref__", "_state", "in_graph", "left", "made_in", "moved", "superseded", "threads")

    def __init__(self, state: Tensor, threads: set[object] | None = None) -> None:
        check_clock(state)
        self._state = state
        self.in_graph = False
        self.superseded = False
        self.threads = set() if threads is None else threads
        self.was_moved()
        self.made_in = autograd.backward_pass()
        self.left: dict[int, int | None] = {}

    @classmethod
    def unchecked(cls, state: Tensor) -> Clock:
        """The clock of one call of an operator, whose state was checked before."""
        clock = object.__new__(cls)
        clock._state = state
        return clock

    @classmethod
    def of_stack(cls, state: Tensor, threads: set[object] | None = None) -> Clock:
        """A clock that `find` finds: operators are given nothing but its tensor."""
        clock = cls(state, threads)
        if not torch.compiler.is_compiling():
            _clocks.add(clock)
        return clock

    @staticmethod
    def find(state: Tensor) -> Clock | None:
        """The clock of a stack whose state this very tensor is. None for one that compiled code has made."""
        return next((clock for clock in _clocks if clock.state is state), None)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles hold where the lanes stand. No backward pass knows of them."""
        return Clock.of_stack, (self.state,), (None, {"superseded": self.superseded})

    def was_moved(self) -> None:
        """Note that the state was written just now.

        Nodes of other threads have numbers that tell nothing of this moment: who called before in another thread cannot
        be replayed.
        """
        alone = torch.compiler.is_compiling() or self.threads <= {autograd.here.token}
        self.moved = autograd.now() if alone else autograd.UNKNOWN

    def is_called(self) -> None:
        """Note which thread calls."""
        self.threads.add(autograd.here.token)

    @property
    def state(self) -> Tensor:
        """Rows position, length and phase, int64 `[3, B]`."""
        return self._state

    @property
    def position(self) -> Tensor:
        """Tokens since each lane's stream began, int64 `[B]`."""
        return self.state[0]

    @property
    def length(self) -> Tensor:
        """Tokens since each lane's piece began, int64 `[B]`."""
        return self.state[1]

    @property
    def phase(self) -> Tensor:
        """Tokens of the open segment that were already fed, int64 `[B]`."""
        return self.state[2]


_clocks: WeakSet[Clock] = WeakSet()

loaded: dict[int, int] = {}
"""When (`autograd.now`) the ring whose keys lie at an address was last filled from a saved state.

A later ring at the address of one that is gone takes no harm: its graphs are newer.
"""
