"""The decode step of a model on CPUs, natively and by PyTorch, over full memory: `python -m bench.models.native_step`.

Weights and memory are random: what is in them does not matter for time. The ways take turns, each with `TOKENS` tokens
in a row, as generation has them: what fits in the last-level cache stays there from token to token. The bytes that a
token needs are those of all packed matrices and of the memory it sees; their share of the read bandwidth, measured in
the same run with the same threads, can therefore be above 100 % for models that fit in the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.harness import machine, measure, roof
from bench.harness.units import seconds
from bench.models import fill
from dsmr.generation.decoding import Decoding, new_state
from dsmr.model.config import PRESETS, preset
from dsmr.model.native import NativeStep
from dsmr.model.transformer import Transformer
from dsmr.process import own_random_numbers, torch_threads
from dsmr_kernels import MemoryStack

TOKENS = 20
WAYS = (Decoding(), Decoding(weights="bf16", memory="bf16"), Decoding(weights="int8", memory="int8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: a row for each way to compute a step."""
    parser = argparse.ArgumentParser(prog="python -m bench.models.native_step", description=__doc__.partition("\n")[0])
    parser.add_argument("presets", nargs="*", default=["small", "base"], metavar="PRESET", help=", ".join(PRESETS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    with torch_threads(arguments.threads), own_random_numbers():
        _table(arguments.presets, arguments.threads)


def _table(presets: Sequence[str], threads: int) -> None:
    device = torch.device("cpu")
    described = machine.describe(device)
    read = roof.measure(device, described.cache_bytes, 4.0).read
    print(f"{described.name}, {threads} threads, reads {read / 1e9:.1f} GB/s")
    print(
        f"{'model':6} {'way':30} {'a token':>9} {'tokens/s':>8} {'of PyTorch':>10} {'MB':>6} {'GB/s':>6} {'of read':>7}"
    )
    for name in presets:
        _measure(name, read)


@torch.inference_mode()
def _measure(name: str, read: float) -> None:
    model = Transformer(preset(name)).eval()
    state = model.new_state(1)
    fill.fill(state, model.config)
    trials = [measure.Trial("PyTorch float32", [partial(_by_model, model, state)])]
    needed = {trials[0].name: _bytes(sum(p.nbytes for p in model.parameters()), state)}
    for way in WAYS:
        label = f"native {way.weights}, memory {way.memory or 'float32'}"
        step, state = NativeStep(model, way.weights), new_state(model, 1, way.memory)
        fill.fill(state, model.config)
        trials.append(measure.Trial(label, [partial(_natively, step, state)]))
        needed[label] = _bytes(step.nbytes - model.embedding.weight.nbytes, state)  # one row of the embedding is read
    samples = measure.rounds(trials, torch.device("cpu"), False, measure.Limits(seconds=4, slow_factor=1e9))
    base = samples[trials[0].name]
    for label, taken in samples.items():
        token = measure.Quantiles.of(taken).median / TOKENS
        rate, faster = needed[label] / token, measure.ratio(base, taken).median
        print(
            f"{name:6} {label:30} {seconds(token):>9} {1 / token:8.0f} {faster:9.1f}x {needed[label] / 1e6:6.1f} "
            f"{rate / 1e9:6.1f} {rate / read:7.0%}",
            flush=True,
        )


def _by_model(model: Transformer, state: MemoryStack) -> None:
    segment = model.config.segment
    _play(state, lambda token: model(token[None], state, segment_size=segment))


def _natively(step: NativeStep, state: MemoryStack) -> None:
    _play(state, lambda token: step.step(token, state))


def _play(state: MemoryStack, step: Callable[[Tensor], object]) -> None:
    """`TOKENS` steps, after which the clock, and so the memory that a step sees, stands as before."""
    before, token = state.clock.state.clone(), torch.tensor([60])
    for _ in range(TOKENS):
        step(token)
    state.clock.state.copy_(before)


def _bytes(weights: int, state: MemoryStack) -> float:
    """What a token in the middle of the `TOKENS` reads."""
    rings = zip(state, state.horizons, state.bytes_per_layer, strict=True)
    return weights + sum(size / ring.geometry.capacity * (horizon + TOKENS / 2) for ring, horizon, size in rings)


if __name__ == "__main__":
    main()
