"""The operator as PyTorch sees it: schemas, fakes and autograd. Torch only; back ends do the arithmetic.

Three operators. `forward_` writes the ring, which its schema declares, and knows no autograd. `backward` is functional.
`attend_` is what users reach: its Autograd kernel runs an `autograd.Function` over the other two. Inside an operator
that function is traced by AOTAutograd with its version checks; exposed directly to a compiled graph it is not, and two
segments in one graph would get wrong gradients without a word.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from dsmr_kernels import autograd, backends
from dsmr_kernels.arguments import check_arguments, check_slopes
from dsmr_kernels.backends import Call
from dsmr_kernels.clock import Clock, check_appended, loaded, moved
from dsmr_kernels.execution import is_plain, refuse_forward_mode, refuse_functional_gradients, refuse_mapping
from dsmr_kernels.geometry import Geometry
from dsmr_kernels.ragged import check_ragged, values_are_at_hand
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.torch_private import increment_version, running_node_number

# No list of the ring's tensors, which opcheck allows: TorchScript's constant pooling takes equal ones of a list that is
# written for one, and `torch.autograd.grad(is_grads_batched=True)` has no rule for lists of tensors.
_RING = "Tensor{0} ring_k, Tensor{1} ring_v, Tensor{2}? k_scale, Tensor{3}? v_scale, Tensor{4} written"
_OPTIONS = (
    "Tensor clock, Tensor horizon, Tensor? segment_start, Tensor? segment_len, Tensor? alibi_slopes, float scale, "
    "float softcap, str window, int[] geometry, bool append, str impl"
)
_WRITTEN, _READ = _RING.format("(a!)", "(b!)", "(c!)", "(d!)", "(e!)"), _RING.format(*[""] * 5)

_library = torch.library.Library("dsmr_kernels", "DEF")
for _schema in (
    f"attend_(Tensor q, Tensor k, Tensor v, {_WRITTEN}, {_OPTIONS}) -> (Tensor, Tensor)",
    f"forward_(Tensor q, Tensor k, Tensor v, {_WRITTEN}, {_OPTIONS}) -> (Tensor, Tensor)",
    f"backward(Tensor do, Tensor dlse, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, {_READ}, {_OPTIONS}, "
    "bool untouched, bool[] needs) -> (Tensor, Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def wants_grad(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Is a backward pass to come?"""
    return (q.requires_grad or k.requires_grad or v.requires_grad) and torch.is_grad_enabled()


def attend(call: Call, impl: str | None) -> tuple[Tensor, Tensor]:
    """Run a validated call; `(o, lse)`. Goes round the dispatcher where nobody has to see the operator."""
    q, k, v = call.q, call.k, call.v
    plain = is_plain(q, k, v)
    if not torch.compiler.is_compiling() and autograd.backward_pass() == autograd.FORWARD:
        call.memory.clock.is_called()
    if wants_grad(q, k, v):
        call.memory.clock.in_graph = True
    elif plain and not q.is_meta:  # of which there is nothing but the operator's fake
        return _run_forward(call, call.memory.clock, impl)
    with _examined if plain else nullcontext():
        o, lse = torch.ops.dsmr_kernels.attend_(*_flatten(call, impl))
    return o, lse


class _Examined(threading.local):
    """Whether this thread calls an operator with arguments that were examined: to do it twice would take longer."""

    already = False

    def __enter__(self) -> None:
        self.already = True

    def __exit__(self, *_: object) -> None:
        self.already = False


_examined = _Examined()


def _run_forward(call: Call, clock: Clock | None, impl: str | None) -> tuple[Tensor, Tensor]:
    running = autograd.backward_pass()
    if running != autograd.FORWARD:
        call = _in_backward_pass(call, clock or Clock.find(call.memory.clock.state), running)
    result = backends.choose(impl, call).forward(call)
    if call.append:
        increment_version(call.memory.state)
    return result


def _in_backward_pass(call: Call, clock: Clock | None, running: int) -> Call:
    """The call that a backward pass makes: the replay of an earlier one, which reads the same and writes nothing.

    Raises RuntimeError unless memory and clock are as they were at the first pass.
    """
    memory = call.memory
    if not memory.geometry.capacity:
        return call
    if clock is None:
        raise moved()
    if not clock.is_replayed(running):
        return call
    if clock.superseded and not autograd.untouched(memory.k, clock.left.get(memory.k.data_ptr())):
        _check_not_overwritten(call)
    if call.append and values_are_at_hand(memory.written.device):
        check_appended(clock, call.q.shape[1] if call.segment_len is None else call.segment_len, memory.written)
    return call._replace(append=False, signature=None)


