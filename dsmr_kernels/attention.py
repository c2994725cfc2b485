"""One softmax over [memory | segment]: the memory read where it lies, the segment appended in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling
from torch.utils.weak import WeakTensorKeyDictionary

from dsmr_kernels import ops
from dsmr_kernels.autograd import FORWARD, backward_pass
from dsmr_kernels.backends import Call
from dsmr_kernels.clock import Clock
from dsmr_kernels.geometry import Geometry, Retention, Window
from dsmr_kernels.memory import RingMemory
from dsmr_kernels.ragged import check_ragged
from dsmr_kernels.storage import COMPUTE_DTYPES

# Slopes that were looked at, and their version then: once is enough, and looking makes a GPU's queue stop.
_known_finite: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def recurrent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: RingMemory | None = None,
    *,
    window: Window = "segment",
    segment_start: Tensor | None = None,
    segment_len: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    append: bool = True,
    return_lse: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention of a segment over itself and a layer's memory; then the segment's k and v become memory.

    Query i of a lane sees a memory entry or segment key if it is not later than the query, belongs to the same piece,
    and lies in the window. With M the memory's horizon, `window="segment"` (Dai et al. 2019, "Transformer-XL") shows
    all queries of a segment the same M newest memory entries and the segment up to themselves; `window="token"` shows
    the query at position p exactly the keys at p - M + 1 ... p. Without memory this is plain causal attention.

    Args:
        q: queries `[B, T, H, D]`, positions (rotary, sinusoidal, ...) already applied. float32, bfloat16, float16 or
            float64.
        k, v: keys (positions applied) and values `[B, T, Hkv, D]` of q's type; H must be a multiple of Hkv.
        memory: the layer's ring, `stack[layer]` of a `MemoryStack`. It is detached: no gradient flows into it. The
            clock is not moved: call `stack.advance(T)` once, after the last layer. None: no memory.
        window: "segment" or "token", see above. Retention needs "segment".
        segment_start: integers `[B, T]`, non-decreasing: for each query the index of the first segment key of its own
            piece; 0 if its piece continues from the memory. None: all 0.
        segment_len: integers `[B]`: how many of the T tokens are real. The others are not written, their outputs and
            gradients are zero, their lse is -inf. None: all T.
        scale: factor on q . k; 1 / sqrt(D) by default.
        softcap: if positive, logits x become softcap * tanh(x / softcap).
        alibi_slopes: float `[H]`, subtracts slope * (distance in tokens) from each logit (Press et al. 2022, "ALiBi").
        append: write k and v into the ring. The same segment at the same clock may be written any number of times. A
            backward pass that replays the call (activation checkpointing) writes nothing: the first pass has.
        return_lse: also return the logarithm of the sum of exponentials.
        impl: a back end by name, or None for the best that supports the call. The environment variable
            `DSMR_KERNELS_IMPL` stands in for None; a ring asks for it at its first call and whenever shapes change.

    Returns:
        `o [B, T, H, D]` in q's type, or `(o, lse)` with `lse [B, H, T]`, natural logarithm, float32 (float64 for
        float64 q). Differentiable in q, k and v, lse included. Results are deterministic.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says which, what was expected and what came.
        RuntimeError: from backward, or from a call that a backward pass replays, if later segments or a loaded state
            have overwritten the memory that this segment saw; from a replay, if the ring's clock has moved since the
            first pass; or if `memory` was taken from the stack before its last `advance`.
    """
    if memory is None:
        _check_tensors(q, k, v)
        if window != "segment":
            raise ValueError(f"window: {window!r} needs a memory, whose horizon it is; got memory=None")
        memory, append = _no_memory(k), False
    signature = _signature(q, k, v, memory, (window, scale, softcap, append, impl))
    if signature is None or signature is not memory.remembered.signature:
        _check(q, k, v, memory, window, scale, softcap, append)
        if signature is not None:
            memory.remembered.examined(signature)
    elif segment_start is segment_len is alibi_slopes is None and not return_lse and not memory.clock.superseded:
        repeat = memory.remembered.repeat
        plain = not (is_grad_enabled() and ops.wants_grad(q, k, v)) and torch._C._current_graph_task_id() == FORWARD
        if repeat is not None and plain:
            o = repeat(q, k, v, memory)
            if o is not None:
                return o
    _check_clock(memory)
    if segment_start is not None or segment_len is not None:
        check_ragged(q.shape[0], q.shape[1], q.device, segment_start, segment_len)
    if alibi_slopes is not None:
        _check_slopes(q, alibi_slopes)
    if scale is None:
        scale = q.shape[3] ** -0.5
    ragged = segment_start, segment_len, alibi_slopes
    result = ops.attend(Call(q, k, v, memory, window, *ragged, scale, softcap, append, return_lse, signature), impl)
    return result if return_lse else result[0]


def _no_memory(k: Tensor) -> RingMemory:
    """A ring of no slots."""
    clock = Clock(torch.zeros(3, k.shape[0], dtype=torch.int64, device=k.device))
    geometry = Geometry(archive=0, recent=0, max_segment=k.shape[1], retention=Retention())
    return RingMemory.empty(k.shape[0], k.shape[2], k.shape[3], 0, geometry, clock, k.dtype, k.device)


