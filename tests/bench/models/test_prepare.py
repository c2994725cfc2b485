"""The command `prepare`: what it loses is found, what it makes is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.harness import results
from bench.models import prepare

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", prepare.cases(quick=True), ids=lambda case: case.what)
def test_preparation_that_loses_a_piece_is_wrong(case):
    alone = prepare.processes(1)
    if reason := alone.unavailable(case, CPU):
        pytest.skip(reason)
    assert case.wrong(alone, CPU) is None
    losing = replace(case, work=lambda music, processes: case.work(music, processes)[1:])
    all_of_them = case.fields["pieces"]
    assert losing.wrong(alone, CPU) == f"{all_of_them - 1} of {all_of_them} pieces came out right"


def test_a_quick_run_of_prepare_counts_pieces_and_tokens(bench, tmp_path):
    done = bench("prepare", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {(row.case, row.contender): row for row in results.load(tmp_path / "prepare-cpu-1.jsonl")[0].rows}
    stored = rows["MIDI files to a token store", "1 process"]
    assert stored.fields["pieces"] == len(prepare.TRANSPOSITIONS)
    assert stored.extra["tokens_per_second"][1] > stored.extra["pieces_per_second"][1] > 0
    assert rows["MIDI files to a token store", "2 processes"].status == "unavailable"
