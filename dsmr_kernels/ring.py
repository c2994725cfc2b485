"""One layer's memory of past keys and values: a ring of slots, and how much of it may be seen."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsmr_kernels.checks import check_ring, is_integer
from dsmr_kernels.clock import Clock
from dsmr_kernels.geometry import Geometry, Window
from dsmr_kernels.pages import Pages
from dsmr_kernels.storage import QUANTISED


@dataclass(frozen=True, eq=False)
class RingMemory:
    """One layer's memory of past keys and values, seen through a clock that all layers share.

    `k, v [B, Hkv, C, D]` hold keys (positions applied) and values; `k_scale, v_scale [B, Hkv, C]` float32 exist for
    quantised storage only. `written [B]` int64 is the position after the newest token ever written, `horizon []` int64
    the number of memory entries that may be seen; both live on the device. Get one from `MemoryStack`, by
    `stack[layer]`.

    With a `key_shift`, the tokens by which `token_shift` moves each KV head's keys, `tail [B, shifted heads, slots, D]`
    holds the last keys of the heads that are shifted, positions not applied, never quantised: that of the token at
    position p in slot p % slots. `tail_written [B]` int64 is the position after the newest token in it.

    Raises TypeError or ValueError for tensors that do not go together: native code relies on all of this.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    written: Tensor
    horizon: Tensor
    clock: Clock
    geometry: Geometry
    key_shift: tuple[int, ...] | None = None
    tail: Tensor | None = None
    tail_written: Tensor | None = None

    def __post_init__(self) -> None:
        check_ring(self.tensors(), self.horizon, self.clock.state, self.geometry, self.key_shift)

    @classmethod
    def empty(
        cls,
        lanes: int,
        kv_heads: int,
        head_dim: int,
        horizon: int,
        geometry: Geometry,
        clock: Clock,
        dtype: torch.dtype,
        device: torch.device,
        pages: Pages | None = None,
    ) -> RingMemory:
        """A ring of zeros: kernels may read slots they then mask, and 0 x NaN would be NaN."""
        shape = (lanes, kv_heads, geometry.capacity, head_dim)
        quantised = any(kind.dtype == dtype for kind in QUANTISED.values())
        zeros = (pages or Pages(0, device)).zeros
        return cls(
            k=zeros(shape, dtype),
            v=zeros(shape, dtype),
            k_scale=zeros(shape[:3], torch.float32) if quantised else None,
            v_scale=zeros(shape[:3], torch.float32) if quantised else None,
            written=torch.zeros(lanes, dtype=torch.int64, device=device),
            horizon=torch.full((), horizon, dtype=torch.int64, device=device),
            clock=clock,
            geometry=geometry,
        )

    def with_tail(self, key_shift: tuple[int, ...], slots: int, dtype: torch.dtype, pages: Pages) -> RingMemory:
        """The same ring with a tail of zeros, `slots` for each head that `key_shift` shifts."""
        lanes, _, _, head_dim = self.k.shape
        shape = (lanes, sum(shift > 0 for shift in key_shift), slots, head_dim)
        tail = pages.zeros(shape, dtype)
        return replace(self, key_shift=key_shift, tail=tail, tail_written=torch.zeros_like(self.written))

    @cached_property
    def cache(self) -> dict[type, Any]:
        """For those who serve calls: what they know of this ring, by the type of it. No copy holds it."""
        return {}

    def at(self, clock: Clock, horizon: Tensor) -> RingMemory:
        """The same ring, seen through another clock and with another horizon."""
        if torch.compiler.is_compiling():
            return replace(self, clock=clock, horizon=horizon)
        ring = object.__new__(RingMemory)  # nothing new is to be checked, and no call can tell the two apart
        addressed = (*self.addressed[:5], clock.state, horizon)
        vars(ring).update(vars(self), clock=clock, horizon=horizon, addressed=addressed, cache=self.cache)
        return ring

    @classmethod
    def unchecked(cls, *values: Any) -> RingMemory:
        """A ring of fields that were checked before: a small call has no time to do it again."""
        ring = object.__new__(cls)
        vars(ring).update(zip(_FIELDS, values, strict=True))
        return ring

    @cached_property
    def state(self) -> tuple[Tensor, ...]:
        """The values of `tensors()`."""
        return tuple(self.tensors().values())

    @cached_property
    def addressed(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
        """All that native code reads and writes: k, v, their scales, `written`, the clock's state and the horizon."""
        return self.k, self.v, self.k_scale, self.v_scale, self.written, self.clock.state, self.horizon

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: the fields. What is cached has addresses in it."""
        return {name: getattr(self, name) for name in _FIELDS}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up this layer's state, by name."""
        named = {name: getattr(self, name) for name in _STATE}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, scales and tail, all lanes together."""
        return sum(tensor.nbytes for name, tensor in self.tensors().items() if not name.endswith("written"))

    def export(self, lane: int, window: Window = "segment") -> tuple[Tensor, Tensor, Tensor]:
        """What a call at the present clock sees of a lane's memory, oldest first; copies, and syncs a GPU.

        Returns `k, v [Hkv, n, D]` (quantised storage: the exact float64 products) and the relative positions int64
        `[n]` (-1 is the token just before the call's first).
        """
        if not is_integer(lane) or not 0 <= lane < self.written.shape[0]:
            raise ValueError(f"lane: expected an integer from 0 to {self.written.shape[0] - 1}, got {lane!r}")
        if window not in ("segment", "token"):
            raise ValueError(f"window: expected 'segment' or 'token', got {window!r}")
        position, length, phase = self.clock.state[:, lane].tolist()
        runs = self.geometry.visible(int(self.horizon), window, position, length, phase)
        slots = torch.tensor([slot for run in runs for slot in range(run.start, run.stop)], device=self.k.device)
        slots = slots.long()  # an empty list makes a float tensor
        positions = torch.tensor([p for run in runs for p in run.positions], dtype=torch.int64, device=self.k.device)
        k, v = self.k[lane][:, slots], self.v[lane][:, slots]
        if self.k_scale is not None and self.v_scale is not None:
            k = k.double() * self.k_scale[lane][:, slots, None]
            v = v.double() * self.v_scale[lane][:, slots, None]
        return k, v, positions


_FIELDS = tuple(field.name for field in fields(RingMemory))
_STATE = ("k", "v", "k_scale", "v_scale", "written", "tail", "tail_written")
