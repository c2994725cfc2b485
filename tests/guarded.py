"""A plugin of pytest that puts every ring and every packed weight against a page that must not be touched.

    python -m pytest -p tests.guarded tests/dsmr/model/test_native.py

A kernel that reads or writes one value beyond the end of one ends the program, on any instruction set. Sanitizers do
not see that: these tensors lie side by side in memory that is not the C library's.
"""

from __future__ import annotations

import ctypes
import mmap
from math import prod

import pytest
import torch
from torch import Tensor

from dsmr_kernels import pages

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

original = pages.Pages.zeros
made = 0


def zeros(self: pages.Pages, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `Pages.zeros`; never given back, so that a use after the end is seen, too."""
    global made
    nbytes = prod(shape) * dtype.itemsize
    if not nbytes or not pages._is_memory(self._device):
        return original(self, shape, dtype)
    usable = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    first = LIBC.mmap(None, usable + mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if LIBC.mprotect(first + usable, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "no guard page")
    made += 1
    memory = (ctypes.c_char * nbytes).from_address(first + usable - nbytes)
    return torch.frombuffer(memory, dtype=dtype, count=prod(shape)).resize_(shape)


def pytest_configure() -> None:
    """From here on all tensors of `Pages` are guarded."""
    pages.Pages.zeros = zeros


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that guarded nothing shows nothing."""
    if not made:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