def _flatten(call: Call, impl: str | None) -> tuple[Any, ...]:
    """A call as the operators' arguments, in schema order."""
    memory = call.memory
    return (
        *(call.q, call.k, call.v, memory.k, memory.v, memory.k_scale, memory.v_scale, memory.written),
        *(memory.clock.state, memory.horizon, call.segment_start, call.segment_len, call.alibi_slopes),
        *(call.scale, call.softcap, call.window, list(memory.geometry.numbers), call.append, impl or ""),
    )


def _unflatten(*arguments: Any) -> tuple[Call, str | None]:
    """The inverse of `_flatten`. Its ring and clock are checked unless the call was examined."""
    q, k, v, ring_k, ring_v, k_scale, v_scale, written, clock, horizon, start, length, slopes = arguments[:13]
    scale, softcap, window, geometry, append, impl = arguments[13:]
    if len(geometry) != 5:
        raise ValueError(f"geometry: expected 5 numbers, got {geometry}")
    make_ring, make_clock = (RingMemory.unchecked, Clock.unchecked) if _examined.already else (RingMemory, Clock)
    shape = _geometry(*geometry)
    no_tail = (None, None, None)
    memory = make_ring(ring_k, ring_v, k_scale, v_scale, written, horizon, make_clock(clock), shape, *no_tail)
    return Call(q, k, v, memory, window, start, length, slopes, scale, softcap, append), impl or None


_geometry = lru_cache(maxsize=1024)(Geometry.of_numbers)


def _checked(*arguments: Any) -> tuple[Call, str | None]:
    """`_unflatten`, examined: a recorded graph runs on other tensors than those it was recorded with."""
    refuse_forward_mode(arguments)
    call, impl = _unflatten(*arguments)
    if _examined.already:
        return call, impl
    check_arguments(call.q, call.k, call.v, call.memory, call.window, call.scale, call.softcap, call.append)
    if call.segment_start is not None or call.segment_len is not None:
        check_ragged(call.q.shape[0], call.q.shape[1], call.q.device, call.segment_start, call.segment_len)
    if call.alibi_slopes is not None:
        check_slopes(call.q, call.alibi_slopes)
    return call, impl


def _forward_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
    call, impl = _checked(*arguments)
    return _run_forward(call, None, impl)


def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _dim = q.shape
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=lse_dtype)


