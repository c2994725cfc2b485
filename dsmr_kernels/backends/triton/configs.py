"""Tile sizes, warps and pipeline depth of every kernel: a table by architecture, kind of call and head dimension.

Where the numbers come from: compilation, without a GPU. As a rule an entry is the first of a list of candidates, large
tiles before small ones, that passes the gate (`bench.compiled.gate`) for every variant of its kind of call: no spilled
registers, no serialised tensor-core instructions, shared memory within the architecture's limit, and the expected
instructions. In "float32 special" small tiles were taken at once. With Triton 3.7.1 that was shown for all entries:
`bench/compiled` has the record, and `tests/aot` refuses a table or kernels that differ from it. (Most rows of sm_86 and
sm_89 there are ptxas's results on the PTX of sm_80 or sm_86, which differs in the target alone.) Products in float32 on
the CUDA cores are moody: one stage, or few keys over eight warps, may spill where a larger tile does not.
With Triton 3.6.0 and 3.9.0 "half" passes at 64 and 128, and of sm_90 "quantised" and "float32" there; with 3.6.0 these
lines of sm_90 pass at 16, 32 and 256, too. Where one of them spilled on a version, an entry that passes on all three
stands in its place. The rest of the table was not compiled with these versions.
No entry has been timed yet: `python -m bench.compiled.tune` does that on a GPU and prints the lines to put here.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
import triton

from dsmr_kernels.backends import Call

Kernel = Literal["forward", "dq", "dkdv", "decode"]
INTERPRETER = "interpreter"


class Config(NamedTuple):
    """How one kernel is compiled: BM query rows and BN keys a tile; K (V in dQ) by bulk copy or by pointers."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    descriptors: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler. Multiply-adds are fused on every version: later ones of Triton ask to be told."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


DIMS = (16, 32, 64, 128, 256)  # the columns of the table: head dimensions, rounded up to a power of two

# The kinds of calls, one line of the table each. Each is held to the worst that it may contain.
# "half": bfloat16 or float16, an exact ring, any window, ragged lanes. "quantised": the same over a quantised ring.
# "special": with softcap, ALiBi or retention, over any ring. "float32": both ways of multiplying (ieee and tf32).
Kind = Literal["half", "quantised", "special", "float32", "float32 special"]

P, B = Config, partial(Config, descriptors=True)  # tiles by pointers, or by descriptors (bulk tensor copies)

