"""Memory that something takes: by PyTorch's allocator, and by the system's count of this process."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def peak_resident(step: Step, device: torch.device) -> int:
    """The most bytes that one step makes this process hold beyond what it holds before; results included.

    On a GPU the allocator's peak. On Linux the peak of resident memory, which also sees what native code allocates, to
    a page or two a block. The process must have been started with an allocator that returns freed blocks at once (see
    `bench.__main__`), or a block that is used again would not be seen.
    """
    if device.type == "cuda":
        return _peak_on_gpu(step, device)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # 5: begin a new peak of resident memory
    before = _resident("VmRSS")
    held = step()
    peak = _resident("VmHWM") - before
    del held
    return max(peak, 0)


def peak_allocated(step: Step, device: torch.device) -> int:
    """The most bytes that PyTorch's allocator held at once during a step, beyond what it held before.

    On CPUs found by adding up what the profiler sees allocated and freed. That leaves out what libraries take by
    themselves (their buffers, and code): a process really grows by more, see `bench/METHOD.md`.
    """
    if device.type == "cuda":
        return _peak_on_gpu(step, device)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def held_now(device: torch.device) -> int | None:
    """The bytes held now: by PyTorch on a GPU, by the process on Linux; elsewhere None."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def _peak_on_gpu(step: Step, device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    held = step()
    torch.cuda.synchronize(device)
    del held
    return torch.cuda.max_memory_allocated(device) - before


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/self/status: expected a line {field}, got none; peaks of memory need Linux")
    return int(match[1]) * 1024
