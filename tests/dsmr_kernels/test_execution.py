"""Whoever looks on while a call runs, a tracer, a mode, a transform, sees the operator or is refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from dsmr_kernels import MemoryStack, recurrent_attention

# PyTorch deprecates what its own forward mode uses, and recording by torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.(trace|script). is deprecated:DeprecationWarning")


def given(seed: int, tokens: int = 4) -> Tensor:
    return torch.randn(1, tokens, 1, 16, generator=torch.Generator("cpu").manual_seed(seed))


def warm_stack(impl: str, tokens: int = 4) -> MemoryStack:
    """A stack in the middle of a stream, whose ring has served a call like those to come: they would be repeated."""
    stack = MemoryStack([8], 1, 1, 16, 4)
    for seed in (100, 101):
        recurrent_attention(*(given(seed, tokens),) * 3, stack[0], impl=impl)
        stack.advance(tokens)
    return stack


CALLS: dict[str, Callable[[Tensor, MemoryStack, str], Tensor]] = {
    "no memory": lambda x, _, impl: recurrent_attention(x, x, x, impl=impl),
    "ring": lambda x, stack, impl: recurrent_attention(x, x, x, stack[0], impl=impl),
    "read only": lambda x, stack, impl: recurrent_attention(x, x, x, stack[0], append=False, impl=impl),
    "ragged": lambda x, stack, impl: recurrent_attention(
        x, x, x, stack[0], segment_len=torch.tensor([x.shape[1]]), segment_start=torch.zeros_like(x[..., 0, 0]).long()
    ),
    "slopes": lambda x, stack, impl: recurrent_attention(
        x, x, x, stack[0], alibi_slopes=torch.tensor([0.5]), impl=impl
    ),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def jit_traced(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(function, (x,), check_trace=False)


@calls
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("record", [lambda f, x: make_fx(f)(x), jit_traced], ids=["make_fx", "jit.trace"])
def test_recorded_graphs_hold_the_operator_and_run_on_other_inputs(
    impl: str, record: Callable[..., Any], call: Callable[..., Tensor], tokens: int
) -> None:
    stack, other = warm_stack(impl, tokens), warm_stack(impl, tokens)
    with warnings.catch_warnings():
        if call is CALLS["ragged"] or call is CALLS["slopes"]:  # tensors that the recorded function itself makes
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
        graph = record(lambda x: call(x, stack, impl), given(0, tokens))
    assert "dsmr_kernels" in str(graph.graph)
    for seed in (1, 2):
        assert torch.equal(graph(given(seed, tokens)), call(given(seed, tokens), other, impl))
    assert all(map(torch.equal, stack.state_dict().values(), other.state_dict().values()))


def test_a_recorded_graph_refuses_inputs_that_its_ring_cannot_take(impl: str) -> None:
    stack = warm_stack(impl)
    graph = make_fx(lambda x: recurrent_attention(x, x, x, stack[0], impl=impl))(given(0))
    with pytest.raises(ValueError, match="q: expected T <= max_segment=4"):
        graph(given(1, tokens=5))
    with pytest.raises(TypeError, match="memory: expected a ring of q's type"):
        graph(given(1).double())


class Dispatched(TorchDispatchMode):
    """Names of what a dispatch mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Names of what a function mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@calls
@pytest.mark.parametrize("grad", [False, True], ids=["nograd", "grad"])
@pytest.mark.parametrize("mode", [Dispatched, Functions])
def test_modes_see_the_operator(impl: str, mode: type, grad: bool, call: Callable[..., Tensor]) -> None:
    stack = warm_stack(impl)
    with mode() as seen:
        call(given(0).requires_grad_(grad), stack, impl)
    assert any("dsmr_kernels" in name for name in seen.names)


def test_profilers_see_the_operator(impl: str) -> None:
    stack = warm_stack(impl)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        recurrent_attention(*(given(0),) * 3, stack[0], impl=impl)
    assert any(event.key.startswith("dsmr_kernels::") for event in seen.key_averages())


