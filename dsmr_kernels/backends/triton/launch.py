"""From a call to kernel arguments: the nouns that all kernels share, and which calls can be served.

What a call lacks is None in its noun, and no part of the kernel. Descriptors are arguments of their own: Triton's
launcher does not look for them in tuples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.geometry import ALL, HASHED, LAST

LARGEST_DIM = 256
MOST_LANES = 65535  # of a grid's third dimension, and of its second, CUDA has no more
ALIGNMENT = 16  # bytes: narrower loads are neither vectorised nor asynchronous
IEEE, TF32 = tl.constexpr("ieee"), tl.constexpr("tf32")  # Triton 3.6 takes numbers as they are, but no strings


class Heads(NamedTuple):
    """`[B, T, heads, D]` and its strides in units of 16 bytes: so the compiler knows that they are aligned."""

    ptr: Tensor
    lane: int
    row: int
    head: int


class Ring(NamedTuple):
    """A layer's memory `k, v [B, Hkv, archive + recent, D]`, and which tokens it keeps. float8 is told by its bytes."""

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor
    archive: int
    recent: int
    stride: int


class Lanes(NamedTuple):
    """What differs from lane to lane and is read on the device; `real [B]` is the call's `segment_len`.

    A call that appends says in `written [B]` up to which position.
    """

    clock: Tensor
    horizon: Tensor
    start: Tensor | None
    real: Tensor | None
    written: Tensor | None


class Rule(NamedTuple):
    """How products become logits."""

    scale: float
    softcap: float | None
    slopes: Tensor | None


class Shape(NamedTuple):
    """What a kernel is compiled for: sizes, and rules that are not told by a noun's lack of something.

    D: the head dimension, and BD what it is rounded up to. BM, BN: queries and keys a tile. UNIT: elements in 16 bytes.
    TOKEN: the window is "token"; BOUNDED: queries may have lower bounds that differ. KEEP: which tokens the ring keeps.
    PLAIN: a logit is a positive multiple of a product. PRECISION: of products, as Triton names it.
    """

    D: int
    BD: int
    BM: int
    BN: int
    UNIT: int
    TOKEN: bool
    BOUNDED: bool
    KEEP: int
    PLAIN: bool
    PRECISION: tl.constexpr


