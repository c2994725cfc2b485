"""Tile sizes, warps and pipeline depth of every kernel: a table by architecture, kind of call and head dimension.

The table is `configs.toml`, which says where its numbers come from.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
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

FILE = Path(__file__).with_suffix(".toml")


def read_table(path: Path = FILE) -> dict[str, dict[Kernel, dict[Kind, tuple[Config, ...]]]]:
    """The table by architecture, kernel and kind of call, one entry for each of `DIMS`."""
    table = {
        architecture: {
            kernel: {kind: tuple(Config(*entry) for entry in entries) for kind, entries in kinds.items()}
            for kernel, kinds in kernels.items()
        }
        for architecture, kernels in tomllib.loads(path.read_text(encoding="utf-8")).items()
    }
    table["sm_89"] = table["sm_86"]  # Ada and consumer Ampere: the same limits and instructions
    return table


TABLE = read_table()


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
