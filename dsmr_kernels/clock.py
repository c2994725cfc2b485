"""Where the lanes stand, and when that last changed: what a backward pass must know before it reads a memory again."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor

from dsmr_kernels import autograd, torch_private
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
    the backward pass in which it was made; `left`, how often each ring's keys and tail, by their addresses, had been
    written when the clock was superseded; `threads`, those that have called with any clock of the stack.

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

    def check_present(self) -> None:
        """Raise RuntimeError if time has moved on, but for the replays of a backward pass: they need old clocks."""
        if self.superseded and autograd.backward_pass() == autograd.FORWARD:
            raise RuntimeError("memory: this ring's clock has moved on; take stack[layer] anew after each advance()")

    def is_replayed(self, running: int) -> bool:
        """Does a call that the backward pass `running` makes at this clock replay an earlier one?

        A stack that was made in this same backward pass is new to it, as in a first pass. Raises RuntimeError if the
        clock has moved since the first pass.
        """
        # Autograd made the node that runs, and asks for the replay, before or during the first pass. So a clock that
        # has not moved since then stands where the first pass saw it.
        if self.made_in != running and torch_private.running_node_number() < self.moved:
            raise moved()
        return self.made_in != running or self.superseded

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


def moved() -> RuntimeError:
    """The error for a replay that does not find the clock of its first pass."""
    return RuntimeError(
        "memory: a backward pass replays this call, and the ring's clock has moved since the first pass. Take "
        "stack[layer] outside the checkpointed function and hand it in; call advance(), uncompiled, outside "
        "torch.no_grad() and in the thread that calls the layers"
    )


def check_appended(clock: Clock, counts: Tensor | int, written: Tensor) -> None:
    """Raise RuntimeError if a replay's segment of `counts` tokens at `clock` was not written in the first pass."""
    ends = (clock.position + counts).tolist()
    if any(end > newest for end, newest in zip(ends, written.tolist(), strict=True)):
        raise RuntimeError(
            "memory: a backward pass makes this call, and its segment was not appended at this clock before: it is no "
            "replay, or one of a function that calls advance(). Call advance() outside the checkpointed function, and "
            "append outside backward passes, or into a stack that was made or copied in this one"
        )


_clocks: WeakSet[Clock] = WeakSet()

loaded: dict[int, int] = {}
"""When (`autograd.now`) the ring whose keys or tail lie at an address was last filled from a saved state.

A later ring at the address of one that is gone takes no harm: its graphs are newer.
"""
