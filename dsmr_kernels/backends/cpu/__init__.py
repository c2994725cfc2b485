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
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.memory import RingMemory

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_DIM = 256  # as in src/tile.hpp

# DsmrCall of src/api.h: the ring, the call's constants and strides, its addresses, the gradients, numbers for an error.
# What does not change from call to call is kept as bytes; one `struct` puts it together with the addresses.
_RING, _CONSTANT, _STRIDES = struct.Struct("26q"), struct.Struct("208s5q2d"), struct.Struct("3q")  # 208: _RING
_CALL = struct.Struct("264s" + "q24s" * 3 + "8q")  # 264: _CONSTANT, 24: _STRIDES
_GRADIENTS, _ERROR = struct.Struct("q24sq3q"), struct.Struct("3q")
_GRADIENTS_OFFSET = _CALL.size
_ERROR_OFFSET = _GRADIENTS_OFFSET + _GRADIENTS.size
_Struct = ctypes.c_char * (_ERROR_OFFSET + _ERROR.size)
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}  # DsmrType
_OK, _BAD_SEGMENT_LEN, _SEGMENT_TOO_LONG, _NO_MEMORY = range(4)  # DsmrStatus


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
    o = lse = torch.empty_like(q) if q.is_contiguous() else q.new_empty(q.shape)
    if call.wants_lse:
        batch, tokens, heads, _ = q.shape
        lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    kept = _pack(call, o, lse)
    _run(_functions()[0])
    del kept
    return o, lse


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
    values = (do.data_ptr(), _strides(do), dlse.data_ptr(), *addresses)
    _GRADIENTS.pack_into(_room.struct, _GRADIENTS_OFFSET, *values)
    _run(_functions()[1])
    del kept
    return dq, dk, dv


@cache
def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer]:
    functions = library.load().functions
    return functions.dsmr_kernels_forward, functions.dsmr_kernels_backward


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
    constant, q_strides, k_strides, v_strides = _constants(call)
    _CALL.pack_into(
        *(_room.struct, 0, constant, q.data_ptr(), q_strides, k.data_ptr(), k_strides, v.data_ptr(), v_strides),
        *(o.data_ptr(), lse.data_ptr() if call.wants_lse else 0, *ragged, torch.get_num_threads()),
    )
    return kept


def _run(function: ctypes._NamedFuncPointer) -> None:
    """Call a kernel with this thread's struct; its error as an exception."""
    room = _room.struct
    status = function(room)
    if status == _OK:
        return
    lane, first, second = _ERROR.unpack_from(room, _ERROR_OFFSET)
    if status == _SEGMENT_TOO_LONG:
        left = _RING.unpack_from(room)[22] - first
        raise ValueError(
            f"q: lane {lane} is at token {first} of its open segment: expected at most {left} more, got {second}"
        )
    if status == _BAD_SEGMENT_LEN:
        raise ValueError(f"segment_len: expected values from 0 to T, got {first} for lane {lane}")
    raise MemoryError("the attention kernels found no memory for their working space")


def _constants(call: Call) -> tuple[bytes, bytes, bytes, bytes]:
    """The ring and the call's constants, and the strides of q, k and v.

    A ring remembers those of its last call, together with the addresses and the signature that they were made from.
    """
    memory, signature = call.memory, call.signature
    k_scale, v_scale = memory.k_scale, memory.v_scale
    addresses = (
        memory.k.data_ptr(),
        memory.v.data_ptr(),
        0 if k_scale is None else k_scale.data_ptr(),
        0 if v_scale is None else v_scale.data_ptr(),
        memory.written.data_ptr(),
        memory.clock.state.data_ptr(),
        memory.horizon.data_ptr(),
    )
    known_addresses, known_signature, known = memory.remembered.get("cpu", (None, None, None))
    if known_addresses == addresses and known_signature is signature and known is not None:
        constants: tuple[bytes, bytes, bytes, bytes] = known
        return constants
    q, k, v = call[:3]
    constant = _CONSTANT.pack(
        *(_ring(memory, addresses), _TYPES[q.dtype], q.shape[1], q.shape[2], call.window == "token", call.append),
        *(call.scale, call.softcap),
    )
    made = constant, _strides(q), _strides(k), _strides(v)
    if signature is not None:
        memory.remembered["cpu"] = addresses, signature, made
    return made


def _ring(memory: RingMemory, addresses: tuple[int, ...]) -> bytes:
    geometry = memory.geometry
    batch, kv_heads, _, dim = memory.k.shape
    values: list[int] = []
    for x, scale in ((memory.k, memory.k_scale), (memory.v, memory.v_scale)):
        values += [x.data_ptr(), *x.stride()[:3], _address(scale)]
        values += [0, 0] if scale is None else scale.stride()[:2]
    return _RING.pack(
        *(*values, *addresses[4:], batch, kv_heads, dim, geometry.archive, geometry.recent, geometry.max_segment),
        *(geometry.retention.stride, geometry.retention.keep == "random", _TYPES[memory.k.dtype]),
    )


def _strides(x: Tensor) -> bytes:
    return _STRIDES.pack(*x.stride()[:3])


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
