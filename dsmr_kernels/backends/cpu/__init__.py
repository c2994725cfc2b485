"""The native CPU back end: C++ kernels for AVX-512, AVX2, NEON and any other machine, called through ctypes.

Python checks what the kernels cannot serve, allocates the results and packs addresses and strides into one struct
(`src/api.h`). Everything else, the clock, ragged lanes and the ring's geometry included, is read by C++ where it lies.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from functools import cache

import torch
from torch import Tensor, empty_like, get_num_threads

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.geometry import bad_clock
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.torch_private import increment_version

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_DIM = 256  # as in src/tile.hpp

# DsmrCall of src/api.h: the ring, the call's options, q, k, v, other addresses; the gradients; numbers for an error.
_RING = struct.Struct("26q")
_CALL = struct.Struct("208s5q2d12q8q")  # 208: _RING
_GRADIENTS, _ERROR = struct.Struct("q3qq3q"), struct.Struct("4q")
_GRADIENTS_OFFSET = _CALL.size
_ERROR_OFFSET = _GRADIENTS_OFFSET + _GRADIENTS.size
_Struct = ctypes.c_char * (_ERROR_OFFSET + _ERROR.size)
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}  # DsmrType
_OK, _BAD_SEGMENT_LEN, _SEGMENT_TOO_LONG, _NO_MEMORY, _BAD_CLOCK, _BAD_SEGMENT_START = range(6)  # DsmrStatus


def unsupported(call: Call) -> str | None:
    """Why this back end cannot serve `call`, or None."""
    if not call.q.is_cpu:
        return f"expected tensors on the CPU, got {call.q.device}"
    if call.q.dtype not in COMPUTE_DTYPES:
        return f"expected q of one of {COMPUTE_DTYPES}, got {call.q.dtype}"
    if call.q.shape[3] > LARGEST_DIM:
        return f"expected a head dimension of at most {LARGEST_DIM}, got {call.q.shape[3]}"
    if call.memory.k.stride(3) != 1 or call.memory.v.stride(3) != 1:
        return "expected a ring with a contiguous last dimension"
    if reason := library.absence():
        library.announce_absence()
        return reason
    return None


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.forward`."""
    q = call.q
    # Of all ways to allocate, empty_like takes the least time; it keeps strides, and results are contiguous.
    o = lse = empty_like(q) if q.is_contiguous() else q.new_empty(q.shape)
    if call.wants_lse:
        batch, tokens, heads, _ = q.shape
        lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    kept = _pack(call, o, lse)
    _run(_function("forward"))
    del kept
    return o, lse


def repeat(call: Call) -> Repeat:
    """See `dsmr_kernels.backends.Backend`."""
    return Repeat(call)


class Repeat:
    """Calls that differ from an earlier one in addresses and values alone: nothing is examined or packed anew."""

    __slots__ = ("_append", "_contiguous", "_earlier", "_function")

    def __init__(self, call: Call) -> None:
        plain = call._replace(segment_start=None, segment_len=None, alibi_slopes=None, wants_lse=False)
        _pack(plain, call.q, call.q)
        self._earlier, self._function = bytes(_room.struct), _function("repeat")
        self._contiguous, self._append = call.q.is_contiguous(), call.append

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, memory: RingMemory) -> Tensor | None:
        """The output; None, and nothing is written, where `forward` raises an error."""
        o = empty_like(q) if self._contiguous else q.new_empty(q.shape)
        ring_k, ring_v, k_scale, v_scale, written, clock, horizon = memory.addressed
        # fmt: off
        status = self._function(
            self._earlier, get_num_threads(), q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr(),
            ring_k.data_ptr(), ring_v.data_ptr(),
            None if k_scale is None else k_scale.data_ptr(), None if v_scale is None else v_scale.data_ptr(),
            written.data_ptr(), clock.data_ptr(), horizon.data_ptr(),
        )
        # fmt: on
        if status != _OK:
            return None
        if self._append:
            increment_version(memory.state)
        return o


