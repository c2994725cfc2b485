"""What backward passes are given: gradients of gradients, and what hooks make of saved tensors. Right, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dsmr_kernels import MemoryStack, recurrent_attention
from tests.dsmr_kernels.history import random_normal

LANES, TOKENS, HEADS, DIM = 2, 8, 2, 16
both = pytest.mark.parametrize("impl", ["cpu", "eager"])


def attend(impl: str) -> tuple[Tensor, list[Tensor]]:
    """A segment after another; the output and q, k, v."""
    generator = torch.Generator("cpu").manual_seed(3)
    stack = MemoryStack([11], LANES, HEADS, DIM, TOKENS)
    for _ in range(2):
        inputs = [random_normal(generator, LANES, TOKENS, HEADS, DIM).requires_grad_() for _ in range(3)]
        out = recurrent_attention(*inputs, stack[0], impl=impl)
        stack.advance(TOKENS)
    return out, inputs


@both
@pytest.mark.parametrize("loss", [Tensor.sum, lambda out: out.square().sum()], ids=["linear", "quadratic"])
def test_a_second_derivative_is_refused_and_never_zero(impl: str, loss: Callable[[Tensor], Tensor]) -> None:
    out, inputs = attend(impl)
    gradients = torch.autograd.grad(loss(out), inputs, create_graph=True)
    assert all(gradient.requires_grad for gradient in gradients)
    plain_out, plain_inputs = attend(impl)
    plain = torch.autograd.grad(loss(plain_out), plain_inputs)
    assert all(map(torch.equal, gradients, plain))
    penalty = sum(gradient.square().sum() for gradient in gradients) + inputs[0].sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        penalty.backward()


@both
@pytest.mark.parametrize("which", range(5), ids=["q", "k", "v", "o", "lse"])
@pytest.mark.parametrize(
    "change",
    [Tensor.half, Tensor.double, lambda x: x[..., :1].contiguous(), lambda x: x.to("meta")],
    ids=["half", "double", "shorter", "meta"],
)
def test_hooks_that_return_other_tensors_are_refused(impl: str, which: int, change: Callable[[Tensor], Tensor]) -> None:
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return change(x) if (count - 1) % 5 == which else x

    with saved_tensors_hooks(pack, lambda x: x):
        out, _ = attend(impl)
    assert count == 10, "expected five tensors saved by each of two calls"
    with pytest.raises(RuntimeError, match="saved tensors: expected"):
        out.sum().backward()


@both
@pytest.mark.parametrize("which", range(3))
def test_hooks_that_permute_are_refused(impl: str, which: int) -> None:
    count = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x.transpose(2, 3).contiguous().transpose(2, 3) if (count - 1) % 5 == which else x

    with saved_tensors_hooks(pack, lambda x: x):
        out, _ = attend(impl)
    with pytest.raises(RuntimeError, match="contiguous last dimension"):
        out.sum().backward()
