"""One softmax over [memory | segment]: the memory read where it lies, the segment appended in place."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, is_grad_enabled

from dsmr_kernels import ops
from dsmr_kernels.arguments import check_arguments, check_slopes, check_tensors
from dsmr_kernels.autograd import FORWARD
from dsmr_kernels.backends import Call
from dsmr_kernels.backends.remembered import Remembered
from dsmr_kernels.clock import Clock
from dsmr_kernels.execution import is_plain, unrecorded
from dsmr_kernels.geometry import Geometry, Retention, Window
from dsmr_kernels.ragged import check_ragged
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.torch_private import backward_pass_number


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
    plain = is_plain(q, k, v)
    if memory is None:
        if window != "segment":
            raise ValueError(f"window: {window!r} needs a memory, whose horizon it is; got memory=None")
        memory, append = _no_memory(q, k, v, plain), False
    last = Remembered.of(memory) if plain and type(memory) is RingMemory else None
    signature = None if last is None else last.recognise(q, k, v, (window, scale, softcap, append, impl))
    if last is None or signature is not last.signature:
        check_arguments(q, k, v, memory, window, scale, softcap, append)
        if last is not None:
            last.examined(signature)
    elif (
        last.repeat is not None
        and segment_start is segment_len is alibi_slopes is None
        and not return_lse
        and not memory.clock.superseded
        and not (is_grad_enabled() and ops.wants_grad(q, k, v))
        and backward_pass_number() == FORWARD
    ):
        memory.clock.is_called()
        o = last.repeat(q, k, v, memory)
        if o is not None:
            return o
    memory.clock.check_present()
    if segment_start is not None or segment_len is not None:
        check_ragged(q.shape[0], q.shape[1], q.device, segment_start, segment_len)
    if alibi_slopes is not None:
        check_slopes(q, alibi_slopes)
    if scale is None:
        scale = _default_scale(q)
    ragged = segment_start, segment_len, alibi_slopes
    result = ops.attend(Call(q, k, v, memory, window, *ragged, scale, softcap, append, return_lse, signature), impl)
    return result if return_lse else result[0]


class _EmptyRings(threading.local):
    """Rings of no slots on the CPU, by k's shape and type.

    Of one thread, which functools' caches are not, because a ring remembers its last call.
    """

    MOST = 64  # prompts have many lengths

    def __init__(self) -> None:
        self.rings: dict[tuple[torch.Size, torch.dtype], RingMemory] = {}


_empty_rings = _EmptyRings()


def _no_memory(q: Tensor, k: Tensor, v: Tensor, plain: bool) -> RingMemory:
    """A ring of no slots: making one takes ten times as long as a small call. On a GPU it would have to be waited for.

    Raises if q, k and v are no segment.
    """
    if not plain or not k.is_cpu:
        return _make_empty(q, k, v)
    rings = _empty_rings.rings
    if (ring := rings.get((k.shape, k.dtype))) is None:
        with torch.inference_mode(False):  # inference tensors could not be saved for a later call's backward pass
            ring = _make_empty(q, k, v)
        if len(rings) >= _EmptyRings.MOST:
            rings.clear()
        rings[k.shape, k.dtype] = ring
    return ring


@unrecorded
def _make_empty(q: Tensor, k: Tensor, v: Tensor) -> RingMemory:
    check_tensors(q, k, v)
    clock = Clock(torch.zeros(3, k.shape[0], dtype=torch.int64, device=k.device))
    geometry = Geometry(archive=0, recent=0, max_segment=k.shape[1], retention=Retention())
    return RingMemory.empty(k.shape[0], k.shape[2], k.shape[3], 0, geometry, clock, k.dtype, k.device)


@unrecorded
def _default_scale(q: Tensor) -> float:
    scale: float = q.shape[3] ** -0.5
    return scale
