"""Rings on large pages are tensors like all others."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dsmr_kernels import MemoryStack
from dsmr_kernels.pages import Pages
from dsmr_kernels.storage import QUANTISED

CPU = torch.device("cpu")


@pytest.mark.parametrize("storage", [None, *QUANTISED])
def test_rings_are_zeros_with_storages_of_their_own(storage: str | None) -> None:
    stack = MemoryStack([1500, 0, 700], 2, 3, 40, 1, storage=storage)
    tensors = [x for ring in stack for x in ring.tensors().values()]
    assert not any(x.any() for x in tensors)
    for i, x in enumerate(tensors):
        assert x.is_contiguous()
        assert not x._is_view()
        assert x.untyped_storage().nbytes() == x.nbytes
        x.view(torch.uint8).fill_(i + 1)
    for i, x in enumerate(tensors):
        assert bool((x.view(torch.uint8) == i + 1).all())


def test_they_are_copied_and_saved_like_all_others() -> None:
    stack = MemoryStack([2000], 2, 2, 64, 1)
    stack[0].k.normal_()
    saved = io.BytesIO()
    torch.save(stack.state_dict(), saved)
    saved.seek(0)
    restored = MemoryStack([2000], 2, 2, 64, 1)
    restored.load_state_dict(torch.load(saved))
    for other in (copy.deepcopy(stack), stack.to("cpu"), restored):
        assert torch.equal(other[0].k, stack[0].k)
        assert other[0].k.data_ptr() != stack[0].k.data_ptr()


def test_a_tensor_keeps_its_room() -> None:
    pages = Pages(2**22, CPU)
    first, second = pages.zeros((2**18,), torch.float32), pages.zeros((2**18,), torch.float32)
    del pages, first
    gc.collect()
    assert float(second.fill_(1).sum()) == 2**18


def test_what_finds_no_room_comes_from_pytorch() -> None:
    pages = Pages(2**20, CPU)
    tensors = [pages.zeros((2**19,), torch.float32) for _ in range(3)]
    for i, x in enumerate(tensors):
        x.fill_(i)
    assert [float(x.mean()) for x in tensors] == [0, 1, 2]


def test_tracing_makes_no_memory() -> None:
    with FakeTensorMode():
        assert isinstance(Pages(2**22, CPU).zeros((2**20,), torch.float32), FakeTensor)
    assert MemoryStack([4000], 2, 2, 64, 1, device="meta")[0].k.is_meta
