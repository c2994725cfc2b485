"""The native CPU back end: C++ kernels for AVX-512, AVX2, NEON and any other machine, called through ctypes.

Python checks what the kernels cannot serve, allocates the results and fills in one struct of addresses and strides
(`structs`). Everything else, the clock, ragged lanes and the ring's geometry included, is read by C++ where it lies.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import torch
from torch import Tensor, empty_like, get_num_threads

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.backends.cpu.structs import TYPES, DsmrCall, DsmrMemory, DsmrTensor, Status
from dsmr_kernels.geometry import bad_clock
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.torch_private import increment_version

LARGEST_DIM = 256  # as in src/tile.hpp


def unsupported(call: Call) -> str | None:
    """Why this back end cannot serve `call`, or None."""
    if not call.q.is_cpu:
        return f"expected tensors on the CPU, got {call.q.device}"
    if call.q.dtype not in TYPES:
        return f"expected q of float32, bfloat16 or float16, got {call.q.dtype}"
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

    __slots__ = ("_address", "_append", "_contiguous", "_earlier", "_function")

    def __init__(self, call: Call) -> None:
        plain = call._replace(segment_start=None, segment_len=None, alibi_slopes=None, wants_lse=False)
        _pack(plain, call.q, call.q)
        self._earlier = DsmrCall.from_buffer_copy(_room.struct)
        self._address, self._function = ctypes.addressof(self._earlier), _function("repeat")
        self._contiguous, self._append = call.q.is_contiguous(), call.append

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, memory: RingMemory) -> Tensor | None:
        """The output; None, and nothing is written, where `forward` raises an error."""
        o = empty_like(q) if self._contiguous else q.new_empty(q.shape)
        ring_k, ring_v, k_scale, v_scale, written, clock, horizon = memory.addressed
        # fmt: off
        status = self._function(
            self._address, get_num_threads(), q.data_ptr(), k.data_ptr(), v.data_ptr(), o.data_ptr(),
            ring_k.data_ptr(), ring_v.data_ptr(),
            None if k_scale is None else k_scale.data_ptr(), None if v_scale is None else v_scale.data_ptr(),
            written.data_ptr(), clock.data_ptr(), horizon.data_ptr(),
        )
        # fmt: on
        if status:  # anything but OK; asking an enumeration takes a hundredth of the call
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
    struct = _room.struct
    struct.grad_o, struct.grad_lse = _tensor(do), dlse.data_ptr()
    struct.dq, struct.dk, struct.dv = (x.data_ptr() if x.numel() else None for x in (dq, dk, dv))  # None: not wanted
    _run(_function("backward"))
    del kept
    return dq, dk, dv


@cache
def _function(name: str) -> ctypes._NamedFuncPointer:
    function: ctypes._NamedFuncPointer = getattr(library.load().functions, f"dsmr_kernels_{name}")
    if name == "repeat":
        function.argtypes = (ctypes.c_void_p, ctypes.c_int64, *(ctypes.c_void_p,) * 11)
    return function


class _Room(threading.local):
    """One struct a thread, used again by every call: kernels run without Python's lock."""

    def __init__(self) -> None:
        self.struct = DsmrCall()


_room = _Room()


def _pack(call: Call, o: Tensor, lse: Tensor) -> tuple[Tensor | None, ...]:
    """Write a call into this thread's struct. Returns what must stay alive until the kernel has run."""
    struct = _room.struct
    q, start, length, slopes = call.q, call.segment_start, call.segment_len, call.alibi_slopes
    struct.memory = _memory(call.memory)
    struct.type, struct.tokens, struct.heads = TYPES[q.dtype], q.shape[1], q.shape[2]
    struct.window_token, struct.append = call.window == "token", call.append
    struct.scale, struct.softcap = call.scale, call.softcap
    struct.q, struct.k, struct.v = _tensor(q), _tensor(call.k), _tensor(call.v)
    struct.o, struct.lse = o.data_ptr(), lse.data_ptr() if call.wants_lse else None
    if start is not None:
        start = start.contiguous()
        struct.start_bytes = start.itemsize
    if length is not None:
        length = length.contiguous()
        struct.len_bytes = length.itemsize
    if slopes is not None:
        slopes = slopes.float().contiguous()
    struct.segment_start, struct.segment_len, struct.slopes = _address(start), _address(length), _address(slopes)
    struct.threads = get_num_threads()
    return start, length, slopes


def _run(function: ctypes._NamedFuncPointer) -> None:
    """Call a kernel with this thread's struct; its error as an exception."""
    struct = _room.struct
    status = function(ctypes.byref(struct))
    if status == Status.OK:
        return
    numbers = tuple(struct.error)
    if status == Status.BAD_CLOCK:
        raise bad_clock(*numbers)
    lane, first, second, _ = numbers
    if status == Status.BAD_SEGMENT_START:
        raise ValueError(f"segment_start: expected non-decreasing rows with 0 <= segment_start[{lane}, i] <= i")
    if status == Status.SEGMENT_TOO_LONG:
        raise ValueError(
            f"q: lane {lane} is at token {first} of its open segment: "
            f"expected at most {struct.max_segment - first} more, got {second}"
        )
    if status == Status.BAD_SEGMENT_LEN:
        raise ValueError(f"segment_len: expected values from 0 to T, got {first} for lane {lane}")
    raise MemoryError("the attention kernels found no memory for their working space")


def _memory(memory: RingMemory) -> DsmrMemory:
    """A ring's fields. They are kept with it, for as long as its tensors stay where they are."""
    addresses = tuple(map(_address, memory.addressed))
    kept: tuple[tuple[int | None, ...], DsmrMemory] | None = memory.cache.get(DsmrMemory)
    if kept is not None and kept[0] == addresses:
        return kept[1]
    k, v, k_scale, v_scale, written, clock, horizon = addresses
    batch, kv_heads, _, dim = memory.k.shape
    geometry = memory.geometry
    struct = DsmrMemory(
        ring_k=(k, *memory.k.stride()[:3], k_scale, *_scale_strides(memory.k_scale)),
        ring_v=(v, *memory.v.stride()[:3], v_scale, *_scale_strides(memory.v_scale)),
        **{"written": written, "clock": clock, "horizon": horizon, "batch": batch, "kv_heads": kv_heads, "dim": dim},
        **{"archive": geometry.archive, "recent": geometry.recent, "max_segment": geometry.max_segment},
        **{"stride": geometry.retention.stride, "keep_random": geometry.retention.keep == "random"},
        ring_type=TYPES[memory.k.dtype],
    )
    memory.cache[DsmrMemory] = addresses, struct
    return struct


def _scale_strides(scale: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if scale is None else scale.stride()[:2]


def _tensor(x: Tensor) -> DsmrTensor:
    return DsmrTensor(x.data_ptr(), *x.stride()[:3])


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
