"""States that cannot be gone on with: what is damaged, foreign or of other settings is named, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import WEIGHTS_FILE, CheckpointError, read_info
from dsmr.training import RunFolder, train
from dsmr.training.state import STATE_FILE
from tests.dsmr.training.kill_and_resume import MODEL, write_store
from tests.dsmr.training.resuming.runs import SHORT, go_on, model, refused, rewrite


def test_fields_of_a_newer_version_are_named(run: Path, store: TokenStore) -> None:
    rewrite(run, lambda document, _: document["config"].update(momentum=0.9))
    refused(run, store, "config: expected the fields of this version, got 'momentum', which only a newer one can know")


@pytest.mark.parametrize("file", [WEIGHTS_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_damage_is_named_and_no_older_state_is_taken_instead(
    run: Path, store: TokenStore, file: str, damage: str
) -> None:
    damaged = RunFolder(run).newest() / file
    content = damaged.read_bytes()
    if damage == "truncated":
        damaged.write_bytes(content[:-100])
    elif damage == "edited":
        damaged.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    else:
        damaged.unlink()
    refused(run, store, rf"{file}.*; to go on from step 4, remove .*step-0000005$")
    shutil.rmtree(damaged.parent)
    assert go_on(run, store).step == 8


def test_an_edited_document_is_noticed(run: Path, store: TokenStore) -> None:
    file = RunFolder(run).newest() / STATE_FILE
    file.write_bytes(file.read_bytes().replace(b'\\"step\\": 5', b'\\"step\\": 6', 1))
    refused(run, store, "expected contents of SHA-256 [0-9a-f]+, got [0-9a-f]+: the file is damaged")


def test_weights_of_another_state_are_noticed(run: Path, store: TokenStore) -> None:
    folder = RunFolder(run)
    shutil.copy(folder.checkpoint(4) / WEIGHTS_FILE, folder.checkpoint(5) / WEIGHTS_FILE)
    refused(run, store, "step-0000005: expected weights of SHA-256 [0-9a-f]+, got [0-9a-f]+")


# fmt: off
UNFIT = [
    "run", "step-type", "step", "tokens", "progress", "best", "no-run", "more-losses", "no-numbers", "report-type",
    "no-rows", "half-a-row", "report", "begun", "positions", "offset", "epoch", "place", "lanes", "no-stream",
    "no-optimizer", "optimizer-step", "negative", "nan", "inf", "dtype", "losses", "stream", "optimizer",
    "too-much", "memory", "geometry", "ground", "ground-threads", "ground-type", "version", "version-type",
    "initial-weights",
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["run"].update(mood=1), "expected the state of this training, got: .*mood"),
        (lambda d, t: d["run"].update(step=5.0), "step: expected an integer of 64 bits, got 5.0"),
        (lambda d, t: d["run"].update(step=6), "expected the state of that step, got that of step 6"),
        (lambda d, t: d["run"].update(tokens=1), "tokens: expected 480 in 5 steps, got 1"),
        (lambda d, t: d["run"].update(progress=-0.5), "progress: expected a finite number of at least 0, got -0.5"),
        (lambda d, t: d["run"].update(best_step=6), "best_step: expected at most step=5, got 6"),
        (lambda d, t: d.update(run=[1]), "expected the state of that step, got that of step None"),
        (lambda d, t: d.update(losses=[0.0] * 6), "losses: expected those of the last 100 of 5 steps, got"),
        (lambda d, t: d.update(losses=["x"] * 5), "losses: expected finite numbers, got"),
        (lambda d, t: d["report"].update(bytes=True), "report: expected a number of at least 0 for bytes, got True"),
        (lambda d, t: d["report"].update(bytes=0), "expected rows up to step 4 in 0 bytes"),
        (lambda d, t: d["report"].update(bytes=d["report"]["bytes"] - 1), "expected rows up to step 4 in"),
        (lambda d, t: d.pop("report"), "expected the state of this training, got: 'report'"),
        (lambda d, t: d["stream"]["lanes"][1].update(begun=10**12), "must give at most positions=160 for begun"),
        (lambda d, t: d["stream"]["lanes"][1].update(positions=10**12), "must have given 160 positions a lane, got 10"),
        (lambda d, t: d["stream"]["lanes"][2].update(offset=-1), "must give a count for offset of a lane, got -1"),
        (lambda d, t: d["stream"]["lanes"][2].update(epoch=0.5), "must give a count for epoch of a lane, got 0.5"),
        (lambda d, t: d["stream"]["lanes"][0].pop("piece"), "must give the numbers begun, .* of a lane, got"),
        (lambda d, t: d["stream"].update(lanes={}), "must tell of all 3 lanes of all ranks, got {}"),
        (lambda d, t: d.update(stream=None), "must say what it streams, got None"),
        (
            lambda d, t: [t.pop(name) for name in list(t) if name.startswith("optimizer")],
            "expected .* of 'blocks.*, got none",
        ),
        (lambda d, t: t["optimizer.norm.bias.step"].fill_(7), r"expected step of 'norm\.bias' to be 5, got 7"),
        (lambda d, t: t["optimizer.norm.bias.exp_avg_sq"].fill_(-1), "exp_avg_sq of 'norm.bias' of at least 0, got -1"),
        (lambda d, t: t["optimizer.norm.bias.exp_avg"].fill_(torch.nan), "finite numbers in 'optimizer.norm.bias.exp_"),
        (lambda d, t: t["memory.lanes.layers.0.k"].fill_(torch.inf), "finite numbers in 'memory.lanes.layers.0.k'"),
        (
            lambda d, t: t.update({"optimizer.norm.bias.exp_avg": t["optimizer.norm.bias.exp_avg"].double()}),
            "exp_avg of 'norm.bias' of type torch.float32, got torch.float64",
        ),
        (lambda d, t: d.pop("losses"), "expected the state of this training, got: 'losses'"),
        (lambda d, t: d["stream"]["lanes"].pop(), "must tell of all 3 lanes"),
        (
            lambda d, t: t.pop("optimizer.norm.bias.exp_avg"),
            r"expected exp_avg of 'norm\.bias' of shape \[32\], got none",
        ),
        (lambda d, t: t.update({"optimizer.x.step": torch.zeros(())}), "expected nothing but the model's parameters"),
        (lambda d, t: t.pop("memory.lanes.clock"), "expected the names"),
        (lambda d, t: t.update({"memory.geometry": t["memory.geometry"] + 1}), "geometry"),
        (lambda d, t: d.update(ground=7), "ground: expected texts and whole numbers by name, got 7"),
        (lambda d, t: d["ground"].update(threads=0), "ground: expected a number of threads of at least 1, got 0"),
        (lambda d, t: d["ground"].update(torch=[1]), "ground: expected texts and whole numbers by name"),
        (lambda d, t: d.update(format_version=2), "expected version 1 of a training's state, got 2"),
        (lambda d, t: d.update(format_version=True), "expected version 1 of a training's state, got True"),
        (lambda d, t: d.update(initial_weights=5), "initial_weights: expected a digest, got 5"),
    ],
    ids=UNFIT,
)
def test_states_that_do_not_fit(run: Path, store: TokenStore, change: Any, message: str) -> None:
    rewrite(run, change)
    refused(run, store, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 4}, "expected to go on with lanes=3, got 4"),
        ({"steps": 4}, "expected a budget beyond the 5 steps and .* minutes that the run has used, got steps=4"),
        ({"steps": None, "minutes": 1e-6}, "expected a budget beyond .*, got steps=None, minutes=1e-06"),
        ({"betas": (0.9, 0.99)}, r"expected to go on with betas=\[0.9, 0.95\], got \[0.9, 0.99\]"),
        ({"seed": 1}, "expected to go on with seed=0, got 1"),
    ],
    ids=["lanes", "steps", "minutes", "betas", "seed"],
)
def test_other_settings(run: Path, store: TokenStore, changes: dict[str, Any], message: str) -> None:
    refused(run, store, message, **changes)


def test_another_schedule(run: Path, store: TokenStore) -> None:
    other = replace(MODEL.schedule, horizons=(64, 32))
    with pytest.raises(CheckpointError, match=r"expected to go on with schedule=.*\[64, 16\].*, got .*\[64, 32\]"):
        train(model(schedule=other), store, SHORT, run, resume=True)


def test_another_store(run: Path, tmp_path: Path) -> None:
    other = TokenStore.open(write_store(tmp_path / "other", seed=1).path)
    refused(run, other, "expected to go on with store='[0-9a-f]+', got '[0-9a-f]+'")


def test_another_codec(run: Path, store: TokenStore) -> None:
    file = RunFolder(run).newest() / WEIGHTS_FILE
    document = json.dumps({**read_info(file.parent).to_dict(), "codec": "remi/3"})
    save_file(load_file(file), file, {"dsmr": document})
    refused(run, store, "expected the codec 'performance-388.*' of 391 ids, got 'remi/3' of 391")


def test_measurements_that_are_gone(run: Path, store: TokenStore) -> None:
    os.truncate(run / "metrics.jsonl", 10)
    refused(run, store, r"metrics\.jsonl: expected \d+ bytes at least, got 10")


def test_nothing_to_resume(store: TokenStore, tmp_path: Path) -> None:
    refused(tmp_path, store, "expected a run to resume, with states in checkpoints; there is none")


def test_a_run_is_not_begun_over_another(run: Path, store: TokenStore) -> None:
    with pytest.raises(FileExistsError, match="expected a folder without a run"):
        train(model(), store, SHORT, run)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 0}, "keep: expected at least 1, got 0"),
        ({"save_minutes": 0.0}, "save_minutes: expected a number above"),
    ],
    ids=["keep", "save_minutes"],
)
def test_wrong_arguments(store: TokenStore, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(model(), store, SHORT, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()
