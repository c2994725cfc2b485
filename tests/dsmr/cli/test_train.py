"""`dsmr train`: what it leaves behind, how it ends, and what it goes on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from dsmr.checkpoint import read_info
from dsmr.cli import train
from dsmr.model import PRESETS
from dsmr.training import Trainer
from dsmr.training.state import load_state
from tests.dsmr.cli.commands import SMALL_MODEL, fails, here, start, succeeds


def test_leaves_checkpoints_and_measurements(trained: tuple[Path, str]) -> None:
    path, text = trained
    assert f"{path / 'best'}: validation PPL " in text
    assert f"{path / 'last'}: 4 steps, 512 tokens" in text
    config = read_info(path / "last").config
    assert (config.layers, config.width, config.segment, config.schedule.total) == (2, 32, 64, 256)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4


def test_replaces_a_run_only_if_told_to(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = ["train", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 1, "--validations", 1]
    succeeds(*arguments, "--steps", 1)
    (path / "notes.txt").write_text("my own")
    assert "exists already; --force replaces it" in fails(*arguments, "--steps", 2)
    succeeds(*arguments, "--steps", 2, "--force")
    assert read_info(path / "last").training["step"] == 2
    assert (path / "notes.txt").read_text() == "my own"


def test_fine_tunes_the_weights_of_a_checkpoint(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    everything = ["train", "--data", store, "--out", path, "--init-from", checkpoint, "--steps", 2]
    succeeds(*everything, "--validations", 1, "--learning-rate", 1e-4, "--keep", 2)
    begin, end = path / "checkpoints" / "step-0000000", path / "last"
    assert read_info(begin).config == read_info(checkpoint).config
    assert read_info(begin).digest == read_info(checkpoint).digest  # the weights are kept
    assert not any(name.startswith("optimizer") for name in load_state(begin).tensors)  # all else is new
    assert read_info(begin).training["tokens"] == 0
    assert float(load_state(end).tensors["optimizer.norm.bias.step"]) == 2
    assert read_info(end).digest != read_info(checkpoint).digest
    assert read_info(end).training["config"]["learning_rate"] == 1e-4
    error = fails("train", "--data", store, "--out", path, "--init-from", checkpoint, "--steps", 1, "--width", 64)
    assert "--width: the model is that of --init-from" in error


def test_ends_with_a_checkpoint_at_ctrl_c(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start("train", "--data", store, "--out", path, *SMALL_MODEL, "--minutes", 5)
    deadline = time.monotonic() + 60
    measurements = path / "metrics.jsonl"
    while not (measurements.exists() and measurements.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "finishing the step and saving" in error
    step = read_info(path / "last").training["step"]
    assert f"{path / 'last'}: {step:,} steps" in out
    assert json.loads(measurements.read_text().splitlines()[-1])["step"] == step // 10 * 10


def test_ends_with_a_checkpoint_at_sigterm(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def terminated(trainer: Trainer) -> float:
        if trainer.run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", terminated)
    everything = ["train", "--data", store, "--out", tmp_path / "run", *SMALL_MODEL, "--steps", 100]
    out, _ = here(*everything, exits=143)
    assert f"{tmp_path / 'run' / 'last'}: 4 steps" in out
    assert read_info(tmp_path / "run" / "last").training["step"] == 4


def test_resumes_by_the_runs_own_options_or_the_same_ones(
    trained: tuple[Path, str], store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained[0], path, symlinks=True)
    shutil.rmtree(path / "checkpoints" / "step-0000004")
    succeeds("train", "--resume", "--data", store, "--out", path)
    assert read_info(path / "last").digest == read_info(trained[0] / "last").digest
    shutil.rmtree(path / "checkpoints" / "step-0000004")
    again = ["train", "--resume", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 2, "--steps", 4]
    succeeds(*again, "--validations", 2, "--keep", 1, "--save-minutes", 3)
    assert read_info(path / "last").digest == read_info(trained[0] / "last").digest
    assert len(list((path / "checkpoints").iterdir())) in (1, 2)  # the newest, and the best if it is another


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lanes", 3], "expected to go on with lanes=2, got 3"),
        ([*SMALL_MODEL, "--width", 64], "expected to go on with width=32, got 64"),
        (["--window", "token"], "expected to go on with width=32, got 128"),
        (["--force"], "--force: a run that is resumed goes on as it is"),
        (["--init-from", "x"], "--init-from: a run that is resumed goes on as it is"),
        (["--out", "nowhere"], "nowhere: expected a run to resume, with states in checkpoints; there is none"),
    ],
    ids=["lanes", "width", "preset", "force", "init-from", "nothing"],
)
def test_resumes_nothing_else(trained: tuple[Path, str], store: Path, arguments: list[object], message: str) -> None:
    assert message in fails("train", "--resume", "--data", store, "--out", trained[0], *arguments)


def test_says_when_it_diverged(store: Path, tmp_path: Path) -> None:
    hot = ["--learning-rate", 1e30, "--steps", 20, "--out", tmp_path / "run"]
    _, error = here("train", "--data", store, *SMALL_MODEL, *hot, exits=1)
    assert re.search(r"^dsmr: step \d+: expected a finite .+$", error.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "steps, minutes: expected a budget"),
        (["--steps", 1, "--preset", "huge"], "preset: expected one of tiny"),
        (["--steps", 1, "--budget", 100], "--budget: it needs --schedule"),
        (["--steps", 1, "--heads", 3], "heads: expected a divisor of width"),
        (["--steps", 1, "--kv-heads", 0], "kv_heads: expected at least 1, got 0"),
        (["--steps", 1, "--schedule", "uniform", "--layers", 0], "layers: expected at least 1, got 0"),
        (["--steps", 1, "--tempo", -1], "tempo: expected a finite number of at least 0, got -1.0"),
        (["--steps", 1, "--lanes", 0], "lanes: expected at least 1, got 0"),
        (["--steps", 1, "--device", "abacus"], "--device: expected one that works here, got 'abacus'"),
        (["--steps", 1, "--data", "nowhere.tokens"], "nowhere.tokens: no such token store"),
    ],
    ids=["budget", "preset", "schedule", "heads", "kv-heads", "layers", "tempo", "lanes", "device", "data"],
)
def test_explains_what_is_wrong(arguments: list[object], message: str, store: Path, tmp_path: Path) -> None:
    everything = ["train", "--data", store, "--out", tmp_path / "run", *arguments]
    assert message in fails(*everything)
    assert not (tmp_path / "run").exists()


def test_shapes_another_schedule_to_the_presets_budget() -> None:
    made = train._schedule("small", "uniform", None, None, None, None)
    assert (len(made.horizons), made.total) == (PRESETS["small"].layers, PRESETS["small"].schedule.total)
