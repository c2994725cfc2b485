"""Back ends that refuse a call, built or not."""

from __future__ import annotations

import pytest
import torch

from bench.harness import kernels
from dsmr_kernels import MemoryStack, backends
from dsmr_kernels.backends import Call


def test_a_back_end_that_is_not_built_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, x = MemoryStack([8], 1, 2, 16, 8)[0], torch.zeros(1, 4, 2, 16)
    call = Call(x, x, x, memory, "segment", None, None, None, 1.0, 0.0, True)
    assert kernels.refusal("eager", call) is None

    def missing(impl: str) -> None:
        raise ImportError("no such library")

    monkeypatch.setattr(backends, "load", missing)
    assert kernels.refusal("cpu", call) == "not built: no such library"
