"""Result files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.harness import results
from bench.harness.results import Row, Run

RUN = Run("decode", "cpu", 1, {"cpu": "A"}, "a", {"torch": "2"}, "abc", {"flops": {"fp32": 1e9}}, False)


def test_what_was_saved_is_loaded(tmp_path):
    row = Row("decode", "case", {"tokens": 1}, "ours", "commit abc", True, True, "timed", rounds=3, seconds=[1.0, 2, 3])
    made = replace(RUN, rows=[row])
    assert results.load(results.save([made, RUN], tmp_path / "both.jsonl")) == [made, RUN]


def test_threads_have_files_of_their_own(tmp_path):
    assert [replace(RUN, threads=n).file for n in (1, 2)] == ["decode-cpu-1.jsonl", "decode-cpu-2.jsonl"]
    assert replace(RUN, device="cuda").file == "decode-cuda.jsonl"


def test_results_of_two_machines_are_not_compared(tmp_path):
    one = results.save([RUN], tmp_path / "a" / RUN.file)
    other = results.save([replace(RUN, machine={"cpu": "B"}, machine_name="b")], tmp_path / "b" / RUN.file)
    assert [run.machine_name for run in results.load_machine([one])] == ["a"]
    with pytest.raises(ValueError, match=r"one machine, got \['a', 'b'\]"):
        results.load_machine([one, other])
