"""Python's struct of a call and C++'s are one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from dsmr_kernels.backends.cpu import library
from dsmr_kernels.backends.cpu.structs import DsmrCall


def fields(struct: type[ctypes.Structure], prefix: str = "", base: int = 0) -> Iterator[tuple[str, int]]:
    """Every plain field's name in C++, and its offset."""
    for name, kind in struct._fields_:
        offset = base + getattr(struct, name).offset
        if not issubclass(kind, ctypes.Structure):
            yield prefix + name, offset
        elif name in getattr(struct, "_anonymous_", ()):
            yield from fields(kind, prefix, offset)
        else:
            yield from fields(kind, f"{prefix}{name}.", offset)


def test_every_field_lies_where_the_library_looks_for_it() -> None:
    if reason := library.absence():
        pytest.skip(reason)
    offset_of = library.load().functions.dsmr_kernels_offset
    offset_of.argtypes, offset_of.restype = (ctypes.c_char_p,), ctypes.c_int64
    ours = dict(fields(DsmrCall)) | {"": ctypes.sizeof(DsmrCall)}
    assert ours == {name: offset_of(name.encode()) for name in ours}
