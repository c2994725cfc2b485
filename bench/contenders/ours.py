"""`recurrent_attention`, per back end and storage, and what its call costs beyond the back end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench import fill
from bench.cases import AttentionCase
from bench.contenders import Contender, Prepared, differentiated
from bench.machine import commit
from bench.shapes import Inputs
from dsmr_kernels import MemoryStack, backends, ops, recurrent_attention
from dsmr_kernels.backends import Call

VERSION = f"commit {commit()}"
STORAGES = (None, "int8", "float8_e4m3")


def contenders(device: torch.device) -> list[Contender]:
    """Every back end that serves the device, over every storage; each way into the best one for the overhead."""
    return [
        contender
        for impl in backends.FOR_DEVICE.get(device.type, ("eager",))
        for contender in (*_attention(impl), *_append(impl), *_overhead(impl))
    ]


def _attention(impl: str) -> Iterator[Contender]:
    for storage in STORAGES:
        yield Contender(
            name=f"ours {impl}" + (f", {storage} memory" if storage else ""),
            tasks=frozenset({"forward", "training", "decode"}),
            version=VERSION,
            prepare=partial(_prepare, impl=impl, storage=storage, append=True),
            unavailable=partial(_unavailable, impl=impl, storage=storage),
            ours=True,
            storage=storage,
            on_request=storage == "float8_e4m3" or (storage is not None and impl == "eager"),
        )


def _append(impl: str) -> Iterator[Contender]:
    without = f"ours {impl}, append=False"
    for name, append, minus in ((f"ours {impl}, append", True, without), (without, False, None)):
        yield Contender(
            name=name,
            tasks=frozenset({"append"}),
            version=VERSION,
            prepare=partial(_prepare, impl=impl, storage=None, append=append),
            unavailable=partial(_unavailable, impl=impl, storage=None),
            ours=True,
            minus=minus,
        )


def _overhead(impl: str) -> Iterator[Contender]:
    for name, way in WAYS.items():
        yield Contender(
            name=f"{name}, {impl}",
            tasks=frozenset({"overhead"}),
            version=VERSION,
            prepare=partial(_prepare_way, impl=impl, way=way),
            unavailable=partial(_unavailable, impl=impl, storage=None),
            ours=True,
            minus=f"plain function, {impl}" if way is not _plain else None,
        )


def _unavailable(case: AttentionCase, device: torch.device, impl: str, storage: str | None) -> str | None:
    """Ask the back end about the very call that would be measured."""
    if impl == "eager" and case.graph:
        return "it asks the device for the clock, which a CUDA graph cannot hold"
    try:
        backend = backends.load(impl)
    except ImportError as error:
        return f"not built: {error}"
    shape = case.shape
    q, k = (
        torch.zeros(shape.lanes, shape.tokens, heads, shape.head_dim, dtype=shape.torch_dtype, device=device)
        for heads in (shape.heads, shape.kv_heads)
    )
    inputs = Inputs(q, k, k, q, k, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is the reason that it returns
        return backend.unsupported(_call(case, inputs, fill.empty(case.shape, device, storage)))


def _call(case: AttentionCase, inputs: Inputs, stack: MemoryStack) -> Call:
    window, scale = case.shape.window, case.shape.head_dim**-0.5
    return Call(inputs.q, inputs.k, inputs.v, stack[0], window, None, None, None, scale, 0.0, True)


def _prepare(case: AttentionCase, inputs: Inputs, impl: str, storage: str | None, append: bool) -> Prepared:
    stack = fill.stack(case.shape, inputs, storage)

    def forward() -> Tensor:
        o = recurrent_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            stack[0],
            window=case.shape.window,
            append=append,
            impl=impl,
        )
        assert isinstance(o, Tensor)
        return o

    def memory() -> tuple[Tensor, Tensor]:
        stack.advance(case.shape.tokens)
        return fill.exported(stack)

    return Prepared(differentiated(case, inputs, forward), memory if append else None)


def _plain(call: Call, impl: str) -> Tensor:
    return backends.load(impl).forward(call)[0]


def _public(call: Call, impl: str) -> Tensor:
    o = recurrent_attention(call.q, call.k, call.v, call.memory, impl=impl)
    assert isinstance(o, Tensor)
    return o


def _operator(call: Call, impl: str) -> Tensor:
    """Through PyTorch's dispatcher: what a compiled graph contains."""
    return torch.ops.dsmr_kernels.attend_(*ops._flatten(call, impl))[0]


WAYS: dict[str, Callable[[Call, str], Tensor]] = {
    "plain function": _plain,
    "recurrent_attention": _public,
    "operator": _operator,
}


def _prepare_way(case: AttentionCase, inputs: Inputs, impl: str, way: Callable[[Call, str], Tensor]) -> Prepared:
    call = _call(case, inputs, fill.stack(case.shape, inputs, None))
    _public(call, impl)  # a ring remembers what it found right: back ends get the signature of later calls
    call = call._replace(wants_lse=False, signature=call.memory.remembered["signature"])
    return Prepared(differentiated(case, inputs, lambda: way(call, impl)))