class Launch(NamedTuple):
    """A kernel, its grid and its arguments by name, compile-time ones and compiler options included."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]

    def run(self) -> None:
        """Put it on the current stream."""
        self.kernel[self.grid](**self.arguments)


def unsupported(call: Call) -> str | None:
    """Why the kernels cannot serve `call`, or None."""
    q, memory = call.q, call.memory
    tokens, heads, dim = q.shape[1:]
    if not (q.is_cuda or triton.knobs.runtime.interpret):
        return f"its tensors are on {q.device.type}, and Triton needs a GPU (or TRITON_INTERPRET=1)"
    if q.dtype == torch.float64:
        return "float64: expected float32, bfloat16 or float16"
    if q.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "expected a GPU of compute capability 8.0 or later"
    if dim > LARGEST_DIM:
        return f"head dimension {dim}: expected at most {LARGEST_DIM}"
    if dim * q.itemsize % ALIGNMENT:
        return f"rows of {dim} x {q.itemsize} bytes: expected a multiple of {ALIGNMENT} bytes"
    if q.shape[0] > MOST_LANES:
        return f"{q.shape[0]} lanes: expected at most {MOST_LANES}"
    if tokens * heads * dim >= 2**31 or memory.k.shape[2] * dim >= 2**31:
        return "a lane of more than 2^31 elements"
    if not all(x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0 for x in memory.tensors().values()):
        return f"a ring that is not contiguous or begins off a border of {ALIGNMENT} bytes"
    return None


def padded_dim(call: Call) -> int:
    """The head dimension rounded up to what a tile can have."""
    return max(16, 1 << (call.q.shape[3] - 1).bit_length())


def aligned(x: Tensor) -> Tensor:
    """`x [B, T, heads, D]` itself, or a contiguous copy if loads from it would be narrow or not by descriptor.

    A stride of 0, which `expand` makes, is none that a descriptor may have.
    """
    unit = ALIGNMENT // x.itemsize
    strides_fit = all(s > 0 and s % unit == 0 for s in x.stride()[:3])
    fits = x.stride(3) == 1 and x.data_ptr() % ALIGNMENT == 0 and strides_fit
    return x if fits and x.shape[1] * x.stride(1) < 2**31 else x.clone(memory_format=torch.contiguous_format)


def heads_of(x: Tensor) -> Heads:
    """An aligned `[B, T, heads, D]`."""
    lane, row, head, _ = x.stride()
    unit = ALIGNMENT // x.itemsize
    return Heads(x, lane // unit, row // unit, head // unit)


def inputs_of(call: Call) -> dict[str, Any]:
    """The arguments that kernels share, from an aligned call."""
    q, memory = call.q, call.memory
    geometry = memory.geometry
    ring = None
    if geometry.archive:
        k, v = (x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x for x in (memory.k, memory.v))
        scales = (k, v) if memory.k_scale is None else (memory.k_scale, memory.v_scale)
        ring = Ring(k, v, *scales, geometry.archive, geometry.recent, geometry.retention.stride)
    optional = call.segment_start, call.segment_len, call.alibi_slopes
    start, real, slopes = (None if x is None else x.contiguous() for x in optional)
    return {
        **{"q": heads_of(q), "k": heads_of(call.k), "v": heads_of(call.v), "ring": ring},
        "lanes": Lanes(_clock(call), memory.horizon, start, real, memory.written if call.append else None),
        "rule": Rule(call.scale, call.softcap or None, slopes),
        **{"T": q.shape[1], "group": q.shape[2] // call.k.shape[2]},
    }


def shape_of(call: Call, config: Config) -> Shape:
    """What a call's kernels are compiled for."""
    q, memory = call.q, call.memory
    retention = memory.geometry.retention
    keep = ALL if retention.stride == 1 else HASHED if retention.keep == "random" else LAST
    token = call.window == "token"
    return Shape(
        *(q.shape[3], padded_dim(call), config.block_m, config.block_n, ALIGNMENT // q.itemsize),
        *(token, token or call.segment_start is not None, keep.value),
        memory.k_scale is None and not call.softcap and call.alibi_slopes is None and call.scale > 0,
        _precision(q.dtype),
    )


def source_of(x: Tensor, shape: Shape, config: Config) -> TensorDescriptor | None:
    """What fetches `[BN, BD]` tiles of `x [B, heads, n, D]` in bulk; None if pointers do."""
    if not config.descriptors or shape.D * x.itemsize % ALIGNMENT or not x.numel():
        return None
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, shape.BN, shape.BD])


def _clock(call: Call) -> Tensor:
    """The clock as kernels read it: no lane's phase leaves less than this call's tokens to the end of the segment.

    A segment that goes beyond its end is an error that a device cannot raise. Its tokens would take the slots of
    entries that only so late a phase shows; so those are not shown: what a launch writes, it does not read. One token
    always fits.
    """
    state, tokens = call.memory.clock.state, call.q.shape[1]
    if tokens == 1 or (call.window == "token" and call.memory.geometry.retention.stride == 1):
        return state
    room = call.memory.geometry.max_segment - (tokens if call.segment_len is None else call.segment_len)
    limited = state.clone()
    if isinstance(room, Tensor):
        limited[2] = torch.minimum(state[2], room)
    else:
        limited[2].clamp_(max=room)
    return limited


def _precision(dtype: torch.dtype) -> tl.constexpr:
    # Of PyTorch's two settings this one knows what was set by either; asking `allow_tf32` may raise.
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return TF32 if tf32 else IEEE
