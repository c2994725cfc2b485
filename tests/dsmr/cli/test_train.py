"""`dsmr train`: what it leaves behind, how it ends, and what it goes on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dsmr.model.checkpoint import read_info
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


# One writer, and whatever ends it


def begin(store: Path, path: Path, *more: object, **streams: Any) -> subprocess.Popen[str]:
    """A long training in a process of its own, which has written a row."""
    process = start("train", "--data", store, "--out", path, *SMALL_MODEL, "--minutes", 5, *more, **streams)
    measurements = path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (measurements.exists() and measurements.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def rows(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_second_writer_is_refused_and_the_first_ends_in_order(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = begin(store, path)
    for way in (["--resume"], ["--force", *SMALL_MODEL, "--steps", 1], [*SMALL_MODEL, "--steps", 1]):
        error = fails("train", "--data", store, "--out", path, *way)
        assert f"{path}: expected a folder that nobody writes into, got one that a run is using" in error
    first.send_signal(signal.SIGTERM)
    out, error = first.communicate(timeout=60)
    assert first.returncode == 143, error
    assert f"{path / 'last'}: " in out
    assert rows(path) == list(range(10, rows(path)[-1] + 1, 10))
    step = read_info(path / "last").training["step"]
    succeeds("train", "--data", store, "--out", path, "--resume", "--steps", step + 1)
    assert read_info(path / "last").training["step"] == step + 1


def test_a_killed_run_leaves_no_lock(store: Path, tmp_path: Path) -> None:
    first = begin(store, tmp_path / "run", "--save-minutes", 1e-9)
    first.kill()
    first.communicate(timeout=60)
    step = read_info(tmp_path / "run" / "last").training["step"]
    succeeds("train", "--data", store, "--out", tmp_path / "run", "--resume", "--steps", step + 1)
    succeeds("train", "--data", store, "--out", tmp_path / "run", "--force", *SMALL_MODEL, "--steps", 1)


def test_a_terminal_that_goes_away_ends_the_run_with_a_checkpoint(store: Path, tmp_path: Path) -> None:
    """Whether the system says so (SIGHUP), or only every further word fails."""
    for way, controlling in (("told", True), ("untold", False)):
        path = tmp_path / way
        ours, theirs = os.openpty()
        process = begin(store, path, stdout=theirs, stderr=theirs, stdin=theirs, controlling=controlling)
        os.close(theirs)
        os.close(ours)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP, way
        assert read_info(path / "last").training["step"] >= rows(path)[-1]


def test_a_pipe_that_nobody_reads_any_more_does_not_end_the_run(store: Path, tmp_path: Path) -> None:
    """`dsmr train 2>&1 | tee log`: Ctrl-C ends `tee`, too, and the run is to be saved all the same."""
    path = tmp_path / "run"
    process = begin(store, path, "--validations", 100_000)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()
    seen = len(rows(path))
    deadline = time.monotonic() + 60
    while len(rows(path)) < seen + 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert read_info(path / "last").training["step"] >= rows(path)[-1]


def test_a_run_can_be_lengthened(trained: tuple[Path, str], store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained[0], path, symlinks=True)
    again = ["train", "--resume", "--data", store, "--out", path]
    assert "expected a budget beyond the 4 steps" in fails(*again, "--steps", 3)
    assert f"{path / 'last'}: 6 steps, 768 tokens" in succeeds(*again, "--steps", 6)
    succeeds(*again, "--minutes", 0.01 + read_info(path / "last").training["seconds"] / 60)
    settings = read_info(path / "last").training["config"]
    assert settings["steps"] is None


def test_a_file_where_a_folder_is_meant(store: Path, tmp_path: Path) -> None:
    for name in ("notes $HOME {1} ^2.txt", os.fsdecode(b"\xff\xfe.txt")):
        file = tmp_path / name
        file.write_text("precious")
        arguments = ["train", "--data", store, "--out", file, *SMALL_MODEL, "--steps", 1]
        for force in ([], ["--force"]):
            assert "expected a folder, got a file" in fails(*arguments, *force)
        assert file.read_text() == "precious"


def test_a_folder_of_somebody_else_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-epoch90.pt").write_bytes(b"three weeks of GPU time")
    arguments = ["train", "--data", store, "--out", tmp_path, *SMALL_MODEL, "--steps", 1]
    for force in ([], ["--force"]):
        assert "expected an empty folder or that of a run" in fails(*arguments, *force)
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints", "resnet50-epoch90.pt"]
