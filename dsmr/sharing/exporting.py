"""Export: a checkpoint in a folder for others, its weights rounded if wanted, with a model card."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsmr.files import write_durably
from dsmr.model.checkpoint import CheckpointInfo, digest_tensors, load_checkpoint, save_checkpoint, stored_dtype
from dsmr.model.transformer import Transformer
from dsmr.sharing.card import About, model_card

CARD_FILE = "README.md"
WEIGHTS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Types of stored weights by the name that commands give them."""


@dataclass(frozen=True, eq=False)
class Export:
    """A model as others get it, in memory.

    Args:
        model: its weights of the type in which they are to be stored.
        training: what its checkpoint says of its training.
        card: the text of `README.md`.
    """

    model: Transformer
    training: dict[str, Any]
    card: str

    def write(self, folder: str | os.PathLike[str]) -> CheckpointInfo:
        """Write checkpoint and card into a folder, made if missing; an older checkpoint there is replaced.

        Raises:
            FileExistsError: it holds files, and no checkpoint that could be replaced.
            OSError: it cannot be written.
        """
        info = save_checkpoint(folder, self.model, self.training)
        write_durably(Path(folder) / CARD_FILE, self.card.encode(errors="backslashreplace"))
        return info


def export(source: str | os.PathLike[str], about: About, weights: torch.dtype | None = None) -> Export:
    """Read a checkpoint, every byte verified, round its weights, and write its card.

    Args:
        source: see `dsmr.model.load_checkpoint`.
        about: what the checkpoint does not say of itself.
        weights: the type to store the weights in; None: that of `source`.

    Raises:
        FileNotFoundError, CheckpointError: there is no checkpoint, or it cannot be read.
        OSError, ValueError: there is nothing that a card could be made of; see `model_card`.
    """
    model, info = load_checkpoint(source)
    model = model.to(stored_dtype(source) if weights is None else weights)
    written = replace(info, digest=digest_tensors(model.state_dict()))
    return Export(model, info.training, model_card(model, written, about, unrounded=info.digest))
