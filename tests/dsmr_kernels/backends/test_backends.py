"""The choice among back ends: by argument, by environment, or the best."""

from __future__ import annotations

import pytest
import torch

from dsmr_kernels import MemoryStack, recurrent_attention


def arguments(**changes: object) -> dict[str, object]:
    q, k, v = (torch.zeros(2, 5, heads, 8) for heads in (4, 2, 2))
    return {"q": q, "k": k, "v": v, "memory": MemoryStack([6], 2, 2, 8, 8)[0]} | changes


def test_the_environment_chooses_a_back_end_where_the_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSMR_KERNELS_IMPL", "abacus")
    with pytest.raises(ValueError, match="got 'abacus'"):
        recurrent_attention(**arguments())
    recurrent_attention(**arguments(impl="eager"))


def test_a_ring_asks_the_environment_again_when_shapes_change(monkeypatch: pytest.MonkeyPatch) -> None:
    call = arguments()
    recurrent_attention(**call)
    monkeypatch.setenv("DSMR_KERNELS_IMPL", "abacus")
    recurrent_attention(**call)
    with pytest.raises(ValueError, match="got 'abacus'"):
        recurrent_attention(**call | {name: call[name][:, :4] for name in "qkv"})
