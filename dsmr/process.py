"""Process-wide settings: how idle threads wait, how many there are, which random numbers come.

Nothing here imports PyTorch before it is called: how threads wait can be said only before that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SHORT_SPINS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""For GNU's OpenMP: how often an idle thread looks for work before it sleeps; for Clang's and Intel's: milliseconds."""

DECIDES = {"GOMP_SPINCOUNT": ("OMP_WAIT_POLICY",), "KMP_BLOCKTIME": ("OMP_WAIT_POLICY", "KMP_LIBRARY")}
"""By which other variables a user tells the same pool how to wait."""


def keep_spins_short() -> None:
    """Let idle threads of PyTorch's OpenMP pool sleep soon, by environment variables, where the user has set none.

    As they come, they look for work for milliseconds (GNU) or 200 ms (Clang, Intel) after every parallel region. On
    cores of their own that gains next to nothing; where another program takes one of them, the threads that spin keep
    those that have work from the processor, and training becomes ten and more times slower.

    OpenMP reads the variables when `import torch` loads it. Once that is done, this does nothing.
    """
    if "torch" in sys.modules:
        return
    undecided = {
        name: value
        for name, value in SHORT_SPINS.items()
        if not any(decision in os.environ for decision in (name, *DECIDES[name]))
    }
    os.environ.update(undecided)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within, PyTorch computes on `count` threads; afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Within, PyTorch's generators may be seeded and used; afterwards they are as before, on the CPU and all GPUs."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
