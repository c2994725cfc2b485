"""`python -m bench generate`: tokens/s, latency per token, real-time factor and memory of generation, by engine.

Models have random weights and full memories: what they play is no music, but it is sampled, with its grammar, by the
very code that plays music, and as fast. One more case begins with empty memories and watches the process grow or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from bench import runner
from bench.harness import measure
from bench.harness.machine import commit
from bench.harness.measure import Quantiles, Trial
from bench.harness.results import Row
from bench.models import fill, memory, step
from bench.models.check import attend_and_append
from bench.models.peers import Attention, state_bytes
from dsmr.generation.decoding import Decoder, Decoding
from dsmr.generation.takes import stream
from dsmr.model.config import ModelConfig, preset
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, VELOCITY
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import QUANTISED, quantise

TOKENS_PER_SECOND = 42
"""Of real music, on average over 400 performances; the busiest 5 seconds in a hundred have 104 a second."""

STEPS = 16  # of one engine before another one's turn
FEWEST_FOR_P99 = 200  # steps: below, the 99th percentile would be the maximum
CHECKED_SEGMENT, CHECKED_STEPS, CHECKED_LANES = 16, 40, 2
WATCHED = (5, 1000)  # how often the memory is looked at, and after how many tokens each


@dataclass(frozen=True)
class Engine:
    """A contender: what makes single steps. `storage` is that of the memory."""

    name: str
    decoding: Decoding
    ours: bool = True
    version: str = field(default_factory=lambda: f"commit {commit()}")

    @property
    def storage(self) -> str | None:
        """How rings store keys and values; None: in the model's type."""
        return self.decoding.memory

    @property
    def like_for_like(self) -> bool:
        """Are weights and memory as exact as the model's?"""
        return self.decoding.memory is None and self.decoding.weights == "float32"

    def unavailable(self, case: GenerateCase, device: torch.device) -> str | None:
        """Why this engine cannot make the case's steps."""
        try:
            self.decoding.choose(replace(case, config=preset("tiny")).model(device))  # what counts is its device
        except ValueError as error:
            return str(error)
        return None


ENGINES = {
    "cpu": {
        "Python model": Decoding("python"),
        "native step": Decoding("native"),
        "native step, bf16 weights": Decoding("native", "bf16"),
        "native step, int8 weights and memory": Decoding("native", "int8", "int8"),
    },
    "cuda": {"Python model": Decoding("python"), "Python model, int8 memory": Decoding("python", memory="int8")},
}


ORACLE = Attention("the oracle", "", attend_and_append)


class FullMemory(Transformer):
    """A model that is always in the middle of a long piece."""

    def new_state(self, *arguments: Any, **options: Any) -> MemoryStack:
        """`Transformer.new_state`, every memory full."""
        state = super().new_state(*arguments, **options)
        fill.fill(state, self.config)
        self.last_state = state
        return state


