"""Runs that survive: what was killed goes on as if nothing had happened, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
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
from dsmr.model.checkpoint import WEIGHTS_FILE, CheckpointError, load_checkpoint, read_info
from dsmr.model.transformer import Transformer
from dsmr.process import torch_threads
from dsmr.training import Run, RunFolder, SaveError, Trainer, TrainingConfig, ground, loop, train
from dsmr.training.state import STATE_FILE, load_state, save_state
from dsmr.version import __version__
from tests.dsmr.training import kill_and_resume
from tests.dsmr.training.kill_and_resume import CONFIG, MODEL, outcome, write_store
from tests.full_disk import files_of_at_most

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
    assert len(lanes) == 1 + 3 * 2
    assert all(tensor.shape[0] == SHORT.lanes for tensor in lanes.values())
    assert len(state.document["stream"]["lanes"]) == SHORT.lanes
    assert "rank" not in json.dumps(state.document)
    others = {name.split(".")[0] for name in state.tensors.keys() - lanes.keys()}
    assert others == {"memory", "optimizer"}


# Another budget


def test_a_run_can_be_lengthened(store: TokenStore, tmp_path: Path) -> None:
    """With a learning rate that no budget changes, it is the longer run; each budget has its own validations."""
    even = replace(SHORT, warmup=0.0, min_learning_rate=SHORT.learning_rate, log_every=1)
    train(model(), store, replace(even, steps=12), tmp_path / "long")
    train(model(), store, even, tmp_path / "short")
    done = train(model(), store, replace(even, steps=12), tmp_path / "short", resume=True)
    long, lengthened = outcome(tmp_path / "long"), outcome(tmp_path / "short")
    assert (done.step, done.progress) == (12, 1)
    assert [{**row, "val_loss": None} for row in long[0]] == [{**row, "val_loss": None} for row in lengthened[0]]
    assert [row["step"] for row in lengthened[0] if row["val_loss"] is not None] == [4, 8, 12]
    assert long[1] == lengthened[1]
    again = train(model(), store, replace(even, steps=12), tmp_path / "short", resume=True)  # its budget is this now
    assert (again.step, outcome(tmp_path / "short")) == (12, lengthened)


def test_another_budget_is_not_forgotten_by_a_run_that_is_killed_at_once(store: TokenStore, tmp_path: Path) -> None:
    even = replace(SHORT, warmup=0.0, min_learning_rate=SHORT.learning_rate, log_every=1)
    longer = replace(even, steps=12)
    train(model(), store, longer, tmp_path / "long")
    train(model(), store, even, tmp_path / "short")

    def die(net: Transformer, *_: Any) -> None:
        raise MemoryError

    doomed = model()
    doomed.register_forward_pre_hook(die)
    with pytest.raises(MemoryError):
        train(doomed, store, longer, tmp_path / "short", resume=True)
    assert read_info(tmp_path / "short" / "last").training["config"]["steps"] == 12
    done = train(model(), store, longer, tmp_path / "short", resume=True)
    assert (done.step, done.progress, done.lengthened) == (12, 1, False)
    assert [row["step"] for row in outcome(tmp_path / "short")[0] if row["val_loss"] is not None] == [4, 8, 12]
    assert outcome(tmp_path / "short")[1] == outcome(tmp_path / "long")[1]


def test_another_budget_waits_for_a_validation_of_the_old_one_however_often_that_is_broken_off(
    undisturbed: Path, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", -1.0)

    def stopped_in_the_validation_after(step: int, config: TrainingConfig, resume: bool) -> Run:
        net = model()

        def interrupt(net: Transformer, *_: Any) -> None:
            if not net.training and trainers[0].run.step == step and not stopped:
                stopped.append(os.kill(os.getpid(), signal.SIGTERM))

        trainers: list[Trainer] = []
        stopped: list[None] = []
        made = Trainer.__init__

        def remember(trainer: Trainer, *rest: Any, **options: Any) -> None:
            made(trainer, *rest, **options)
            trainers.append(trainer)

        net.register_forward_pre_hook(interrupt)
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "__init__", remember)
            return train(net, store, config, tmp_path, resume=resume)

    longer = replace(SHORT, steps=12)
    for config, resume in ((SHORT, False), (longer, True), (longer, True)):
        broken_off = stopped_in_the_validation_after(8, config, resume)
        assert (broken_off.step, broken_off.interrupted) == (8, signal.SIGTERM)
        assert broken_off.lengthened == resume
    done = train(model(), store, longer, tmp_path, resume=True)
    assert (done.step, done.progress, done.interrupted) == (12, 1, None)
    rows, before = outcome(tmp_path)[0], outcome(undisturbed)[0]
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows if row["val_loss"] is not None] == [4, 8, 12]


def test_a_run_of_steps_goes_on_for_minutes(undisturbed: Path, store: TokenStore, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    done = go_on(tmp_path / "run", store, steps=None, minutes=0.05)
    assert done.step > 8
    assert done.progress == 1


# A signal during a validation


@pytest.mark.parametrize("number", [1, 2], ids=["halfway", "at the end"])
def test_a_validation_that_a_signal_broke_off_is_done_anew(
    undisturbed: Path, store: TokenStore, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", -1.0)
    net, begun = model(), []

    def interrupt(net: Transformer, *_: Any) -> None:
        if not net.training:
            begun.append(None)
            if len(begun) == 2:  # the second segment of the validation
                os.kill(os.getpid(), signal.SIGTERM)

    def watch(net: Transformer, *_: Any) -> None:
        begun.clear()

    validate = Trainer.validate
    calls = []

    def counted(trainer: Trainer, *rest: Any) -> float | None:
        calls.append(trainer.run.step)
        if len(calls) == number:
            trainer.model.register_forward_hook(interrupt)
        return validate(trainer, *rest)

    monkeypatch.setattr(Trainer, "validate", counted)
    first = train(net, store, SHORT, tmp_path)
    assert (first.interrupted, first.step) == (signal.SIGTERM, 4 * number)
    assert len(begun) == 2
    assert read_info(tmp_path / "last").training["step"] == 4 * number
    monkeypatch.setattr(Trainer, "validate", validate)
    done = go_on(tmp_path, store)
    assert (done.step, done.interrupted) == (8, None)
    assert outcome(tmp_path) == outcome(undisturbed)
    for name in ("last", "best"):
        ours, theirs = read_info(tmp_path / name), read_info(undisturbed / name)
        assert (ours.digest, ours.training["best_step"]) == (theirs.digest, theirs.training["best_step"])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    go_on(tmp_path, store)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


# Other versions


def test_fields_that_an_older_version_lacked_have_their_defaults(
    run: Path, undisturbed: Path, store: TokenStore
) -> None:
    def older(document: dict[str, Any], _: dict[str, Tensor]) -> None:
        for name in ("clip", "weight_decay"):
            del document["config"][name]

    rewrite(run, older)
    file = RunFolder(run).newest() / WEIGHTS_FILE
    document = read_info(file.parent).to_dict()
    del document["config"]["position_base"], document["training"]["config"]["clip"]
    save_file(load_file(file), file, {"dsmr": json.dumps(document)})
    go_on(run, store)
    assert outcome(run) == outcome(undisturbed)


def test_fields_of_a_newer_version_are_named(run: Path, store: TokenStore) -> None:
    rewrite(run, lambda document, _: document["config"].update(momentum=0.9))
    refused(run, store, "config: expected the fields of this version, got 'momentum', which only a newer one can know")


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


# fmt: off
UNFIT = [
    "run", "step-type", "step", "tokens", "progress", "best", "no-run", "more-losses", "no-numbers", "report-type",
    "no-rows", "half-a-row", "report", "begun", "positions", "offset", "epoch", "place", "lanes", "no-stream",
    "no-optimizer", "optimizer-step", "negative", "nan", "inf", "dtype", "losses", "stream", "optimizer",
    "too-much", "memory", "geometry", "ground", "ground-threads", "ground-type", "version", "version-type",
]
# fmt: on


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