@calls
def test_tangents_of_forward_mode_are_refused(impl: str, call: Callable[..., Tensor]) -> None:
    stack = warm_stack(impl)
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"forward-mode AD is not supported .*: use reverse mode"):
        torch.func.jvp(lambda x: call(x, stack, impl), (given(0),), (given(1),))
    for grad in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(given(0).requires_grad_(grad), given(1))
            with pytest.raises(RuntimeError, match=r"forward-mode AD is not supported .*: use reverse mode"):
                call(dual, stack, impl)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_one_tangent_is_enough_to_be_refused_and_none_is_none(impl: str, which: int) -> None:
    want = recurrent_attention(given(0), given(1), given(2), impl=impl)
    with forward_ad.dual_level():
        x = [given(seed) for seed in range(3)]
        assert torch.equal(recurrent_attention(*x, impl=impl), want)
        x[which] = forward_ad.make_dual(x[which], given(3))
        with pytest.raises(RuntimeError, match="forward-mode AD"):
            recurrent_attention(*x, impl=impl)


def test_a_recorded_graph_refuses_tangents_too(impl: str) -> None:
    graph = make_fx(lambda x: recurrent_attention(x, x, x, impl=impl))(given(0))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode AD"):
        graph(forward_ad.make_dual(given(0), given(1)))


TRANSFORMS: dict[str, tuple[Callable[[Callable[[Tensor], Tensor]], Any], str]] = {
    "vmap": (lambda f: torch.func.vmap(f)(torch.stack([given(0), given(1)])), "torch.vmap is not .* into the lanes"),
    "grad": (lambda f: torch.func.grad(lambda x: f(x).sum())(given(0)), r"torch.func.grad.* use backward\(\)"),
    "vjp": (lambda f: torch.func.vjp(f, given(0)), r"torch.func.grad.* use backward\(\)"),
    "jacrev": (lambda f: torch.func.jacrev(f)(given(0)), r"torch.func.grad.* use backward\(\)"),
    "jacfwd": (lambda f: torch.func.jacfwd(f)(given(0)), "torch.vmap is not|forward-mode AD is not"),
    "hessian": (lambda f: torch.func.hessian(lambda x: f(x).sum())(given(0)), "is not supported|are not supported"),
    "functionalize": (lambda f: torch.func.functionalize(f)(given(0)), "functionaliz"),
}


@calls
@pytest.mark.parametrize(("transform", "reason"), TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_are_refused(
    impl: str, call: Callable[..., Tensor], transform: Callable[..., Any], reason: str
) -> None:
    stack = warm_stack(impl)
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    with pytest.raises(RuntimeError, match=reason):
        transform(lambda x: call(x, stack, impl))
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


def test_a_transform_of_something_else_goes_on(impl: str) -> None:
    x = given(0)
    want = recurrent_attention(x, x, x, impl=impl)
    got = torch.func.vmap(lambda y: recurrent_attention(x, x, x, impl=impl) + y)(torch.zeros(2))
    assert all(torch.equal(each, want) for each in got)


def test_batched_gradients_are_those_of_each(impl: str) -> None:
    x = given(0).requires_grad_()
    out = recurrent_attention(x, x, x, impl=impl)
    upstream = torch.stack([given(1), given(2)])
    (batched,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
    for got, each in zip(batched, upstream, strict=True):
        assert torch.equal(got, *torch.autograd.grad(out, x, each, retain_graph=True))


def test_a_stack_of_fake_tensors_moves_its_clock() -> None:
    with torch._subclasses.FakeTensorMode():
        stack = MemoryStack([11], 2, 2, 8, 4)
        out = recurrent_attention(*(torch.randn(2, 4, 2, 8) for _ in range(3)), stack[0])
        stack.advance(4)
        stack.set_horizons([4])
    assert out.shape == (2, 4, 2, 8)
