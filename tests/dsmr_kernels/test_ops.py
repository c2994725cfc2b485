"""The operator's contract with PyTorch: schemas, fakes, autograd, `torch.compile`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

from dsmr_kernels import MemoryStack, Retention, backends, ops, recurrent_attention
from dsmr_kernels.backends import Call
from tests.dsmr_kernels.history import random_normal, refusal

# Inductor, at its first use in a process, itself uses a function that PyTorch deprecates.
compiles = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


def flat_call(impl: str, requires_grad: bool, **stack_options) -> tuple:
    """The operators' arguments for a call in the middle of a stream, with every optional tensor present."""
    stack = MemoryStack([8], 2, 2, 16, 8, **stack_options)
    q, k, v = (torch.randn(2, 8, heads, 16) for heads in (4, 2, 2))
    recurrent_attention(q, k, v, stack[0])
    stack.advance(8)
    start = torch.tensor([[0] * 8, [0] * 3 + [3] * 5])
    slopes = torch.rand(4)
    q, k, v = (x.clone().requires_grad_(requires_grad) for x in (q, k, v))
    call = Call(q, k, v, stack[0], "segment", start, torch.tensor([8, 6]), slopes, 0.25, 5.0, True)
    return ops._flatten(call, impl)


@pytest.mark.parametrize(
    "options", [{}, {"storage": "int8"}, {"retention": Retention(3)}], ids=["plain", "int8", "stride3"]
)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["nograd", "grad"])
def test_opcheck_attend(impl: str, requires_grad: bool, options: dict) -> None:
    opcheck(torch.ops.dsmr_kernels.attend_.default, flat_call(impl, requires_grad, **options))


def test_opcheck_forward(impl: str) -> None:
    opcheck(torch.ops.dsmr_kernels.forward_.default, flat_call(impl, requires_grad=False))


@pytest.mark.parametrize("needs", [[True, True], [False, True], [True, False]], ids=["all", "dkdv", "dq"])
def test_opcheck_backward(impl: str, needs: list[bool]) -> None:
    call = flat_call(impl, requires_grad=False)
    o, lse = torch.ops.dsmr_kernels.forward_(*call)
    opcheck(
        torch.ops.dsmr_kernels.backward.default,
        (torch.randn_like(o), torch.zeros_like(lse), o, lse, *call, False, needs),
    )


