"""From a call to kernel arguments: what all launches share, and which calls can be served."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.geometry import ALL, HASHED, LAST
from dsmr_kernels.backends.triton.tile import EXACT, FLOAT8, INT8

LARGEST_DIM = 256
MOST_LANES = 65535  # of a grid's third dimension, and of its second, CUDA has no more
ALIGNMENT = 16  # bytes: narrower loads are neither vectorised nor asynchronous
STORAGE = {torch.int8: INT8, torch.float8_e4m3fn: FLOAT8}


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


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Strides of an aligned `[B, T, heads, D]`, in units of 16 bytes: so the compiler knows they are aligned."""
    lane, row, head, _ = x.stride()
    unit = ALIGNMENT // x.itemsize
    return {f"{name}_lane": lane // unit, f"{name}_row": row // unit, f"{name}_head": head // unit}


def tile_source(x: Tensor, block: tuple[int, int], by_descriptor: bool) -> Tensor | TensorDescriptor:
    """What `tile.fetch` reads `[rows, D]` tiles of `x [B, heads, n, D]` from."""
    if by_descriptor and x.numel():
        return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, *block])
    return x


def common_arguments(call: Call, config: Config) -> dict[str, Any]:
    """The arguments that forward, dQ and decode share. Tensors that a call lacks are stood in for by one it has."""
    q, k, v, memory, geometry = call.q, call.k, call.v, call.memory, call.memory.geometry
    storage = STORAGE.get(memory.k.dtype, EXACT)
    ring_k, ring_v = (x.view(torch.uint8) if storage is FLOAT8 else x for x in (memory.k, memory.v))
    retention = geometry.retention
    keep = ALL if retention.stride == 1 else HASHED if retention.keep == "random" else LAST
    by_descriptor = config.descriptors and q.shape[3] * memory.k.itemsize % ALIGNMENT == 0
    plain = storage is EXACT and not call.softcap and call.alibi_slopes is None and call.scale > 0
    return {
        **{"q_ptr": q, "k_ptr": k, "v_ptr": v, "ring_k_ptr": ring_k, "ring_v_ptr": ring_v},
        **{"k_scale_ptr": _or(memory.k_scale, q), "v_scale_ptr": _or(memory.v_scale, q)},
        **{"clock_ptr": _clock(call), "horizon_ptr": memory.horizon},
        **{"start_ptr": _or(call.segment_start, q), "len_ptr": _or(call.segment_len, q)},
        **{"slopes_ptr": _or(call.alibi_slopes, q), "scale": call.scale, "softcap": call.softcap},
        **{"T": q.shape[1], "group": q.shape[2] // k.shape[2]},
        **{"archive": geometry.archive, "recent": geometry.recent, "stride": retention.stride},
        **strides("q", q),
        **strides("k", k),
        **strides("v", v),
        **{"D": q.shape[3], "BD": padded_dim(call), "BM": config.block_m, "BN": config.block_n},
        **{"UNIT": ALIGNMENT // q.itemsize, "TOKEN": call.window == "token", "FACTORED": plain},
        **{"STARTS": call.segment_start is not None, "LENGTHS": call.segment_len is not None},
        **{"CAPPED": call.softcap > 0, "ALIBI": call.alibi_slopes is not None},
        **{"STORAGE": storage.value, "KEEP": keep.value, "MEMORY": geometry.archive > 0},
        **{"DESCRIPTOR": by_descriptor, "PRECISION": _precision(q.dtype)},
        **config.options,
    }


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


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    return other if x is None else x.contiguous()


def _precision(dtype: torch.dtype) -> str:
    # Of PyTorch's two settings this one knows what was set by either; asking `allow_tf32` may raise.
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"
