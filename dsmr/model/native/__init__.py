"""Native decode step: embedding, every layer and logits in one call on the CPU, without Python.

`NativeStep` packs a model's weights once; then each `step` reads one token a lane, appends to the model's own
`MemoryStack` and moves its clock, as `Transformer.forward` does with `segment_size=config.segment`. With float32
weights both compute the same up to rounding, and either may go on where the other has stopped.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dsmr.model.native import structs
from dsmr.model.native.structs import absence
from dsmr.model.native.weights import DTYPES, PackedModel, Weights
from dsmr.model.transformer import Transformer
from dsmr_kernels import MemoryStack

_BAD_CLOCK = 2  # what dsmr_native_step returns for one

__all__ = ["NativeStep", "Weights", "absence", "description", "unsupported"]


def unsupported(model: Transformer, state: MemoryStack | None = None) -> str | None:
    """Why `NativeStep` cannot serve a model and a state (None: any that the model makes), or None if it can."""
    missing = absence()
    if missing:
        return missing
    weight, config = model.embedding.weight, model.config
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}, not on a CPU"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the model computes in {weight.dtype}, the native step in float32"
    if model.training and config.dropout > 0:
        return "the model is in training mode and has dropout"
    return None if state is None else _unsupported_state(model, state)


def _unsupported_state(model: Transformer, state: MemoryStack) -> str | None:
    config = model.config
    ring = state[0]
    shape = (config.layers, config.kv_heads, config.head_dim)
    if (len(state), ring.k.shape[1], ring.k.shape[3]) != shape:
        return f"the memory is not this model's: expected {shape} layers, KV heads and head dim"
    if state.device.type != "cpu":
        return f"the memory is on {state.device}, not on a CPU"
    if ring.k.dtype not in structs.TYPES:
        return f"the memory holds {ring.k.dtype}"
    if not all(tensor.is_contiguous() for each in state for tensor in each.tensors().values()):
        return "the memory is not contiguous"
    if state.max_segment < config.segment:
        return f"the memory takes segments of {state.max_segment} tokens, the model's are of {config.segment}"
    if config.window == "token" and ring.geometry.retention.stride > 1:
        return "window='token' needs a memory that keeps every token"
    if state.key_shift != config.key_shift:
        return f"the memory is of key_shift={state.key_shift}, the model of {config.key_shift}"
    if ring.tail is not None and ring.tail.dtype == torch.float64:
        return f"the memory keeps shifted keys in {ring.tail.dtype}"
    if state.clock.in_graph:
        return "a backward pass may need the memory's clock"
    return None


def description() -> str:
    """The native library in use, for people to read; `Unavailable` if there is none."""
    library = structs.library()
    return f"{library.isa} instructions, {torch.get_num_threads()} threads"


class NativeStep:
    """A model's decode step, its weights packed at construction (later changes of the model do not count).

    One step at a time: it has working memory of its own, and remembers the addresses of the last state.

    Args:
        model: on a CPU, in evaluation mode if it has dropout.
        weights: how its matrices are stored, see `Weights`.

    Raises:
        ValueError: `weights` is unknown, or the step cannot serve the model; see `unsupported`.
    """

    def __init__(self, model: Transformer, weights: Weights = "float32") -> None:
        if weights not in DTYPES:
            raise ValueError(f"weights: expected one of {', '.join(DTYPES)}, got {weights!r}")
        reason = unsupported(model)
        if reason:
            raise ValueError(f"model: the native step cannot serve it: {reason}")
        self._model = model
        self._packed = PackedModel(model, weights)
        self._bound: _Binding | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    def step(self, tokens: Tensor, state: MemoryStack, segment_len: Tensor | None = None) -> Tensor:
        """Read one token a lane, append it to the memory and move the clock.

        Args:
            tokens: ids int64 `[B]`; those of lanes that stand still do not matter.
            state: the recurrent state, from the model's `new_state`.
            segment_len: int64 `[B]`, 1 or 0: whether the lane's token is read, or the lane stands still. None: all 1.

        Returns:
            logits float32 `[B, vocab_size]`; arbitrary finite numbers for lanes that stand still.

        Raises:
            ValueError, TypeError: an argument is wrong, or the step cannot serve the state; see `unsupported`.
        """
        lanes = state.lanes
        _check("tokens", tokens, lanes)
        if segment_len is not None:
            _check("segment_len", segment_len, lanes)
        bound = self._bound
        if bound is None or bound.state is not state or bound.clock is not state.clock or state.clock.in_graph:
            bound = self._bound = self._bind(state)
        call = bound.call
        threads = torch.get_num_threads()
        if threads != call.threads:
            bound.use_threads(threads)
        logits = torch.empty(lanes, self._model.config.vocab_size, device="cpu")
        call.tokens = tokens.data_ptr()
        call.segment_len = None if segment_len is None else segment_len.data_ptr()
        call.logits = logits.data_ptr()
        status = structs.library().functions.dsmr_native_step(bound.reference)
        if status == _BAD_CLOCK:
            raise ValueError(
                f"state: expected clocks that lead to slots of the rings, got {state.clock.state.tolist()}"
            )
        if status:
            raise ValueError(
                f"tokens, segment_len: expected ids below {self._model.config.vocab_size} and numbers 0 or 1, "
                f"got {tokens.tolist()}, {None if segment_len is None else segment_len.tolist()}"
            )
        torch.autograd.graph.increment_version(bound.written)
        bound.clock.was_moved()
        return logits

    def _bind(self, state: MemoryStack) -> _Binding:
        reason = unsupported(self._model, state)
        if reason:
            raise ValueError(f"state: the native step cannot serve it: {reason}")
        return _Binding(self._packed, state)


class _Binding:
    """A call's argument struct, with the addresses of one state: built once, for as long as the state is used."""

    def __init__(self, packed: PackedModel, state: MemoryStack) -> None:
        self.state, self.clock = state, state.clock
        self.written = [self.clock.state, *(tensor for ring in state for tensor in ring.tensors().values())]
        retention, tail = state[0].geometry.retention, state[0].tail
        shifts = state.key_shift or ()
        self._rings = (structs.Ring * len(state))(
            *(
                structs.Ring(
                    archive=ring.geometry.archive,
                    recent=ring.geometry.recent,
                    horizon=ring.horizon.data_ptr(),
                    **{name: tensor.data_ptr() for name, tensor in ring.tensors().items()},
                )
                for ring in state
            )
        )
        self._state = structs.State(
            ring=self._rings,
            clock=self.clock.state.data_ptr(),
            type=structs.TYPES[state[0].k.dtype],
            lanes=state.lanes,
            stride=retention.stride,
            keep_random=retention.keep == "random",
            tail_type=0 if tail is None else structs.TYPES[tail.dtype],
            tail_slots=0 if tail is None else tail.shape[2],
            key_shift=(ctypes.c_int64 * len(shifts))(*shifts) if shifts else None,
        )
        self._packed = packed
        self.call = structs.Call(model=ctypes.pointer(packed.struct), state=ctypes.pointer(self._state))
        self.reference = ctypes.byref(self.call)

    def use_threads(self, threads: int) -> None:
        """Have room for as many threads."""
        size = structs.library().functions.dsmr_native_scratch(self.call.model, self.call.state, threads)
        self._scratch = torch.zeros(size, device="cpu")  # vectors are filled up with zeros
        self.call.scratch, self.call.threads = self._scratch.data_ptr(), threads


def _check(name: str, values: Tensor, lanes: int) -> None:
    if not isinstance(values, Tensor) or values.dtype != torch.int64:
        raise TypeError(f"{name}: expected an int64 tensor, got {getattr(values, 'dtype', type(values).__name__)}")
    if values.shape != (lanes,) or not values.is_contiguous() or values.device.type != "cpu":
        raise ValueError(
            f"{name}: expected [{lanes}], contiguous, on a CPU, got {list(values.shape)}, "
            f"strides {values.stride()}, on {values.device}"
        )
