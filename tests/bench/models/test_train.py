"""The command `train`."""

from __future__ import annotations

import torch

from bench.harness import results
from bench.harness.settings import Settings
from bench.models import train

CPU = torch.device("cpu")


def test_a_quick_run_of_train_compares_schedules(bench, tmp_path):
    done = bench("train", "--quick", "--out", str(tmp_path), bare=True)
    assert done.returncode == 0, done.stderr
    rows = results.load(tmp_path / "train-cpu-1.jsonl")[0].rows
    timed = [row for row in rows if row.status == "timed"]
    assert {row.fields["schedule"] for row in timed} == {"full", "two_scale", "full, 2 of 4 KV heads"}
    assert all(row.extra["tokens_per_second"][1] > 0 and row.peak_bytes > row.extra["state_bytes"] > 0 for row in timed)
    two_scale = [row for row in timed if row.fields["schedule"] == "two_scale"]
    assert all(row.extra["against_full"]["state_bytes"] < 0.5 for row in two_scale)
    assert "no backward pass on CPUs" in done.stdout
    assert "arXiv 2602.19816" in done.stdout


def test_a_broken_peer_fails_the_run_and_has_no_time(bench, tmp_path):
    done = bench("train", "--quick", "--contenders", "broken", "--out", str(tmp_path))
    assert done.returncode == 1, done.stderr
    rows = results.load(tmp_path / "train-cpu-1.jsonl")[0].rows
    assert rows
    assert all(row.status == "wrong" and not row.seconds and row.peak_bytes is None for row in rows)


def test_without_time_to_make_ready_everything_is_skipped():
    settings = Settings(CPU, quick=True, seconds=0.0)
    ((_, measured),) = train.parts(settings)
    assert {row.status for row in measured()} == {"skipped"}
