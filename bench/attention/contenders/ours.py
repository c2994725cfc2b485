"""`recurrent_attention`, per back end and storage, and what its call costs beyond the back end."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.attention import fill
from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import Contender, Prepared, differentiated
from bench.attention.shapes import Inputs
from bench.harness.machine import commit
from dsmr_kernels import MemoryStack, backends, ops, recurrent_attention
from dsmr_kernels.backends import Call, cpu

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
    bare = "kernel alone" if impl == "cpu" else "plain function"
    for name, way in {bare: _kernel if impl == "cpu" else _plain, **WAYS}.items():
        yield Contender(
            name=f"{name}, {impl}",
            tasks=frozenset({"overhead"}),
            version=VERSION,
            prepare=partial(_prepare_way, impl=impl, way=way),
            unavailable=partial(_unavailable, impl=impl, storage=None),
            ours=True,
            minus=f"{bare}, {impl}" if name in WAYS else None,
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


Way = Callable[[Call, str], Callable[[], Tensor]]
WAYS: dict[str, Way] = {"recurrent_attention": _public, "operator": _operator}


def _prepare_way(case: AttentionCase, inputs: Inputs, impl: str, way: Way) -> Prepared:
    call = _call(case, inputs, fill.stack(case.shape, inputs, None))
    return Prepared(differentiated(case, inputs, way(call._replace(wants_lse=False), impl)))
