"""Generation: new music from a model, of any length, in constant memory."""

from dsmr.generation.decoding import Decoding
from dsmr.generation.sampling import Sampling
from dsmr.generation.takes import Take, generate

__all__ = ["Decoding", "Sampling", "Take", "generate"]
