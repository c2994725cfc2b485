"""Peers that compute the attention of the unchanged `dsmr.model.Transformer` by concatenation, and ours.

A peer stands in for `recurrent_attention` while its `context` is entered, and brings a state of its own. It is given
its best case, the middle of long pieces: no piece begins or ends in a segment and all lanes are in step, so that one
mask, made once, serves them all. (Training on whole pieces without padding takes a mask a lane, anew each segment.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import dsmr.model.transformer
from bench.harness import kernels
from bench.harness.case import Contender
from bench.harness.machine import commit
from bench.models import fill
from dsmr.model import ModelConfig, Transformer
from dsmr_kernels import MemoryStack, backends, recurrent_attention
from dsmr_kernels.backends import Call
from dsmr_kernels.clock import Clock

STORAGES = (None, "int8")


@dataclass
class Past:
    """One layer's memory of a peer: `k, v [B, Hkv, n, D]`, oldest first, detached."""

    horizon: int
    k: Tensor
    v: Tensor

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`[memory | segment]` of `k, v [B, T, Hkv, D]`; the newest `horizon` entries of it are the next memory."""
        k, v = (torch.cat([past, x.transpose(1, 2)], 2) for past, x in ((self.k, k), (self.v, v)))
        keep = min(self.horizon, k.shape[2])
        self.k, self.v = (x.detach().narrow(2, x.shape[2] - keep, keep) for x in (k, v))
        return k, v


class Concatenation:
    """What a model asks of its recurrent state, over memories that are trimmed concatenations."""

    key_shift = None  # of a model whose keys stay

    def __init__(self, config: ModelConfig, lanes: int, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._lanes, self._dtype = config, lanes, dtype
        self.clock = Clock(torch.zeros(3, lanes, dtype=torch.int64, device=device))
        empty = torch.empty(lanes, config.kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self._layers = [Past(horizon, empty, empty) for horizon in config.schedule.horizons]

    def __iter__(self) -> Iterator[Past]:
        return iter(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes that the memories keep alive: those of the concatenations that they are views of."""
        return sum(x.untyped_storage().nbytes() for layer in self for x in (layer.k, layer.v))

    def fill(self) -> None:
        """The same memory and the same clock as `bench.models.fill.fill`."""
        pasts = fill.pasts(self._config, self._lanes, self.clock.state.device)
        for layer, past in zip(self._layers, pasts, strict=True):
            layer.k, layer.v = (x.to(self._dtype) for x in past)
        self.clock.length.fill_(fill.position(self._config))

    def reset(self, lanes: Tensor) -> None:
        """Refuses: a lane that begins a piece by itself is not a peer's best case."""
        if bool(lanes.any()):
            raise ValueError(f"lanes: expected none to begin a piece, got {lanes.tolist()}")

    def advance(self, tokens: int, segment_start: Tensor | None, segment_len: Tensor | None, _: int | None) -> None:
        """Move the clock past a whole segment in the middle of a piece."""
        if segment_len is not None:
            raise ValueError("segment_len: expected whole segments")
        if segment_start is not None and segment_start.device.type == "cpu" and bool(segment_start.any()):
            raise ValueError("segment_start: expected no piece to begin in a segment")
        self.clock.length.add_(tokens)