def _backward_kernel(
    do: Tensor, dlse: Tensor, o: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *flat, untouched, needs = arguments
    call, impl = _checked(*flat)
    for name, x, like in (("do", do, call.q), ("o", o, call.q), ("dlse", dlse, lse)):
        if (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
            raise ValueError(f"{name}: expected {list(like.shape)} {like.dtype}, got {list(x.shape)} {x.dtype}")
    if not untouched:
        _check_not_overwritten(call)
    return backends.choose(impl, call).backward(call, o, lse, do, dlse, (needs[0], needs[1]))


def _backward_fake(
    do: Tensor, dlse: Tensor, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_dq, need_dkv = arguments[-1]
    wanted = ((q, need_dq), (k, need_dkv), (v, need_dkv))
    dq, dk, dv = (x.new_empty(x.shape if need else (0,)) for x, need in wanted)
    return dq, dk, dv


def _check_not_overwritten(call: Call) -> None:
    """A backward pass reads the memory that its forward pass saw: refuse if it has been written over since."""
    memory = call.memory
    if -1 < running_node_number() < loaded.get(memory.k.data_ptr(), 0):
        raise RuntimeError(
            "the ring memory was overwritten between forward and backward, by load_state_dict. Call backward before a "
            "state is loaded."
        )
    horizon, newest = int(memory.horizon), memory.written.tolist()
    for lane, clock in enumerate(memory.clock.state.t().tolist()):
        position, length, phase = clock
        need, have = memory.geometry.needed(horizon, call.window, position, length, phase, newest[lane])
        if need > have:
            raise RuntimeError(
                f"the ring memory of lane {lane} was overwritten between forward and backward: "
                f"this backward pass needs a capacity of {need} slots and the ring has {have}. Call backward before "
                "later segments are appended, or make the MemoryStack with more segments_in_flight."
            )


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        o, lse = torch.ops.dsmr_kernels.forward_(*arguments)
        q, k, v, *ring, clock, horizon, start, length, slopes = arguments[:13]
        # Not among the saved tensors. Autograd's version check would refuse every segment that is appended before this
        # one's backward pass, while the ring may have room for several: `_check_not_overwritten` is the exact check.
        # And what a replay saves instead must not take the place of the first pass's clock.
        ctx.ring, ctx.time = ring, (clock, horizon)
        ctx.save_for_backward(q, k, v, o, lse, start, length, slopes)
        ctx.kinds = _kinds(q, k, v, o, lse, start, length, slopes)
        ctx.options = arguments[13:]
        ctx.version = autograd.writes(ctx.ring[0])
        ctx.time_versions = [*map(autograd.writes, ctx.time)]
        return o, lse

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse, *ragged = ctx.saved_tensors
        if [*map(autograd.writes, ctx.time)] != ctx.time_versions:
            raise RuntimeError("memory: the clock or a horizon was written in place between forward and backward")
        need_dq, *need_dkv = ctx.needs_input_grad[:3]
        needs = [need_dq, any(need_dkv)]
        # Nothing was written since: no need to look at positions, for which a GPU would have to be waited for. A graph
        # that is being compiled is not the run, so it always looks.
        untouched = autograd.untouched(ctx.ring[0], ctx.version)
        compiling = torch.compiler.is_compiling()
        if not compiling:
            _check_unpacked(ctx.kinds, q, k, v, o, lse, *ragged)
        inputs = (do, dlse, o, lse, q, k, v, *ctx.ring, *ctx.time, *ragged, *ctx.options, untouched, needs)
        with torch.no_grad(), nullcontext() if compiling else _examined:
            grads = torch.ops.dsmr_kernels.backward(*inputs)
        if torch.is_grad_enabled() and not compiling:
            grads = _Once.apply(*grads, q, k, v)  # type: ignore[no-untyped-call]  # torch ships no types for it
        dq, dk, dv = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad[:3], strict=True))
        return dq, dk, dv, *[None] * (len(ctx.needs_input_grad) - 3)


class _Once(torch.autograd.Function):
    """Gradients that depend on q, k and v, and say so: a second derivative would take them for constants."""

    @staticmethod
    def forward(_ctx: Any, *gradients_and_inputs: Tensor) -> tuple[Tensor, ...]:
        return gradients_and_inputs[:3]

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> NoReturn:
        raise RuntimeError("recurrent_attention: expected to be differentiated once, got a second derivative")


def _kinds(*tensors: Tensor | None) -> list[tuple[object, ...] | None]:
    return [None if x is None else (x.shape, x.dtype, x.device) for x in tensors]


def _check_unpacked(kinds: list[tuple[object, ...] | None], *unpacked: Tensor | None) -> None:
    """What hooks for saved tensors give back is checked like arguments: native code relies on it."""
    for saved, found in zip(kinds, _kinds(*unpacked), strict=True):
        if saved != found:
            raise RuntimeError(f"saved tensors: expected {saved}, as was saved, got {found} from a hook")
    for name, x in zip("qkv", unpacked, strict=False):
        if x is not None and x.stride(3) != 1 and x.shape[3] != 1:
            raise RuntimeError(f"saved tensors: expected {name} with a contiguous last dimension, got {x.stride()}")


def _attend_autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    refuse_forward_mode(arguments)
    if torch.is_grad_enabled() and any(x.requires_grad for x in arguments[:3]):
        refuse_functional_gradients(*arguments[:3])
        o, lse = _Attend.apply(*arguments)  # type: ignore[no-untyped-call]  # torch ships no types for it
        return o, lse
    return _attend_kernel(*arguments)


def _attend_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
    o, lse = torch.ops.dsmr_kernels.forward_(*arguments)
    return o, lse


_library.impl("forward_", _forward_kernel, "CompositeExplicitAutograd")
_library.impl("backward", _backward_kernel, "CompositeExplicitAutograd")
_library.impl("attend_", _attend_kernel, "CompositeExplicitAutograd")
_library.impl("attend_", _attend_autograd, "Autograd")
for _name in ("attend_", "forward_", "backward"):
    _library.impl(_name, refuse_mapping, "FuncTorchBatched")
torch.library.register_fake("dsmr_kernels::forward_", _forward_fake, lib=_library)
torch.library.register_fake("dsmr_kernels::attend_", _forward_fake, lib=_library)
torch.library.register_fake("dsmr_kernels::backward", _backward_fake, lib=_library)
