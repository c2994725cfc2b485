"""Structs of `src/step.hpp`, field by field, and the library that reads them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from dsmr_kernels.backends.cpu.library import NativeLibrary, Unavailable

ABI = 4  # src/library.cpp: ABI

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}
"""What a matrix or a ring may hold, with the number that stands for it."""


class Matrix(Structure):
    """`[rows, columns]`; `scales [rows]` for int8."""

    _fields_ = (("values", c_void_p), ("scales", c_void_p), ("rows", c_int64), ("columns", c_int64))


class Norm(Structure):
    """A LayerNorm's weight and bias."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """One block's weights."""

    _fields_ = (
        *((name, Matrix) for name in ("query_key", "value", "out", "up", "down")),
        ("attention_norm", Norm),
        ("feed_forward_norm", Norm),
        ("up_bias", c_void_p),
        ("down_bias", c_void_p),
        ("query_key_size", c_void_p),
    )


class Model(Structure):
    """A packed model."""

    _fields_ = (
        ("layer", POINTER(Layer)),
        ("logits", Matrix),
        ("embedding", c_void_p),
        ("norm", Norm),
        ("frequencies", c_void_p),
        ("epsilon", c_float),
        ("head_epsilon", c_float),
        *((name, c_int32) for name in ("weights", "layers", "heads", "kv_heads", "head_dim", "turns", "rotary")),
        ("token_window", c_int32),
        ("segment", c_int64),
    )


class Ring(Structure):
    """One layer's `RingMemory`."""

    _fields_ = (
        *((name, c_void_p) for name in ("k", "v", "k_scale", "v_scale", "written", "horizon")),
        ("archive", c_int64),
        ("recent", c_int64),
        ("tail", c_void_p),
        ("tail_written", c_void_p),
    )


class State(Structure):
    """A `MemoryStack`."""

    _fields_ = (
        ("ring", POINTER(Ring)),
        ("clock", c_void_p),
        ("type", c_int32),
        ("lanes", c_int32),
        ("stride", c_int64),
        ("keep_random", c_int32),
        ("tail_type", c_int32),
        ("tail_slots", c_int64),
        ("key_shift", POINTER(c_int64)),
    )


class Call(Structure):
    """One step."""

    _fields_ = (
        ("model", POINTER(Model)),
        ("state", POINTER(State)),
        *((name, c_void_p) for name in ("tokens", "segment_len", "logits", "scratch")),
        ("threads", c_int32),
    )


@cache
def library() -> NativeLibrary:
    """The native library; `Unavailable` if it was not built, or was built from other sources."""
    loaded = NativeLibrary(Path(__file__).parent, "dsmr_native", ABI)
    functions = loaded.functions
    functions.dsmr_native_step.argtypes = [POINTER(Call)]
    functions.dsmr_native_step.restype = c_int32
    functions.dsmr_native_scratch.argtypes = [POINTER(Model), POINTER(State), c_int32]
    functions.dsmr_native_scratch.restype = c_int64
    sizes = (c_int64 * 6)()
    functions.dsmr_native_sizes(sizes)
    expected = [ctypes.sizeof(struct) for struct in (Matrix, Layer, Model, Ring, State, Call)]
    if list(sizes) != expected:
        raise Unavailable(f"{loaded.path.name} has structs of {list(sizes)} bytes, expected {expected}: build it anew")
    return loaded


@cache
def absence() -> str | None:
    """Why there is no native step, or None if there is."""
    try:
        library()
    except Unavailable as reason:
        return str(reason)
    return None
