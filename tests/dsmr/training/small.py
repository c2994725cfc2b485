"""A model and a corpus so small that a run takes a moment, and what to compare of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, NOTE_OFF, TIME_SHIFT
from dsmr.training import TrainingConfig

SEGMENT = 16
EXACT = torch.autocast("cpu", torch.bfloat16, enabled=False)


def model(*, horizons: tuple[int, ...] = (32, 16), dropout: float = 0.0, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    schedule = make_schedule("explicit", len(horizons), horizons=horizons)
    sizes = {"width": 32, "heads": 2, "kv_heads": 1, "segment": SEGMENT, **changes}
    return Transformer(ModelConfig(schedule=schedule, dropout=dropout, **sizes))


def write_store(path: Path, train_pieces: list[np.ndarray], validation: list[np.ndarray]) -> TokenStore:
    with StoreWriter(path) as store:
        for split, pieces in (("train", train_pieces), ("validation", validation)):
            for number, events in enumerate(pieces):
                store.add(np.concatenate([[BEGIN], events, [END]]), split=split, title=f"{split} {number}")
    return TokenStore.open(path)


def cycles(notes: list[int], count: int) -> np.ndarray:
    """The same few notes over and over: after a note-on always the same shift, note-off and note-on."""
    once = [token for note in notes for token in (note, TIME_SHIFT + note, NOTE_OFF + note)]
    return np.array(once * count)


def config(**changes: Any) -> TrainingConfig:
    plain = {"steps": 6, "lanes": 2, "semitones": 0, "tempo": 0.0, "validations": 2, "log_every": 1}
    return TrainingConfig(**{**plain, **changes})


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("tokens_per_second", "seconds")} for row in rows(out)]


def gradients(net: Transformer) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad()
    return {name: grad.clone() for name, grad in found.items()}


def assert_equal_to_rounding(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums of the same float32 terms in another order: 1e-5 of the largest is some 80 roundings."""
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-5 * float(grad.abs().max()), msg=name)


def from_training_call(number: int, action: Any) -> Any:
    """A forward hook that lets `action(logits)` replace the output from the `number`-th training segment on."""
    calls = [0]

    def hook(net: Transformer, _: Any, logits: Tensor) -> Tensor:
        calls[0] += net.training
        return action(logits) if net.training and calls[0] >= number else logits

    return hook
