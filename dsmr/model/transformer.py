"""Transformer: pre-LayerNorm blocks whose attention reads a ring memory with a horizon per layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr.model.config import ModelConfig
from dsmr_kernels import MemoryStack, RingMemory, recurrent_attention, token_shift
from dsmr_kernels.storage import Storage


class Transformer(nn.Module):
    """A decoder-only Transformer over segments; its recurrent state is a `MemoryStack` and nothing else.

    Source: the block of Depth-Structured Music Recurrence (arXiv 2602.19816), as its authors describe it: positions
    enter queries and keys only, and the segment's keys and values join the layer's detached memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Normal with deviation 0.02; what writes into the residual stream is scaled down by depth (as in GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def parameters_count(self) -> int:
        """Number of trainable parameters; the tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def new_state(
        self,
        lanes: int,
        *,
        max_segment: int | None = None,
        dtype: torch.dtype | None = None,
        storage: Storage | None = None,
        segments_in_flight: int = 1,
    ) -> MemoryStack:
        """An empty memory for `lanes` streams, on the model's device.

        `max_segment` defaults to the training segment, `dtype` to the type that q, k and v will have: autocast's, if it
        is on, else the weights'. `storage` quantises the rings.
        """
        device = self.embedding.weight.device
        if dtype is None:
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else self.embedding.weight.dtype
        return MemoryStack(
            self.config.schedule.horizons,
            lanes,
            self.config.kv_heads,
            self.config.head_dim,
            max_segment or self.config.segment,
            dtype,
            device,
            storage,
            self.config.schedule.retention,
            segments_in_flight,
            self.config.key_shift,
        )

    def forward(
        self,
        tokens: Tensor,
        state: MemoryStack,
        segment_start: Tensor | None = None,
        segment_len: Tensor | None = None,
        segment_size: int | None = None,
        origin: Tensor | None = None,
    ) -> Tensor:
        """Read one segment, append it to the memory and move the clock.

        Args:
            tokens: ids int64 `[B, T]`.
            state: the recurrent state, from `new_state`.
            segment_start, segment_len: see `dsmr_kernels.recurrent_attention`.
            segment_size: see `MemoryStack.advance`: these tokens are part of a segment of that many.
            origin: how many tokens of each lane's piece came before those that its memory knows of, int64 `[B]`:
                positions count from the piece's beginning all the same. None: the memory began with the piece.

        Returns:
            logits `[B, T, vocab_size]`.

        ValueError for a state whose keys are not shifted as this model's are.
        """
        if state.key_shift != self.config.key_shift:
            raise ValueError(f"state: expected one with key_shift={self.config.key_shift}, got {state.key_shift}")
        position = self._position(tokens, state, segment_start, origin)
        x = self.dropout(self.embedding(tokens))
        for block, memory in zip(self.blocks, state, strict=True):
            x = block(x, position, memory, segment_start, segment_len)
        state.advance(tokens.shape[1], segment_start, segment_len, segment_size)
        return F.linear(self.norm(x), self.embedding.weight)

    def _position(
        self, tokens: Tensor, state: MemoryStack, segment_start: Tensor | None, origin: Tensor | None = None
    ) -> Tensor:
        """The position signal of all layers, by each token's index in its piece.

        Sinusoidal: `[B, T, width]`. Rotary: cosines and sines `[2, B, T, 1, D / 2]`, or `[2, B, T, H + Hkv, D / 2]`
        where heads differ.
        """
        rows = torch.arange(tokens.shape[1], device=tokens.device)
        index = state.clock.length[:, None] + rows
        if origin is not None:
            index = index + origin[:, None]
        if segment_start is not None:
            index = torch.where(segment_start > 0, rows - segment_start, index)
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)  # half precision cannot count tokens
        rates = frequencies(self.config, tokens.device, dtype)
        if len(rates) > 1:
            rates = torch.cat([rates.repeat_interleave(self.config.heads // self.config.kv_heads, 0), rates])
        angles = index[..., None, None] * rates
        if self.config.position == "sinusoidal":
            return torch.cat([angles.sin(), angles.cos()], -1)[:, :, 0]
        return torch.stack([angles.cos(), angles.sin()])


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key = nn.Linear(config.width, (config.heads + config.kv_heads) * config.head_dim, bias=False)
        self.query_key_norm = HeadNorm(config.heads + config.kv_heads) if config.qk_norm else nn.Identity()
        self.value = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feed_forward * config.width)
        self.down = nn.Linear(config.feed_forward * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memory: RingMemory,
        segment_start: Tensor | None,
        segment_len: Tensor | None,
    ) -> Tensor:
        """`x [B, T, width]` to the same shape; appends this layer's keys and values to `memory`."""
        x = x + self.dropout(self._attend(self.attention_norm(x), position, memory, segment_start, segment_len))
        x = x + self.dropout(self.down(F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh")))
        return x

    def _attend(
        self,
        h: Tensor,
        position: Tensor,
        memory: RingMemory,
        segment_start: Tensor | None,
        segment_len: Tensor | None,
    ) -> Tensor:
        heads = self.config.heads
        positioned = h + position.to(h.dtype) if self.config.position == "sinusoidal" else h
        q_and_k = self.query_key(positioned).unflatten(-1, (-1, self.config.head_dim))  # [B, T, H + Hkv, D]
        q_and_k = self.query_key_norm(q_and_k)
        if self.config.key_shift is not None:
            k = token_shift(q_and_k[:, :, heads:], memory, segment_start=segment_start, segment_len=segment_len)
            q_and_k = torch.cat([q_and_k[:, :, :heads], k], 2)
        if self.config.position == "rotary":
            q_and_k = rotate(q_and_k, position)
        v = self.value(h).unflatten(-1, (-1, self.config.head_dim))  # [B, T, Hkv, D]
        o = recurrent_attention(
            q_and_k[:, :, :heads],
            q_and_k[:, :, heads:],
            v,
            memory,
            window=self.config.window,
            segment_start=segment_start,
            segment_len=segment_len,
        )
        assert isinstance(o, Tensor)  # only return_lse makes it a pair
        out: Tensor = self.out(o.flatten(2))
        return out


class HeadNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019) of each head, to a size that is learned for each."""

    EPSILON = 1e-6
    SIZE = 2.0
    """At first. Of both queries and keys: so logits lie within 4 sqrt(D), and attention can be sharp from the start."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.full((heads,), self.SIZE))

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, T, heads, D]` to the same shape and type."""
        return F.rms_norm(x, x.shape[-1:], eps=self.EPSILON) * self.size[:, None].to(x.dtype)


def frequencies(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Radians a token, by which positions turn.

    Returns:
        Sinusoidal: `[1, width / 2]`. Rotary: `[1, D / 2]` for all heads, or `[Hkv, D / 2]` where they differ; zeros for
        pairs that are not rotated.
    """
    size = config.width if config.position == "sinusoidal" else config.head_dim
    rows = []
    for share in config.rotary_share or (1.0,):
        pairs = int(share * size) // 2
        exponent = torch.arange(pairs, device=device, dtype=dtype) / max(pairs, 1)
        rows.append(F.pad(config.position_base**-exponent, (0, size // 2 - pairs)))
    return torch.stack(rows)


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Su et al. (2021), "RoFormer": rotate the halves of `x [B, T, heads, D]` by `position`, cosines and sines."""
    cos, sin = position
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)
