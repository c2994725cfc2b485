"""Shapes, the sizes of one call, and inputs of those sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from bench.harness.units import DTYPES


@dataclass(frozen=True)
class Shape:
    """Sizes of one call. Written `B1-T256-H8-Hkv2-D64-M1024-bf16`, with `-token` for that window."""

    tokens: int
    horizon: int
    dtype: str = "fp32"
    kv_heads: int = 8
    heads: int = 8
    head_dim: int = 64
    lanes: int = 1
    window: str = "segment"

    PATTERN = re.compile(
        r"(?:B(?P<lanes>\d+)-)?T(?P<tokens>\d+)-(?:H(?P<heads>\d+)-)?(?:Hkv(?P<kv_heads>\d+)-)?(?:D(?P<head_dim>\d+)-)?"
        rf"M(?P<horizon>\d+)-(?P<dtype>{'|'.join(DTYPES)})(?:-(?P<window>token|segment))?"
    )

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The inverse of `str`; B, H, Hkv, D and the window may be left out."""
        match = cls.PATTERN.fullmatch(text)
        if not match:
            raise ValueError(f"shape: expected something like B1-T256-H8-Hkv8-D64-M1024-fp32[-token], got {text!r}")
        given = {name: value for name, value in match.groupdict().items() if value is not None}
        shape = cls(**{name: value if name in ("dtype", "window") else int(value) for name, value in given.items()})
        if "heads" in given and "kv_heads" not in given:
            shape = replace(shape, kv_heads=shape.heads)
        if shape.heads % shape.kv_heads:
            raise ValueError(f"shape: expected H divisible by Hkv, got {text!r}")
        return shape

    def __str__(self) -> str:
        sizes = f"B{self.lanes}-T{self.tokens}-H{self.heads}-Hkv{self.kv_heads}-D{self.head_dim}-M{self.horizon}"
        return f"{sizes}-{self.dtype}" + ("-token" if self.window == "token" else "")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of q, k and v."""
        return DTYPES[self.dtype]

    def pairs(self) -> tuple[int, int]:
        """Visible (query, memory) and (query, segment) pairs a head and lane, the memory being full."""
        if self.window == "segment":
            return self.tokens * self.horizon, self.tokens * (self.tokens + 1) // 2
        segment = sum(min(i + 1, self.horizon) for i in range(self.tokens))
        return self.tokens * self.horizon - segment, segment

    def visible(self, device: torch.device) -> Tensor:
        """The mask `[T, M + T]` over [memory | segment], the memory full; what peers with a mask are given."""
        query = torch.arange(self.tokens, device=device)[:, None]
        key = torch.arange(-self.horizon, self.tokens, device=device)
        if self.window == "segment":
            return key <= query
        return (key <= query) & (query - key < self.horizon)


@dataclass
class Inputs:
    """`q, do [B, T, H, D]`, `k, v [B, T, Hkv, D]` and the memory `past_k, past_v [B, Hkv, M, D]`, oldest first."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    past_k: Tensor
    past_v: Tensor

    @classmethod
    def random(cls, shape: Shape, device: torch.device, seed: int, gradients: bool) -> Inputs:
        """Standard normal, the same on every device."""
        tensors = [x.to(device, copy=True) for x in _drawn(shape, seed)]
        for x in tensors[:3]:
            x.requires_grad_(gradients)
        return cls(*tensors)


@lru_cache(maxsize=1)  # all contenders are checked on the same
def _drawn(shape: Shape, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    segment = (shape.lanes, shape.tokens, shape.heads, shape.head_dim)
    segment_kv = (shape.lanes, shape.tokens, shape.kv_heads, shape.head_dim)
    past = (shape.lanes, shape.kv_heads, shape.horizon, shape.head_dim)
    sizes = (segment, segment_kv, segment_kv, segment, past, past)
    return tuple(torch.randn(size, generator=generator).to(shape.torch_dtype) for size in sizes)
