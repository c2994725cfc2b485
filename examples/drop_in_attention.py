"""Attention with memory for any recurrent Transformer, training included, in fifteen lines."""

from dsmr.process import keep_spins_short

keep_spins_short()  # idle threads sleep soon: said before torch is imported

import torch

from dsmr_kernels import MemoryStack, recurrent_attention

stack = MemoryStack([4096, 512], lanes=2, kv_heads=2, head_dim=64, max_segment=256)  # two layers, unequal horizons
for _ in range(8):
    for layer in range(2):
        q = torch.randn(2, 256, 8, 64, requires_grad=True)  # [lanes, tokens, heads, head_dim]
        k, v = torch.randn(2, 2, 256, 2, 64, requires_grad=True)  # two KV heads serve eight query heads
        out = recurrent_attention(q, k, v, stack[layer])  # sees memory and segment, then appends the segment
        out.square().mean().backward()  # gradients for q, k and v; none into the memory
    stack.advance(256)  # once a segment, after the last layer
stack.reset(lanes=[1])  # lane 1 begins a new piece
print(f"{stack.bytes_per_lane / 2**20:.1f} MiB a lane, however long the stream; lengths {stack.clock.length.tolist()}")
