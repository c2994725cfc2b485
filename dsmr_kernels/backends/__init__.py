"""Back ends and the choice among them. This is the one place that imports them, and it does so lazily.

A back end is a module with `unsupported(call) -> str | None` (why it cannot serve a call), `forward(call) -> (o, lse)`
and `backward(call, o, lse, do, dlse, needs) -> (dq, dk, dv)`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from dsmr_kernels.backends.remembered import Remembered
from dsmr_kernels.geometry import Window
from dsmr_kernels.ring import RingMemory

_TRITON = ("triton",) if importlib.util.find_spec("triton") else ()  # there is none outside Linux
FOR_DEVICE = {"cpu": ("cpu", "eager"), "cuda": (*_TRITON, "eager")}  # the best first
NAMES = tuple(sorted({name for names in FOR_DEVICE.values() for name in names}))
IMPL_VARIABLE = "DSMR_KERNELS_IMPL"


class Call(NamedTuple):
    """One validated call: what every back end is given. Shapes and meaning as in `recurrent_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    memory: RingMemory
    window: Window
    segment_start: Tensor | None
    segment_len: Tensor | None
    alibi_slopes: Tensor | None
    scale: float
    softcap: float
    append: bool
    wants_lse: bool = True
    signature: object = None  # of two calls on one ring with the same object all but addresses and values is the same


class Backend(Protocol):
    """What a back end module offers.

    It may also have `repeat(call)`, which prepares for calls of the same signature that have no ragged lanes, no slopes
    and no gradients, and of which nobody wants the lse. That returns None or a function `(q, k, v, ring) -> o`, which
    does all that such a call does; or nothing at all if it cannot, and returns None.
    """

    def unsupported(self, call: Call) -> str | None:
        """Why this back end cannot serve `call`, or None. Ragged lanes and slopes must make no difference."""

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """`o [B, T, H, D]` in q's type and `lse [B, H, T]`; appends the segment to the ring if `call.append`.

        Unless `call.wants_lse`, any tensor may stand in for `lse`.
        """

    def backward(
        self, call: Call, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`dq, dk, dv`; `needs` says whether dq, and whether dk and dv, are wanted (else tensors of size zero)."""


@cache
def load(name: str) -> Backend:
    """The back end called `name`; ValueError for a name that is not one of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"impl: expected None or one of {list(NAMES)}, got {name!r}")
    return cast(Backend, importlib.import_module(f"dsmr_kernels.backends.{name}"))


def choose(impl: str | None, call: Call) -> Backend:
    """The back end for a call: the one asked for, by argument or environment, or the best that supports the call.

    A ring's next call of the same signature is served by the same one, without asking it or the environment again.
    """
    last = Remembered.of(call.memory)
    if call.signature is None or call.signature is not last.signature:
        return load(_choose(impl, call))
    if last.backend is None:
        last.backend = _choose(impl, call)
        prepare = getattr(load(last.backend), "repeat", None)
        last.repeat = prepare(call) if prepare else None
    return load(last.backend)


def _choose(impl: str | None, call: Call) -> str:
    if asked := impl or os.environ.get(IMPL_VARIABLE):
        if reason := load(asked).unsupported(call):
            raise ValueError(f"impl={asked!r} cannot serve this call: {reason}")
        return asked
    able = (name for name in FOR_DEVICE.get(call.q.device.type, ()) if not load(name).unsupported(call))
    return next(able, "eager")
