"""Law 8 where more than one thread or one stack is at work: right, or refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from dsmr_kernels import MemoryStack
from tests.dsmr_kernels.history import random_normal
from tests.dsmr_kernels.test_replays import (
    DIM,
    GRADIENTS,
    KV_HEADS,
    LANES,
    NO_GRADIENTS,
    WAYS,
    WIDTH,
    Layer,
    Run,
    both_kinds,
)


def in_a_thread(work: Callable[[], None]) -> None:
    """Run it in a new thread, whose nodes autograd numbers from 0."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@both_kinds
def test_backward_passes_may_run_in_other_threads(impl: str, way: str) -> None:
    def feed(run: Run) -> None:
        for _ in range(3):
            run.forward()
            run.advance()
            in_a_thread(run.backward)

    plain, replayed = Run(None, impl), Run(way, impl)
    feed(plain)
    feed(replayed)
    assert len(plain.results) == len(replayed.results) == 6
    assert all(map(torch.equal, plain.results, replayed.results))


@both_kinds
@pytest.mark.parametrize(
    ("looks_up", "gradients"), [(False, NO_GRADIENTS), (True, GRADIENTS)], ids=["moved in place", "looked up"]
)
def test_clocks_moved_by_another_thread_are_right_or_refused(
    impl: str, way: str, looks_up: bool, gradients: Callable
) -> None:
    """The nodes of the first pass have larger numbers than all that the thread that moves the clock has made."""
    run = Run(way, impl, in_flight=3, looks_up=looks_up)

    def many_nodes_and_a_segment() -> None:
        x = torch.zeros(1, requires_grad=True)
        for _ in range(100):
            x = x + 0
        run.forward()

    def move() -> None:
        run.advance(gradients)

    in_a_thread(many_nodes_and_a_segment)
    in_a_thread(move)
    run.forward()  # so that the memory holds a segment at the new clock, too
    run.pending = run.pending[:1]
    with suppress(RuntimeError):
        run.backward()
    plain = Run(None, impl, in_flight=3)
    plain.forward()
    plain.backward()
    assert not run.results or all(map(torch.equal, run.results, plain.results))
    if looks_up or way == "reentrant":
        assert not run.results


@pytest.mark.parametrize("way", [None, "non-reentrant", "reentrant"])
def test_a_hook_may_run_the_model_over_a_stack_of_its_own(impl: str, way: str | None) -> None:
    """Made anew or copied in the backward pass; what is trained does not notice."""
    stack = MemoryStack([5, 21], LANES, KV_HEADS, DIM, 8)
    layers = [Layer(number, impl, "segment") for number in range(2)]
    generator = torch.Generator("cpu").manual_seed(1)
    segments = [random_normal(generator, LANES, 8, WIDTH) for _ in range(2)]

    @torch.no_grad()
    def evaluate(rings: MemoryStack) -> Tensor:
        for x in segments:
            for layer, ring in zip(layers, rings, strict=True):
                x = layer(x, ring)
            rings.advance(8)
        return x

    expected = evaluate(copy.deepcopy(stack))
    logged: list[Tensor] = []

    def train(hooked: bool) -> Tensor:
        rings = copy.deepcopy(stack)
        x = segments[0].clone().requires_grad_()
        y = x
        for layer, ring in zip(layers, rings, strict=True):
            y = WAYS[way](layer)(y, ring) if way else layer(y, ring)
            if hooked:
                y.register_hook(lambda _: logged.append(evaluate(copy.deepcopy(stack))))
        rings.advance(8)
        y.square().sum().backward()
        return x.grad

    plain, hooked = train(False), train(True)
    assert len(logged) == 2
    assert all(torch.equal(x, expected) for x in logged)
    assert torch.equal(plain, hooked)
