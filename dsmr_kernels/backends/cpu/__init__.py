"""The native CPU back end: C++ kernels for AVX-512, AVX2, NEON and any other machine, called through ctypes.

Python checks what the kernels cannot serve, allocates the results and packs addresses and strides into one struct
(`src/api.h`). Everything else, the clock, ragged lanes and the ring's geometry included, is read by C++ where it lies.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache

import torch
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.memory import RingMemory

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_DIM = 256  # as in src/tile.hpp

# DsmrCall of src/api.h: the ring, the call, the gradients, room for the numbers of an error message.
_RING, _CALL, _GRADIENTS, _ERROR = (struct.Struct(code) for code in ("26q", "22q2d3q", "8q", "3q"))
_CALL_OFFSET = _RING.size
_GRADIENTS_OFFSET = _CALL_OFFSET + _CALL.size
_ERROR_OFFSET = _GRADIENTS_OFFSET + _GRADIENTS.size
_NO_GRADIENTS = bytes(_GRADIENTS.size + _ERROR.size)
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
    batch, tokens, heads, _ = call.q.shape
    o = torch.empty(call.q.shape, dtype=call.q.dtype)
    lse = torch.empty((batch, heads, tokens))
    packed = _Packed(call, o, lse)
    packed.run(_functions()[0])
    return o, lse


def backward(
    call: Call, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.backward`."""
    need_dq, need_dkv = needs
    wanted = ((call.q, need_dq), (call.k, need_dkv), (call.v, need_dkv))
    dq, dk, dv = (torch.empty(x.shape if need else 0, dtype=x.dtype) for x, need in wanted)
    packed = _Packed(call, o.contiguous(), lse.contiguous())
    packed.add_gradients(do if do.stride(3) == 1 else do.contiguous(), dlse.contiguous(), dq, dk, dv)
    packed.run(_functions()[1])
    return dq, dk, dv


@cache
def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer]:
    functions = library.load().functions
    return functions.dsmr_kernels_forward, functions.dsmr_kernels_backward


class _Packed:
    """A call as the kernels take it. Keeps alive what it points to."""

    def __init__(self, call: Call, o: Tensor, lse: Tensor) -> None:
        q, k, v, memory, window, start, length, slopes, scale, softcap, append = call
        ragged: tuple[int, ...] = (0, 0, 0, 0, 0)
        self.kept = [o, lse]
        if start is not None or length is not None or slopes is not None:
            start = None if start is None else start.contiguous()
            length = None if length is None else length.contiguous()
            slopes = None if slopes is None else slopes.float().contiguous()
            self.kept += [x for x in (start, length, slopes) if x is not None]
            sizes = (0 if x is None else x.itemsize for x in (start, length))
            ragged = (_address(start), _address(length), *sizes, _address(slopes))
        _, tokens, heads, _ = q.shape
        q_lane, q_token, q_head, _ = q.stride()
        k_lane, k_token, k_head, _ = k.stride()
        v_lane, v_token, v_head, _ = v.stride()
        self.data = bytearray(_ring_bytes(memory))
        self.data += _CALL.pack(
            *(_TYPES[q.dtype], tokens, heads, q.data_ptr(), q_lane, q_token, q_head),
            *(k.data_ptr(), k_lane, k_token, k_head, v.data_ptr(), v_lane, v_token, v_head),
            *(o.data_ptr(), lse.data_ptr(), *ragged),
            *(scale, softcap, window == "token", append, torch.get_num_threads()),
        )
        self.data += _NO_GRADIENTS

    def add_gradients(self, do: Tensor, dlse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Where the backward pass reads and writes gradients; an empty tensor is not wanted."""
        self.kept += [do, dlse]
        wanted = (x.data_ptr() if x.numel() else 0 for x in (dq, dk, dv))
        values = (do.data_ptr(), *do.stride()[:3], dlse.data_ptr(), *wanted)
        _GRADIENTS.pack_into(self.data, _GRADIENTS_OFFSET, *values)

    def run(self, function: ctypes._NamedFuncPointer) -> None:
        """Call a kernel; its error as an exception."""
        status = function(_Struct.from_buffer(self.data))
        if status == _OK:
            return
        lane, first, second = _ERROR.unpack_from(self.data, _ERROR_OFFSET)
        if status == _SEGMENT_TOO_LONG:
            room = _RING.unpack_from(self.data)[22] - first
            raise ValueError(
                f"q: lane {lane} is at token {first} of its open segment: expected at most {room} more, got {second}"
            )
        if status == _BAD_SEGMENT_LEN:
            raise ValueError(f"segment_len: expected values from 0 to T, got {first} for lane {lane}")
        raise MemoryError("the attention kernels found no memory for their working space")


def _ring_bytes(memory: RingMemory) -> bytes:
    """The ring's part of the struct. A ring remembers it, together with the addresses that it was made from."""
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
    remembered: tuple[tuple[int, ...], bytes] | None = memory.__dict__.get("_packed_for_cpu")
    if remembered is not None and remembered[0] == addresses:
        return remembered[1]
    geometry = memory.geometry
    batch, kv_heads, _, dim = memory.k.shape
    values: list[int] = []
    for x, scale in ((memory.k, k_scale), (memory.v, v_scale)):
        values += [x.data_ptr(), *x.stride()[:3], _address(scale)]
        values += [0, 0] if scale is None else scale.stride()[:2]
    packed = _RING.pack(
        *(*values, *addresses[4:], batch, kv_heads, dim, geometry.archive, geometry.recent, geometry.max_segment),
        *(geometry.retention.stride, geometry.retention.keep == "random", _TYPES[memory.k.dtype]),
    )
    memory.__dict__["_packed_for_cpu"] = addresses, packed  # frozen forbids fields to change, and this is none
    return packed


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
