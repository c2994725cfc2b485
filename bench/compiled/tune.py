"""Time configurations of the Triton kernels on this GPU, for their table: `python -m bench.compiled.tune`.

For each kernel, kind of call and head dimension: candidates that could fit; of these, those that pass the gate
(`bench.compiled.gate`, compiled by as many processes as there are cores); of these, those whose results the oracle
confirms (`bench.attention.check`); and of these the fastest. Puts the winners into the table's file, and writes all
times as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from bench.attention import check, fill
from bench.attention.shapes import Inputs, Shape
from bench.compiled import gate
from bench.harness import machine
from bench.harness.measure import Limits, Quantiles, Trial, copies, rounds
from dsmr_kernels.backends import Call, eager
from dsmr_kernels.backends import triton as backend
from dsmr_kernels.backends.triton import configs
from dsmr_kernels.backends.triton.configs import DIMS, Config, Kernel, Kind

DTYPES: dict[Kind, tuple[str, str | None]] = {  # what stands for a kind; the special kinds keep their entries
    "half": ("bf16", None),
    "quantised": ("bf16", "int8"),
    "float32": ("fp32", None),
}
LIMITS = Limits(seconds=0.2, least=5, most=40)
KEPT = 24  # candidates timed an entry, those with the largest tiles


def shapes(kernel: Kernel, kind: Kind, dim: int) -> list[Shape]:
    """Enough lanes and heads to fill a large GPU; memories of a few segments and of many."""
    dtype, _ = DTYPES[kind]
    if kernel == "decode":
        return [Shape(1, 4096, dtype, kv_heads, 16, dim, lanes=64) for kv_heads in (16, 4)]
    return [Shape(tokens, m, dtype, 16, 16, dim, lanes=4) for tokens, m in ((512, 2048), (1024, 8192))]


def candidates(architecture: str, kernel: Kernel, kind: Kind, dim: int) -> list[Config]:
    """Configurations whose accumulators and buffers could fit, large tiles first."""
    chip = gate.ARCHITECTURES[architecture]
    element = 4 if kind.startswith("float32") else 2
    bulk = chip.copies == "cp.async.bulk.tensor" and kernel in ("forward", "dq")
    tiles = (16,) if kernel == "decode" else (32, 64, 128)
    found = []
    for m, n, warps, stages in itertools.product(tiles, (32, 64, 128), (4, 8), (1, 2, 3, 4)):
        kept, streamed = (n, m) if kernel == "dkdv" else (m, n)
        accumulators = kept * (streamed + dim * (2 if kernel == "dkdv" else 1)) // (32 * warps)
        if accumulators <= 255 and stages * streamed * 2 * dim * element <= chip.shared:
            found += [Config(m, n, warps, stages, descriptors) for descriptors in ((True, False) if bulk else (False,))]
    return sorted(found, key=lambda config: -config.block_m * config.block_n)


def passes(config: Config, architecture: str, kernel: Kernel, kind: Kind, dim: int) -> bool:
    """Does a configuration pass the gate for the first variant of a kind?"""
    with gate.using(architecture, kernel, config):
        examined = gate.examine(architecture, kind, dim, gate.VARIANTS[kind][:1], [kernel])
    return not any(one.problems for one in examined)


def sieve(
    found: Sequence[Config], architecture: str, kernel: Kernel, kind: Kind, dim: int, processes: int
) -> list[Config]:
    """Those that pass the gate, in the same order."""
    check_one = partial(passes, architecture=architecture, kernel=kernel, kind=kind, dim=dim)
    if processes == 1:
        passed = list(map(check_one, found))
    else:  # not forked: CUDA is up
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            passed = list(pool.map(check_one, found))
    return [config for config, good in zip(found, passed, strict=True) if good]


class Measurement(NamedTuple):
    """One configuration on one shape: seconds (20 %, median, 80 %), or why it has none."""

    kernel: Kernel
    kind: Kind
    shape: str
    config: Config
    seconds: list[float]
    reason: str = ""


def step(kernel: Kernel, shape: Shape, storage: str | None, inputs: Inputs) -> Callable[[], dict[str, Tensor]]:
    """One launch of a kernel (the backward kernels after the small one they share), with its results by name."""
    memory = fill.stack(shape, inputs, storage)[0]
    call = Call(inputs.q, inputs.k, inputs.v, memory, "segment", None, None, None, shape.head_dim**-0.5, 0.0, False)
    if kernel in ("forward", "decode"):
        return lambda: {"o": backend.forward(call)[0]}
    o, lse = eager.forward(call)
    needs = (kernel == "dq", kernel == "dkdv")

    def gradients() -> dict[str, Tensor]:
        dq, dk, dv = backend.backward(call, o, lse, inputs.do, torch.zeros_like(lse), needs)
        return {"dq": dq} if needs[0] else {"dk": dk, "dv": dv}

    return gradients


def measure(
    architecture: str, kernel: Kernel, kind: Kind, shape: Shape, found: Sequence[Config], device: torch.device
) -> Iterator[Measurement]:
    """Check, then time all configurations in turns."""
    storage = DTYPES[kind][1]
    sets = copies(fill_bytes(shape), machine.describe(device).cache_bytes)
    steps = [step(kernel, shape, storage, Inputs.random(shape, device, seed, False)) for seed in range(sets)]
    trials = []
    for config in found:
        with gate.using(architecture, kernel, config):
            reason = check.off(steps[0](), shape, storage)
        if reason:
            yield Measurement(kernel, kind, str(shape), config, [], reason)
        else:
            trials.append(Trial(str(tuple(config)), steps, partial(gate.using, architecture, kernel, config)))
    if trials:
        for name, seconds in rounds(trials, device, False, LIMITS).items():
            config = next(config for config in found if str(tuple(config)) == name)
            yield Measurement(kernel, kind, str(shape), config, Quantiles.of(seconds).rounded())


def fill_bytes(shape: Shape) -> int:
    """Bytes of the memory of a shape, which is most of what a call reads."""
    return 2 * shape.lanes * shape.kv_heads * shape.horizon * shape.head_dim * shape.torch_dtype.itemsize


def fastest(measurements: Sequence[Measurement]) -> Config | None:
    """The least product of medians over all shapes, of the configurations that were right on all of them."""
    products: dict[Config, float] = {}
    for config in dict.fromkeys(m.config for m in measurements):
        own = [m for m in measurements if m.config == config]
        if all(m.seconds for m in own):
            products[config] = torch.tensor([m.seconds[1] for m in own], dtype=torch.float64).log().sum().item()
    return min(products, key=products.__getitem__) if products else None


def line(kind: Kind, entries: Sequence[Config]) -> str:
    """A line of the table, as it stands in its file: a key of TOML and an array of arrays."""
    texts = (f"[{', '.join(map(str, entry[:4]))}{', true' * entry.descriptors}]" for entry in entries)
    return f"{json.dumps(kind) if ' ' in kind else kind} = [{', '.join(texts)}]"


def with_line(text: str, architecture: str, kernel: Kernel, kind: Kind, entries: Sequence[Config]) -> str:
    """The text of the table's file with one line anew, in the section that serves an architecture."""
    section = next(name for name, kernels in configs.TABLE.items() if kernels is configs.TABLE[architecture])
    new = line(kind, entries)
    key = new.partition(" = ")[0]
    head, title, rest = text.partition(f"[{section}.{kernel}]\n")
    return head + title + re.sub(rf"^{key} = .*$", lambda _: new, rest, count=1, flags=re.MULTILINE)


