"""The Triton back end: fused kernels that read and write the ring in place, for NVIDIA GPUs from Ampere on and AMD's.

Everything that changes from call to call (clock, horizon, ragged lengths) is read on the device: no call waits for the
GPU, and one captured CUDA graph replays for the whole life of a stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton import decode
from dsmr_kernels.backends.triton.backward import Cotangent, launch_delta, launch_dkdv, launch_dq
from dsmr_kernels.backends.triton.configs import lookup
from dsmr_kernels.backends.triton.forward import launch_forward
from dsmr_kernels.backends.triton.launch import aligned, heads_of, inputs_of, unsupported
from dsmr_kernels.backends.triton.mend import mend_dkdv, mend_dq, mend_forward

__all__ = ["backward", "forward", "unsupported"]


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.forward`."""
    call = _aligned(call)
    batch, tokens, heads, _ = call.q.shape
    o = torch.empty_like(call.q, memory_format=torch.contiguous_format)
    lse = call.q.new_empty((batch, heads, tokens), dtype=torch.float32)
    with torch.cuda.device_of(call.q):  # launches go to the current device
        inputs = inputs_of(call)
        if decode.suits(call):
            launches = decode.launches_decode(call, inputs, o, lse, lookup("decode", call))
        else:
            launches = [launch_forward(call, inputs, o, lse, lookup("forward", call))]
        if tokens > 1:
            launches.append(mend_forward(call, inputs, o, lse))
        # Kernels write where this segment ends. A longer one may have been tried at this clock before, and a graph that
        # is older must still learn that it wrote over its memory. A call as the ring's last one, without any graph, has
        # nobody to tell.
        memory = call.memory
        newest = memory.written.clone() if call.append and (call.signature is None or memory.clock.in_graph) else None
        for launch in launches:
            launch.run()
        if newest is not None:
            torch.maximum(memory.written, newest, out=memory.written)
    return o, lse


def backward(
    call: Call, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.backward`."""
    need_dq, need_dkv = needs
    shapes = [(x, x.shape if need else (0,)) for x, need in ((call.q, need_dq), (call.k, need_dkv), (call.v, need_dkv))]
    dq, dk, dv = (x.new_empty(shape) for x, shape in shapes)
    call = _aligned(call)
    several = call.q.shape[1] > 1
    with torch.cuda.device_of(call.q):
        inputs = inputs_of(call) | {"back": Cotangent(heads_of(aligned(do)), lse, torch.empty_like(lse))}
        launches = [launch_delta(call, inputs, o, dlse.contiguous())]
        if need_dq:
            launches.append(launch_dq(call, inputs, dq, lookup("dq", call)))
            launches += [mend_dq(call, inputs, dq)] if several else []
        if need_dkv:
            launches.append(launch_dkdv(call, inputs, dk, dv, lookup("dkdv", call)))
            launches += [mend_dkdv(call, inputs, dk, dv)] if several else []
        for launch in launches:
            launch.run()
    return dq, dk, dv


def _aligned(call: Call) -> Call:
    return call._replace(q=aligned(call.q), k=aligned(call.k), v=aligned(call.v))
