"""Measurements for a model card, from the file that `dsmr evaluate --json` prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_evaluation(path: str | os.PathLike[str], *digests: str) -> dict[str, Any]:
    """What an evaluation found out about one model.

    Args:
        path: `evaluation.json`, of that model alone or of several.
        digests: `CheckpointInfo.digest` of its weights; several: as they were before and after rounding.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no evaluation, or none of these weights.
    """
    try:
        values = json.loads(Path(path).read_bytes())
        models = values.get("models", [values])
        found = {model["weights"]: {**model, "store": values["store"]} for model in models}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected what `dsmr evaluate --json` prints, got {error!r:.200}") from error
    for digest in digests:
        if digest in found:
            return found[digest]
    raise ValueError(
        f"{path}: expected an evaluation of the weights of SHA-256 {digests[0]:.12}..., "
        f"got one of {', '.join(f'{digest:.12}...' for digest in found)}"
    )