@dataclass(frozen=True)
class GenerateCase:
    """Music for `lanes` listeners, memories full (or empty, to watch them fill)."""

    size: str
    config: ModelConfig
    lanes: int
    full: bool = True
    task: str = "generate"

    @property
    def name(self) -> str:
        """`tiny-B1`."""
        return f"{self.size}-B{self.lanes}" + ("" if self.full else "-from-empty")

    @property
    def fields(self) -> dict[str, Any]:
        """What tells this case from others, for results and plots."""
        return {
            "size": self.size,
            "lanes": self.lanes,
            "full": self.full,
            "segment": self.config.segment,
            "horizons": list(self.config.schedule.horizons),
            "dtype": "fp32",
        }

    def model(self, device: torch.device) -> Transformer:
        """Matrices of three times their usual deviation: what is drawn then depends on what was played."""
        torch.manual_seed(0)
        model = (FullMemory if self.full else Transformer)(self.config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
        return model.to(device)

    def wrong(self, engine: Engine, device: torch.device) -> str | None:
        """Compare logits of single steps over more than two segments with the oracle's, from full memories."""
        config = step.reduced(self.config, CHECKED_SEGMENT)
        return wrong(replace(self, config=config, lanes=CHECKED_LANES, full=True), engine, device)


def wrong(case: GenerateCase, engine: Engine, device: torch.device) -> str | None:
    """What is wrong with an engine's logits, or None.

    They may be off by twice the error of the oracle with weights and memory in as many bits as the engine's, plus
    rounding.
    """
    model = case.model(device)
    rounded = case.model(device)
    for parameter in rounded.parameters():
        if parameter.dim() == 2:
            parameter.copy_(_in_bits(parameter, engine.decoding.weights))
    exact = _exact(case, device)
    with ORACLE.context():
        rough = _logits(rounded, case.lanes, Decoding("python", memory=engine.decoding.memory))
    got = _logits(model, case.lanes, engine.decoding)
    rounding = np.finfo(np.float32).eps * np.abs(exact).max()
    error, allowed = np.abs(got - exact).max(), 2 * np.abs(rough - exact).max() + rounding
    return None if error <= allowed else f"logits: off by {error:.2g}, allowed {allowed:.2g}"


@lru_cache(maxsize=1)
def _exact(case: GenerateCase, device: torch.device) -> np.ndarray[Any, Any]:
    with ORACLE.context():
        return _logits(case.model(device).double(), case.lanes, Decoding("python"))


def _in_bits(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A matrix as the native step stores it: int8 has a scale for each row."""
    if kind == "int8":
        values, scale = quantise(weight, QUANTISED["int8"].dtype)
        return values * scale[:, None]
    return weight.bfloat16().to(weight.dtype) if kind == "bf16" else weight


def _logits(model: Transformer, lanes: int, decoding: Decoding) -> np.ndarray[Any, Any]:
    """Of BEGIN and random events after it, fed one by one: `[steps, B, V]`."""
    decoder = Decoder(model, decoding)
    after_begin = decoder.read([np.array([BEGIN], dtype=np.uint16)] * lanes)
    events = np.random.default_rng(0).integers(VELOCITY, size=(CHECKED_STEPS, lanes))
    return np.array([after_begin, *(decoder.step(each, np.ones(lanes, dtype=np.bool_)) for each in events)])


SIZES = {
    "cpu": (("tiny", 1), ("tiny", 8), ("small", 1), ("small", 8), ("base", 1)),
    "cuda": (("tiny", 1), ("tiny", 8), ("small", 1), ("small", 8), ("base", 1), ("base", 8)),
}
"""Presets and listeners."""


def cases(device: torch.device, quick: bool) -> list[GenerateCase]:
    """Presets as they are, with full memories; and the smallest from empty memories, on CPUs."""
    sizes = (("tiny", 1),) if quick else SIZES[device.type]
    made = [GenerateCase(name, step.reduced(preset(name), 32) if quick else preset(name), n) for name, n in sizes]
    return [*made, *([replace(made[0], full=False)] if device.type == "cpu" else [])]


def parts(settings: runner.Settings) -> list[runner.Part]:
    """One part a case."""
    wanted = settings.contenders or ("",)
    there = ENGINES[settings.device.type].items()
    engines = [Engine(name, how) for name, how in there if any(part in name for part in wanted)]
    return [
        (case, partial(_race if case.full else _watch, case, engines, settings))
        for case in cases(settings.device, settings.quick)
    ]


def _judged(case: GenerateCase, engines: list[Engine], device: torch.device) -> dict[str, Row]:
    return {e.name: runner.new_row(case, e, *runner.judge(case, e, device)) for e in engines}


class Playing:
    """Music that goes on and on; every step's seconds are kept."""

    def __init__(self, case: GenerateCase, engine: Engine, device: torch.device) -> None:
        self.latencies: list[float] = []
        self._model = case.model(device)
        self._steps = self._play(case, engine)

    def _play(self, case: GenerateCase, engine: Engine) -> Iterator[Any]:
        return stream(self._model, [None] * case.lanes, at_end="forbid", decoding=engine.decoding)

    @property
    def state_bytes(self) -> int:
        """Of the recurrent state, all lanes."""
        return state_bytes(self._model.last_state)

    def play(self, count: int = STEPS) -> None:
        """Sample `count` tokens in every lane."""
        for _ in range(count):
            begin = time.perf_counter()
            next(self._steps)
            self.latencies.append(time.perf_counter() - begin)


def _race(case: GenerateCase, engines: list[Engine], settings: runner.Settings) -> list[Row]:
    """Engines take turns of `STEPS` steps."""
    device = settings.device
    rows = _judged(case, engines, device)
    playing = {e.name: Playing(case, e, device) for e in engines if rows[e.name].status == "right"}
    limits = settings.limits.for_all(len(playing))
    trials = [Trial(name, [each.play]) for name, each in playing.items()]
    samples = measure.rounds(trials, device, False, limits) if trials else {}
    for name, own in samples.items():
        row, latencies = rows[name], playing[name].latencies[-STEPS * len(own) :]  # those of the warm-up left out
        _fill(row, case, own, STEPS)
        row.against = {other: measure.ratio(own, samples[other]).rounded() for other in samples if other != name}
        row.extra["steps"] = len(latencies)
        row.extra["latency"] = {str(p): float(f"{np.percentile(latencies, p):.4g}") for p in (50, 95)}
        if len(latencies) >= FEWEST_FOR_P99:
            row.extra["latency"]["99"] = float(f"{np.percentile(latencies, 99):.4g}")
        row.extra["state_bytes"] = playing[name].state_bytes
    return list(rows.values())


def _watch(case: GenerateCase, engines: list[Engine], settings: runner.Settings) -> list[Row]:
    """One engine after another: what is held after every so many tokens, while rings fill and go round."""
    times, tokens = (3, 100) if settings.quick else WATCHED
    rows = _judged(case, engines, settings.device)
    for engine in engines:
        row = rows[engine.name]
        if row.status != "right":
            continue
        playing = Playing(case, engine, settings.device)
        held, seconds = [[0, memory.resident_bytes(settings.device)]], []
        for number in range(1, times + 1):
            seconds.append(_seconds(partial(playing.play, tokens)))
            held.append([number * tokens, memory.resident_bytes(settings.device)])
        _fill(row, case, seconds, tokens)
        row.extra["resident"] = held
        row.extra["full_after"] = case.config.segment + max(case.config.schedule.horizons)
    return list(rows.values())


def _seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _fill(row: Row, case: GenerateCase, seconds: list[float], steps: int) -> None:
    tokens = steps * case.lanes
    row.status, row.rounds = "timed", len(seconds)
    row.seconds = Quantiles.of(seconds).rounded()
    row.work = {"flops": 0, "bytes": 0, "tokens": tokens}
    row.extra["tokens_per_second"] = Quantiles.of([tokens / t for t in seconds]).rounded()
    row.extra["real_time_factor"] = float(f"{steps / row.seconds[1] / TOKENS_PER_SECOND:.4g}")
