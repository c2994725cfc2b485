"""Law 8: activation checkpointing gives the plain call's gradients bit for bit, or raises; it never changes a ring.

A *way* makes a function that is replayed in the backward pass from one that is not. All ways get the same tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from tests.dsmr_kernels.history import random_normal

LANES, HEADS, KV_HEADS, DIM = 2, 4, 2, 16
WIDTH = HEADS * DIM
Way = Callable[[nn.Module], Callable[..., Tensor]]


class Layer(nn.Module):
    """Attention over its own ring, which it is handed or, with `stack`, looks up itself."""

    def __init__(self, number: int, impl: str, window: str, stack: MemoryStack | None = None) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(number)
        self.weight = nn.Parameter(random_normal(generator, WIDTH, (HEADS + 2 * KV_HEADS) * DIM) / WIDTH**0.5)
        self.number, self.impl, self.window, self.stack = number, impl, window, stack

    def forward(self, x: Tensor, ring=None) -> Tensor:
        heads = (x @ self.weight).unflatten(-1, (-1, DIM)).split([HEADS, KV_HEADS, KV_HEADS], 2)
        ring = ring if self.stack is None else self.stack[self.number]
        return x + recurrent_attention(*heads, ring, window=self.window, impl=self.impl).flatten(2)


def checkpointed(reentrant: bool, module: nn.Module, **options: object) -> Callable[..., Tensor]:
    return partial(checkpoint, module, use_reentrant=reentrant, **options)


def wrapped(kind: CheckpointImpl, module: nn.Module) -> Callable[..., Tensor]:
    return checkpoint_wrapper(module, checkpoint_impl=kind)


def sequential(module: nn.Module) -> Callable[..., Tensor]:
    def run(x: Tensor, *rings: object) -> Tensor:
        return checkpoint_sequential([lambda x: module(x, *rings), nn.Identity()], 2, x, use_reentrant=False)

    return run


def selective(policy: CheckpointPolicy, module: nn.Module) -> Callable[..., Tensor]:
    """Keeps, or computes again, what the operator gives; computes again all else."""

    def choose(context, operator, *args, **kwargs):
        ours = operator.namespace == "dsmr_kernels"
        return policy if ours else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpointed(False, module, context_fn=partial(create_selective_checkpoint_contexts, choose))


def saved_on_cpu(module: nn.Module) -> Callable[..., Tensor]:
    def run(*arguments: object) -> Tensor:
        with save_on_cpu():
            return module(*arguments)

    return run


def nested(outer: bool, inner: bool, module: nn.Module) -> Callable[..., Tensor]:
    return checkpointed(outer, lambda *arguments: checkpoint(module, *arguments, use_reentrant=inner))


WAYS: dict[str, Way] = {
    "non-reentrant": partial(checkpointed, False),
    "reentrant": partial(checkpointed, True),
    "wrapper": partial(wrapped, CheckpointImpl.NO_REENTRANT),
    "reentrant wrapper": partial(wrapped, CheckpointImpl.REENTRANT),
    "sequential": sequential,
    "selective, kept": partial(selective, CheckpointPolicy.MUST_SAVE),
    "selective, again": partial(selective, CheckpointPolicy.MUST_RECOMPUTE),
    "saved on the CPU": saved_on_cpu,
    **{
        f"nested {'re' if outer else 'non'} {'re' if inner else 'non'}": partial(nested, outer, inner)
        for outer, inner in product((False, True), repeat=2)
    },
}
every_way = pytest.mark.parametrize("way", WAYS)
both_kinds = pytest.mark.parametrize("way", ["non-reentrant", "reentrant"])
GRADIENTS, NO_GRADIENTS = nullcontext, torch.no_grad


class Run:
    """Two layers fed segment by segment; gradients of all inputs and weights, and what became of the memory."""

    def __init__(
        self,
        way: str | None,
        impl: str,
        tokens: int = 8,
        window: str = "segment",
        in_flight: int = 1,
        looks_up: bool = False,
        segment: int | None = None,
        **options: object,
    ) -> None:
        size = segment or tokens
        self.stack = MemoryStack([5, 21], LANES, KV_HEADS, DIM, size, segments_in_flight=in_flight, **options)
        stack = self.stack if looks_up else None
        self.layers = [Layer(number, impl, window, stack) for number in range(2)]
        self.ways = [WAYS[way](layer) if way else layer for layer in self.layers]
        self.generator = torch.Generator("cpu").manual_seed(7)
        self.tokens, self.segment = tokens, segment
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.results: list[Tensor] = []

    def forward(self) -> None:
        inputs = random_normal(self.generator, LANES, self.tokens, WIDTH).requires_grad_()
        x = inputs
        for layer, ring in zip(self.ways, self.stack, strict=True):
            x = layer(x, ring)
        self.pending.append((inputs, x))

    def advance(self, gradients: Callable = GRADIENTS) -> None:
        with gradients():
            self.stack.advance(self.tokens, segment_size=self.segment)

    def backward(self) -> None:
        """All pending passes, the newest first. No bit of the memory changes."""
        before = {name: x.clone() for name, x in self.stack.state_dict().items()}
        for inputs, out in reversed(self.pending):
            out.square().sum().backward()
            self.results += [out.detach(), inputs.grad]
        self.pending = []
        for name, x in self.stack.state_dict().items():
            assert torch.equal(x.view(torch.uint8), before[name].view(torch.uint8)), name

    def gradients(self) -> list[Tensor]:
        return [*self.results, *(layer.weight.grad for layer in self.layers)]


def assert_as_plain(way: str, impl: str, feed: Callable[[Run], None], **options: object) -> None:
    runs = [Run(which, impl, **options) for which in (None, way)]
    for run in runs:
        feed(run)
    plain, replayed = (run.gradients() for run in runs)
    assert len(plain) > 2
    for want, got in zip(plain, replayed, strict=True):
        assert torch.equal(got, want)


def clock_moves_first(run: Run, passes: int = 1, rounds: int = 5) -> None:
    """As a model does that advances in its forward pass."""
    for _ in range(rounds):
        for _ in range(passes):
            run.forward()
            run.advance()
        run.backward()


def clock_moves_last(run: Run) -> None:
    for _ in range(5):
        run.forward()
        run.backward()
        run.advance()


@every_way
@pytest.mark.parametrize("feed", [clock_moves_first, clock_moves_last])
@pytest.mark.parametrize("tokens", [1, 8])
def test_every_way_gives_the_plain_gradients(impl: str, way: str, feed: Callable, tokens: int) -> None:
    assert_as_plain(way, impl, feed, tokens=tokens)


@every_way
@pytest.mark.parametrize("feed", [clock_moves_first, clock_moves_last])
def test_every_way_gives_the_plain_gradients_over_quantised_rings(impl: str, way: str, feed: Callable) -> None:
    assert_as_plain(way, impl, feed, storage="int8")


@both_kinds
@pytest.mark.parametrize("window", ["segment", "token"])
@pytest.mark.parametrize("storage", [None, "int8", "float8_e4m3"])
@pytest.mark.parametrize("tokens", [1, 8])
def test_several_segments_in_flight(impl: str, way: str, window: str, storage: str | None, tokens: int) -> None:
    feed = partial(clock_moves_first, passes=3)
    assert_as_plain(way, impl, feed, tokens=tokens, window=window, storage=storage, in_flight=3)


@both_kinds
@pytest.mark.parametrize("retention", [Retention(3), Retention(2, "random")], ids=["last", "random"])
@pytest.mark.parametrize(("tokens", "segment"), [(8, None), (2, 8), (1, 4)])
def test_retention_with_segments_fed_whole_or_piecemeal(
    impl: str, way: str, retention: Retention, tokens: int, segment: int | None
) -> None:
    feed = partial(clock_moves_first, passes=2 * (segment or tokens) // tokens)
    assert_as_plain(way, impl, feed, tokens=tokens, segment=segment, retention=retention, in_flight=2)


@every_way
def test_layers_may_look_up_their_ring_while_the_clock_stands(impl: str, way: str) -> None:
    assert_as_plain(way, impl, clock_moves_last, looks_up=True)


@every_way
def test_layers_that_look_up_their_ring_after_the_clock_has_moved_are_refused(impl: str, way: str) -> None:
    if way in ("saved on the CPU", "selective, kept"):  # no call is replayed
        return assert_as_plain(way, impl, clock_moves_first, looks_up=True)
    run = Run(way, impl, looks_up=True)
    with pytest.raises(RuntimeError, match=r"Take stack\[layer\] outside the checkpointed function"):
        clock_moves_first(run)
    return None


@every_way
def test_a_clock_moved_without_gradients_is_noticed(impl: str, way: str) -> None:
    def feed(run: Run) -> None:
        for _ in range(5):
            run.forward()
            run.advance(NO_GRADIENTS)
            run.backward()

    if "re" not in way.split() and not way.startswith("reentrant"):  # the first pass makes a graph, so clocks are kept
        return assert_as_plain(way, impl, feed)
    with pytest.raises(RuntimeError, match=r"call advance\(\), uncompiled, outside torch.no_grad\(\)"):
        feed(Run(way, impl))
    return None


@every_way
@pytest.mark.parametrize("gradients", [GRADIENTS, NO_GRADIENTS], ids=["grad", "no_grad"])
def test_horizons_may_change_between_forward_and_replay(impl: str, way: str, gradients: Callable) -> None:
    def feed(run: Run) -> None:
        for horizons in ([2, 9], [5, 21], [0, 1]):
            run.forward()
            run.advance()
            with gradients():
                run.stack.set_horizons(horizons)
            run.backward()

    assert_as_plain(way, impl, feed)


@both_kinds
def test_lanes_may_be_reset_between_forward_and_replay(impl: str, way: str) -> None:
    def feed(run: Run) -> None:
        for lanes in ([0], [1], [0, 1]):
            run.forward()
            run.advance()
            run.stack.reset(lanes)
            run.backward()

    assert_as_plain(way, impl, feed)


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize(("in_flight", "storage"), [(1, "int8"), (2, None)])
def test_overwritten_memory_raises_every_way(impl: str, way: str | None, in_flight: int, storage: str | None) -> None:
    run = Run(way, impl, in_flight=in_flight, storage=storage)
    clock_moves_first(run)
    for _ in range(in_flight + 1):
        run.forward()
        run.advance()
    run.pending.reverse()
    with pytest.raises(RuntimeError, match=r"overwritten between forward and backward: .* segments_in_flight"):
        run.backward()


@pytest.mark.parametrize("way", [None, "non-reentrant", "reentrant", "selective, kept"])
@pytest.mark.parametrize("gradients", [GRADIENTS, NO_GRADIENTS], ids=["grad", "no_grad"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_state_loaded_between_forward_and_backward_raises_every_way(
    impl: str, way: str | None, gradients: Callable, moved: bool
) -> None:
    run = Run(way, impl)
    clock_moves_first(run)
    saved = {name: x.clone() for name, x in run.stack.state_dict().items()}
    run.forward()
    if moved:
        run.advance()
    with gradients():
        run.stack.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"load_state_dict|moved since the first pass"):
        run.backward()


@pytest.mark.parametrize("way", [None, "non-reentrant", "reentrant"])
def test_a_longer_segment_that_was_tried_counts_as_written(impl: str, way: str | None) -> None:
    """What a drafted segment has overwritten stays so when only its beginning is kept."""
    run = Run(way, impl)
    clock_moves_first(run)
    run.forward()
    run.advance()
    with torch.no_grad():
        for tokens in (8, 1):
            q, k, v = (torch.zeros(LANES, tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
            for ring in run.stack:
                recurrent_attention(q, k, v, ring, impl=impl)
    with pytest.raises(RuntimeError, match="overwritten between forward and backward"):
        run.backward()


@both_kinds
@pytest.mark.parametrize("method", ["advance", "reset", "set_horizons", "load_state_dict"])
def test_a_replay_that_moves_the_memory_is_refused(impl: str, way: str, method: str) -> None:
    run = Run(None, impl)
    clock_moves_first(run)
    saved = {name: x.clone() for name, x in run.stack.state_dict().items()}
    arguments = {"advance": 8, "reset": [0], "set_horizons": [1, 2], "load_state_dict": saved}[method]
    rings = list(run.stack)

    def model(x: Tensor) -> Tensor:
        for layer, ring in zip(run.layers, rings, strict=True):
            x = layer(x, ring)
        getattr(run.stack, method)(arguments)
        return x.sin()

    x = torch.randn(LANES, 8, WIDTH, requires_grad=True)
    out = WAYS[way](model)(x)
    with pytest.raises(RuntimeError, match=r"replays|load_state_dict|not appended at this clock"):
        out.sum().backward()


@both_kinds
@pytest.mark.parametrize("inner", [None, "non-reentrant", "reentrant"])
def test_a_memory_made_inside_is_new_in_each_replay(impl: str, way: str, inner: str | None) -> None:
    """A function that reads a sequence segment by segment, and may be replayed as a whole."""
    layer = Layer(0, impl, "segment")

    def read(x: Tensor, layer: Callable[..., Tensor] = layer) -> Tensor:
        stack = MemoryStack([20], LANES, KV_HEADS, DIM, 8, segments_in_flight=3)
        outs = []
        for part in x.split(8, 1):
            outs.append(layer(part, stack[0]))
            stack.advance(8)
        return torch.cat(outs, 1)

    results = []
    for function in (read, WAYS[way](partial(read, layer=WAYS[inner](layer) if inner else layer))):
        x = random_normal(torch.Generator("cpu").manual_seed(0), LANES, 40, WIDTH).requires_grad_()
        layer.weight.grad = None
        function(x).square().sum().backward()
        results.append((x.grad, layer.weight.grad))
    assert all(map(torch.equal, *results))


@both_kinds
@pytest.mark.parametrize("gradients", [GRADIENTS, NO_GRADIENTS], ids=["grad", "no_grad"])
def test_attention_without_gradients_of_its_own(impl: str, way: str, gradients: Callable) -> None:
    """What comes after it in the checkpointed function is trained: it is replayed, and makes no graph."""
    results = []
    for which in (None, way):
        run = Run(None, impl)
        scale = torch.ones(WIDTH, requires_grad=True)
        for layer in run.layers:
            layer.requires_grad_(False)

        def attend_and_scale(x: Tensor, scale: Tensor, *rings: object, layers: list = run.layers) -> Tensor:
            for layer, ring in zip(layers, rings, strict=True):
                x = layer(x, ring)
            return (x * scale).sin()

        for _ in range(5):
            x = random_normal(run.generator, LANES, 8, WIDTH)
            out = (WAYS[which](attend_and_scale) if which else attend_and_scale)(x, scale, *run.stack)
            run.advance(gradients)
            if which and gradients is NO_GRADIENTS:
                with pytest.raises(RuntimeError, match="clock has moved since the first pass"):
                    out.sum().backward()
                return
            out.sum().backward()
        results.append(scale.grad)
    assert torch.equal(*results)


@every_way
def test_without_a_memory(impl: str, way: str) -> None:
    results = []
    for which in (None, way):
        layer = Layer(0, impl, "segment")
        x = random_normal(torch.Generator("cpu").manual_seed(0), LANES, 8, WIDTH).requires_grad_()
        (WAYS[which](layer) if which else layer)(x, None).square().sum().backward()
        results.append((x.grad, layer.weight.grad))
    assert all(map(torch.equal, *results))


@both_kinds
def test_copies_of_a_stack_may_be_replayed(impl: str, way: str) -> None:
    def feed(run: Run) -> None:
        clock_moves_first(run)
        run.stack = copy.deepcopy(run.stack)
        clock_moves_first(run)

    assert_as_plain(way, impl, feed)


def test_a_first_call_in_a_backward_pass_is_refused(impl: str) -> None:
    """It is no replay, but cannot be told from one where a GPU would have to be waited for, and nothing is appended."""
    stack = MemoryStack([6], 1, 1, DIM, 4)
    x = torch.randn(1, 4, 1, DIM, requires_grad=True)
    out = x * 2
    out.register_hook(lambda grad: recurrent_attention(grad, grad, grad, stack[0], impl=impl))
    with pytest.raises(RuntimeError, match="was not appended at this clock before"):
        (out * 3).sum().backward()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "selective, kept"])  # that is kept for one pass only
def test_a_second_backward_pass_replays_again(impl: str, way: str) -> None:
    results = []
    for which in (None, way):
        run = Run(which, impl)
        clock_moves_first(run)
        run.forward()
        run.advance()
        inputs, out = run.pending.pop()
        for retain in (True, False):
            out.square().sum().backward(retain_graph=retain)
        results.append(inputs.grad)
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@both_kinds
@pytest.mark.parametrize("feed", [clock_moves_first, clock_moves_last])
def test_compiled_layers_are_right_or_refused(impl: str, way: str, feed: Callable) -> None:
    """Code that is being compiled cannot be told whether a backward pass will run it, so old clocks are refused."""
    torch._dynamo.reset()
    plain, compiled = Run(None, impl), Run(None, impl)
    compiled.ways = [WAYS[way](torch.compile(layer, backend="aot_eager")) for layer in compiled.layers]
    if feed is clock_moves_first:
        with pytest.raises(RuntimeError, match="clock has moved on"):
            feed(compiled)
        return
    for run in (plain, compiled):
        feed(run)
    assert all(map(torch.equal, plain.gradients(), compiled.gradients()))


@pytest.mark.parametrize("kind", [CheckpointImpl.NO_REENTRANT, CheckpointImpl.REENTRANT])
@pytest.mark.parametrize("window", ["segment", "token"])
def test_blocks_of_the_model_in_pytorchs_wrapper(kind: CheckpointImpl, window: str) -> None:
    config = ModelConfig(32, 4, 2, make_schedule("uniform", 2, budget_tokens=40), segment=8, window=window)
    results = []
    for replayed in (False, True):
        torch.manual_seed(0)
        model = Transformer(config)  # with dropout, whose random numbers the replay draws again
        if replayed:
            model.blocks = nn.ModuleList(checkpoint_wrapper(block, checkpoint_impl=kind) for block in model.blocks)
        state = model.new_state(LANES, segments_in_flight=2)
        for _ in range(3):
            outs = [model(torch.randint(config.vocab_size, (LANES, 8)), state) for _ in range(2)]
            for out in reversed(outs):  # one pass each: gradients are summed up in the same order
                out.square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()] + list(state.state_dict().values()))
    assert all(map(torch.equal, *results))


@both_kinds
def test_a_model_that_is_replayed_as_a_whole_is_refused(way: str) -> None:
    config = ModelConfig(32, 4, 2, make_schedule("uniform", 2, budget_tokens=40), segment=8)
    model = Transformer(config)
    state = model.new_state(LANES)
    tokens = torch.randint(config.vocab_size, (LANES, 8))
    anchor = torch.zeros(1, requires_grad=True)  # reentrant checkpointing asks for an input with a gradient
    out = WAYS[way](lambda tokens, anchor: model(tokens, state) + anchor)(tokens, anchor)
    with pytest.raises(RuntimeError, match=r"[Cc]all advance\(\), uncompiled, outside|Call advance\(\) outside"):
        out.sum().backward()