TABLE: dict[str, dict[Kernel, dict[Kind, tuple[Config, ...]]]] = {
    # A100. 163 KB of shared memory a block.
    "sm_80": {
        "forward": {
            "half": (P(128, 128, 8, 3), P(128, 128, 8, 3), P(128, 128, 8, 3), P(128, 128, 8, 2), P(64, 64, 8, 2)),
            "quantised": (P(64, 64, 4, 2), P(64, 64, 4, 2), P(64, 64, 4, 2), P(64, 32, 4, 2), P(32, 16, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 16, 8, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 64, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(16, 32, 8, 1), P(32, 32, 8, 1), P(32, 32, 4, 1), P(32, 16, 4, 1), P(32, 16, 8, 1)),
        },
        "dq": {
            "half": (P(128, 128, 8, 3), P(128, 128, 8, 3), P(128, 128, 8, 3), P(64, 64, 4, 2), P(64, 64, 8, 2)),
            "quantised": (P(64, 64, 4, 2), P(64, 64, 4, 2), P(128, 32, 8, 2), P(64, 32, 4, 2), P(32, 16, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(16, 32, 8, 1), P(32, 32, 4, 1), P(16, 32, 8, 1), P(16, 16, 8, 1), P(16, 32, 4, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(32, 128, 8, 2), P(32, 128, 8, 2), P(64, 64, 8, 2), P(32, 64, 8, 2)),
            "special": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(16, 32, 4, 1)),
            "float32": (P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 16, 8, 1)),
            "float32 special": (P(32, 32, 4, 2), P(32, 32, 4, 1), P(32, 16, 8, 1), P(32, 16, 8, 1), P(32, 16, 8, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 8, 2)),
            "quantised": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 8, 2)),
            "special": (P(16, 32, 4, 2), P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 3), P(16, 16, 8, 1)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 3), P(16, 16, 8, 1), P(16, 16, 8, 1)),
            "float32 special": (P(16, 16, 8, 1), P(16, 32, 16, 1), P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1)),
        },
    },
    # Consumer Ampere, and Ada (sm_89) by the same entries. 99 KB of shared memory a block.
    "sm_86": {
        "forward": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 8, 2), P(64, 32, 8, 2)),
            "quantised": (P(128, 32, 8, 2), P(128, 32, 8, 2), P(64, 64, 4, 2), P(64, 32, 4, 2), P(32, 16, 4, 1)),
            "special": (P(32, 64, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 16, 8, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 64, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 8, 1), P(16, 16, 4, 1), P(16, 16, 4, 1), P(32, 16, 8, 1)),
        },
        "dq": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 4, 2), P(64, 16, 4, 2)),
            "quantised": (P(64, 64, 4, 2), P(64, 64, 4, 2), P(128, 32, 8, 2), P(32, 64, 4, 2), P(32, 16, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 8, 1), P(16, 32, 8, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(32, 128, 8, 2), P(32, 128, 8, 2), P(64, 64, 8, 2), P(32, 32, 4, 1)),
            "special": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(16, 32, 4, 1)),
            "float32": (P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 32, 8, 2), P(16, 16, 4, 1)),
            "float32 special": (P(32, 32, 4, 2), P(32, 32, 4, 1), P(32, 16, 8, 1), P(32, 16, 8, 1), P(16, 16, 4, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 2)),
            "quantised": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 2)),
            "special": (P(16, 32, 4, 3), P(16, 32, 4, 2), P(16, 32, 4, 3), P(16, 32, 8, 3), P(16, 16, 8, 1)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 3), P(16, 16, 8, 2), P(16, 16, 8, 1)),
            "float32 special": (P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 32, 8, 1), P(16, 16, 8, 1)),
        },
    },
    # H100, H200. float32 by pointers: its products on the CUDA cores spill when they read what a bulk copy brought.
    "sm_90": {
        "forward": {
            "half": (B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 64, 8, 3), B(64, 64, 8, 2)),
            "quantised": (B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 3), P(64, 64, 8, 2), B(64, 64, 8, 2)),
            "special": (B(128, 64, 8, 3), B(128, 64, 8, 3), B(128, 64, 8, 3), B(64, 64, 8, 2), B(64, 16, 8, 2)),
            "float32": (P(64, 64, 8, 2), P(64, 64, 8, 2), P(32, 64, 8, 2), P(64, 16, 8, 2), P(32, 32, 8, 2)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 8, 1), P(16, 16, 4, 1), P(16, 16, 4, 1), P(16, 16, 8, 1)),
        },
        "dq": {
            "half": (B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 64, 8, 3), B(64, 64, 8, 2)),
            "quantised": (B(64, 64, 4, 3), B(64, 64, 4, 3), B(64, 64, 4, 3), P(64, 64, 8, 2), P(64, 64, 8, 1)),
            "special": (B(128, 64, 8, 3), B(128, 64, 8, 3), B(128, 64, 8, 3), B(64, 64, 8, 2), B(32, 16, 4, 2)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 8, 1), P(32, 32, 4, 1), P(16, 16, 8, 1), P(16, 32, 8, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(64, 128, 8, 3), P(64, 128, 8, 3), P(64, 64, 8, 2), P(32, 32, 8, 2)),
            "special": (P(64, 64, 4, 2), P(64, 128, 8, 3), P(64, 128, 8, 3), P(64, 64, 8, 2), P(16, 32, 4, 2)),
            "float32": (P(32, 64, 8, 2), P(32, 32, 8, 2), P(32, 32, 8, 2), P(16, 16, 4, 1), P(16, 16, 4, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 8, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 8, 2)),
            "quantised": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 2)),
            "special": (P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 4, 2), P(16, 16, 8, 2)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 16, 8, 2), P(16, 16, 8, 1)),
            "float32 special": (P(16, 64, 8, 1), P(16, 16, 4, 2), P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1)),
        },
    },
    # B200. 64 rows at least, or the products leave tcgen05 for mma.sync.
    "sm_100": {
        "forward": {
            "half": (B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 64, 8, 3), B(64, 64, 8, 2)),
            "quantised": (B(64, 64, 4, 2), B(64, 64, 4, 2), B(64, 64, 4, 2), B(64, 32, 4, 2), B(32, 16, 4, 1)),
            "special": (B(64, 32, 4, 2), P(64, 32, 4, 2), B(64, 32, 4, 2), B(64, 16, 8, 2), B(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(32, 64, 4, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2)),
            "float32 special": (P(16, 32, 4, 1), P(32, 32, 4, 1), P(16, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 8, 1)),
        },
        "dq": {
            "half": (B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 3), B(128, 128, 8, 2), B(64, 64, 8, 2)),
            "quantised": (B(64, 64, 4, 2), B(64, 64, 4, 2), B(64, 64, 4, 2), B(64, 32, 4, 2), B(32, 16, 4, 1)),
            "special": (B(64, 32, 4, 2), B(64, 32, 4, 2), P(64, 32, 4, 2), B(32, 32, 4, 2), B(32, 16, 4, 1)),
            "float32": (P(64, 32, 4, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 16, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(32, 32, 8, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 32, 8, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(64, 128, 8, 3), P(64, 128, 8, 3), P(64, 128, 8, 3), P(32, 64, 8, 2)),
            "special": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(16, 32, 4, 1)),
            "float32": (P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 16, 8, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 8, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 3), P(16, 64, 4, 2), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 8, 2)),
            "quantised": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 8, 2)),
            "special": (P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 4, 2), P(16, 32, 8, 1)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 16, 8, 3), P(16, 16, 8, 1)),
            "float32 special": (P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 32, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1)),
        },
    },
    # Consumer Blackwell: mma.sync and 99 KB, so the entries of sm_86 where they fit. By pointers: mma.sync on what a
    # bulk copy brought spills.
    "sm_120": {
        "forward": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 8, 2), P(64, 32, 8, 2)),
            "quantised": (P(64, 64, 4, 2), P(64, 64, 4, 2), P(64, 64, 4, 2), P(64, 32, 4, 2), P(32, 16, 8, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 8, 2), P(16, 32, 8, 1)),
            "float32 special": (P(16, 16, 4, 1), P(32, 32, 4, 1), P(16, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 4, 1)),
        },
        "dq": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 8, 2), P(64, 16, 4, 2)),
            "quantised": (P(64, 64, 4, 2), P(64, 64, 4, 2), P(128, 32, 8, 2), P(32, 64, 4, 2), P(16, 32, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 16, 4, 2), P(16, 32, 8, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 32, 8, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 128, 8, 2), P(64, 64, 8, 2), P(32, 32, 4, 1)),
            "special": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(16, 32, 4, 1)),
            "float32": (P(32, 64, 8, 2), P(32, 64, 8, 2), P(32, 32, 8, 2), P(32, 32, 8, 2), P(16, 16, 4, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 4, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 2)),
            "quantised": (P(16, 64, 4, 3), P(16, 64, 4, 3), P(16, 32, 4, 3), P(16, 32, 4, 3), P(16, 32, 8, 2)),
            "special": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 4, 3), P(16, 32, 8, 2), P(16, 16, 8, 3)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 16, 8, 2), P(16, 16, 8, 1)),
            "float32 special": (P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 32, 4, 1), P(16, 16, 8, 1), P(16, 16, 8, 1)),
        },
    },
    # MI300X. 64 KB of LDS; four wavefronts have 512 registers each, eight 256.
    "gfx942": {
        "forward": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 4, 2), P(64, 32, 8, 2)),
            "quantised": (P(128, 64, 8, 3), P(128, 64, 4, 3), P(128, 64, 8, 3), P(64, 32, 4, 2), P(32, 16, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 4, 2), P(32, 32, 4, 2)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(16, 16, 8, 1)),
        },
        "dq": {
            "half": (P(128, 64, 8, 3), P(128, 64, 8, 3), P(128, 64, 8, 3), P(64, 64, 4, 2), P(64, 32, 4, 2)),
            "quantised": (P(64, 64, 4, 3), P(64, 64, 4, 3), P(64, 64, 4, 3), P(64, 32, 4, 2), P(32, 16, 4, 1)),
            "special": (P(64, 32, 4, 2), P(64, 32, 4, 2), P(64, 32, 4, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32": (P(64, 32, 8, 2), P(64, 32, 8, 2), P(64, 32, 8, 2), P(32, 32, 4, 2), P(32, 16, 4, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(32, 16, 4, 1)),
        },
        "dkdv": {
            "half": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 1), P(16, 64, 4, 2)),
            "special": (P(64, 64, 4, 2), P(32, 64, 4, 2), P(32, 64, 4, 2), P(32, 32, 4, 2), P(16, 32, 4, 1)),
            "float32": (P(32, 64, 8, 2), P(32, 32, 4, 2), P(32, 32, 4, 2), P(16, 64, 4, 3), P(16, 32, 4, 1)),
            "float32 special": (P(32, 32, 4, 1), P(32, 32, 4, 1), P(32, 32, 4, 1), P(16, 16, 4, 1), P(32, 16, 4, 1)),
        },
        "decode": {
            "half": (P(16, 64, 4, 2), P(16, 64, 4, 2), P(16, 64, 4, 2), P(16, 32, 4, 2), P(16, 32, 4, 2)),
            "quantised": (P(16, 64, 4, 2), P(16, 64, 4, 2), P(16, 64, 4, 2), P(16, 32, 4, 2), P(16, 32, 4, 2)),
            "special": (P(16, 32, 4, 2), P(16, 32, 4, 2), P(16, 32, 4, 2), P(16, 32, 4, 2), P(16, 16, 4, 1)),
            "float32": (P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 32, 8, 2), P(16, 16, 8, 1), P(16, 16, 4, 1)),
            "float32 special": (P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 8, 1), P(16, 16, 4, 1)),
        },
    },
}
TABLE["sm_89"] = TABLE["sm_86"]  # the same limits and instructions


