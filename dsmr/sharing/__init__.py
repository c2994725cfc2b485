"""Sharing: a checkpoint as others get it, with a model card, in a folder or on the Hugging Face Hub."""

from dsmr.sharing.card import About, model_card
from dsmr.sharing.command import train_command
from dsmr.sharing.exporting import CARD_FILE, WEIGHTS, Export, export
from dsmr.sharing.hub import HubError, push
from dsmr.sharing.measured import read_evaluation

__all__ = [
    "CARD_FILE",
    "WEIGHTS",
    "About",
    "Export",
    "HubError",
    "export",
    "model_card",
    "push",
    "read_evaluation",
    "train_command",
]
