"""What one call of `recurrent_attention` costs beyond its back end: `python -m bench.call_overhead`.

Three ways of making the same call alternate within one run: the back end's plain function, the public function, and the
operator through PyTorch's dispatcher (what a compiled graph contains). Medians, and the medians of the paired
differences.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch

from dsmr_kernels import MemoryStack, ops, recurrent_attention
from dsmr_kernels.backends import Call, eager

ROUNDS = 3000


def microseconds(function: Callable[[], object]) -> float:
    """One call, timed."""
    start = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - start) / 1000


def main(horizon: int = 64, heads: int = 4, head_dim: int = 32) -> None:
    """Print the three costs."""
    torch.set_num_threads(1)
    stack = MemoryStack([horizon], lanes=1, kv_heads=heads, head_dim=head_dim, max_segment=horizon)
    recurrent_attention(*(torch.randn(1, horizon, heads, head_dim) for _ in range(3)), stack[0])
    stack.advance(horizon)
    q, k, v = (torch.randn(1, 1, heads, head_dim) for _ in range(3))
    call = Call(q, k, v, stack[0], "segment", None, None, None, head_dim**-0.5, 0.0, True)
    ways: dict[str, Callable[[], object]] = {
        "plain function": lambda: eager.forward(call),
        "recurrent_attention": lambda: recurrent_attention(q, k, v, stack[0]),
        "operator": lambda: torch.ops.dsmr_kernels.attend_(*ops._flatten(call, None)),
    }
    with torch.no_grad():
        rounds = [{name: microseconds(way) for name, way in ways.items()} for _ in range(ROUNDS + 200)][200:]
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    for name in ways:
        median = statistics.median(times[name] for times in rounds)
        beyond = statistics.median(times[name] - times["plain function"] for times in rounds)
        print(f"{name:20} {median:7.1f} us a call, {beyond:+6.1f} us beyond the plain function")


if __name__ == "__main__":
    main()
