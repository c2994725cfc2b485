"""The command `python -m bench gpu`: all that a GPU can say in 8 minutes, from the source tree, with nothing installed.

Sections follow each other, each with a share of the time. What a section leaves over goes to the next ones; a case
that would begin after its section's end is reported as skipped. Results are written after each section, so that a run
that is cut off has said something. `--device cpu --quick` goes the same way on any machine.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench import runner
from bench.harness import machine, results
from bench.harness.measure import Limits
from bench.harness.results import Run
from bench.harness.settings import Settings
from bench.report import document, table

TESTS = 90.0  # seconds at most for the tests of the GPU's back ends
SECTIONS = {  # seconds
    "decode": 70.0,
    "attention": 130.0,
    "train": 80.0,
    "generate": 30.0,
    "append": 10.0,
    "memory": 30.0,
    "overhead": 5.0,
}
LIMITS = Limits(seconds=0.6, least=5, most=50)


class Tests(NamedTuple):
    """What became of `pytest -m gpu`."""

    passed: bool
    summary: str


def main(settings: Settings, sections: Sequence[str], folder: Path) -> int:
    """Test, measure, write `gpu.jsonl` and `gpu.md`; 1 if a test failed or results have faults."""
    begin = time.monotonic()
    tests = run_tests(settings, TESTS)
    print(f"tests: {tests.summary}", flush=True)
    known = runner.measure_roof(settings)
    limits = settings.limits if settings.quick else LIMITS
    runs: list[Run] = []
    end = time.monotonic()
    for command in sections:
        end += SECTIONS[command]
        section = replace(settings, limits=limits, seconds=end - time.monotonic())
        made = runner.run(command, section, known)
        runs.append(made)
        results.save(runs, folder / "gpu.jsonl")
        (folder / "gpu.md").write_text(page(runs, tests))
        table.show(made)
        print(f"{command}: {time.monotonic() - begin:.0f} s since the beginning", flush=True)
    print(f"written: {folder / 'gpu.jsonl'}, {folder / 'gpu.md'}")
    return 1 if not tests.passed or any(results.faults(run) for run in runs) else 0


def page(runs: list[Run], tests: Tests) -> str:
    """The Markdown of `python -m bench report` for these runs alone, and the tests' summary."""
    return "\n".join([f"Tests of the back ends on this device: {tests.summary}", "", *document.section(runs)])


def run_tests(settings: Settings, seconds: float) -> Tests:
    """The laws of the operator on the device's back ends: the tests marked `gpu`, stopped after `seconds`."""
    if settings.device.type != "cuda":
        return Tests(True, "not on this device")
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return Tests(True, f"not run: they need {', '.join(missing)}, which this machine lacks")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "tests/dsmr_kernels"]
    try:
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Tests(False, f"not finished after {seconds:.0f} s")
    return judged(done.returncode, done.stdout + done.stderr)


def judged(code: int, output: str) -> Tests:
    """Pytest's exit status and last line. 5: there is no such test."""
    lines = [line for line in output.splitlines() if line.strip()]
    failures = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    summary = "; ".join([*failures[:5], lines[-1].strip("= ") if lines else "no output"])
    return Tests(code in (0, 5), summary)