def lookup(kernel: Kernel, call: Call) -> Config:
    """The configuration of `kernel` for a call, on the GPU that launches go to."""
    arch = architecture()
    if arch == INTERPRETER:  # Python's overhead is per tile, so long segments get large ones, though several
        if call.q.shape[1] >= 128:
            return Config(128, 128, 4, 1)
        return Config(32, 64, 4, 1) if kernel == "dkdv" else Config(64, 32, 4, 1)
    column = next(i for i, dim in enumerate(DIMS) if call.q.shape[3] <= dim)
    return TABLE[serving(arch)][kernel][kind(kernel, call)][column]


def kind(kernel: Kernel, call: Call) -> Kind:
    """Which line of the table a call belongs to. Only `dkdv` never reads the memory."""
    special = call.softcap > 0 or call.alibi_slopes is not None or call.memory.geometry.retention.stride > 1
    quantised = call.memory.k_scale is not None and kernel != "dkdv"
    if call.q.dtype == torch.float32:
        return "float32 special" if special or quantised else "float32"
    return "special" if special else "quantised" if quantised else "half"


def architecture() -> str:
    """`sm_90`, `gfx942`, ...: of the current device, where launches go; "interpreter" where kernels run in Python."""
    if triton.knobs.runtime.interpret:
        return INTERPRETER
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def processors(device: torch.device) -> int:
    """How many programs run at once, about: a GPU's multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


@cache
def serving(arch: str) -> str:
    """Whose entries serve `arch`: its own; else the newest older ones of its vendor; else the vendor's oldest."""
    peers = sorted((name for name in TABLE if name[:2] == arch[:2]), key=_generation)
    older = [name for name in peers if _generation(name) <= _generation(arch)]
    return older[-1] if older else peers[0]


def _generation(arch: str) -> int:
    """A number that orders a vendor's architectures; AMD's are hexadecimal: gfx90a comes before gfx942."""
    return int(arch[3:], 16) if arch.startswith("gfx") else int(arch[3:])
