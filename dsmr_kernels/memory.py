"""A model's whole recurrent state: one clock, and one ring a layer that all see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsmr_kernels import autograd
from dsmr_kernels.checks import check_key_shift, check_saved_numbers, chosen_lanes, integers, is_integer
from dsmr_kernels.clock import Clock, loaded
from dsmr_kernels.execution import values_are_real
from dsmr_kernels.geometry import Geometry, Retention
from dsmr_kernels.pages import Pages
from dsmr_kernels.ragged import check_ragged, values_are_at_hand
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.storage import COMPUTE_DTYPES, QUANTISED, Storage, ring_bytes


class MemoryStack:
    """The whole recurrent state of a model: a clock and one ring per layer, all lanes.

    Args:
        horizons: memory entries each layer may see, one integer >= 0 per layer.
        lanes: B, the number of independent streams (rows of the batch).
        kv_heads, head_dim: Hkv and D of keys and values.
        max_segment: the longest segment T that will be fed between two `advance` calls.
        dtype: the type of q, k and v (float32, bfloat16, float16 or float64), and of the rings unless `storage` is
            given.
        device: where clock and rings live; None: PyTorch's default device.
        storage: None, "int8" or "float8_e4m3": quantised rings, one float32 scale per (lane, KV head, slot) for K and
            V.
        retention: None (keep every token) or a `Retention`; with a stride a horizon of M entries reaches M x stride
            tokens.
        segments_in_flight: segments whose backward passes may be outstanding at once, k, fed whole or piecemeal. A
            ring then has M + k x T slots; with a stride M + k x T / stride or a few more, and k x T for exact tokens.
        key_shift: tokens by which `token_shift` moves keys, an integer from 0 to 1,024 per KV head; None or zeros: keys
            stay. With a shift every layer also keeps the keys of its shifted heads, in `dtype`, for as many tokens as
            the largest shift + k x T.

    Usage: call `recurrent_attention(q, k, v, stack[layer])` for every layer, then `advance(T)` once. Take
    `stack[layer]` anew after each `advance`; `reset(lanes)` makes lanes start a new piece with their next token.

    Activation checkpointing: checkpoint the layers, hand `stack[layer]` in, and call `advance` outside. What moves or
    rewrites the memory (`advance`, `reset`, `set_horizons`, `load_state_dict`) raises RuntimeError in a replay. While
    gradients are enabled these give the stack a new clock, so that what was made before can be replayed; under
    `torch.no_grad` and `torch.inference_mode` clock and horizons keep their addresses, for captured CUDA graphs.

    Raises ValueError or TypeError naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        horizons: Sequence[int],
        lanes: int,
        kv_heads: int,
        head_dim: int,
        max_segment: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        storage: Storage | None = None,
        retention: Retention | None = None,
        segments_in_flight: int = 1,
        key_shift: Sequence[int] | None = None,
    ) -> None:
        sizes = {"lanes": lanes, "kv_heads": kv_heads, "head_dim": head_dim, "max_segment": max_segment}
        for name, size in {**sizes, "segments_in_flight": segments_in_flight}.items():
            if not is_integer(size) or size < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")
        if dtype not in COMPUTE_DTYPES:
            raise TypeError(f"dtype: expected one of {COMPUTE_DTYPES}, got {dtype!r}")
        if storage is not None and storage not in QUANTISED:
            raise ValueError(f"storage: expected None or one of {sorted(QUANTISED)}, got {storage!r}")
        horizons = _check_horizons(horizons)
        if retention is not None and not isinstance(retention, Retention):
            raise TypeError(f"retention: expected None or a Retention, got {type(retention).__name__}")
        device = torch.get_default_device() if device is None else torch.device(device)
        self.dtype = dtype
        self.storage = storage
        self._key_shift = check_key_shift(key_shift, kv_heads)
        self.clock = Clock.of_stack(torch.zeros(3, lanes, dtype=torch.int64, device=device))
        self._horizons = tuple(horizons)
        self._largest = self._horizons
        geometries = [Geometry.of(m, max_segment, retention or Retention(), segments_in_flight) for m in horizons]
        kind = QUANTISED[storage].dtype if storage else dtype
        needed = (lanes * ring_bytes(g.capacity, kv_heads, head_dim, dtype, storage) for g in geometries)
        pages = Pages(sum(map(Pages.rounded, needed)), device)
        self._rings = [
            RingMemory.empty(lanes, kv_heads, head_dim, horizon, geometry, self.clock, kind, device, pages)
            for horizon, geometry in zip(horizons, geometries, strict=True)
        ]
        if self._key_shift:
            slots = max(self._key_shift) + segments_in_flight * max_segment
            self._rings = [ring.with_tail(self._key_shift, slots, dtype, pages) for ring in self._rings]

    def __getitem__(self, layer: int) -> RingMemory:
        return self._rings[layer]

    def __len__(self) -> int:
        return len(self._rings)

    def __iter__(self) -> Iterator[RingMemory]:
        return iter(self._rings)

    def __repr__(self) -> str:
        return (
            f"MemoryStack(horizons={list(self._horizons)}, lanes={self.lanes}, dtype={self.dtype}, "
            f"storage={self.storage!r}, device='{self.device}', bytes_per_lane={self.bytes_per_lane})"
        )

    @property
    def lanes(self) -> int:
        """B, the number of lanes."""
        return self.clock.state.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the clock and of every ring."""
        return self.clock.state.device

    @property
    def max_segment(self) -> int:
        """The longest segment that may be fed."""
        return self._rings[0].geometry.max_segment

    @property
    def horizons(self) -> tuple[int, ...]:
        """Memory entries that each layer may see."""
        return self._horizons

    @property
    def key_shift(self) -> tuple[int, ...] | None:
        """Tokens by which the keys of each KV head are shifted; None if none is."""
        return self._key_shift

    @property
    def bytes_per_layer(self) -> tuple[int, ...]:
        """Bytes of each layer's keys, values, scales and shifted-out keys for one lane."""
        return tuple(ring.nbytes // self.lanes for ring in self._rings)

    @property
    def bytes_per_lane(self) -> int:
        """Bytes of one lane's keys, values, scales and shifted-out keys, all layers together."""
        return sum(self.bytes_per_layer)

    def set_horizons(self, horizons: Sequence[int]) -> None:
        """Let layers see fewer entries (or again as many) than their rings were made for, without touching the rings.

        A horizon that grows again counts on entries the ring has kept all along, so nothing is lost by shrinking it.
        """
        horizons = _check_horizons(horizons)
        if len(horizons) != len(self._rings) or any(
            new > most for new, most in zip(horizons, self._largest, strict=True)
        ):
            raise ValueError(f"horizons: expected one per layer, at most {list(self._largest)}, got {list(horizons)}")
        self._check_no_replay("set_horizons")
        self._horizons = tuple(horizons)
        if self._may_be_needed():
            self._start_clock(self.clock.state.clone(), [torch.full_like(self._rings[0].horizon, m) for m in horizons])
        else:
            for ring, horizon in zip(self._rings, horizons, strict=True):
                ring.horizon.fill_(horizon)
            self.clock.was_moved()

    def advance(
        self,
        tokens: int,
        segment_start: Tensor | None = None,
        segment_len: Tensor | None = None,
        segment_size: int | None = None,
    ) -> None:
        """Move the clock past a segment of `tokens` tokens, once every layer has seen it.

        `segment_start [B, T]` and `segment_len [B]` must be those given to `recurrent_attention`. `segment_size` says
        that the tokens are part of a segment of that many, fed piecemeal; no call may cross its end. None: a whole
        segment.
        """
        self._check_no_replay("advance")
        if not is_integer(tokens) or not 1 <= tokens <= self.max_segment:
            raise ValueError(f"tokens: expected an integer from 1 to max_segment={self.max_segment}, got {tokens!r}")
        if segment_size is not None and not (is_integer(segment_size) and tokens <= segment_size <= self.max_segment):
            raise ValueError(
                f"segment_size: expected an integer from tokens={tokens} to {self.max_segment}, got {segment_size!r}"
            )
        check_ragged(self.lanes, tokens, self.device, segment_start, segment_len)
        position, length, phase = self.clock.state.unbind()
        count = torch.full_like(position, tokens) if segment_len is None else segment_len.to(position.dtype)
        if segment_size is not None and values_are_at_hand(self.device, phase, count):
            fed = (phase + count).tolist()
            if max(fed) > segment_size:
                raise ValueError(f"tokens: expected a segment to end after segment_size={segment_size}, got {fed}")
        grown = length + count
        if segment_start is not None:
            last = (count - 1).clamp_min(0)[:, None]
            start = segment_start.gather(1, last)[:, 0]
            grown = torch.where(start > 0, count - start, grown)
        next_phase = torch.zeros_like(phase) if segment_size is None else (phase + count) % segment_size
        self._move(torch.stack([position + count, grown, next_phase]))

    def reset(self, lanes: Sequence[int] | Tensor | None = None) -> None:
        """Let lanes start a new piece with their next token; the others do not notice.

        `lanes`: lane numbers, a mask of B bools (a bool tensor needs no host sync), or None for all.
        """
        self._check_no_replay("reset")
        chosen = torch.zeros(self.lanes, dtype=torch.bool, device=self.device)
        if lanes is None:
            chosen.fill_(True)
        elif isinstance(named := chosen_lanes(self.lanes, lanes), Tensor):
            chosen = named.to(self.device)
        else:
            chosen[named] = True
        position, length, phase = self.clock.state.unbind()
        self._move(torch.stack([position, length.masked_fill(chosen, 0), phase.masked_fill(chosen, 0)]))

    def to(self, device: torch.device | str) -> MemoryStack:
        """A copy of the whole state on `device`. Types stay: they are chosen when a stack is made.

        Raises TypeError for anything but a device.
        """
        if not isinstance(device, torch.device | str):
            raise TypeError(
                f"device: expected a device, got {device!r}; a stack of another type is made anew, "
                "MemoryStack(..., dtype=...)"
            )

        def copies(ring: RingMemory) -> dict[str, Any]:
            return {name: tensor.to(device, copy=True) for name, tensor in ring.tensors().items()}

        moved = object.__new__(MemoryStack)
        moved.__dict__.update(self.__dict__)
        moved.clock = Clock.of_stack(self.clock.state.to(device, copy=True))
        moved._rings = [
            replace(
                ring,
                **copies(ring),
                horizon=ring.horizon.to(device, copy=True),
                clock=moved.clock,
            )
            for ring in self._rings
        ]
        return moved

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state by name, not copied: `clock` and `layers.0.k`, ... on the stack's device.

        `horizons` and `geometry` are not part of the running state: made anew, on the CPU.
        """
        state = {f"layers.{i}.{name}": t for i, ring in enumerate(self._rings) for name, t in ring.tensors().items()}
        return {
            "clock": self.clock.state,
            "horizons": torch.tensor(self._horizons, dtype=torch.int64, device="cpu"),
            "geometry": self._layout(),
            **state,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state into this stack, which must have been made with the same arguments (any device).

        Checks every name, shape, type and number before it writes anything; raises ValueError naming what differs. A
        backward pass that needs what was there before raises RuntimeError: load between a backward pass and the next
        forward.
        """
        self._check_no_replay("load_state_dict")
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(f"state: expected the names {sorted(own)}, got {sorted(state)}")
        for name, tensor in own.items():
            if not isinstance(state[name], Tensor):
                raise ValueError(f"state[{name!r}]: expected a tensor, got {type(state[name]).__name__}")
            if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
                raise ValueError(
                    f"state[{name!r}]: expected {list(tensor.shape)} {tensor.dtype}, "
                    f"got {list(state[name].shape)} {state[name].dtype}"
                )
        if not torch.equal(self._layout(), state["geometry"].cpu()):
            raise ValueError(f"state['geometry']: expected {self._layout().tolist()}, got {state['geometry'].tolist()}")
        written = {name: tensor for name, tensor in state.items() if name.endswith("written")}
        check_saved_numbers(state["clock"], written, self.max_segment)
        self.set_horizons(state["horizons"].tolist())
        with torch.no_grad():
            for i, ring in enumerate(self._rings):
                for name, tensor in ring.tensors().items():
                    tensor.copy_(state[f"layers.{i}.{name}"])
                for tensor in _replayed(ring):
                    loaded[tensor.data_ptr()] = autograd.now()
        self._move(state["clock"].to(self.device).clone(memory_format=torch.contiguous_format))

    def _layout(self) -> Tensor:
        """What the shapes of the tensors do not tell of how rings are used: a row per layer."""
        shifts = self._key_shift or ()
        return torch.tensor([(*r.geometry.numbers, *shifts) for r in self._rings], dtype=torch.int64, device="cpu")

    def _move(self, state: Tensor) -> None:
        if self._may_be_needed():
            # Horizons of their own, or the next ones that are written in place would be those of older clocks, too.
            self._start_clock(state, [ring.horizon.clone() for ring in self._rings])
        else:
            self.clock.state.copy_(state)
            self.clock.was_moved()

    def _may_be_needed(self) -> bool:
        """Must clock and horizons stay as they are, for a backward pass to come?"""
        return self.clock.in_graph or torch.is_grad_enabled()

    def _start_clock(self, state: Tensor, horizons: Sequence[Tensor]) -> None:
        """Leave the clock and the horizons to those who have them, and go on with others."""
        self.clock.superseded = True
        if values_are_real():
            self.clock.left = {x.data_ptr(): autograd.writes(x) for ring in self._rings for x in _replayed(ring)}
        self.clock = Clock.of_stack(state, self.clock.threads)
        self._rings = [ring.at(self.clock, horizon) for ring, horizon in zip(self._rings, horizons, strict=True)]

    def _check_no_replay(self, method: str) -> None:
        running = autograd.backward_pass()
        if running not in (autograd.FORWARD, self.clock.made_in):
            raise RuntimeError(
                f"{method}: expected a call outside backward passes, got one that replays a checkpointed function. "
                "Checkpoint the layers only, and move the memory's clock outside the checkpointed functions."
            )


def _replayed(ring: RingMemory) -> list[Tensor]:
    """What replays read, and know by its address."""
    return [ring.k] if ring.tail is None else [ring.k, ring.tail]


def _check_horizons(horizons: Sequence[int]) -> list[int]:
    numbers = integers("horizons", horizons)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"horizons: expected integers >= 0, one per layer, got {numbers}")
    return numbers
