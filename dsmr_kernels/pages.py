"""Zeroed memory for rings, on large pages where the system has them.

Generation reads every ring from end to end at each token. With pages of 4 KiB a processor spends about half as long
again looking up where they lie: one Zen 4 core in a virtual machine read 17 GB/s, and 26 GB/s on large pages
(`bench/NOTES.md`).
"""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_LARGE = 2**21  # bytes of a large page on x86-64, and on ARM with base pages of 4 KiB
_LEAST = _LARGE // 4  # less is not worth a page of its own
_ALIGNMENT = 64
_ON_REQUEST = hasattr(mmap, "MADV_HUGEPAGE") and Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()


class Pages:
    """Room for tensors of up to `nbytes` in all, side by side; a tensor keeps it alive.

    On CPUs of Linux it is asked for in large pages, if it fills a good part of one. Elsewhere it is PyTorch's.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._device = device
        self._used, self._end = 0, 0
        if not _ON_REQUEST or nbytes < _LEAST or not _is_memory(device):
            return
        whole_pages = -(-nbytes // _LARGE) * _LARGE
        self._room = mmap.mmap(-1, whole_pages + _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._room.madvise(mmap.MADV_HUGEPAGE)
        self._used = -torch.frombuffer(self._room, dtype=torch.uint8).data_ptr() % _LARGE
        self._end = self._used + whole_pages

    @staticmethod
    def rounded(nbytes: int) -> int:
        """What tensors of `nbytes` in all, up to four of them, may take: each begins at a cache line."""
        return nbytes + 4 * _ALIGNMENT

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, a storage of its own, in what room is left or where PyTorch finds some."""
        start, nbytes = self._used, prod(shape) * dtype.itemsize
        if not nbytes or start + nbytes > self._end:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        self._used += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        # zero_: pages come into being when written, better now than while music plays. resize_: a view would share
        # autograd's count of writes.
        flat = torch.frombuffer(self._room, dtype=dtype, count=prod(shape), offset=start)
        return flat.resize_(shape).zero_()


def _is_memory(device: torch.device) -> bool:
    """Are this device's tensors CPU memory? Not while shapes alone are traced."""
    return device.type == "cpu" and type(torch.empty(0, device=device)) is Tensor
