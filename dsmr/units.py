"""Numbers in few characters: tokens, stretches of tokens, horizons, times, bytes.

rich.filesize and matplotlib's `EngFormatter` count in thousands; memory and horizons are powers of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def format_tokens(tokens: float) -> str:
    """A number of tokens in few characters: 512, 8k (8,192), 1.5k (1,536)."""
    value, unit = (tokens / 1024, "k") if tokens >= 1024 else (tokens, "")
    return f"{float(f'{value:.3g}'):.7g}{unit}"  # three digits, but 1,000 is not 1e+03


def format_span(start: int, stop: int | None) -> str:
    """A stretch of tokens in words: `512-1k`, or `32k+` without an end."""
    return f"{format_tokens(start)}{'+' if stop is None else f'-{format_tokens(stop)}'}"


def format_horizons(horizons: Sequence[int]) -> str:
    """The horizons of a model's layers in few characters, the lowest layer's first: `2k, 4 x 256`."""
    runs = [(format_tokens(horizon), len(list(run))) for horizon, run in itertools.groupby(horizons)]
    return ", ".join(text if layers == 1 else f"{layers} x {text}" for text, layers in runs)


def format_clock(seconds: float) -> str:
    """A time in minutes and seconds: `1:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def format_bytes(count: int) -> str:
    """`count` bytes in the largest binary unit that leaves at least 1: `9.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 3)
    return f"{count / 1024**power:,.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