def _signature(
    q: Tensor, k: Tensor, v: Tensor, memory: RingMemory, options: tuple[object, ...]
) -> tuple[object, ...] | None:
    """All of a call that is examined but for ragged lanes; None if nothing of it may be remembered.

    A ring's next call of the same signature is not examined again: that would take longer than a small call itself. It
    gets the very object that the ring remembers.
    """
    if not (type(q) is type(k) is type(v) is Tensor and type(memory) is RingMemory):
        return None
    if is_dynamo_compiling():  # whatever else traces has tensors of its own type
        return None
    # One flat expression: where a small call finds nothing in the caches, unpacking takes as long as all the rest.
    # fmt: off
    signature = (
        q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), q.dtype, k.dtype, v.dtype,
        q.is_cpu or q.device, k.is_cpu or k.device, v.is_cpu or v.device, options,
    )
    # fmt: on
    last = memory.remembered.signature
    return last if signature == last else signature


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: RingMemory,
    window: str,
    scale: float | None,
    softcap: float,
    append: bool,
) -> None:
    """Raise if one of these arguments is wrong."""
    _check_tensors(q, k, v)
    _check_memory(q, k, memory, window)
    for name, x in (("scale", 1.0 if scale is None else scale), ("softcap", softcap)):
        if not isinstance(x, int | float | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    if not (scale is None or math.isfinite(scale)) or not 0 <= softcap < math.inf:
        raise ValueError(f"scale, softcap: expected finite numbers and softcap >= 0, got {scale} and {softcap}")
    if not isinstance(append, bool):
        raise TypeError(f"append: expected a bool, got {type(append).__name__}")


def _check_clock(memory: RingMemory) -> None:
    # A backward pass replays segments when time has moved on: that is what old clocks are for.
    if memory.clock.superseded and backward_pass() == FORWARD:
        raise RuntimeError("memory: this ring's clock has moved on; take stack[layer] anew after each advance()")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"{name}: expected 4 dimensions [B, T, heads, D], got shape {list(x.shape)}")
        if x.dtype not in COMPUTE_DTYPES or x.dtype != q.dtype:
            expected = f"q's type {q.dtype}" if q.dtype in COMPUTE_DTYPES else f"one of {COMPUTE_DTYPES}"
            raise TypeError(f"{name}: expected {expected}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name}: expected q's device {q.device}, got {x.device}")
        if x.stride(3) != 1 and x.shape[3] != 1:
            raise ValueError(f"{name}: expected a contiguous last dimension, got strides {x.stride()}")
    batch, tokens, heads, dim = q.shape
    kv_heads = k.shape[2]
    if tokens < 1 or dim < 1:
        raise ValueError(f"q: expected T >= 1 and D >= 1, got shape {list(q.shape)}")
    if k.shape != (batch, tokens, kv_heads, dim) or v.shape != k.shape:
        raise ValueError(
            f"k, v: expected the shape [{batch}, {tokens}, Hkv, {dim}] that goes with q {list(q.shape)}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"q: expected a number of heads divisible by the {kv_heads} KV heads of k, got {heads}")


def _check_memory(q: Tensor, k: Tensor, memory: RingMemory, window: str) -> None:
    if not isinstance(memory, RingMemory):
        raise TypeError(f"memory: expected a RingMemory, stack[layer] of a MemoryStack, got {type(memory).__name__}")
    if window not in ("segment", "token"):
        raise ValueError(f"window: expected 'segment' or 'token', got {window!r}")
    geometry = memory.geometry
    batch, tokens, kv_heads, dim = k.shape
    ring = memory.k.shape
    if (ring[0], ring[1], ring[3]) != (batch, kv_heads, dim):
        raise ValueError(
            f"memory: expected B, Hkv, D of k = {batch}, {kv_heads}, {dim}, "
            f"got a ring of {ring[0]}, {ring[1]}, {ring[3]}"
        )
    if memory.k_scale is None and memory.k.dtype != q.dtype:
        raise TypeError(f"memory: expected a ring of q's type {q.dtype} or a quantised one, got {memory.k.dtype}")
    if memory.k.device != q.device:
        raise ValueError(f"memory: expected q's device {q.device}, got {memory.k.device}")
    if tokens > geometry.max_segment:
        raise ValueError(f"q: expected T <= max_segment={geometry.max_segment}, the ring's slack, got {tokens}")
    if window == "token" and geometry.retention.stride > 1:
        raise ValueError("window: 'token' needs a ring that keeps every token, got one with a retention stride above 1")


def _check_slopes(q: Tensor, slopes: Tensor) -> None:
    if not isinstance(slopes, Tensor) or not slopes.is_floating_point():
        raise TypeError(f"alibi_slopes: expected a float tensor, got {getattr(slopes, 'dtype', type(slopes).__name__)}")
    if slopes.shape != (q.shape[2],) or slopes.device != q.device:
        raise ValueError(
            f"alibi_slopes: expected [{q.shape[2]}] on {q.device}, got {list(slopes.shape)} on {slopes.device}"
        )
    if slopes.requires_grad:
        raise ValueError("alibi_slopes: expected constants, got a tensor that requires grad")
    if torch.compiler.is_compiling() or type(slopes) is not Tensor:
        return
    version = None if slopes.is_inference() else slopes._version  # inference tensors keep no count of writes
    if version is not None and _known_finite.get(slopes) == version:
        return
    if not bool(slopes.isfinite().all()):
        raise ValueError(f"alibi_slopes: expected finite numbers, got {slopes.tolist()}")
    _known_finite[slopes] = version
