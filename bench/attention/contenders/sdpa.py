"""`scaled_dot_product_attention` over a concatenation, by each back end, and two calls merged by their LSE."""

from __future__ import annotations

import contextlib
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated, torch_contender
from bench.attention.shapes import Inputs

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# The forms that a back end serves without turning them into another one of this table; on CPUs the lower-right bias is
# turned into a mask at every call, and is what PyTorch's own documents advise.
FORMS = {
    "cpu": {"flash": ("mask", "lower-right", "none"), "math": ("mask",)},
    "cuda": {
        "flash": ("lower-right", "none"),
        "efficient": ("mask", "lower-right", "none"),
        "cudnn": ("mask", "none"),
        "math": ("mask",),
    },
}


def contenders(device: torch.device) -> list[AttentionContender]:
    """Per back end: with the explicit mask, with the best form without one; concatenated inside and before."""
    merged = torch_contender(
        "two SDPA flash calls merged by LSE",
        *("forward", "training"),
        prepare=_prepare_merged,
        unavailable=_merged_unavailable,
    )
    concatenations = [
        torch_contender(
            f"SDPA {backend}, {MASKS[mask]}, " + ("concatenated before" if hoisted else "cat"),
            *(("forward",) if hoisted else ("forward", "training")),
            prepare=partial(_prepare, backend=backend, mask=mask, hoisted=hoisted),
            unavailable=partial(_unavailable, backend=backend, mask=mask),
            causal=mask != "none",
            on_request=backend == "math" and hoisted,
        )
        for backend in BACKENDS
        for mask in FORMS[device.type].get(backend, ("mask",))
        for hoisted in (False, True)
    ]
    return [*concatenations, merged]


MASKS = {"mask": "explicit mask", "lower-right": "lower-right bias", "none": "no mask (a bound)"}


def only(backend: str) -> partial[contextlib.AbstractContextManager[object]]:
    """A context in which SDPA has this back end only."""
    return partial(sdpa_kernel, BACKENDS[backend])


def no_backend(backend: str, device: torch.device) -> str | None:
    """Why SDPA does not have this back end on a device."""
    return None if backend in FORMS[device.type] else f"SDPA has no {backend} back end on {device.type}"


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """SDPA of `q [B, T, H, D]` over `k, v [B, Hkv, N, D]`, the result `[B, T, H, D]`."""
    grouped = q.shape[2] != k.shape[1]
    return scaled_dot_product_attention(q.transpose(1, 2), k, v, mask, enable_gqa=grouped).transpose(1, 2)


def _unavailable(case: AttentionCase, device: torch.device, *, backend: str, mask: str) -> str | None:
    if mask != "mask" and case.shape.window == "token":
        return "the token window needs a mask"
    return no_backend(backend, device)


def _prepare(case: AttentionCase, inputs: Inputs, *, backend: str, mask: str, hoisted: bool) -> Prepared:
    shape = case.shape
    bias = {
        "mask": lambda: shape.visible(inputs.q.device),
        "lower-right": lambda: causal_lower_right(shape.tokens, shape.horizon + shape.tokens),
        "none": lambda: None,
    }[mask]()
    k, v = concatenated(inputs)

    def forward() -> Tensor:
        return attend(inputs.q, *((k, v) if hoisted else concatenated(inputs)), bias)

    return Prepared(differentiated(case, inputs, forward), context=only(backend))


def concatenated(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """`k, v [B, Hkv, M + T, D]`."""
    k = torch.cat([inputs.past_k, inputs.k.transpose(1, 2)], 2)
    return k, torch.cat([inputs.past_v, inputs.v.transpose(1, 2)], 2)


def _merged_unavailable(case: AttentionCase, device: torch.device) -> str | None:
    if case.shape.window == "token":
        return "the token window needs a mask"
    if case.shape.horizon == 0:
        return "there is no memory to merge"
    if device.type == "cuda" and case.shape.dtype == "fp32":
        return "SDPA's flash back end has no fp32 on GPUs"
    return None


def _prepare_merged(case: AttentionCase, inputs: Inputs) -> Prepared:
    def forward() -> Tensor:
        tensors = (inputs.q, inputs.k, inputs.v)
        segment = (x.transpose(1, 2) for x in tensors)
        return _Merged.apply(*segment, inputs.past_k, inputs.past_v).transpose(1, 2)

    return Prepared(differentiated(case, inputs, forward))


class _Merged(torch.autograd.Function):
    """Flash over the memory (order does not matter: no mask), causal flash over the segment, merged by their LSE.

    The backward pass gives each half the merged output and LSE, as ring attention does (Liu et al. 2023): then the
    halves' gradients simply add up. The memory's half computes gradients of the memory that nobody wants.
    """

    @staticmethod
    def forward(ctx, q, k, v, past_k, past_v):
        flash = _flash_cpu if q.device.type == "cpu" else _flash_cuda
        o_memory, lse_memory, rest_memory = flash(q, past_k, past_v, False)
        o_segment, lse_segment, rest_segment = flash(q, k, v, True)
        lse = torch.logaddexp(lse_memory, lse_segment)
        weight = (lse_memory - lse).exp()[..., None].to(q.dtype)
        o = torch.lerp(o_segment, o_memory, weight.expand_as(o_memory))
        ctx.save_for_backward(q, k, v, past_k, past_v, o, lse)
        ctx.rest = rest_memory, rest_segment
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, past_k, past_v, o, lse = ctx.saved_tensors
        backward = _flash_backward_cpu if q.device.type == "cpu" else _flash_backward_cuda
        dq, _, _ = backward(do, q, past_k, past_v, o, lse, False, ctx.rest[0])
        dq_segment, dk, dv = backward(do, q, k, v, o, lse, True, ctx.rest[1])
        return dq + dq_segment, dk, dv, None, None


def _flash_cpu(q, k, v, causal):
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return o, lse, None


def _flash_backward_cpu(do, q, k, v, o, lse, causal, _):
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(do, q, k, v, o, lse, 0.0, causal)


def _flash_cuda(q, k, v, causal):
    o, lse, *rest = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return o, lse, rest[:6]  # cumulative and largest lengths, random state


def _flash_backward_cuda(do, q, k, v, o, lse, causal, rest):
    cumulative_q, cumulative_k, most_q, most_k, seed, offset = rest
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        do, q, k, v, o, lse, cumulative_q, cumulative_k, most_q, most_k, 0.0, causal, seed, offset
    )
