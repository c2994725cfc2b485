"""`src/api.h` in Python: one call as plain data, field by field, and the numbers that stand for types and outcomes."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p
from enum import IntEnum, auto

import torch

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}
"""DsmrType: what tensors and rings may hold, with the number that stands for it."""


class Status(IntEnum):
    """DsmrStatus: what a call returns. Numbers that say more are in `DsmrCall.error`."""

    OK = 0
    BAD_SEGMENT_LEN = auto()
    SEGMENT_TOO_LONG = auto()
    NO_MEMORY = auto()
    BAD_CLOCK = auto()
    BAD_SEGMENT_START = auto()


class DsmrTensor(Structure):
    """Elements `[batch, tokens, heads, dim]`: an address, or None, and strides."""

    _fields_ = (("data", c_void_p), ("lane", c_int64), ("token", c_int64), ("head", c_int64))


class DsmrRing(Structure):
    """Slots `[batch, kv_heads, slots, dim]` and their scales `[batch, kv_heads, slots]`, if quantised."""

    _fields_ = (
        *(("data", c_void_p), ("lane", c_int64), ("head", c_int64), ("slot", c_int64)),
        *(("scale", c_void_p), ("scale_lane", c_int64), ("scale_head", c_int64)),
    )


class DsmrMemory(Structure):
    """The first fields of a call: those that are the ring's."""

    _fields_ = (
        *((name, DsmrRing) for name in ("ring_k", "ring_v")),
        *((name, c_void_p) for name in ("written", "clock", "horizon")),
        *((name, c_int64) for name in ("batch", "kv_heads", "dim")),
        *((name, c_int64) for name in ("archive", "recent", "max_segment", "stride", "keep_random", "ring_type")),
    )


class DsmrCall(Structure):
    """One call; `_anonymous_` lets it have the fields of its memory."""

    _anonymous_ = ("memory",)
    _fields_ = (
        ("memory", DsmrMemory),
        *((name, c_int64) for name in ("type", "tokens", "heads", "window_token", "append")),
        *((name, c_double) for name in ("scale", "softcap")),
        *((name, DsmrTensor) for name in ("q", "k", "v")),
        *((name, c_void_p) for name in ("o", "lse", "segment_start", "segment_len")),
        *((name, c_int64) for name in ("start_bytes", "len_bytes")),
        ("slopes", c_void_p),
        ("threads", c_int64),
        ("grad_o", DsmrTensor),
        *((name, c_void_p) for name in ("grad_lse", "dq", "dk", "dv")),
        ("error", c_int64 * 4),
    )
