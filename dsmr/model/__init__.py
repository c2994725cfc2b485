"""The model: its configuration, its horizon schedules, its weights in a folder, and its decode step in native code."""

from dsmr.model.checkpoint import load_checkpoint, save_checkpoint
from dsmr.model.transformer import ModelConfig, Transformer, preset

__all__ = ["ModelConfig", "Transformer", "load_checkpoint", "preset", "save_checkpoint"]
