"""The model card: what it says where little is known, and that it invents nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsmr.model import ModelConfig, Transformer, load_checkpoint, save_checkpoint
from dsmr.model.schedules import make_schedule
from dsmr.sharing import About, export, model_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that no training of ours made."""
    schedule = make_schedule("uniform", 2, budget_tokens=32)
    save_checkpoint(tmp_path / "model", Transformer(ModelConfig(width=16, heads=2, kv_heads=1, schedule=schedule)))
    return tmp_path / "model"


def test_says_what_is_not_known(folder: Path) -> None:
    card = export(folder, About("owner/name")).card
    assert "license:" not in card
    for section in ("Data\n\nNot stated.", "Measured\n\nNothing yet.", "Licence\n\nNot stated."):
        assert f"## {section}\n" in card
    assert "How it was made" not in card


@pytest.mark.parametrize("missing", ["whole", "split", "reset", "bigram", "store"], ids=lambda name: f"without-{name}")
def test_an_evaluation_that_lacks_something_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    model, info = load_checkpoint(folder)
    score = {"tokens": 100, "ppl": 12.0, "ppl_interval_95": [11.0, 13.0], "reset_every": 64, "pieces": [{}] * 7}
    found: dict[str, Any] = {"weights": info.digest, "store": "abc", "split": "test"}
    found |= {"whole": score, "reset": score, "bigram": None}
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(found))
    card = model_card(model, info, About("x", evaluation=file))
    assert "On 7 test pieces, 100 tokens, of the token store of SHA-256 `abc`." in card
    assert "| context cleared every 64 tokens | 12.00 | 11.00 to 13.00 |" in card
    del found[missing]
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"expected .*`dsmr evaluate --json`"):
        model_card(model, info, About("x", evaluation=file))


def test_settings_of_a_newer_version_are_refused(folder: Path, tmp_path: Path) -> None:
    model, _ = load_checkpoint(folder)
    training = {"step": 1, "training_seconds": 1.0, "config": {"steps": 1, "momentum": 0.9}}
    save_checkpoint(tmp_path / "newer", model, training)
    with pytest.raises(ValueError, match=r"config: .*'momentum', which only a newer one can know"):
        export(tmp_path / "newer", About("x"))
