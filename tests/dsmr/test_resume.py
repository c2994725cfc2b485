"""Runs that survive: what was killed goes on as if nothing had happened, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsmr.checkpoint import WEIGHTS_FILE, CheckpointError, load_checkpoint, read_info
from dsmr.corpus.store import TokenStore
from dsmr.model import Transformer
from dsmr.training import Run, RunFolder, SaveError, Trainer, train
from dsmr.training.state import STATE_FILE, load_state, save_state
from tests.dsmr import kill_and_resume
from tests.dsmr.kill_and_resume import CONFIG, MODEL, outcome, write_store

SHORT = replace(CONFIG, steps=8, validations=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("corpus") / "store")


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(MODEL, **changes))


@pytest.fixture(scope="module")
def undisturbed(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(model(), store, SHORT, path, save_minutes=1e-9, keep=100)
    return path


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """The run as it would be, had it been killed after step 5 was saved."""
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    for step in (6, 7, 8):
        shutil.rmtree(RunFolder(tmp_path / "run").checkpoint(step))
    return tmp_path / "run"


def go_on(run: Path, store: TokenStore, **changes: Any) -> Run:
    return train(model(), store, replace(SHORT, **changes), run, resume=True)


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    """The same with 200 kills: see `kill_and_resume.py`."""
    command = [sys.executable, kill_and_resume.__file__, str(tmp_path), "--kills", "12", "--seed", "3"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] >= 12
    assert found["differences"] == 0
    assert any(place.startswith("writing a state") for place in found["where"])


def test_a_resumed_run_equals_an_undisturbed_one(run: Path, undisturbed: Path, store: TokenStore) -> None:
    done = go_on(run, store)
    assert outcome(run) == outcome(undisturbed)
    assert (done.step, done.tokens) == (8, 8 * 2 * 3 * 16)
    for name in ("last", "best"):
        assert read_info(run / name).digest == read_info(undisturbed / name).digest
    ours, theirs = (load_state(path / "last") for path in (run, undisturbed))
    assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    assert ours.document["stream"] == theirs.document["stream"]


def test_saving_changes_nothing(undisturbed: Path, store: TokenStore, tmp_path: Path) -> None:
    train(model(), store, SHORT, tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_complete_run_is_left_as_it_is(undisturbed: Path, store: TokenStore, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    assert go_on(tmp_path / "run", store).step == 8
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*") if path.is_file()} == before


def test_minutes_that_were_used_up_stay_used_up(store: TokenStore, tmp_path: Path) -> None:
    by_clock = replace(SHORT, steps=None, minutes=1000.0)
    first = Trainer(model(), store, by_clock)
    first.step()
    first.run.seconds = 30_000.0
    second = Trainer(model(), store, by_clock)
    second.load_state(first.state())
    second.step()
    assert second.run.progress == pytest.approx(0.5, abs=0.01)


def test_a_loaded_state_stays_the_callers(store: TokenStore) -> None:
    """Training goes on in tensors of its own: a state may be loaded again, or by others."""
    first = Trainer(model(), store, SHORT)
    first.step()
    state = first.state()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    second = Trainer(model(), store, SHORT)
    second.load_state(state)
    second.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors.items())


def test_a_state_says_nothing_of_processes(store: TokenStore) -> None:
    """What depends on lanes has as many rows, or entries, as there are lanes; see `dsmr.training.state`."""
    trainer = Trainer(model(), store, SHORT)
    trainer.step()
    state = trainer.state()
    lanes = {name: t for name, t in state.tensors.items() if name.startswith("memory.lanes.")}
    assert len(lanes) == 1 + 3 * 2
    assert all(tensor.shape[0] == SHORT.lanes for tensor in lanes.values())
    assert len(state.document["stream"]["lanes"]) == SHORT.lanes
    assert "rank" not in json.dumps(state.document)
    others = {name.split(".")[0] for name in state.tensors.keys() - lanes.keys()}
    assert others == {"memory", "optimizer"}


# The folder


def test_the_newest_states_and_the_best_are_kept(store: TokenStore, tmp_path: Path) -> None:
    trainer, folder = Trainer(model(), store, SHORT), RunFolder(tmp_path, keep=2)
    for best in (None, 1, 1, 1, 4):
        trainer.run.best_step = best
        folder.save(trainer.model, trainer.state())
        trainer.run.step += 1
    assert folder.steps() == [3, 4]
    for name, step in (("last", 4), ("best", 4)):
        assert os.readlink(tmp_path / name) == f"checkpoints/step-{step:07d}"
    trainer.run.best_step = 3
    for _ in range(3):
        folder.save(trainer.model, trainer.state())
        trainer.run.step += 1
    assert folder.steps() == [3, 6, 7]
    assert (tmp_path / "best").resolve().name == "step-0000003"
    assert (tmp_path / "last").resolve().name == "step-0000007"


def test_what_a_crash_left_is_removed_and_links_are_mended(run: Path, store: TokenStore) -> None:
    folder = RunFolder(run)
    for name in (".step-0000006.partial", ".step-0000001.removed"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    (run / ".last.partial").symlink_to("nowhere")
    (run / "last").unlink()
    go_on(run, store)
    assert not list(run.glob("checkpoints/.*"))
    assert not list(run.glob(".*"))
    assert (run / "last").resolve() == folder.newest().resolve()


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_full_disk_leaves_the_last_state(
    run: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    really = getattr(os, call)

    def fail(first: Any, *rest: Any) -> None:
        if isinstance(first, int) or "partial" in str(first):
            raise OSError(28, "No space left on device")
        really(first, *rest)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(SaveError, match=r"cannot be written: No space left on device; what was saved before is as"):
        go_on(run, store)
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    go_on(run, store)


def test_a_file_that_may_not_grow_is_a_full_disk(store: TokenStore, tmp_path: Path) -> None:
    """The system's own refusal, in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(SaveError, match="step-0000000: cannot be written: File too large"):
            train(model(), store, SHORT, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    train(model(), store, replace(SHORT, steps=1), tmp_path / "run")  # and there is no run in the way


def test_a_folder_that_cannot_be_made(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"metrics\.jsonl: cannot be written: Not a directory"):
        train(model(), store, SHORT, tmp_path / "file" / "run")


# What is refused


def refused(run: Path, store: TokenStore, message: str, **changes: Any) -> None:
    with pytest.raises(CheckpointError, match=message):
        go_on(run, store, **changes)


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


def rewrite(run: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Pass the newest state through `change`, and seal it again."""
    folder = RunFolder(run).newest()
    state = load_state(folder)
    change(state.document, state.tensors)
    save_state(folder, state)


def test_an_edited_document_is_noticed(run: Path, store: TokenStore) -> None:
    file = RunFolder(run).newest() / STATE_FILE
    file.write_bytes(file.read_bytes().replace(b'\\"step\\": 5', b'\\"step\\": 6', 1))
    refused(run, store, "expected contents of SHA-256 [0-9a-f]+, got [0-9a-f]+: the file is damaged")


def test_weights_of_another_state_are_noticed(run: Path, store: TokenStore) -> None:
    folder = RunFolder(run)
    shutil.copy(folder.checkpoint(4) / WEIGHTS_FILE, folder.checkpoint(5) / WEIGHTS_FILE)
    refused(run, store, "step-0000005: expected weights of SHA-256 [0-9a-f]+, got [0-9a-f]+")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["run"].update(mood=1), "expected the state of this training, got: .*mood"),
        (lambda d, t: d.pop("losses"), "expected the state of this training, got: 'losses'"),
        (lambda d, t: d["stream"]["lanes"].pop(), "must tell of all 3 lanes"),
        (
            lambda d, t: t.pop("optimizer.norm.bias.exp_avg"),
            r"expected exp_avg of 'norm\.bias' of shape \[32\], got none",
        ),
        (lambda d, t: t.update({"optimizer.x.step": torch.zeros(())}), "expected nothing but the model's parameters"),
        (lambda d, t: t.pop("memory.lanes.clock"), "expected the names"),
        (lambda d, t: t.update({"memory.geometry": t["memory.geometry"] + 1}), "geometry"),
        (lambda d, t: d.update(format_version=2), "expected version 1 of a training's state, got 2"),
    ],
    ids=["run", "losses", "stream", "optimizer", "too-much", "memory", "geometry", "version"],
)
def test_states_that_do_not_fit(run: Path, store: TokenStore, change: Any, message: str) -> None:
    rewrite(run, change)
    refused(run, store, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 4}, "expected to go on with lanes=3, got 4"),
        ({"steps": 9}, "expected to go on with steps=8, got 9"),
        ({"betas": (0.9, 0.99)}, r"expected to go on with betas=\[0.9, 0.95\], got \[0.9, 0.99\]"),
        ({"seed": 1}, "expected to go on with seed=0, got 1"),
    ],
    ids=["lanes", "steps", "betas", "seed"],
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


def test_tensorboard_forgets_what_came_after_the_state(run: Path, store: TokenStore) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.rmtree(run)
    every = replace(SHORT, log_every=1)
    train(model(), store, every, run, tensorboard=True, keep=9, save_minutes=1e-9)
    for step in (6, 7, 8):
        shutil.rmtree(RunFolder(run).checkpoint(step))
    train(model(), store, every, run, tensorboard=True, resume=True)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 9))


def test_a_saved_state_is_a_checkpoint_like_any_other(undisturbed: Path) -> None:
    loaded, info = load_checkpoint(undisturbed / "checkpoints" / "step-0000003")
    assert loaded.config == MODEL
    assert info.training["step"] == 3
    assert "interrupted" not in info.training