@dataclass(frozen=True, kw_only=True)
class Attention(Contender):
    """What stands in for `recurrent_attention`, and the back end of SDPA that it may use."""

    attend: Callable[..., Tensor]
    sdpa: SDPBackend | None = None

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The model's attention is this one's."""
        with contextlib.ExitStack() as entered:
            entered.enter_context(mock.patch.object(dsmr.model.transformer, "recurrent_attention", self.attend))
            if self.sdpa is not None:
                entered.enter_context(sdpa_kernel(self.sdpa))
            yield

    def full_state(self, model: Transformer, lanes: int, dtype: torch.dtype) -> MemoryStack | Concatenation:
        """A state with full memories; equal, but for rounding to `dtype` and `storage`, for every contender."""
        if self.ours:
            state = model.new_state(lanes, dtype=dtype, storage=self.storage)
            fill.fill(state, model.config)
            return state
        peer = Concatenation(model.config, lanes, dtype, model.embedding.weight.device)
        peer.fill()
        return peer


def state_bytes(state: MemoryStack | Concatenation) -> int:
    """Bytes of keys, values and scales, all layers and lanes."""
    return state.nbytes if isinstance(state, Concatenation) else state.bytes_per_lane * state.lanes


def attentions(device: torch.device) -> list[Attention]:
    """Everyone that there is for a device, available or not; the one that is wrong on purpose comes last."""
    names = backends.FOR_DEVICE.get(device.type, ("eager",))
    made = [
        Attention(
            name=f"ours {impl}" + (f", {storage} memory" if storage else ""),
            version=f"commit {commit()}",
            attend=partial(recurrent_attention, impl=impl),
            ours=True,
            storage=storage,
            unavailable=partial(_unavailable, impl=impl, storage=storage),
            on_request=impl == "eager" and device.type == "cuda" and len(names) > 1,  # it walks lanes one by one
        )
        for impl in names
        for storage in STORAGES
    ]
    if device.type == "cuda":
        peers = [
            ("flash, lower-right bias", SDPBackend.FLASH_ATTENTION, causal_lower_right),
            ("cuDNN, explicit mask", SDPBackend.CUDNN_ATTENTION, partial(mask, device=device)),
            ("efficient, explicit mask", SDPBackend.EFFICIENT_ATTENTION, partial(mask, device=device)),
        ]
    else:
        peers = [("flash, explicit mask", SDPBackend.FLASH_ATTENTION, partial(mask, device=device))]
    for name, backend, bias in peers:
        made.append(concatenation(f"concatenation + SDPA {name}", partial(sdpa, bias=bias), sdpa=backend))
    flex, top_left = "concatenation + FlexAttention compiled", "broken on purpose: causal from the upper left"
    made.append(concatenation(flex, flex_compiled, unavailable=_flex_unavailable))
    over_wrong = partial(sdpa, bias=partial(wrong_mask, device=device))
    return [*made, concatenation(top_left, over_wrong, on_request=True)]


def concatenation(name: str, over: Callable[[Tensor, Tensor, Tensor], Tensor], **options: Any) -> Attention:
    """A peer: `over(q [B, H, T, D], k, v [B, Hkv, n + T, D])` on `[memory | segment]`."""
    attend = partial(attend_concatenated, over=over)
    return Attention(name=name, version=f"torch {torch.__version__}", attend=attend, **options)


def _unavailable(case: object, device: torch.device, impl: str, storage: str | None) -> str | None:
    """Ask the back end about a call with a preset's head dimension and the training's type."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    memory = MemoryStack([8], 1, 2, 64, 8, dtype, device, storage)[0]
    x = torch.zeros(1, 8, 2, 64, dtype=dtype, device=device)
    return kernels.refusal(impl, Call(x, x, x, memory, "segment", None, None, None, 1.0, 0.0, True))


def _flex_unavailable(case: object, device: torch.device) -> str | None:
    return None if device.type == "cuda" else "FlexAttention has no backward pass on CPUs"


def attend_concatenated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Past,
    *,
    window: str,
    segment_start: Tensor | None,
    segment_len: Tensor | None,
    over: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """`recurrent_attention` with `over(q [B, H, T, D], k, v [B, Hkv, n + T, D])` as its arithmetic."""
    if window != "segment":
        raise ValueError(f"window: expected 'segment', got {window!r}")
    return over(q.transpose(1, 2), *past.join(k, v)).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Callable[[int, int], Tensor]) -> Tensor:
    """`scaled_dot_product_attention`; `bias(T, n + T)` says what is visible."""
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, bias(q.shape[2], k.shape[2]), enable_gqa=grouped)


@cache
def mask(tokens: int, keys: int, device: torch.device) -> Tensor:
    """bool `[T, n + T]`: all of the memory, and the segment up to the query. Made once for each pair of sizes."""
    return torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)


@cache
def wrong_mask(tokens: int, keys: int, device: torch.device) -> Tensor:
    """What `is_causal=True` means over a concatenation: query i sees the i + 1 oldest keys."""
    return torch.ones(tokens, keys, dtype=torch.bool, device=device).tril()


def flex_compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention compiled for these very sizes, its block mask made once."""
    block_mask = _block_mask(q.shape[2], k.shape[2], q.device)
    return _flex()(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])


@cache
def _flex() -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = 64  # of a few sizes each; beyond it, it would run uncompiled
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(tokens: int, keys: int, device: torch.device) -> BlockMask:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key - (keys - tokens) <= query

    return create_block_mask(visible, None, None, tokens, keys, device=str(device))
