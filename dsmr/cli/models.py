"""Models that commands are given: loaded, and named where it is not plain which one a name means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dsmr.cli.terminal import reading_input, stderr
from dsmr.pretrained import NAMES, shipped

if TYPE_CHECKING:
    import torch

    from dsmr.model.checkpoint import CheckpointInfo
    from dsmr.model.transformer import Transformer

WHERE = "Folder of a checkpoint, owner/name on the Hugging Face Hub, or **pianist**, which ships with dsmr."
"""Help of an argument for `load`."""


def load(checkpoint: str | None, device: torch.device) -> tuple[Transformer, CheckpointInfo]:
    """Load a model, and say on standard error which one it is unless `checkpoint` is a folder and can mean no other.

    Args:
        checkpoint: see `dsmr.model.checkpoint.find_checkpoint`; None: the first model that ships, whatever else is
            called like it.
        device: where it is to live.
    """
    from dsmr.model.checkpoint import find_checkpoint, load_checkpoint

    with reading_input():
        folder = shipped() if checkpoint is None else find_checkpoint(checkpoint)
        model, info = load_checkpoint(folder, device)
    if os.environ.get("RANK", "0") != "0":  # several processes load the same
        return model, info
    ours = next((name for name in NAMES if folder == shipped(name)), None)
    if ours is not None:
        stderr.print(f"model: {ours}, which ships with dsmr, from {folder}")
    elif checkpoint in NAMES:
        stderr.print(f"model: the folder {folder.absolute()}, not the model of that name that ships with dsmr")
    elif folder != Path(checkpoint or ""):
        stderr.print(f"model: {checkpoint} from the Hugging Face Hub, in {folder}")
    return model, info
