"""Attention's cases: shapes, the work they stand for, and the list of each command.

Work is counted by formula, the same for every contender, so a FLOP/s is useful work and waste shows as a lower number:

- A query-key pair costs 2 products of D multiply-adds in the forward pass (4 D FLOPs), and in the backward pass 3 if
  the key is memory (the logit again, dP, dQ), 5 if it is the segment's (and dV, dK).
- `window="segment"`: T M memory pairs and T (T + 1) / 2 segment pairs a head and lane. `window="token"`: M a query.
- Bytes: every input read once, every output written once, the segment appended to the ring; the backward pass reads
  the inputs, o and do again and writes three gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.attention import check
from bench.attention.shapes import Inputs, Shape
from bench.harness.case import Work
from dsmr_kernels.storage import QUANTISED


@dataclass(frozen=True)
class AttentionCase:
    """One call of the operator over full memory.

    `task`: forward, training (forward and backward), decode, append or overhead. `hot`: every call is timed right after
    the same call, its inputs in the cache, instead of rotating through copies of the inputs. `graph`: a captured CUDA
    graph is replayed. `memory`: the peak of memory is measured instead of the time.
    """

    task: str
    shape: Shape
    hot: bool = False
    graph: bool = False
    memory: bool = False

    @property
    def name(self) -> str:
        """The shape, and what is special about the way it is timed."""
        special = {"hot": self.hot, "graph": self.graph, "memory": self.memory}
        return "-".join([str(self.shape), *(name for name, is_set in special.items() if is_set)])

    @property
    def fields(self) -> dict[str, Any]:
        """Every size of the shape."""
        return {**self.shape.__dict__, "hot": self.hot, "graph": self.graph}

    @property
    def input_bytes(self) -> int:
        """q, k, v and the memory."""
        return int(self.work(None).bytes)

    def work(self, storage: str | None) -> Work:
        """By the formulas at the top of this file."""
        s = self.shape
        memory_pairs, segment_pairs = s.pairs()
        element = s.torch_dtype.itemsize
        stored = s.head_dim * (QUANTISED[storage].dtype.itemsize if storage else element) + (4 if storage else 0)
        queries, keys = (s.lanes * s.tokens * heads * s.head_dim * element for heads in (s.heads, s.kv_heads))
        memory = 2 * s.lanes * s.horizon * s.kv_heads * stored
        append = 2 * s.lanes * s.tokens * s.kv_heads * stored
        tokens = s.lanes * s.tokens
        if self.task == "append":
            return Work(0, 2 * keys + append, tokens)
        product = 2 * s.lanes * s.heads * s.head_dim
        forward = Work(
            2 * product * (memory_pairs + segment_pairs), 2 * queries + 2 * keys + memory + append, tokens
        )  # q, o; k, v
        if self.task != "training":
            return forward
        backward_bytes = 4 * queries + 4 * keys + memory  # q, o, do, dq; k, v, dk, dv
        return Work(
            forward.flops + product * (3 * memory_pairs + 5 * segment_pairs), forward.bytes + backward_bytes, tokens
        )

    def inputs(self, device: torch.device, copies: int) -> list[Inputs]:
        """Sets of inputs that all contenders share, of seeds 0, 1, ...; the first are those that `wrong` uses."""
        return [Inputs.random(self.shape, device, seed, self.task == "training") for seed in range(copies)]

    def wrong(self, contender: Any, device: torch.device) -> str | None:
        """What is wrong with one step of the contender on fresh inputs, or None: see `bench.attention.check`."""
        (inputs,) = self.inputs(device, 1)
        prepared = contender.prepare(self, inputs)
        with prepared.context():
            results = prepared.step()
        if self.task != "append":
            results = check.as_named(results)
            names = ["o", "dq", "dk", "dv"] if self.task == "training" else ["o"]
            if reason := check.misshapen(results, names, inputs):
                return reason
            if reason := check.off(results, self.shape, contender.storage, contender.causal):
                return reason
        return prepared.memory and check.wrong_memory(prepared.memory(), self.shape, inputs, contender.storage)

    def tiny(self) -> AttentionCase:
        """The same heads over 16 tokens of memory."""
        return replace(self, shape=replace(self.shape, tokens=min(self.shape.tokens, 8), horizon=16, lanes=1))


MAIN_CPU = tuple(Shape(t, m, d) for t, m in ((256, 1024), (512, 4096)) for d in ("fp32", "bf16"))
MAIN_CUDA = Shape(1024, 4096, "bf16", 16, 16, 64, lanes=8)  # the shape that sweeps on a GPU start from


def _attention(device: torch.device, quick: bool) -> list[AttentionCase]:
    if quick:
        shapes = [Shape(16, 64, dtype, 2, 4, 32) for dtype in ("fp32", "bf16")]
        return [AttentionCase(task, shape) for shape in shapes for task in ("training", "forward")]
    return [AttentionCase(task, shape) for shape, tasks in _attention_shapes(device) for task in tasks]


def _attention_shapes(device: torch.device) -> list[tuple[Shape, tuple[str, ...]]]:
    """Training before forward: both share one oracle."""
    both, forward = ("training", "forward"), ("forward",)
    if device.type == "cpu":
        main = [Shape(t, m, d) for t, m in ((256, 1024), (512, 4096), (1024, 1024)) for d in ("fp32", "bf16")]
        large = [Shape(1024, 8192, dtype) for dtype in ("fp32", "bf16")]
        base = Shape(256, 1024)
        by_horizon = [replace(base, horizon=m, dtype=d) for m in (0, 4096, 16384) for d in ("fp32", "bf16")]
        by_tokens = [replace(base, tokens=t, horizon=4096) for t in (16, 64)]
        by_width = [
            replace(base, lanes=2),
            replace(base, lanes=4),
            replace(base, heads=2, kv_heads=2),
            replace(base, heads=16, kv_heads=16),
        ]
        others = [replace(base, kv_heads=2), replace(base, head_dim=128), replace(base, window="token")]
        return [(s, both) for s in main + large] + [(s, forward) for s in by_horizon + by_tokens + by_width + others]
    base = MAIN_CUDA
    main = [base, replace(base, horizon=1024), replace(base, horizon=16384), replace(base, head_dim=128)]
    wide = [replace(base, kv_heads=4), replace(base, window="token"), replace(base, lanes=1), replace(base, lanes=32)]
    others = [replace(base, horizon=0), replace(base, tokens=256), replace(base, heads=8, kv_heads=8)]
    exact = [replace(base, dtype="fp16"), replace(base, dtype="fp32", lanes=2)]
    return [(s, both) for s in main + wide] + [(s, forward) for s in others + exact]


def _decode(device: torch.device, quick: bool) -> list[AttentionCase]:
    if quick:
        return [AttentionCase("decode", Shape(1, 64, "fp32", 2, 4, 32), hot=hot) for hot in (False, True)]
    if device.type == "cpu":
        shapes = [Shape(1, m, d, h) for d in ("fp32", "bf16") for h in (8, 2) for m in (1024, 4096, 16384)]
        lanes = [AttentionCase("decode", Shape(1, 4096, lanes=4))]
        return [AttentionCase("decode", shape, hot=hot) for shape in shapes for hot in (False, True)] + lanes
    sizes = [(lanes, m, h) for lanes in (1, 8, 64) for m in (1024, 4096, 16384) for h in (16, 4)]
    shapes = [Shape(1, m, "bf16", h, 16, 128, lanes) for lanes, m, h in sizes]
    return [AttentionCase("decode", shape, graph=graph) for shape in shapes for graph in (True, False)]


def _append(device: torch.device, quick: bool) -> list[AttentionCase]:
    if quick:
        return [AttentionCase("append", Shape(8, 64, "fp32", 2, 2, 32))]
    if device.type == "cpu":
        return [AttentionCase("append", Shape(t, 4096, "fp32")) for t in (1, 16, 256)]
    return [AttentionCase("append", Shape(t, 4096, "bf16", 16, 16, 128, lanes=8)) for t in (1, 64, 1024)]


def _memory(device: torch.device, quick: bool) -> list[AttentionCase]:
    if quick:
        return [AttentionCase("training", Shape(64, 512, "fp32", 2, 2, 64), memory=True)]
    base = Shape(256, 4096, "bf16") if device.type == "cpu" else Shape(1024, 4096, "bf16", 16, 16, 128, lanes=8)
    shapes = [replace(base, horizon=m) for m in (0, 1024, 4096, 16384)]
    return [AttentionCase(task, shape, memory=True) for task in ("training", "forward") for shape in shapes]


def _overhead(device: torch.device, quick: bool) -> list[AttentionCase]:
    return [AttentionCase("overhead", Shape(1, 64, "fp32", 4, 4, 32), hot=True)]


COMMANDS: dict[str, Callable[[torch.device, bool], Sequence[AttentionCase]]] = {
    "attention": _attention,
    "decode": _decode,
    "append": _append,
    "memory": _memory,
    "overhead": _overhead,
}


def cases(command: str, device: torch.device, quick: bool, shapes: Sequence[str] = ()) -> list[AttentionCase]:
    """The cases of a command; `shapes` replaces its own list."""
    listed = list(COMMANDS[command](device, quick))
    if not shapes:
        return listed
    variants = dict.fromkeys((case.task, case.hot, case.graph, case.memory) for case in listed)
    return [AttentionCase(task, Shape.parse(text), *options) for text in shapes for task, *options in variants]
