"""Models that ship with the package, each in a folder of its name: a checkpoint like any other, and its card."""

from __future__ import annotations

from pathlib import Path

NAMES = ("pianist",)
"""The models there are; the first is what `dsmr generate` plays with if it is told no other."""


def shipped(name: str = NAMES[0]) -> Path:
    """The folder of a model that ships with the package, for `dsmr.model.load_checkpoint`.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: no such model ships.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected a model that ships, {', '.join(NAMES)}, got {name!r}")
    return Path(__file__).parent / name
