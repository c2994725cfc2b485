"""Cases for `pytest bench --benchmark-only`, to be compared with `--benchmark-compare`.

Each back end of ours that this machine has, on the CPU or, where there is one, the GPU; each checked first. Not part of
the ordinary tests (they never time anything).
"""

from __future__ import annotations

import pytest
import torch

from bench.attention import race
from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness.case import judge
from bench.harness.settings import Settings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    AttentionCase("forward", Shape(256, 1024)),
    AttentionCase("forward", Shape(256, 1024, "bf16")),
    AttentionCase("forward", Shape(64, 4096)),
    AttentionCase("training", Shape(256, 1024)),
    AttentionCase("training", Shape(256, 1024, "bf16")),
    AttentionCase("decode", Shape(1, 1024), hot=True),
    AttentionCase("decode", Shape(1, 4096, "bf16"), hot=True),
    AttentionCase("decode", Shape(1, 4096, "bf16", kv_heads=2), hot=True),
]
PAIRS = [
    pytest.param(case, contender, id=f"{case.task}-{case.name}-{contender.name.replace(' ', '-')}")
    for case in CASES
    for contender in race.contending(case, Settings(DEVICE))
    if contender.ours
]


@pytest.mark.parametrize(("case", "contender"), PAIRS)
def test_speed(benchmark, case, contender):
    """One contender in one case, hot."""
    row = judge(case, contender, DEVICE)
    if row.status == "unavailable":
        pytest.skip(row.reason)
    assert row.status == "right", row.reason
    (inputs,) = case.inputs(DEVICE, 1)
    step = contender.prepare(case, inputs).step

    def synchronised() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=20, warmup_rounds=2)
