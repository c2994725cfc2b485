"""Timing that can be believed: contenders take turns, inputs rotate through more than the cache, medians per round."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Limits:
    """How long one case may be measured. A round times every contender once."""

    seconds: float = 3.0  # no new round after this, once there are `least`
    patience: float = 15.0  # nor after this, once there are 3
    least: int = 5
    most: int = 100
    slow_factor: float = 3.0  # a contender this much slower than the fastest ...
    slow_rounds: int = 3  # ... takes part in so many rounds only

    def for_all(self, contenders: int) -> Limits:
        """For several contenders of several cases in one: as much time as they would have each, and no one is slow."""
        scaled = {"seconds": contenders * self.seconds, "patience": contenders * self.patience}
        return replace(self, **scaled, slow_factor=float("inf"))


QUICK = Limits(seconds=0.0, least=3, most=3)


@dataclass(frozen=True)
class Trial:
    """One contender ready to be timed: the same step over each copy of the inputs, and a context that is not timed.

    `comparable`: it computes what the others do, so that its time says which of them are slow.
    """

    name: str
    steps: Sequence[Step]
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    comparable: bool = True


@dataclass(frozen=True)
class Quantiles:
    """Median and the 20 % and 80 % quantiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quantiles:
        """Linear interpolation between samples."""
        return cls(*(float(x) for x in np.quantile(np.asarray(samples, dtype=float), (0.2, 0.5, 0.8))))

    def rounded(self) -> list[float]:
        """`[low, median, high]` to four significant digits, for JSON."""
        return [float(f"{x:.4g}") for x in (self.low, self.median, self.high)]


def ratio(samples: Sequence[float], base: Sequence[float]) -> Quantiles:
    """Quantiles of `samples / base`, round by round: what both saw of a busy machine cancels."""
    return Quantiles.of([a / b for a, b in zip(samples, base, strict=False)])


def rates(amount: float, samples: Sequence[float]) -> list[float]:
    """Quantiles of `amount` a second, for JSON."""
    return Quantiles.of([amount / seconds for seconds in samples]).rounded()


def difference(samples: Sequence[float], base: Sequence[float]) -> Quantiles:
    """Quantiles of `samples - base`, round by round."""
    return Quantiles.of([a - b for a, b in zip(samples, base, strict=False)])


def copies(input_bytes: int, cache_bytes: int) -> int:
    """How many sets of inputs of `input_bytes` to rotate through so that none is still in the cache: 2 to 64."""
    return min(max(-(-2 * cache_bytes // max(input_bytes, 1)), 2), 64)


def rounds(trials: Sequence[Trial], device: torch.device, hot: bool, limits: Limits) -> dict[str, list[float]]:
    """Seconds of each trial in each round it took part in (slow ones in the first few only).

    Who begins changes from round to round. Every round takes the next copy of the inputs; `hot` times a call right
    after the same call on the same inputs. On a CPU `perf_counter`, on a GPU CUDA events around the call, which see
    the gaps that a slow host leaves between kernels.
    """
    samples: dict[str, list[float]] = {trial.name: [] for trial in trials}
    for trial in trials:
        for number in range(len(trial.steps)):  # no copy's first call is timed: what it finds out may be kept
            _timed(trial, number, device)()
    slow: set[str] = set()
    collecting = gc.isenabled()
    gc.disable()
    begin = time.monotonic()
    try:
        for number in range(limits.most):
            pending = []
            shift = number % len(trials)
            for trial in (*trials[shift:], *trials[:shift]):
                if trial.name in slow:
                    continue
                if hot:
                    _timed(trial, number, device)
                pending.append((trial.name, _timed(trial, number, device)))
            for name, elapsed in pending:
                samples[name].append(elapsed())
            if number + 1 == limits.slow_rounds:
                best = {name: min(times) for name, times in samples.items()}
                fastest = min((best[trial.name] for trial in trials if trial.comparable), default=0.0)
                slow = {name for name, t in best.items() if t > limits.slow_factor * fastest > 0}
            elapsed_in_all, done = time.monotonic() - begin, number + 1
            if (done >= limits.least and elapsed_in_all > limits.seconds) or (
                done >= 3 and elapsed_in_all > limits.patience
            ):
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def once(trial: Trial, device: torch.device) -> None:
    """Run the last copy's step, to its end: what fails, fails here."""
    _timed(trial, len(trial.steps) - 1, device)()


def _timed(trial: Trial, number: int, device: torch.device) -> Callable[[], float]:
    """Run one step; a function that gives its seconds (and, on a GPU, waits for them)."""
    step = trial.steps[number % len(trial.steps)]
    with trial.context():
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = step()
            stop.record()
            del result

            def elapsed() -> float:
                stop.synchronize()
                return start.elapsed_time(stop) / 1000

            return elapsed
        begin = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - begin
        del result  # outside the measurement: what a step allocates, its successor pays for
        return lambda: seconds


def captured(step: Step) -> Step:
    """The step as a CUDA graph, to be replayed: what it costs without the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
