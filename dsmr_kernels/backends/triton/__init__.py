"""The Triton back end: fused kernels that read and write the ring in place, for NVIDIA GPUs from Ampere on and AMD's.

Everything that changes from call to call (clock, horizon, ragged lengths) is read on the device: no call waits for the
GPU, and one captured CUDA graph replays for the whole life of a stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import architecture, lookup
from dsmr_kernels.backends.triton.forward import launch_forward
from dsmr_kernels.backends.triton.launch import aligned, padded_dim, unsupported

__all__ = ["forward", "unsupported"]


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.forward`."""
    call = _aligned(call)
    batch, tokens, heads, _ = call.q.shape
    o = torch.empty_like(call.q, memory_format=torch.contiguous_format)
    lse = call.q.new_empty((batch, heads, tokens), dtype=torch.float32)
    config = lookup("forward", architecture(call.q.device), padded_dim(call), call.q.dtype)
    launch_forward(call, o, lse, config).run()
    return o, lse


def _aligned(call: Call) -> Call:
    return call._replace(q=aligned(call.q), k=aligned(call.k), v=aligned(call.v))
