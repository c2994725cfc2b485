"""The run that a GPU is given, on a machine without one."""

from __future__ import annotations

import pytest
import torch

from bench import gpu, models, runner
from bench.__main__ import GPU, main
from bench.attention import cases
from bench.harness import measure, results
from bench.harness.settings import Settings


def test_it_runs_through_on_a_bare_machine_without_a_gpu_and_writes_two_files(bench, tmp_path):
    sections = [name for name in gpu.SECTIONS if name not in models.COMMANDS]  # those have tests of their own
    done = bench("gpu", "--device", "cpu", "--quick", "--sections", *sections, "--out", str(tmp_path), bare=True)
    assert done.returncode == 0, done.stderr
    runs = results.load(tmp_path / "gpu.jsonl")
    assert [run.command for run in runs] == sections
    assert all(any(row.status in ("timed", "weighed") for row in run.rows) for run in runs)
    text = (tmp_path / "gpu.md").read_text()
    assert "### Decode" in text
    assert "![" not in text


def test_its_sections_take_less_than_eight_minutes_and_are_all_there():
    assert gpu.TESTS + sum(gpu.SECTIONS.values()) <= 8 * 60 - 30  # the rest is for starting and the roof
    assert tuple(gpu.SECTIONS) == GPU
    assert set(gpu.SECTIONS) == {*cases.COMMANDS, *models.COMMANDS} - {"prepare"}  # which a GPU has no part in


def test_a_wrong_contender_fails_it(tmp_path, capsys):
    arguments = ["--device", "cpu", "--quick", "--sections", "decode", "--contenders", "broken", "--out", str(tmp_path)]
    assert main(["gpu", *arguments]) == 1
    assert "wrong" in capsys.readouterr().out


def test_when_time_is_over_cases_are_skipped_and_said_to_be():
    settings = Settings(torch.device("cpu"), quick=True, limits=measure.QUICK, seconds=-1.0)
    made = runner.run("decode", settings)
    assert [(row.status, row.reason) for row in made.rows] == [("skipped", "the time for decode was over")] * 2


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "....\n12 passed in 3 s\n", (True, "12 passed in 3 s")),
        (5, "\n3 deselected in 1 s\n", (True, "3 deselected in 1 s")),
        (1, "F\nFAILED tests/a.py::b - no\n1 failed in 2 s\n", (False, "FAILED tests/a.py::b - no; 1 failed in 2 s")),
        (2, "", (False, "no output")),
    ],
)
def test_what_the_tests_said_is_summed_up(code, output, expected):
    assert gpu.judged(code, output) == expected
