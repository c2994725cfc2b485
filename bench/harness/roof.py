"""The best that a device can do: on CPUs `roof.cpp`, compiled for them and run in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from bench.harness.units import DTYPES

SOURCE = Path(__file__).with_name("roof.cpp")


class Roof(NamedTuple):
    """The best that was seen of a device with these threads: what every other number is a share of."""

    flops: dict[str, float]  # FLOP/s by type
    read: float  # bytes/s from memory, more of it than the cache holds


def measure(device: torch.device, cache_bytes: int, seconds: float) -> Roof:
    """The roof of this process's threads, the best seen in `seconds`, or of a GPU: the best matrix product and copy.

    Memory is read in passes over four times what the last-level cache, of `cache_bytes`, holds. RuntimeError on a CPU
    without a C++ compiler.
    """
    return _of_gpu(device, cache_bytes) if device.type == "cuda" else _of_cpu(cache_bytes, seconds)


def _of_cpu(cache_bytes: int, seconds: float) -> Roof:
    megabytes = max(4 * cache_bytes >> 20, 64)
    command = [str(_program()), str(torch.get_num_threads()), str(seconds), str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"bench/harness/roof.cpp: expected rates, got exit status {done.returncode}: {done.stderr.strip()}"
        )
    rates: dict[str, float] = json.loads(done.stdout)
    return Roof({name: rates[name] for name in ("fp32", "bf16")}, rates["read"])


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


def _of_gpu(device: torch.device, cache_bytes: int) -> Roof:
    flops = {}
    for name, dtype in DTYPES.items():
        rates = []
        for size in (2048, 4096, 8192):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            rates.append(2 * size**3 / _best(lambda a=a, b=b: a @ b, device))
        flops[name] = max(rates)
    x = torch.ones(8 * max(cache_bytes, 2**22) // 4, device=device)
    y = torch.empty_like(x)
    return Roof(flops, max(x.nbytes / _best(x.sum, device), 2 * x.nbytes / _best(lambda: y.copy_(x), device)))


def _best(step: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls after a warm-up."""
    best = float("inf")
    for _ in range(repeats + 1):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
