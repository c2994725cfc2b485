"""Decoding of one token per lane, against caches as they are written by hand: a ring, `torch.roll`, `torch.cat`.

At one token a query sees the whole memory and itself, so no order matters and no mask is needed: a ring of M + 1 slots
(M for the token window) is read as it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated, torch_contender
from bench.attention.contenders.sdpa import BACKENDS, attend, no_backend, only
from bench.attention.shapes import Inputs
from dsmr_kernels.storage import quantise

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, 1, H, D], k, v [B, Hkv, N, D] -> o [B, 1, H, D]


def contenders(device: torch.device) -> list[AttentionContender]:
    """Rings under SDPA's back ends and under matrix products in both orders; caches that move all they hold."""
    made = []
    for backend in BACKENDS:
        for name, cache, on_request in (("ring", Ring, False), ("roll", Roll, True), ("cat", Cat, True)):
            made.append(
                torch_contender(
                    f"{name} + SDPA {backend}",
                    "decode",
                    prepare=partial(_prepare, cache=cache, attend=attend, backend=backend),
                    unavailable=partial(_no_backend, backend=backend),
                    on_request=(on_request and backend != "flash") or backend == "math",
                )
            )
    for name, order in (("q K'", rows_first), ("K q'", keys_first)):
        prepare = partial(_prepare, cache=Ring, attend=order, backend=None)
        made.append(torch_contender(f"ring + matmul, {name}", "decode", prepare=prepare, unavailable=_one_token))
    options = {"prepare": _prepare_int8, "unavailable": _one_token, "storage": "int8"}
    return [*made, torch_contender("int8 ring + matmul", "decode", **options)]


def _one_token(case: AttentionCase, device: torch.device) -> str | None:
    return None if case.shape.tokens == 1 else "one token at a time only"


def _no_backend(case: AttentionCase, device: torch.device, backend: str) -> str | None:
    if device.type == "cuda" and backend != "math" and case.shape.dtype == "fp32" and backend != "efficient":
        return f"SDPA's {backend} back end has no fp32 on GPUs"
    return _one_token(case, device) or no_backend(backend, device)


def window_slots(case: AttentionCase) -> int:
    """How many keys the query sees, itself included."""
    return case.shape.horizon + (case.shape.window == "segment")


class Ring:
    """`[B, Hkv, N, D]`, the own token written by `index_copy_`: what a careful author does without this package."""

    def __init__(self, past: Tensor, slots: int) -> None:
        own = slots // 3
        self.held = past.new_zeros(*past.shape[:2], slots, past.shape[3])
        self.order = torch.arange(own + 1 - slots, own + 1, device=past.device) % slots  # oldest first
        self.own = self.order[-1:]
        self.held[:, :, self.order[:-1]] = past[:, :, past.shape[2] - (slots - 1) :]

    def append(self, new: Tensor) -> Tensor:
        """Write `new [B, Hkv, 1, D]`; what there is to attend to."""
        return self.held.index_copy_(2, self.own, new)

    def newest(self, count: int) -> Tensor:
        """The newest entries, oldest first."""
        return self.held[:, :, self.order[-count:]]


class Cat:
    """The cache that most code has: concatenate, attend, cut."""

    def __init__(self, past: Tensor, slots: int) -> None:
        self.slots = slots
        self.held = past[:, :, past.shape[2] - (slots - 1) :]

    def append(self, new: Tensor) -> Tensor:
        """As `Ring.append`."""
        self.held = torch.cat([self.held[:, :, 1 - self.slots :], new], 2)
        return self.held

    def newest(self, count: int) -> Tensor:
        """As `Ring.newest`."""
        return self.held[:, :, -count:]


class Roll(Cat):
    """The newest entry last, everything moved by one at each step."""

    def __init__(self, past: Tensor, slots: int) -> None:
        self.held = torch.cat([past[:, :, past.shape[2] - (slots - 1) :], past[:, :, :1]], 2)
        self.held = torch.roll(self.held, 1, 2)

    def append(self, new: Tensor) -> Tensor:
        """As `Ring.append`."""
        self.held = torch.roll(self.held, -1, 2)
        self.held[:, :, -1:] = new
        return self.held


def _prepare(
    case: AttentionCase, inputs: Inputs, *, cache: type[Ring | Cat], attend: Attend, backend: str | None
) -> Prepared:
    slots = window_slots(case)
    keys, values = cache(inputs.past_k, slots), cache(inputs.past_v, slots)

    def forward() -> Tensor:
        return attend(inputs.q, keys.append(inputs.k.transpose(1, 2)), values.append(inputs.v.transpose(1, 2)))

    horizon = case.shape.horizon
    step = differentiated(case, inputs, forward)

    def memory() -> tuple[Tensor, Tensor]:
        return keys.newest(horizon), values.newest(horizon)

    return Prepared(step, memory, only(backend)) if backend else Prepared(step, memory)


def rows_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Logits `[B, Hkv, G, N]`: the query heads of a KV head are the rows of both products."""
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[3]) * q.shape[3] ** -0.5
    return ((grouped @ k.transpose(2, 3)).softmax(-1) @ v).view_as(q)


def keys_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Logits `[B, Hkv, N, G]`: the keys are the rows."""
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[3]) * q.shape[3] ** -0.5
    weights = (k @ grouped.transpose(2, 3)).softmax(2)
    return (v.transpose(2, 3) @ weights).transpose(2, 3).reshape_as(q)


def _prepare_int8(case: AttentionCase, inputs: Inputs) -> Prepared:
    """Values and scales in rings; scales folded into logits and weights; int8 widened by PyTorch before each product.

    The own key is exact, as the contract asks: it is joined from the segment, not read back from the ring.
    """
    slots = window_slots(case)
    (k, k_scale), (v, v_scale) = (quantise(past, torch.int8) for past in (inputs.past_k, inputs.past_v))
    rings = [Ring(x, slots) for x in (k, k_scale[..., None], v, v_scale[..., None])]
    dtype = inputs.q.dtype

    def forward() -> Tensor:
        shape = case.shape
        q = inputs.q.view(shape.lanes, shape.kv_heads, -1, shape.head_dim) * shape.head_dim**-0.5
        own_k, own_v = inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)
        (new_k, new_k_scale), (new_v, new_v_scale) = (quantise(x, torch.int8) for x in (own_k, own_v))
        news = (new_k, new_k_scale[..., None], new_v, new_v_scale[..., None])
        held_k, held_k_scale, held_v, held_v_scale = (r.append(x) for r, x in zip(rings, news, strict=True))
        logits = (q @ held_k.to(dtype).transpose(2, 3)).float() * held_k_scale.transpose(2, 3)
        own = rings[0].own
        logits.index_copy_(3, own, (q @ own_k.transpose(2, 3)).float())
        weights = logits.softmax(-1)
        own_weight = weights.index_select(3, own).to(dtype)
        folded = (weights * held_v_scale.transpose(2, 3)).index_fill_(3, own, 0).to(dtype)
        return (folded @ held_v.to(dtype) + own_weight * own_v).view_as(inputs.q)

    def memory() -> tuple[Tensor, Tensor]:
        held = [ring.newest(case.shape.horizon).double() for ring in rings]
        return held[0] * held[1], held[2] * held[3]

    return Prepared(differentiated(case, inputs, forward), memory)
