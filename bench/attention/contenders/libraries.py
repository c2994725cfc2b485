"""Attention libraries, where they can be imported: FlashAttention 2, 3 and 4, xFormers, FlashInfer.

Each keeps its memory in its own layout and sees a concatenation for a segment (none reads a ring and a segment as one),
or, for one token, its own cache used as a ring: at one token order does not matter.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated
from bench.attention.contenders.decode import window_slots
from bench.attention.shapes import Inputs

LibraryCall = Callable[[Any, AttentionCase, Tensor, Tensor, Tensor], Tensor]
"""(module, case, q, k, v `[B, N, Hkv, D]`) to o."""


class Library(NamedTuple):
    """How a library is imported and called, and what its documentation says it cannot do."""

    name: str
    module: str
    package: str
    segment: LibraryCall
    step: LibraryCall
    limit: Callable[[AttentionCase], str | None]


def contenders(device: torch.device) -> list[AttentionContender]:
    """Every library: a segment over a concatenation, and a token over a ring."""
    made = []
    for library in LIBRARIES:
        version = _version(library.package)
        unavailable = partial(_unavailable, library=library)
        for name, tasks, prepare in (
            (f"{library.name}, cat", {"forward", "training"}, _prepare_segment),
            (f"ring + {library.name}", {"decode"}, _prepare_ring),
        ):
            ready = partial(prepare, library=library)
            options = {"tasks": frozenset(tasks), "prepare": ready, "unavailable": unavailable}
            made.append(AttentionContender(name=name, version=version, **options))
    return made


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def _unavailable(case: AttentionCase, device: torch.device, library: Library) -> str | None:
    try:
        importlib.import_module(library.module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    if device.type != "cuda":
        return "GPUs only"
    if case.shape.dtype == "fp32":
        return "16-bit types only"
    return library.limit(case)


def _prepare_segment(case: AttentionCase, inputs: Inputs, library: Library) -> Prepared:
    module = importlib.import_module(library.module)
    past_k, past_v = (x.transpose(1, 2).contiguous() for x in (inputs.past_k, inputs.past_v))

    def forward() -> Tensor:
        k, v = torch.cat([past_k, inputs.k], 1), torch.cat([past_v, inputs.v], 1)
        return library.segment(module, case, inputs.q, k, v)

    return Prepared(differentiated(case, inputs, forward))


def _prepare_ring(case: AttentionCase, inputs: Inputs, library: Library) -> Prepared:
    module = importlib.import_module(library.module)
    slots = window_slots(case)
    own = torch.tensor([slots - 1], device=inputs.q.device)
    rings = []
    for past in (inputs.past_k, inputs.past_v):
        held = past.new_zeros(past.shape[0], slots, past.shape[1], past.shape[3])
        held[:, :-1] = past[:, :, past.shape[2] - (slots - 1) :].transpose(1, 2)
        rings.append(held)

    def forward() -> Tensor:
        k, v = (ring.index_copy_(1, own, new) for ring, new in zip(rings, (inputs.k, inputs.v), strict=True))
        return library.step(module, case, inputs.q, k, v)

    def memory() -> tuple[Tensor, Tensor]:
        k, v = (ring[:, slots - case.shape.horizon :].transpose(1, 2) for ring in rings)
        return k, v

    return Prepared(differentiated(case, inputs, forward), memory)


def _first(result: Any) -> Tensor:
    """Some versions return `(o, lse)`."""
    return result[0] if isinstance(result, tuple) else result


def _flash_segment(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal masks have been aligned at the bottom right since FlashAttention 2.1."""
    if case.shape.window == "token":
        return _first(module.flash_attn_func(q, k, v, causal=True, window_size=(case.shape.horizon - 1, 0)))
    return _first(module.flash_attn_func(q, k, v, causal=True))


def _flash_step(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _first(module.flash_attn_with_kvcache(q, k, v, cache_seqlens=k.shape[1]))


def _flash_4_step(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _first(module.flash_attn_func(q, k, v))


def _xformers_segment(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return module.memory_efficient_attention(q, k, v, module.fmha.attn_bias.LowerTriangularFromBottomRightMask())


def _xformers_step(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return module.memory_efficient_attention(q, k, v)


def _xformers_limit(case: AttentionCase) -> str | None:
    if case.shape.kv_heads != case.shape.heads:
        return "grouped queries are written for equal heads only here"
    return "the token window is not written for it here" if case.shape.window == "token" else None


def _flashinfer_segment(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return module.single_prefill_with_kv_cache(q[0], k[0], v[0], causal=True, kv_layout="NHD")[None]


def _flashinfer_step(module: Any, case: AttentionCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return module.single_decode_with_kv_cache(q[0, 0], k[0], v[0], kv_layout="NHD")[None, None]


def _flashinfer_limit(case: AttentionCase) -> str | None:
    if case.task == "training":
        return "FlashInfer has no backward pass"
    if case.shape.lanes != 1:
        return "its single-request calls serve one lane"
    return "the token window is not written for it here" if case.shape.window == "token" else None


def _no_limit(case: AttentionCase) -> str | None:
    return None


LIBRARIES = (
    Library("FlashAttention 2", "flash_attn", "flash-attn", _flash_segment, _flash_step, _no_limit),
    Library("FlashAttention 3", "flash_attn_interface", "flash-attn-3", _flash_segment, _flash_step, _no_limit),
    Library("FlashAttention 4", "flash_attn.cute", "flash-attn-4", _flash_segment, _flash_4_step, _no_limit),
    Library("xFormers", "xformers.ops", "xformers", _xformers_segment, _xformers_step, _xformers_limit),
    Library("FlashInfer", "flashinfer", "flashinfer-python", _flashinfer_segment, _flashinfer_step, _flashinfer_limit),
)
