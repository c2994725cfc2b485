"""Runs that survive: what was killed goes on as if nothing had happened, whatever a full disk does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import WEIGHTS_FILE, load_checkpoint, read_info
from dsmr.process import torch_threads
from dsmr.training import RunFolder, SaveError, Trainer, ground, train
from dsmr.training.state import load_state
from dsmr.version import __version__
from tests.dsmr.training import kill_and_resume
from tests.dsmr.training.kill_and_resume import MODEL, outcome
from tests.dsmr.training.resuming.runs import SHORT, go_on, model, rewrite
from tests.full_disk import files_of_at_most


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    """The same with 200 kills: see `kill_and_resume.py`."""
    command = [sys.executable, kill_and_resume.__file__, str(tmp_path), "--kills", "12", "--seed", "3"]
    root = str(Path(__file__).resolve().parents[3])
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
    first.run.training_seconds = 30_000.0
    second = Trainer(model(), store, by_clock)
    second.load_state(first.state())
    second.step()
    assert second.run.progress == pytest.approx(0.5, abs=0.01)


# What bits depend on


def threads_in_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    step = Trainer.step

    def watched(trainer: Trainer) -> float:
        seen.append(torch.get_num_threads())
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", watched)
    return seen


@pytest.mark.parametrize(("began", "now"), [(2, 1), (1, 2)])
def test_a_resumed_run_has_the_threads_it_had_and_the_process_those_it_has(
    began: int, now: int, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "cores", lambda: 2)
    with torch_threads(began):
        train(model(), store, SHORT, tmp_path / "whole")
        train(model(), store, SHORT, tmp_path / "cut", keep=9, save_minutes=1e-9)
    for step in (6, 7, 8):
        shutil.rmtree(RunFolder(tmp_path / "cut").checkpoint(step))
    seen, console = threads_in_steps(monkeypatch), Console(file=StringIO(), width=300)
    with torch_threads(now):
        train(model(), store, SHORT, tmp_path / "cut", resume=True, console=console)
        assert torch.get_num_threads() == now
    assert seen == [began] * 3
    assert f"on {began} threads, as before (instead of {now})" in console.file.getvalue()
    assert "ground" not in console.file.getvalue()
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4096}, "threads 4096, now 1"),
        ({"torch": "1.0"}, f"torch 1.0, now {torch.__version__}"),
        ({"dsmr": "0"}, f"dsmr 0, now {__version__}"),
        ({"instructions": "abacus"}, f"instructions abacus, now {torch.backends.cpu.get_cpu_capability()}"),
        ({"kernels": "cpu, abacus"}, "kernels cpu, abacus, now "),
        ({"device": "abacus"}, "device abacus, now "),
        ({"processes": 3, "threads": 2}, "processes 3, now 1; threads 2, now 1"),
    ],
    ids=["threads", "torch", "dsmr", "instructions", "kernels", "device", "processes"],
)
def test_a_resumed_run_says_in_a_line_what_differs(
    run: Path, store: TokenStore, change: dict[str, Any], said: str
) -> None:
    with torch_threads(1):
        rewrite(run, lambda document, _: document["ground"].update({"threads": 1, **change}))
        console = Console(file=StringIO(), width=1000)
        train(model(), store, SHORT, run, resume=True, console=console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "ground" in line]
    assert line.startswith(f"not on the same ground, so that the last bits may come out otherwise: {said}")


def test_a_state_that_does_not_tell_where_it_was_computed_is_gone_on_with(run: Path, store: TokenStore) -> None:
    rewrite(run, lambda document, _: document.pop("ground"))
    console = Console(file=StringIO(), width=300)
    assert train(model(), store, SHORT, run, resume=True, console=console).step == 8
    assert "the state does not tell on what it was computed" in console.file.getvalue()


def test_training_leaves_random_numbers_as_they_are(store: TokenStore, tmp_path: Path) -> None:
    net, before = model(), torch.get_rng_state()
    train(net, store, SHORT, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


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
    assert len(lanes) == 1 + 5 * 2  # the clock; keys, values, shifted keys and how far both are written
    assert all(tensor.shape[0] == SHORT.lanes for tensor in lanes.values())
    assert len(state.document["stream"]["lanes"]) == SHORT.lanes
    assert "rank" not in json.dumps(state.document)
    others = {name.split(".")[0] for name in state.tensors.keys() - lanes.keys()}
    assert others == {"memory", "optimizer"}


# Another budget


# A signal during a validation


# Other versions


def test_fields_that_an_older_version_lacked_have_their_defaults(
    run: Path, undisturbed: Path, store: TokenStore
) -> None:
    def older(document: dict[str, Any], _: dict[str, Tensor]) -> None:
        for name in ("clip", "weight_decay"):
            del document["config"][name]
        del document["initial_weights"], document["run"]["bigram_ppl"]

    rewrite(run, older)
    file = RunFolder(run).newest() / WEIGHTS_FILE
    document = read_info(file.parent).to_dict()
    del document["config"]["position_base"], document["training"]["config"]["clip"]
    save_file(load_file(file), file, {"dsmr": json.dumps(document)})
    go_on(run, store)
    assert outcome(run) == outcome(undisturbed)
    training, whole = (read_info(each / "last").training for each in (run, undisturbed))
    assert training["bigram_ppl"] == whole["bigram_ppl"]
    assert training["initial_weights"] is None


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
    refused = pytest.raises(SaveError, match="step-0000000: cannot be written: File too large")
    with files_of_at_most(30_000), refused:
        train(model(), store, SHORT, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    train(model(), store, replace(SHORT, steps=1), tmp_path / "run")  # and there is no run in the way


def test_a_folder_that_cannot_be_made(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"file/run: cannot be written: Not a directory"):
        train(model(), store, SHORT, tmp_path / "file" / "run")


# What is refused


# fmt: on


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
