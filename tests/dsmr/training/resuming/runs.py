"""A run that is gone on with, and one that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import CheckpointError
from dsmr.model.transformer import Transformer
from dsmr.training import Run, RunFolder, train
from dsmr.training.state import load_state, save_state
from tests.dsmr.training.kill_and_resume import CONFIG, MODEL

SHORT = replace(CONFIG, steps=8, validations=2)


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(MODEL, **changes))


def go_on(run: Path, store: TokenStore, **changes: Any) -> Run:
    return train(model(), store, replace(SHORT, **changes), run, resume=True)


def refused(run: Path, store: TokenStore, message: str, **changes: Any) -> None:
    with pytest.raises(CheckpointError, match=message):
        go_on(run, store, **changes)


def rewrite(run: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Pass the newest state through `change`, and seal it again."""
    folder = RunFolder(run).newest()
    state = load_state(folder)
    change(state.document, state.tensors)
    save_state(folder, state)