def test_gradients_are_those_of_finite_differences(impl: str) -> None:
    if reason := refusal(impl, torch.float64):
        pytest.skip(reason)
    stack = MemoryStack([6], 1, 1, 4, 5, torch.float64)
    recurrent_attention(*(torch.randn(1, 5, heads, 4, dtype=torch.float64) for heads in (2, 1, 1)), stack[0])
    stack.advance(5)
    q, k, v = (torch.randn(1, 5, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return recurrent_attention(q, k, v, stack[0], softcap=3.0, return_lse=True, impl=impl)

    assert torch.autograd.gradcheck(attend, (q, k, v))


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_only_wanted_gradients_are_computed(impl: str, wanted: str) -> None:
    stack = MemoryStack([6], 1, 2, 8, 5)
    x = {name: torch.randn(1, 5, 2, 8, requires_grad=name == wanted) for name in "qkv"}
    recurrent_attention(**x, memory=stack[0], impl=impl).sum().backward()
    assert [name for name in "qkv" if x[name].grad is not None] == [wanted]


def test_strided_inputs_give_what_contiguous_ones_give(impl: str) -> None:
    packed = torch.randn(2, 5, 8, 16)
    views = packed[:, :, :4], packed[:, :, 4:6], packed[:, :, 6:]
    copies = [x.contiguous() for x in views]
    outs = [recurrent_attention(*x, MemoryStack([6], 2, 2, 16, 5)[0], impl=impl) for x in (views, copies)]
    assert torch.equal(*outs)


def test_autocast_does_not_reach_inside(impl: str) -> None:
    q, k, v = (torch.randn(2, 40, 2, 16) for _ in range(3))
    plain = recurrent_attention(q, k, v, MemoryStack([6], 2, 2, 16, 40)[0], impl=impl)
    with torch.autocast(q.device.type, torch.bfloat16):
        assert torch.equal(recurrent_attention(q, k, v, MemoryStack([6], 2, 2, 16, 40)[0], impl=impl), plain)


class HiddenWriter:
    """A back end that writes the ring as native code does: where autograd does not see it."""

    def unsupported(self, call: Call) -> None:
        return None

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        call.memory.k.data.fill_(1.0)
        return torch.zeros_like(call.q), call.q.new_zeros(call.q.shape[0], call.q.shape[2], call.q.shape[1])


@pytest.mark.parametrize("requires_grad", [False, True], ids=["short-way", "operator"])
def test_a_ring_written_behind_autograds_back_is_noticed(monkeypatch: pytest.MonkeyPatch, requires_grad: bool) -> None:
    monkeypatch.setattr(backends, "load", lambda name: HiddenWriter())
    stack = MemoryStack([6], 1, 2, 8, 5)
    weight = torch.randn(2, 11, 8, requires_grad=True)
    loss = (weight * stack[0].k[0]).sum()
    recurrent_attention(*(torch.randn(1, 5, 2, 8, requires_grad=requires_grad) for _ in range(3)), stack[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_horizons_may_change_between_forward_and_backward(impl: str) -> None:
    gradients = []
    for later in ([6], [1]):
        generator = torch.Generator("cpu").manual_seed(0)
        past, q, k, v = (random_normal(generator, 1, 6, 2, 8) for _ in range(4))
        stack = MemoryStack([6], 1, 2, 8, 6)
        recurrent_attention(past, past, past, stack[0], impl=impl)
        stack.advance(6)
        out = recurrent_attention(q.requires_grad_(), k, v, stack[0], impl=impl)
        stack.set_horizons(later)
        gradients += torch.autograd.grad(out.square().sum(), q)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("later", [False, True], ids=["untouched", "written since"])
def test_backward_looks_at_positions_only_if_the_ring_was_written_since(
    impl: str, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking makes a GPU's queue stop, once a layer."""
    looks: list[Call] = []
    monkeypatch.setattr(ops, "_check_not_overwritten", looks.append)
    stack = MemoryStack([6], 1, 2, 8, 6, segments_in_flight=2)
    q, k, v = (torch.randn(1, 6, 2, 8, requires_grad=True) for _ in range(3))
    out = recurrent_attention(q, k, v, stack[0], impl=impl)
    stack.advance(6)
    if later:
        recurrent_attention(q.detach(), k.detach(), v.detach(), stack[0], impl=impl)
    out.sum().backward()
    assert len(looks) == later


class Layers(nn.Module):
    """Two layers of unequal horizon that advance their clock themselves."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        self.projection = nn.Linear(16, 32)
        self.impl = impl

    def forward(self, x: Tensor, stack: MemoryStack) -> Tensor:
        for ring in stack:
            q, k, v = self.projection(x).unflatten(-1, (8, 4)).split([4, 2, 2], 2)
            x = x + recurrent_attention(q, k, v, ring, impl=self.impl).flatten(2)
        stack.advance(x.shape[1])
        return x


def train(step, model: nn.Module, segments: int = 6) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and gradients over segments between which a lane is reset and horizons change."""
    stack = MemoryStack([4, 12], 2, 2, 4, 8)
    generator = torch.Generator("cpu").manual_seed(1)
    results = []
    for i in range(segments):
        y = step(random_normal(generator, 2, 8, 16), stack)
        model.zero_grad()
        y.square().sum().backward()
        results += [y.detach(), model.projection.weight.grad.clone()]
        if i == 2:
            stack.reset([1])
        if i == 3:
            stack.set_horizons([2, 7])
    return results, stack.state_dict()


def forget_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@compiles
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager_and_never_recompiles(impl: str, backend: str) -> None:
    forget_compiled()
    model = Layers(impl)
    eager, eager_state = train(model, model)
    compiled, state = train(torch.compile(model, fullgraph=True, backend=backend), model)
    for x, y in zip(compiled, eager, strict=True):
        torch.testing.assert_close(x, y)
    for name, x in state.items():
        torch.testing.assert_close(x, eager_state[name], msg=name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_generation_steps_do_not_recompile(impl: str) -> None:
    forget_compiled()
    stack = MemoryStack([4, 12], 1, 2, 4, 8)
    model = Layers(impl)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(30):
            step(torch.randn(1, 1, 16), stack)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@compiles
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_two_segments_in_one_graph_raise_or_are_right(impl: str, backend: str, in_flight: int) -> None:
    """Where the ring has no room for both, the graph must not give wrong gradients without a word."""

    def two_segments(first: Tensor, second: Tensor, stack: MemoryStack) -> Tensor:
        out = 0.0
        for x in (first, second):
            out = out + recurrent_attention(x, x * 2, x + 1, stack[0], impl=impl).square().sum()
            stack.advance(8)
        return out

    def gradients(step) -> list[Tensor]:
        generator = torch.Generator("cpu").manual_seed(3)
        stack = MemoryStack([8], 1, 1, 8, 8, segments_in_flight=in_flight)
        past, first, second = (random_normal(generator, 1, 8, 1, 8) for _ in range(3))
        recurrent_attention(past, past, past, stack[0])
        stack.advance(8)
        inputs = first.requires_grad_(), second.requires_grad_()
        return torch.autograd.grad(step(*inputs, stack), inputs)

    forget_compiled()
    compiled = torch.compile(two_segments, fullgraph=True, backend=backend)
    if in_flight == 1:
        with pytest.raises(RuntimeError, match="overwritten between forward and backward"):
            gradients(compiled)
    else:
        for x, y in zip(gradients(compiled), gradients(two_segments), strict=True):
            torch.testing.assert_close(x, y)
