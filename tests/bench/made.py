"""A run and rows as they come out of a measurement."""

from __future__ import annotations

from dataclasses import replace

from bench.attention.cases import AttentionCase
from bench.harness.case import Case, Contender, new_row
from bench.harness.results import Row, Run

RUN = Run(
    command="attention",
    device="cpu",
    threads=1,
    machine={"cpu": "A", "cores": 2, "instructions": "AVX2", "gpu": None},
    machine_name="a",
    versions={"torch": "2"},
    commit="abc",
    roof={"flops": {"fp32": 1e11, "bf16": 2e11}, "read": 2e10},
    quick=False,
)


def row(case: Case, contender: str, median: float, **changes: object) -> Row:
    """A timed row; one whose contender's name begins with `ours` is ours."""
    made = new_row(case, Contender(name=contender, version="1", ours=contender.startswith("ours")), "timed")
    made.seconds = [0.9 * median, median, 1.1 * median]
    if isinstance(case, AttentionCase):
        made.work = case.work(None)._asdict()
    return replace(made, **changes)