def backward(
    call: Call, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.backward`."""
    need_dq, need_dkv = needs
    wanted = ((call.q, need_dq), (call.k, need_dkv), (call.v, need_dkv))
    dq, dk, dv = (x.new_empty(x.shape if need else 0) for x, need in wanted)
    o, lse, dlse = o.contiguous(), lse.contiguous(), dlse.contiguous()
    do = do if do.stride(3) == 1 else do.contiguous()
    kept = _pack(call, o, lse)
    addresses = (x.data_ptr() if x.numel() else 0 for x in (dq, dk, dv))  # 0: not wanted
    values = (do.data_ptr(), *do.stride()[:3], dlse.data_ptr(), *addresses)
    _GRADIENTS.pack_into(_room.struct, _GRADIENTS_OFFSET, *values)
    _run(_function("backward"))
    del kept
    return dq, dk, dv


@cache
def _function(name: str) -> ctypes._NamedFuncPointer:
    function: ctypes._NamedFuncPointer = getattr(library.load().functions, f"dsmr_kernels_{name}")
    if name == "repeat":
        function.argtypes = (ctypes.c_char_p, ctypes.c_int64, *(ctypes.c_void_p,) * 11)
    return function


class _Room(threading.local):
    """One struct a thread, used again by every call: kernels run without Python's lock."""

    def __init__(self) -> None:
        self.struct = _Struct()


_room = _Room()


def _pack(call: Call, o: Tensor, lse: Tensor) -> tuple[Tensor | None, ...]:
    """Write a call into this thread's struct. Returns what must stay alive until the kernel has run."""
    q, k, v = call[:3]
    start, length, slopes = call[5:8]
    kept: tuple[Tensor | None, ...] = ()
    ragged: tuple[int, ...] = (0, 0, 0, 0, 0)
    if start is not None or length is not None or slopes is not None:
        start = None if start is None else start.contiguous()
        length = None if length is None else length.contiguous()
        slopes = None if slopes is None else slopes.float().contiguous()
        kept = start, length, slopes
        sizes = (0 if x is None else x.itemsize for x in (start, length))
        ragged = (_address(start), _address(length), *sizes, _address(slopes))
    tensors = (number for x in (q, k, v) for number in (x.data_ptr(), *x.stride()[:3]))
    _CALL.pack_into(
        *(_room.struct, 0, _ring(call.memory), _TYPES[q.dtype], q.shape[1], q.shape[2], call.window == "token"),
        *(call.append, call.scale, call.softcap, *tensors, o.data_ptr(), lse.data_ptr() if call.wants_lse else 0),
        *(*ragged, get_num_threads()),
    )
    return kept


def _run(function: ctypes._NamedFuncPointer) -> None:
    """Call a kernel with this thread's struct; its error as an exception."""
    room = _room.struct
    status = function(room)
    if status == _OK:
        return
    numbers = _ERROR.unpack_from(room, _ERROR_OFFSET)
    if status == _BAD_CLOCK:
        raise bad_clock(*numbers)
    lane, first, second, _ = numbers
    if status == _BAD_SEGMENT_START:
        raise ValueError(f"segment_start: expected non-decreasing rows with 0 <= segment_start[{lane}, i] <= i")
    if status == _SEGMENT_TOO_LONG:
        left = _RING.unpack_from(room)[22] - first
        raise ValueError(
            f"q: lane {lane} is at token {first} of its open segment: expected at most {left} more, got {second}"
        )
    if status == _BAD_SEGMENT_LEN:
        raise ValueError(f"segment_len: expected values from 0 to T, got {first} for lane {lane}")
    raise MemoryError("the attention kernels found no memory for their working space")


def _ring(memory: RingMemory) -> bytes:
    geometry = memory.geometry
    batch, kv_heads, _, dim = memory.k.shape
    values: list[int] = []
    for x, scale in ((memory.k, memory.k_scale), (memory.v, memory.v_scale)):
        values += [x.data_ptr(), *x.stride()[:3], _address(scale)]
        values += [0, 0] if scale is None else scale.stride()[:2]
    return _RING.pack(
        *(*values, memory.written.data_ptr(), memory.clock.state.data_ptr(), memory.horizon.data_ptr()),
        *(batch, kv_heads, dim, geometry.archive, geometry.recent, geometry.max_segment),
        *(geometry.retention.stride, geometry.retention.keep == "random", _TYPES[memory.k.dtype]),
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
