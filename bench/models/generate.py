"""Generation, `python -m bench generate`: tokens/s, latency per token, real-time factor and memory, by engine.

Models have random weights and full memories: what they play is no music, but it is sampled, with its grammar, by the
very code that plays music, and as fast. One more case begins with empty memories and watches the process grow or not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from bench.harness import measure, memory
from bench.harness.case import Contender, Work, judge
from bench.harness.machine import commit
from bench.harness.measure import Trial
from bench.harness.results import Row
from bench.harness.settings import Part, Settings
from bench.models import fill, step
from bench.models.check import attend_and_append
from bench.models.peers import Attention, state_bytes
from dsmr.generation.decoding import Decoder, Decoding
from dsmr.generation.takes import stream
from dsmr.model import ModelConfig, Transformer, preset
from dsmr.music.tokens import BEGIN, VELOCITY
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import QUANTISED, quantise

TOKENS_PER_SECOND = 42
"""Of real music, on average over 400 performances; the busiest 5 seconds in a hundred have 104 a second."""

STEPS = 16  # of one engine before another one's turn
FEWEST_FOR_P99 = 200  # steps: below, the 99th percentile would be the maximum
CHECKED_SEGMENT, CHECKED_STEPS, CHECKED_LANES = 16, 40, 2
WATCHED = (5, 1000)  # how often the memory is looked at, and after how many tokens each


@dataclass(frozen=True, kw_only=True)
class Engine(Contender):
    """What makes single steps."""

    decoding: Decoding

    @property
    def like_for_like(self) -> bool:
        """Are weights and memory as exact as the model's?"""
        return self.storage is None and self.decoding.weights == "float32"


def engine(name: str, decoding: Decoding) -> Engine:
    """A contender that makes steps in this way."""

    def unavailable(case: GenerateCase, device: torch.device) -> str | None:
        try:
            decoding.choose(replace(case, config=preset("tiny")).model(device))  # what counts is its device
        except ValueError as error:
            return str(error)
        return None

    storage, version = decoding.memory, f"commit {commit()}"
    return Engine(name=name, version=version, ours=True, storage=storage, unavailable=unavailable, decoding=decoding)


ENGINES = {
    "cpu": [
        engine("Python model", Decoding("python")),
        engine("native step", Decoding("native")),
        engine("native step, bf16 weights", Decoding("native", "bf16")),
        engine("native step, int8 weights and memory", Decoding("native", "int8", "int8")),
    ],
    "cuda": [
        engine("Python model", Decoding("python")),
        engine("Python model, int8 memory", Decoding("python", memory="int8")),
    ],
}


ORACLE = Attention(name="the oracle", version="", attend=attend_and_append)


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
        return _wrong(replace(self, config=config, lanes=CHECKED_LANES, full=True), engine, device)


def _wrong(case: GenerateCase, engine: Engine, device: torch.device) -> str | None:
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


def parts(settings: Settings) -> list[Part]:
    """One part a case."""
    engines = settings.chosen(ENGINES[settings.device.type])
    return [
        (case, partial(_race if case.full else _watch, case, engines, settings))
        for case in cases(settings.device, settings.quick)
    ]


class Playing:
    """Music that goes on and on; every step's seconds are kept."""

    def __init__(self, case: GenerateCase, engine: Engine, device: torch.device) -> None:
        self.latencies: list[float] = []
        self._model = case.model(device)
        self._steps = stream(self._model, [None] * case.lanes, at_end="forbid", decoding=engine.decoding)

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


def _race(case: GenerateCase, engines: list[Engine], settings: Settings) -> list[Row]:
    """Engines take turns of `STEPS` steps."""
    device = settings.device
    rows = {each.name: judge(case, each, device) for each in engines}
    playing = {e.name: Playing(case, e, device) for e in engines if rows[e.name].status == "right"}
    limits = settings.limits.for_all(len(playing))
    trials = [Trial(name, [each.play]) for name, each in playing.items()]
    samples = measure.rounds(trials, device, False, limits) if trials else {}
    for name, own in samples.items():
        row, latencies = rows[name], playing[name].latencies[-STEPS * len(own) :]  # those of the warm-up left out
        _note(row, case, samples, STEPS)
        row.extra["steps"] = len(latencies)
        row.extra["latency"] = {str(p): float(f"{np.percentile(latencies, p):.4g}") for p in (50, 95)}
        if len(latencies) >= FEWEST_FOR_P99:
            row.extra["latency"]["99"] = float(f"{np.percentile(latencies, 99):.4g}")
        row.extra["state_bytes"] = playing[name].state_bytes
    return list(rows.values())


def _watch(case: GenerateCase, engines: list[Engine], settings: Settings) -> list[Row]:
    """One engine after another: what is held after every so many tokens, while rings fill and go round."""
    times, tokens = (3, 100) if settings.quick else WATCHED
    rows = {each.name: judge(case, each, settings.device) for each in engines}
    for engine in engines:
        row = rows[engine.name]
        if row.status != "right":
            continue
        playing = Playing(case, engine, settings.device)
        held, seconds = [[0, memory.held_now(settings.device)]], []
        for number in range(1, times + 1):
            playing.play(tokens)
            seconds.append(sum(playing.latencies[-tokens:]))
            held.append([number * tokens, memory.held_now(settings.device)])
        _note(row, case, {row.contender: seconds}, tokens)
        row.extra["resident"] = held
        row.extra["full_after"] = case.config.segment + max(case.config.schedule.horizons)
    return list(rows.values())


def _note(row: Row, case: GenerateCase, samples: dict[str, list[float]], steps: int) -> None:
    """Note what a row's engine, among others, took for so many steps at a time."""
    own, tokens = samples[row.contender], steps * case.lanes
    row.time(own, Work(0, 0, tokens)._asdict(), samples)
    row.extra["tokens_per_second"] = measure.rates(tokens, own)
    row.extra["real_time_factor"] = float(f"{steps / row.seconds[1] / TOKENS_PER_SECOND:.4g}")
