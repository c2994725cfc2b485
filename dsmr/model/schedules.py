"""Horizon schedules: how far each layer remembers, by name, and what that costs.

A schedule gives every layer a memory horizon (entries of its ring). `make_schedule` shapes one by name and sizes it to
a budget, so that variants compare at equal budgets. `full` alone is not shaped by a budget: each of its layers
remembers the longest piece, and a budget is only its ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from dsmr.fields import check_names, is_integer, shown
from dsmr_kernels import Geometry, Retention, ring_bytes
from dsmr_kernels.checks import check_key_shift
from dsmr_kernels.geometry import Window
from dsmr_kernels.storage import Storage

LONGEST_PIECE = 32_768
"""Tokens that `full` remembers in every layer unless told otherwise: few pieces of recorded piano music are longer."""
LONG_HORIZON = 8_192
SHORT_HORIZON = 512
"""The two horizons of `two_scale` when no budget is named, with a quarter of the layers long."""

STORAGES: dict[str, tuple[torch.dtype, Storage | None]] = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "int8": (torch.float32, "int8"),
    "float8_e4m3": (torch.float32, "float8_e4m3"),
}
"""Storage by name: the `dtype` and `storage` of a `MemoryStack`. A quantised ring's bytes do not depend on `dtype`."""


@dataclass(frozen=True)
class MemoryFormat:
    """What one memory entry of one layer is made of: K and V of `kv_heads` heads of `head_dim` numbers.

    Args:
        kv_heads, head_dim: Hkv and D.
        storage: a name in `STORAGES`; int8 and float8_e4m3 add two float32 scales (K and V) per KV head and entry.
        key_shift: tokens by which each KV head's keys are shifted, see `dsmr_kernels.token_shift`; None: keys stay.

    Raises:
        ValueError: a size below 1, an unknown storage, or shifts of other heads.
    """

    kv_heads: int
    head_dim: int
    storage: str = "fp32"
    key_shift: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.storage not in STORAGES:
            raise ValueError(f"storage: expected one of {', '.join(STORAGES)}, got {self.storage!r}")
        object.__setattr__(self, "key_shift", check_key_shift(self.key_shift, self.kv_heads))

    def bytes(self, entries: int) -> int:
        """Bytes that `entries` memory entries of one layer take for one lane."""
        dtype, storage = STORAGES[self.storage]
        return ring_bytes(entries, self.kv_heads, self.head_dim, dtype, storage)

    def tail_bytes(self, max_segment: int, segments_in_flight: int = 1) -> int:
        """Bytes that the shifted heads' last keys take for one lane and layer: those of the segments in flight, too."""
        if self.key_shift is None:
            return 0
        slots = max(self.key_shift) + segments_in_flight * max_segment
        return sum(map(bool, self.key_shift)) * slots * self.head_dim * STORAGES[self.storage][0].itemsize


