"""Weights as a native step reads them: contiguous, in one type, LayerNorms and biases float32."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr.model.native import structs
from dsmr.model.transformer import Block, HeadNorm, Transformer, frequencies
from dsmr_kernels.pages import Pages
from dsmr_kernels.storage import quantise

Weights = Literal["float32", "bf16", "int8"]
"""How matrices are stored: exact, rounded to bfloat16, or as int8 with one float32 scale per output channel."""

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

PADDING = 64
"""Rows of matrices and vectors are filled up with zeros to a multiple of that, so that no kernel meets an odd end."""


def fill_up(values: Tensor) -> Tensor:
    """A copy of `values [..., n]` with zeros behind each row, n a multiple of `PADDING`."""
    return F.pad(values, (0, -values.shape[-1] % PADDING))


class PackedModel:
    """Copies of a model's weights in `struct Model`'s form; later changes of the model do not reach them."""

    def __init__(self, model: Transformer, weights: Weights) -> None:
        self._dtype = DTYPES[weights]
        self._tensors: list[Tensor] = []  # the structs hold only addresses
        # Enough for every type, padding and scales included: what is not written takes no memory.
        self._pages = Pages(2 * sum(p.numel() for p in model.parameters()) * 4, torch.device("cpu"))
        config = model.config
        blocks = [self._layer(block) for block in model.blocks if isinstance(block, Block)]
        self._layers = (structs.Layer * len(blocks))(*blocks)
        turns = frequencies(config, torch.device("cpu"), torch.float32)
        self.struct = structs.Model(
            layer=self._layers,
            logits=self._matrix(model.embedding.weight),
            embedding=self._vector(model.embedding.weight),
            norm=self._norm(model.norm),
            frequencies=self._vector(turns),
            epsilon=model.norm.eps,
            head_epsilon=HeadNorm.EPSILON,
            weights=structs.TYPES[self._dtype],
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            turns=len(turns),
            rotary=config.position == "rotary",
            token_window=config.window == "token",
            segment=config.segment,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of everything that was packed."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def _layer(self, block: Block) -> structs.Layer:
        norm = block.query_key_norm
        return structs.Layer(
            query_key=self._matrix(block.query_key.weight),
            value=self._matrix(block.value.weight),
            out=self._matrix(block.out.weight),
            up=self._matrix(block.up.weight),
            down=self._matrix(block.down.weight),
            attention_norm=self._norm(block.attention_norm),
            feed_forward_norm=self._norm(block.feed_forward_norm),
            up_bias=self._vector(block.up.bias),
            down_bias=self._vector(block.down.bias),
            query_key_size=self._vector(norm.size) if isinstance(norm, HeadNorm) else None,
        )

    def _matrix(self, weight: Tensor) -> structs.Matrix:
        values, scales = weight.detach(), None
        if self._dtype == torch.int8:
            values, scale = quantise(values, torch.int8)
            scales = self._keep(scale)
        padded = fill_up(values.to(self._dtype))
        return structs.Matrix(self._keep(padded), scales, *padded.shape)

    def _norm(self, norm: nn.LayerNorm) -> structs.Norm:
        return structs.Norm(self._vector(fill_up(norm.weight.detach())), self._vector(fill_up(norm.bias.detach())))

    def _vector(self, values: Tensor) -> ctypes.c_void_p:
        return self._keep(values.detach().to(torch.float32))

    def _keep(self, values: Tensor) -> ctypes.c_void_p:
        copy = self._pages.zeros(tuple(values.shape), values.dtype).copy_(values)
        self._tensors.append(copy)
        return ctypes.c_void_p(copy.data_ptr())
