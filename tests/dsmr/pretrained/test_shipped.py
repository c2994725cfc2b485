"""The model that ships: it is there, small, documented, better than a bigram, and plays without anything else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsmr.corpus.prepare import prepare_pianist
from dsmr.model import load_checkpoint
from dsmr.model.checkpoint import WEIGHTS_FILE, digest_tensors, find_checkpoint, read_info
from dsmr.model.verdict import expect_noise
from dsmr.music.midi import read_midi
from dsmr.pretrained import NAMES, shipped
from tests.dsmr.cli.commands import ENVIRONMENT, here, succeeds

MOST_BYTES = 4_000_000
"""Of the weights: they are in the repository and in the wheel."""


@pytest.fixture(scope="module")
def unheard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of pieces that the built-in pianist composed for nobody else."""
    path = tmp_path_factory.mktemp("stores") / "pianist.tokens"
    prepare_pianist(path, seed=20_001, tokens=40_000, longest=4_500, validation=0.3, test=0.3, workers=0)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_load_in_float32(name: str) -> None:
    file = shipped(name) / WEIGHTS_FILE
    assert file.stat().st_size <= MOST_BYTES
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    model, info = load_checkpoint(shipped(name))
    assert model.embedding.weight.dtype == torch.float32
    assert expect_noise(info.training) is None
    assert find_checkpoint(name) == shipped(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_it_is(name: str) -> None:
    card = (shipped(name) / "README.md").read_text(encoding="utf-8")
    for part in (
        "library_name: dsmr",
        "license: apache-2.0",
        f"# {name}\n",
        f"dsmr generate {name} --seconds 60",
        read_info(shipped(name)).digest,
        "stored in bfloat16",
        "dsmr train --data ",
    ):
        assert part in card
    assert "Not stated." not in card
    assert re.search(r"\| whole pieces \| \d+\.\d\d \| \d+\.\d\d to \d+\.\d\d \|", card)
    assert re.search(r"\| a bigram model \| \d+\.\d\d \|", card)
    assert re.search(r"\| exact \| \S+ \| [+-]\d\.\d{3} \| [+-]\d\.\d{3} to [+-]\d\.\d{3} \|", card)
    assert re.search(r"\| transposed \| \S+ \| [+-]\d\.\d{3} \|", card)


def test_predicts_music_that_it_has_not_heard_better_than_a_bigram_does(unheard: Path) -> None:
    found = json.loads(succeeds("evaluate", "pianist", "--data", unheard, "--split", "validation", "--json"))
    assert (found["checkpoint"], found["label"]) == ("pianist", "pianist")
    assert found["weights"] == read_info(shipped()).digest
    assert found["whole"]["ppl"] < found["bigram"]["ppl"]


def test_is_named_beside_others(unheard: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "mine"
    succeeds("export", "pianist", "--out", other)
    arguments = ["evaluate", "pianist", other, "--data", unheard, "--pieces", 1, "--baseline", "pianist", "--json"]
    found = json.loads(succeeds(*arguments))
    assert [each["label"] for each in found["models"]] == ["pianist", str(other)]
    assert {each["second"] for each in found["differences"]} == {"pianist"}


def test_plays_right_after_the_installation(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
    arguments = ["generate", "--seconds", "20", "--out", "new.mid"]
    done = subprocess.run(
        [sys.executable, "-m", "dsmr", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"model: pianist, which ships with dsmr, from {shipped()}\n" in done.stderr
    assert "warning" not in done.stderr
    notes = read_midi(tmp_path / "new.mid").notes
    assert len(notes) > 20
    assert notes["offset"].max() <= 20.01


def test_engines_make_the_same_music(tmp_path: Path) -> None:
    for engine in ("native", "python"):
        arguments = ["generate", "pianist", "--tokens", 600, "--engine", engine, "--out", tmp_path / f"{engine}.mid"]
        succeeds(*arguments)
    assert (tmp_path / "native.mid").read_bytes() == (tmp_path / "python.mid").read_bytes()


def test_a_folder_of_its_name_wins_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeeds("export", "pianist", "--out", "pianist", "--weights", "float32")
    said = here("generate", "pianist", "--tokens", 20, "--out", "a.mid")[1]
    assert f"model: the folder {tmp_path / 'pianist'}, not the model of that name that ships with dsmr\n" in said
    said = here("generate", "--tokens", 20, "--out", "b.mid")[1]
    assert f"model: pianist, which ships with dsmr, from {shipped()}\n" in said
    said = here("generate", "./pianist", "--tokens", 20, "--out", "c.mid")[1]
    assert "model:" not in said


def test_training_can_begin_with_it(unheard: Path, tmp_path: Path) -> None:
    arguments = ["--data", unheard, "--out", tmp_path / "run", "--lanes", 1, "--steps", 1, "--validations", 1]
    said = here("train", "--init-from", "pianist", *arguments, "--validation-tokens", 500)[1]
    assert f"model: pianist, which ships with dsmr, from {shipped()}\n" in said
    model = load_checkpoint(shipped())[0]
    assert read_info(tmp_path / "run" / "last").training["initial_weights"] == digest_tensors(model.state_dict())


def test_doctor_shows_it() -> None:
    found = json.loads(succeeds("doctor", "--json"))
    assert found["models"]["pianist"]["weights"] == read_info(shipped()).digest
    assert f"Model that ships, pianist: {shipped()}\n" in succeeds("doctor")
    assert any(line.startswith("dsmr generate --out new.mid") for line in found["next"])


def test_only_models_that_ship_have_a_folder() -> None:
    with pytest.raises(ValueError, match="name: expected a model that ships, pianist, got 'organist'"):
        shipped("organist")
