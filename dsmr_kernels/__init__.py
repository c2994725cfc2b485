"""Fused causal attention over ring-buffer memory, for recurrent Transformers: see `recurrent_attention`."""

from dsmr_kernels.attention import recurrent_attention
from dsmr_kernels.clock import Clock
from dsmr_kernels.geometry import Geometry, Retention
from dsmr_kernels.memory import MemoryStack
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.shift import token_shift
from dsmr_kernels.storage import ring_bytes

__all__ = [
    "Clock",
    "Geometry",
    "MemoryStack",
    "Retention",
    "RingMemory",
    "recurrent_attention",
    "ring_bytes",
    "token_shift",
]
