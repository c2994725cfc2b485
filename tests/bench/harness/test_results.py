"""Result files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness import results
from tests.bench.made import RUN, row


def test_what_was_saved_is_loaded(tmp_path):
    run = replace(RUN, rows=[row(AttentionCase("decode", Shape(1, 8)), "ours", 2.0, rounds=3)])
    assert results.load(results.save([run, RUN], tmp_path / "both.jsonl")) == [run, RUN]


def test_threads_have_files_of_their_own(tmp_path):
    assert [replace(RUN, threads=n).file for n in (1, 2)] == ["attention-cpu-1.jsonl", "attention-cpu-2.jsonl"]
    assert replace(RUN, device="cuda").file == "attention-cuda.jsonl"


def test_results_of_two_machines_are_not_compared(tmp_path):
    one = results.save([RUN], tmp_path / "a" / RUN.file)
    other = results.save([replace(RUN, machine={"cpu": "B"}, machine_name="b")], tmp_path / "b" / RUN.file)
    assert [run.machine_name for run in results.load_machine([one])] == ["a"]
    with pytest.raises(ValueError, match=r"one machine, got \['a', 'b'\]"):
        results.load_machine([one, other])
