"""Ground of a training: where, and by what, it is computed, on which the last bits of a step depend."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dsmr.process import cores, torch_threads
from dsmr.version import __version__
from dsmr_kernels.backends.cpu import library

CPUINFO = Path("/proc/cpuinfo")


def describe_ground(device: torch.device, processes: int) -> dict[str, Any]:
    """Plain JSON values, saved with every state: a step with the same ones has the same bits on CPUs.

    `device` is the processor's or the GPU's name, `threads` those of PyTorch in each of so many `processes` (sums are
    shared out among them), `instructions` the set that PyTorch's operators use, `kernels` the back end of attention.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels(device),
        "torch": str(torch.__version__),  # a text, of a class of its own
        "dsmr": __version__,
    }


def check_ground(values: Any) -> dict[str, Any]:
    """`values` from a file; ValueError unless they are of the types that `describe_ground` gives."""
    if not isinstance(values, dict) or not all(type(value) in (str, int) for value in values.values()):
        raise ValueError(f"ground: expected texts and whole numbers by name, got {values!r:.80}")
    if type(threads := values.get("threads")) is not int or threads < 1:
        raise ValueError(f"ground: expected a number of threads of at least 1, got {threads!r:.80}")
    return values


@contextmanager
def same_ground(began: dict[str, Any] | None, device: torch.device, processes: int) -> Iterator[list[str]]:
    """Within, PyTorch has as many threads as the state was computed with, if this machine has as many cores.

    Args:
        began: the state's ground; None: it does not say.
        device, processes: of the run that goes on.

    Yields:
        Lines for people: the number of threads if it had to be changed, and whatever else is not as it was.
    """
    if began is None:
        yield ["the state does not tell on what it was computed: the last bits may come out otherwise"]
        return
    threads, before = began["threads"], torch.get_num_threads()
    restored = device.type == "cpu" and processes == began.get("processes") and threads <= cores()
    with torch_threads(threads if restored else before):
        lines = [f"on {threads} threads, as before (instead of {before})"] if torch.get_num_threads() != before else []
        now = describe_ground(device, processes)
        others = [f"{name} {began.get(name)}, now {value}" for name, value in now.items() if began.get(name) != value]
        if others:
            lines.append(f"not on the same ground, so that the last bits may come out otherwise: {'; '.join(others)}")
        yield lines


def _processor() -> str:
    """The processor's name, or as much as the system tells."""
    named = re.search(r"^model name\s*: (.+)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def _kernels(device: torch.device) -> str:
    """The back end that attention takes if a call does not ask for one, and its instruction set."""
    asked = os.environ.get("DSMR_KERNELS_IMPL")
    if device.type != "cpu":
        return asked or "the best for the device"
    if asked not in (None, "cpu") or library.absence():
        return asked or "eager"
    return f"cpu, {library.load().isa}"