def main(arguments: list[str] | None = None) -> None:
    """Tune what is asked for on the current GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled.tune", description="Time kernel configurations on a GPU."
    )
    parser.add_argument("--kernels", nargs="+", default=get_args(Kernel), choices=get_args(Kernel))
    parser.add_argument("--kinds", nargs="+", default=["half"], choices=list(DTYPES))
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128], choices=DIMS, metavar="D")
    parser.add_argument("--out", type=Path, default=Path("tune.json"), help="where the times go")
    parser.add_argument("--force", action="store_true", help="replace the times that are there")
    options = parser.parse_args(arguments)
    if os.path.lexists(options.out) and not options.force:
        parser.error(f"{options.out}: exists already; --force replaces it")
    if not torch.cuda.is_available():
        parser.error("expected a GPU, found none")
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = configs.serving(configs.architecture())
    measurements: list[Measurement] = []
    for kernel, kind in itertools.product(options.kernels, options.kinds):
        if kind not in configs.TABLE[architecture][kernel]:
            continue
        entries = list(configs.TABLE[architecture][kernel][kind])
        for dim in options.dims:
            present = entries[DIMS.index(dim)]
            found = sieve(
                candidates(architecture, kernel, kind, dim), architecture, kernel, kind, dim, os.cpu_count() or 1
            )
            found = list(dict.fromkeys([present, *found[:KEPT]]))
            own = [
                m
                for shape in shapes(kernel, kind, dim)
                for m in measure(architecture, kernel, kind, shape, found, device)
            ]
            measurements += own
            entries[DIMS.index(dim)] = fastest(own) or present
            options.out.write_text(json.dumps(report(device, measurements), indent=1))
        text = configs.FILE.read_text(encoding="utf-8")
        configs.FILE.write_text(with_line(text, architecture, kernel, kind, entries), encoding="utf-8")
        print(f"[{architecture}.{kernel}]\n{line(kind, entries)}", flush=True)


def report(device: torch.device, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What ran, and every time."""
    return {
        "machine": vars(machine.describe(device)),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "measurements": [{**m._asdict(), "config": m.config._asdict()} for m in measurements],
    }


if __name__ == "__main__":
    sys.exit(main())
