"""DSMR: a Transformer that reads whole pieces of piano music once, left to right, with a memory horizon per layer."""

from dsmr.version import __version__

__all__ = ["__version__"]
