"""The command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOTHING_OPTIONAL = """
import importlib.util, os, runpy, sys
if hasattr(os, "sched_setaffinity"):  # already pinned, it starts no process of its own, where nothing would be hidden
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
hidden = {"rich", "typer", "matplotlib", "pytest", "mido", "safetensors", "pretty_midi", "tensorboard"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find(name, package)
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("bench", run_name="__main__")
"""


@pytest.fixture
def bench():
    """`python -m bench` in a process of its own; `bare`: where nothing is installed but torch, triton and numpy."""

    def run(*arguments, bare=False):
        command = [sys.executable, *(["-c", NOTHING_OPTIONAL] if bare else ["-m", "bench"]), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)

    return run