@dataclass(frozen=True)
class Schedule:
    """One memory horizon per layer, the lowest layer first.

    Args:
        name: one of `NAMES`.
        horizons: memory entries that each layer may see. With a retention stride of s an entry stands for s tokens.
        retention: which tokens become entries; None keeps every one.

    Raises:
        ValueError: an unknown name, no layers, or a negative horizon.
        TypeError: a horizon that is not an integer.
    """

    name: str
    horizons: tuple[int, ...]
    retention: Retention | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "horizons", _checked_horizons(self.horizons))

    @property
    def total(self) -> int:
        """Memory entries of all layers together: the recurrent-state budget, sum of M_l."""
        return sum(self.horizons)

    def horizon_bytes(self, memory: MemoryFormat) -> tuple[int, ...]:
        """Bytes per lane of the entries each layer may see. Budgets in bytes count these."""
        return tuple(memory.bytes(horizon) for horizon in self.horizons)

    def capacities(self, max_segment: int, segments_in_flight: int = 1) -> tuple[int, ...]:
        """Slots of each layer's ring: the horizon and room for the segments in flight."""
        retention = self.retention or Retention()
        return tuple(Geometry.of(m, max_segment, retention, segments_in_flight).capacity for m in self.horizons)

    def capacity_bytes(self, memory: MemoryFormat, max_segment: int, segments_in_flight: int = 1) -> tuple[int, ...]:
        """Bytes per lane that each layer's memory really takes: its ring, and the shifted heads' last keys."""
        tail = memory.tail_bytes(max_segment, segments_in_flight)
        return tuple(memory.bytes(slots) + tail for slots in self.capacities(max_segment, segments_in_flight))

    def reach(self, segment: int, window: Window = "segment") -> tuple[int, ...]:
        """How many tokens, itself included, the last token of a segment can depend on at the output of each layer.

        A memory entry of layer l was computed by the layers below from what *they* remembered, so reach adds up over
        depth, as Transformer-XL's does (Dai et al. 2019, section 3.2: O(layers x memory)). Exactly, for
        `window="segment"`: every query of a segment that begins at position a sees back to a - M_l, and the entry there
        had been a query of the segment that begins at T * floor((a - M_l) / T). So, from the top layer down to layer 0,

            p <- T * floor(p / T) - M_l            starting from the last token, p = T - 1

        and the reach is T - p: T + sum(M_l) when all horizons are multiples of T, and more otherwise. With a retention
        stride s, the M_l newest complete groups of s tokens are seen: the oldest group before the segment at a is
        number g = floor(a / s) - M_l, and its kept token is g * s + s - 1 (`keep="last"`) or at the earliest g * s
        (`keep="random"`), for a segment and a group that begin together. For `window="token"` each layer sees M_l - 1
        tokens before its query: the reach is 1 + sum(M_l - 1).

        The reach says what can matter, not what does; a piece shorter than it is seen whole.

        Raises:
            ValueError: a segment below 1, or a retention stride with `window="token"`.
        """
        if segment < 1:
            raise ValueError(f"segment: expected at least 1 token, got {segment}")
        return tuple(self._reach(self.horizons[: layer + 1], segment, window) for layer in range(len(self.horizons)))

    def receptive_field(self, segment: int, window: Window = "segment") -> int:
        """Tokens that the last token of a segment can depend on at the top layer; see `reach`."""
        return self.reach(segment, window)[-1]

    def _reach(self, horizons: tuple[int, ...], segment: int, window: Window) -> int:
        retention = self.retention or Retention()
        stride = retention.stride
        if window == "token":
            if stride > 1:
                raise ValueError(f"window: 'token' needs every token kept, got a retention stride of {stride}")
            return 1 + sum(max(horizon - 1, 0) for horizon in horizons)
        kept = stride - 1 if retention.keep == "last" else 0
        oldest = segment - 1
        for horizon in reversed(horizons):
            begin = oldest // segment * segment
            oldest = (begin // stride - horizon) * stride + kept if horizon else begin
        return segment - oldest

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for checkpoints."""
        retention = self.retention and {"stride": self.retention.stride, "keep": self.retention.keep}
        return {"name": self.name, "horizons": list(self.horizons), "retention": retention}

    @classmethod
    def from_dict(cls, values: Any) -> Schedule:
        """The schedule that `to_dict` gave; ValueError names a field that is missing, unknown or not what it gives."""
        fields = check_names(cls, values, "schedule")
        if not isinstance(name := fields["name"], str) or name not in NAMES:
            raise ValueError(f"schedule: expected one of {', '.join(NAMES)} for name, got {shown(name)}")
        if not isinstance(horizons := fields["horizons"], list) or not all(map(is_integer, horizons)):
            raise ValueError(f"schedule: expected a list of integers for horizons, got {shown(horizons)}")
        retention = fields.get("retention")
        if retention is not None:
            kept = check_names(Retention, retention, "retention")
            if not is_integer(stride := kept.get("stride", 1)):
                raise ValueError(f"retention: expected an integer for stride, got {shown(stride)}")
            retention = Retention(**kept)
        return cls(name, tuple(horizons), retention)


def make_schedule(
    name: str,
    layers: int,
    *,
    budget_tokens: int | None = None,
    budget_bytes: int | None = None,
    memory: MemoryFormat | None = None,
    horizons: Sequence[int] | None = None,
    long_layers: int | None = None,
    ratio: float = LONG_HORIZON / SHORT_HORIZON,
    longest: int = LONGEST_PIECE,
    retention: Retention | None = None,
) -> Schedule:
    """Shape a schedule by name and size it to a budget.

    - `full`: `longest` tokens in every layer. Never scaled; an error if the budget does not hold it.
    - `uniform`: the same horizon in every layer.
    - `two_scale`: long in the lowest `long_layers` layers, short elsewhere. `reverse_two_scale`: long in the highest.
    - `progressive_up`: horizons rise evenly from the lowest layer to the highest. `progressive_down`: they fall.
    - `perceiver_like`: memory in the lowest layer only.
    - `selective`: uniform, for use with `retention`: stride 1 is a sliding window, stride s keeps the last of each
      group of s tokens, or a random one. An entry counts once in the budget, however many tokens it stands for.
    - `explicit`: `horizons` as they are, or in their proportions if there is a budget.

    Sizing: a budget in bytes is first turned into as many whole entries as it holds. Entries are then shared out in
    proportion to the shape, rounded down, and what is left over goes one each to the layers that lost most by
    rounding, lower layers first (Hamilton's method). So horizons add up to the budget in tokens exactly, and never to
    more than the budget in bytes. Without a budget all names but `full` and `explicit` are sized to the same one:
    `default_budget(layers)`.

    Args:
        name: one of `NAMES`.
        layers: how many layers.
        budget_tokens: sum of all horizons.
        budget_bytes: bytes per lane of all memory entries that may be seen (`Schedule.horizon_bytes`; rings also need
            room for the segments in flight). Needs `memory`.
        memory: what an entry is made of.
        horizons: of `explicit` only, and needed there.
        long_layers: how many layers of a two-scale schedule are long; a quarter if None, at least one.
        ratio: longest horizon / shortest, of two-scale and progressive schedules.
        longest: the horizon of `full`.
        retention: part of the schedule whatever its name.

    Raises:
        ValueError: an unknown name, an argument out of its range or of another name, two budgets, or an impossible one.
    """
    _check_name(name)
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")
    if (horizons is not None) != (name == "explicit"):
        raise ValueError(f"horizons: needed by 'explicit' and by no other schedule, got {horizons!r} for {name!r}")
    long_layers = _quarter(layers) if long_layers is None else long_layers
    if not 1 <= long_layers <= layers:
        raise ValueError(f"long_layers: expected 1..{layers}, got {long_layers}")
    if not 1 <= ratio < math.inf:
        raise ValueError(f"ratio: expected at least 1 (longest horizon / shortest), got {ratio}")
    budget = _budget_in_tokens(budget_tokens, budget_bytes, memory)

    if name == "full":
        sized = _full(layers, longest, budget)
    elif horizons is not None:
        sized = _explicit(layers, horizons, budget)
    else:
        weights = _SHAPES[name](layers, long_layers, ratio)
        sized = _share(default_budget(layers) if budget is None else budget, weights)
    return Schedule(name, sized, retention)


def default_budget(layers: int) -> int:
    """The budget in tokens without one named: a quarter of the layers (at least one) at 8,192 and the rest at 512."""
    long_layers = _quarter(layers)
    return long_layers * LONG_HORIZON + (layers - long_layers) * SHORT_HORIZON


_Shape = Callable[[int, int, float], list[float]]
"""`(layers, long_layers, ratio) -> one weight per layer`, in the proportions of the horizons."""

_SHAPES: dict[str, _Shape] = {
    "uniform": lambda layers, long_layers, ratio: [1.0] * layers,
    "two_scale": lambda layers, long_layers, ratio: [ratio] * long_layers + [1.0] * (layers - long_layers),
    "reverse_two_scale": lambda layers, long_layers, ratio: [1.0] * (layers - long_layers) + [ratio] * long_layers,
    "progressive_up": lambda layers, long_layers, ratio: _evenly(1.0, ratio, layers),
    "progressive_down": lambda layers, long_layers, ratio: _evenly(ratio, 1.0, layers),
    "perceiver_like": lambda layers, long_layers, ratio: [1.0] + [0.0] * (layers - 1),
    "selective": lambda layers, long_layers, ratio: [1.0] * layers,
}
NAMES = ("full", *_SHAPES, "explicit")


def _quarter(layers: int) -> int:
    return max(1, layers // 4)


def _evenly(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]


def _share(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    fractions = [Fraction(weight) for weight in weights]  # exact, so that shares cannot miss the total
    exact = [total * weight / sum(fractions) for weight in fractions]
    shares = [math.floor(share) for share in exact]
    by_loss = sorted(range(len(shares)), key=lambda i: shares[i] - exact[i])
    for i in by_loss[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def _full(layers: int, longest: int, budget: int | None) -> tuple[int, ...]:
    if longest < 1:
        raise ValueError(f"longest: expected at least 1 token, got {longest}")
    if budget is not None and budget < layers * longest:
        raise ValueError(
            f"full: {layers} layers of {longest:,} tokens need a budget of {layers * longest:,} entries, "
            f"got {budget:,}; fewer KV heads or a smaller storage make entries cheaper, and 'uniform' fits any budget"
        )
    return (longest,) * layers


def _explicit(layers: int, horizons: Sequence[int], budget: int | None) -> tuple[int, ...]:
    checked = _checked_horizons(horizons)
    if len(checked) != layers:
        raise ValueError(f"horizons: expected one for each of {layers} layers, got {len(checked)}")
    if budget is None:
        return checked
    if not any(checked):
        raise ValueError(f"horizons: all are 0, they cannot share a budget of {budget:,} entries")
    return _share(budget, checked)


def _budget_in_tokens(budget_tokens: int | None, budget_bytes: int | None, memory: MemoryFormat | None) -> int | None:
    if budget_tokens is not None and budget_bytes is not None:
        raise ValueError(f"budget: expected tokens or bytes, got both ({budget_tokens} tokens, {budget_bytes} bytes)")
    if budget_bytes is not None:
        if memory is None:
            raise ValueError("memory: a budget in bytes needs to know what a memory entry is made of")
        if budget_bytes < memory.bytes(1):
            raise ValueError(
                f"budget_bytes: expected at least one entry of {memory.bytes(1)} bytes, got {budget_bytes}"
            )
        return budget_bytes // memory.bytes(1)
    if budget_tokens is not None and budget_tokens < 1:
        raise ValueError(f"budget_tokens: expected at least 1, got {budget_tokens}")
    return budget_tokens


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"unknown schedule {name!r}; the schedules are {', '.join(NAMES)}")


def _checked_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    if len(horizons) == 0:
        raise ValueError("horizons: expected one per layer, got none")
    for layer, horizon in enumerate(horizons):
        if not isinstance(horizon, int):
            raise TypeError(f"horizons[{layer}]: expected an integer, got {horizon!r}")
        if horizon < 0:
            raise ValueError(f"horizons[{layer}]: expected at least 0, got {horizon}")
    return tuple(horizons)
