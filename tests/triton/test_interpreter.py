"""A little of what the interpreter shows, in a process of its own; all of it: see `tests/dsmr_kernels/conftest.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interpreter import INTERPRETED

ROOT = Path(__file__).parents[2]
SOME = [
    "test_paths.py::test_many_tiles[triton-descriptors-segment]",
    "test_paths.py::test_decode_shares_a_memory[triton-segment]",
    "test_paths.py::test_the_ring_holds_what_quantise_makes[triton-forward-int8-torch.bfloat16]",
]


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
def test_kernels_are_right_in_the_interpreter() -> None:
    tests = [f"{ROOT}/tests/triton/{name}" for name in SOME]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{len(SOME)} passed" in done.stdout
