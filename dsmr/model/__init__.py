"""Model: its configuration, its horizon schedules, its weights in a folder, and its decode step in native code."""

from dsmr.model.checkpoint import load_checkpoint, save_checkpoint
from dsmr.model.config import ModelConfig, preset
from dsmr.model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "load_checkpoint", "preset", "save_checkpoint"]
