"""`recurrent_attention`, per back end and storage, and what its call costs beyond the back end."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.attention import fill
from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated
from bench.attention.shapes import Inputs
from bench.harness import kernels
from bench.harness.machine import commit
from dsmr_kernels import MemoryStack, backends, ops, recurrent_attention
from dsmr_kernels.backends import Call, cpu

VERSION = f"commit {commit()}"
STORAGES = (None, "int8", "float8_e4m3")


def contenders(device: torch.device) -> list[AttentionContender]:
    """Every back end that serves the device, over every storage; each way into the best one for the overhead."""
    return [
        contender
        for impl in backends.FOR_DEVICE.get(device.type, ("eager",))
        for contender in (*_attention(impl), *_append(impl), *_overhead(impl))
    ]


def _ours(
    name: str, impl: str, *tasks: str, prepare: Callable[..., Prepared], storage: str | None = None, **options: Any
) -> AttentionContender:
    return AttentionContender(
        name=name,
        version=VERSION,
        tasks=frozenset(tasks),
        prepare=partial(prepare, impl=impl),
        unavailable=partial(_unavailable, impl=impl, storage=storage),
        ours=True,
        storage=storage,
        **options,
    )


def _attention(impl: str) -> Iterator[AttentionContender]:
    for storage in STORAGES:
        yield _ours(
            f"ours {impl}" + (f", {storage} memory" if storage else ""),
            impl,
            *("forward", "training", "decode"),
            prepare=partial(_prepare, storage=storage, append=True),
            storage=storage,
            on_request=storage == "float8_e4m3" or (storage is not None and impl == "eager"),
        )


def _append(impl: str) -> Iterator[AttentionContender]:
    without = f"ours {impl}, append=False"
    for name, append, minus in ((f"ours {impl}, append", True, without), (without, False, None)):
        prepare = partial(_prepare, storage=None, append=append)
        yield _ours(name, impl, "append", prepare=prepare, minus=minus)


def _overhead(impl: str) -> Iterator[AttentionContender]:
    bare = "kernel alone" if impl == "cpu" else "plain function"
    for name, entrance in {bare: _kernel if impl == "cpu" else _plain, **ENTRANCES}.items():
        minus = f"{bare}, {impl}" if name in ENTRANCES else None
        prepare = partial(_prepare_entrance, entrance=entrance)
        yield _ours(f"{name}, {impl}", impl, "overhead", prepare=prepare, minus=minus)


def _unavailable(case: AttentionCase, device: torch.device, *, impl: str, storage: str | None) -> str | None:
    """Ask the back end about the very call that would be measured."""
    if impl == "eager" and case.graph:
        return "it asks the device for the clock, which a CUDA graph cannot hold"
    shape = case.shape
    q, k = (
        torch.zeros(shape.lanes, shape.tokens, heads, shape.head_dim, dtype=shape.torch_dtype, device=device)
        for heads in (shape.heads, shape.kv_heads)
    )
    inputs = Inputs(q, k, k, q, k, k)
    return kernels.refusal(impl, _call(case, inputs, fill.empty(case.shape, device, storage)))


def _call(case: AttentionCase, inputs: Inputs, stack: MemoryStack) -> Call:
    window, scale = case.shape.window, case.shape.head_dim**-0.5
    return Call(inputs.q, inputs.k, inputs.v, stack[0], window, None, None, None, scale, 0.0, True)


def _prepare(case: AttentionCase, inputs: Inputs, *, impl: str, storage: str | None, append: bool) -> Prepared:
    stack = fill.stack(case.shape, inputs, storage)

    def forward() -> Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        o = recurrent_attention(q, k, v, stack[0], window=case.shape.window, append=append, impl=impl)
        assert isinstance(o, Tensor)
        return o

    def memory() -> tuple[Tensor, Tensor]:
        stack.advance(case.shape.tokens)
        return fill.exported(stack)

    return Prepared(differentiated(case, inputs, forward), memory if append else None)


def _kernel(call: Call, impl: str) -> Callable[[], Tensor]:
    """The C++ function on a call that was packed once: all that Python does is ctypes."""
    o = torch.empty_like(call.q)
    cpu._pack(call, o, o)
    function, packed = cpu._function("forward"), ctypes.create_string_buffer(bytes(cpu._room.struct))

    def run(_alive: Call = call) -> Tensor:  # its tensors lie where `packed` says
        assert function(packed) == 0
        return o

    return run


def _plain(call: Call, impl: str) -> Callable[[], Tensor]:
    backend = backends.load(impl)
    return lambda: backend.forward(call)[0]


def _public(call: Call, impl: str) -> Callable[[], Tensor]:
    return lambda: recurrent_attention(call.q, call.k, call.v, call.memory, impl=impl)


def _operator(call: Call, impl: str) -> Callable[[], Tensor]:
    """Through PyTorch's dispatcher: what a compiled graph contains."""
    return lambda: torch.ops.dsmr_kernels.attend_(*ops._flatten(call, impl))[0]


Entrance = Callable[[Call, str], Callable[[], Tensor]]
ENTRANCES: dict[str, Entrance] = {"recurrent_attention": _public, "operator": _operator}


def _prepare_entrance(case: AttentionCase, inputs: Inputs, *, impl: str, entrance: Entrance) -> Prepared:
    call = _call(case, inputs, fill.stack(case.shape, inputs, None))
    return Prepared(differentiated(case, inputs, entrance(call._replace(wants_lse=False), impl)))
