"""The roof of this machine."""

from __future__ import annotations

import pytest
import torch

from bench.harness import roof

CPU = torch.device("cpu")


def test_the_program_measures_this_machine() -> None:
    found = roof.measure(CPU, cache_bytes=2**20, seconds=0.1)
    assert set(found.flops) == {"fp32", "bf16"}
    assert found.flops["bf16"] >= found.flops["fp32"]
    assert found.flops["fp32"] > found.read / 4 > 0  # a float read costs more than an addition to it


def test_without_a_compiler_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    roof._program.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="expected a compiler"):
        roof.measure(CPU, 2**20, 0.1)
