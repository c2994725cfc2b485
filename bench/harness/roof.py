"""The best that this machine's cores can do: `roof.cpp`, compiled for them and run in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("roof.cpp")


def measure(threads: int, seconds: float, cache_bytes: int) -> dict[str, float]:
    """FLOP/s of `fp32` and `bf16` and bytes/s of `read`, by `threads` threads together, the best seen in `seconds`.

    Memory is read in passes over four times what the last-level cache holds. RuntimeError without a C++ compiler.
    """
    megabytes = max(4 * cache_bytes >> 20, 64)
    command = [str(_program()), str(threads), str(seconds), str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"bench/harness/roof.cpp: expected rates, got exit status {done.returncode}: {done.stderr.strip()}"
        )
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


@cache
def _program() -> Path:
    """The compiled program, in a temporary folder that stays until this process ends."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise RuntimeError("the roofs of a machine are measured in C++: expected a compiler, CXX or c++, got none")
    folder = tempfile.TemporaryDirectory(prefix="dsmr-roof-")
    _folders.append(folder)
    program = Path(folder.name) / "roof"
    command = [compiler, "-std=c++17", "-O3", "-march=native", "-pthread", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected it to compile, got\n{done.stderr.strip()}")
    return program


_folders: list[tempfile.TemporaryDirectory[str]] = []
