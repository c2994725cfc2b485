"""Units: names of number types, and numbers as people read them.

Ours, not a library's, because `python -m bench gpu` runs where nothing but PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def seconds(x: float) -> str:
    """`12.3 us`, `4.56 ms`, `1.23 s`."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if x * factor < 1000:
            return f"{x * factor:.3g} {unit}"
    return f"{x:.3g} s"


def size(x: float) -> str:
    """`1.5 MiB`."""
    for unit, factor in (("B", 1), ("KiB", 2**10), ("MiB", 2**20)):
        if x / factor < 1024:
            return f"{x / factor:.3g} {unit}"
    return f"{x / 2**30:.3g} GiB"


def decimal(x: float) -> str:
    """`1.23 G`, `45.6 M`, `789 k`: three digits, to be followed by a unit."""
    for prefix, factor in (("", 1), ("k", 1e3), ("M", 1e6)):
        if x / factor < 999.5:
            return f"{x / factor:.3g} {prefix}"
    return f"{x / 1e9:,.3g} G" if x < 999.5e9 else f"{x / 1e12:.3g} T"


def counted(n: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def spread(quantiles: Sequence[float], unit: str = "", digits: int = 0) -> str:
    """`1,234 (1,200 - 1,250)`, `1.25x (1.15 - 1.46)`: the median, and the 20 % and 80 % quantiles."""
    low, median, high = (f"{x:,.{digits}f}" for x in quantiles)
    return f"{median}{unit} ({low} - {high})"
