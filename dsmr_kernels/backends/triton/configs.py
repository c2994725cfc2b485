"""Tile sizes, warps and pipeline depth, by kernel, architecture, padded head dimension and size of an element."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton

Kernel = Literal["forward", "dq", "dkdv", "decode"]
INTERPRETER = "interpreter"


class Config(NamedTuple):
    """How one kernel is compiled: BM query rows and BN keys a tile; K (V in dQ) by bulk copy or by pointers."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    descriptors: bool = False


def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942`, ...: what a table is made for; "interpreter" where kernels run in Python."""
    if triton.knobs.runtime.interpret:
        return INTERPRETER
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def lookup(kernel: Kernel, arch: str, dim: int, dtype: torch.dtype) -> Config:
    """The configuration of `kernel` for a head dimension padded to `dim`, a power of two."""
    if arch == INTERPRETER:  # Python's overhead is per tile; and several tiles in one test show more than one
        return Config(32, 64, 4, 1) if kernel == "dkdv" else Config(64, 32, 4, 1)
    wide = dtype.itemsize == 4
    if kernel == "dkdv":
        return Config(64, 64, 8, 2) if dim <= 128 and not wide else Config(32, 32, 4, 1)
    return Config(64, 64 if not wide else 32, 4, 2, arch >= "sm_90" and kernel != "decode")
