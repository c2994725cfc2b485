"""How a ring stores keys and values: in the segment's own type, or quantised with one scale per lane, head and slot."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Storage = Literal["int8", "float8_e4m3"]


class QuantisedType(NamedTuple):
    """A storage type and the largest magnitude it represents."""

    dtype: torch.dtype
    largest: float


QUANTISED: dict[str, QuantisedType] = {
    "int8": QuantisedType(torch.int8, 127.0),
    "float8_e4m3": QuantisedType(torch.float8_e4m3fn, 448.0),
}
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise `x [..., D]` to `dtype`; returns `values [..., D]` and float32 `scale [...]` with `x ~ values * scale`.

    The scale is absmax / largest, so no value saturates; a row of zeros has scale zero. Round to nearest even. Of our
    own, because PyTorch's quantised tensors have neither a scale for each row nor float8.
    """
    largest = next(kind.largest for kind in QUANTISED.values() if kind.dtype == dtype)
    x = x.float()
    scale = x.abs().amax(-1) / largest
    scaled = x / torch.where(scale > 0, scale, 1.0)[..., None]
    if dtype == torch.int8:
        scaled = scaled.round()
    return scaled.to(dtype), scale


def ring_bytes(capacity: int, kv_heads: int, head_dim: int, dtype: torch.dtype, storage: Storage | None = None) -> int:
    """Bytes of keys, values and scales that one layer's ring of `capacity` slots takes for one lane."""
    element = (QUANTISED[storage].dtype if storage else dtype).itemsize
    scale = torch.float32.itemsize if storage else 0
    return 2 * capacity * kv_heads * (head_dim * element + scale)
