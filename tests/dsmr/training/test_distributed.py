"""Several processes: the same gradients and losses as one, the same state, and an end when one of them ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsmr.cli.app import run as run_command
from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.model.config import PRESETS
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, NOTE_OFF, TIME_SHIFT
from dsmr.training import RunFolder, train
from dsmr.training.distributed import World, WorldError, joined
from tests.dsmr.training import ranks

ROOT = Path(__file__).parents[3]
BOTH = pytest.mark.parametrize("how", ["ddp", "fsdp"])
PATIENCE = 120
"""Seconds after which a process that should have ended counts as hung; nothing is timed."""


def start(rank: int, size: int, machines: int, *arguments: str, port: int) -> subprocess.Popen[str]:
    """A process as torchrun starts it, without torchrun, which takes as long to start as a process."""
    local = size // machines
    place = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in {**place, **meeting}.items()}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/dsmr/training/ranks.py"), *arguments],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def run_ranks(folder: Path, *tasks: str, size: int = 2, machines: int = 1) -> list[dict[str, Any]]:
    """What each process found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(rank, size, machines, str(folder), *tasks, port=port) for rank in range(size)]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    return [json.loads((folder / f"rank-{rank}-of-{size}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and `alone/`: a training by one process; `exact/`: in float64; `ended-*/`: halves of it."""
    path = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    with StoreWriter(path / ranks.STORE) as store:
        for number, split in enumerate(["train"] * 7 + ["validation"] * 3):
            notes = rng.integers(40, 90, 9 + 4 * number)
            ids = [[note, TIME_SHIFT + note % 7, NOTE_OFF + note] for note in notes]
            store.add(np.concatenate([[BEGIN], *ids, [END]]), split=split, title=f"piece {number}")
    opened = TokenStore.open(path / ranks.STORE)
    train(ranks.make_model(), opened, ranks.CONFIG, path / "alone", keep=10)
    train(ranks.make_model(torch.float64), opened, ranks.CONFIG, path / "exact", keep=10)
    for how in ranks.BOTH:
        ranks.begin(opened, path / f"ended-{how}")
    return path


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What two processes found."""
    return run_ranks(folder, "gradients", "halves", "nan")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Gradients


def assert_gradients_as_good_as_of_one_process(found: dict[str, Any], how: str) -> None:
    """Against float64: at most twice the error of one process, and two roundings for the mean over processes."""
    for name, largest in found["largest"].items():
        assert largest > 0
        allowed = 2 * found["alone"][name] + 2 * 2**-24 * largest
        assert found[how][name] <= allowed, f"{name}: {found[how][name] / largest:.2e} of its largest"


@BOTH
def test_gradients_of_two_processes_are_those_of_one_with_all_lanes(two: list[dict[str, Any]], how: str) -> None:
    for found in two:
        assert_gradients_as_good_as_of_one_process(found["gradients"], how)


def test_gradients_of_two_machines_with_two_processes_each(folder: Path) -> None:
    """FSDP2 shards within a machine and joins between machines."""
    for found in run_ranks(folder, "gradients", size=4, machines=2):
        assert_gradients_as_good_as_of_one_process(found["gradients"], "fsdp")


# Training


def assert_equal_losses(folder: Path, run: str) -> None:
    """To rounding: as far from float64 at most as twice what the same training by one process is, at its worst.

    That may be nothing at all, so eight roundings are allowed besides: of exp, its sum, its logarithm, the difference,
    and the means over tokens, lanes, segments and processes.
    """
    exact, alone, found = (rows(folder / name) for name in ("exact", "alone", run))
    for name in ("step", "tokens", "learning_rate"):
        assert [row[name] for row in found] == [row[name] for row in alone]
    for name in ("train_loss", "val_loss"):
        expected, by_one, by_two = ([row[name] or 0.0 for row in run_rows] for run_rows in (exact, alone, found))
        worst = max(abs(a - b) for a, b in zip(by_one, expected, strict=True))
        for ours, theirs in zip(by_two, expected, strict=True):
            assert abs(ours - theirs) <= 2 * worst + 8 * 2**-24 * theirs, (name, by_two, expected)


@BOTH
@pytest.mark.usefixtures("two")
def test_two_processes_end_what_one_has_begun(folder: Path, how: str) -> None:
    assert_equal_losses(folder, f"ended-{how}")


@BOTH
@pytest.mark.usefixtures("two")
def test_one_process_ends_what_two_have_begun(folder: Path, how: str) -> None:
    store = TokenStore.open(folder / ranks.STORE)
    train(ranks.make_model(), store, ranks.CONFIG, folder / f"begun-{how}", resume=True, keep=10)
    assert_equal_losses(folder, f"begun-{how}")


def test_a_loss_that_is_no_number_on_one_process_ends_all_with_one_message(
    folder: Path, two: list[dict[str, Any]]
) -> None:
    first, second = (found["nan"] for found in two)
    assert first == second
    assert first["error"] == "DivergedError"
    assert "step 2: expected a finite loss and gradient norm, got nan, nan; worst is lane 2, piece" in first["message"]
    assert RunFolder(folder / "nan").steps() == [0]


# The command


def torchrun(run: Path, *options: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dsmr"]
    sizes = ["--width", "32", "--heads", "2", "--kv-heads", "1", "--segment", "16"]
    sizes += ["--schedule", "explicit", "--horizons", "32,16", "--optimizer", "adamw", "--learning-rate", "1e-3"]
    what = ["train", "--data", str(run.parent / ranks.STORE), "--out", str(run), "--steps", "1000000", *options]
    return subprocess.Popen(
        [sys.executable, *launcher, *what, *(sizes if "--resume" not in options else [])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(process: subprocess.Popen[str], run: Path, count: int) -> None:
    patience = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or len(rows(run)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < patience
        time.sleep(0.1)


def worker(launcher: int, rank: int) -> int:
    """The process number of a rank that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = (pid for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())
    return int(found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_torchrun_trains_stops_at_a_signal_resumes_and_ends_when_a_process_is_killed(folder: Path) -> None:
    run = folder / "torchrun"
    process = torchrun(run)
    wait_for_rows(process, run, 2)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    (saved,) = RunFolder(run).steps()[1:]  # besides the state before the first step: saved once
    assert rows(run)[-1]["step"] == saved // 10 * 10
    assert errors.count("on 2 processes") == errors.count("finishing the step and saving") == 1  # by the first alone
    assert printed.count(f"{run}/last: {saved:,} steps") == 1

    process = torchrun(run, "--resume", "--fsdp")
    wait_for_rows(process, run, saved // 10 + 2)
    os.kill(worker(process.pid, rank=1), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert f"resumed at step {saved:,}" in errors
    assert "dsmr: rank 0: another process of the run has ended or answers no more" in errors
    assert RunFolder(run).steps()[-1] == saved


def test_a_folder_that_is_not_free_is_refused_by_all_processes(folder: Path) -> None:
    run = folder / "occupied"
    run.mkdir()
    (run / "thesis.tex").write_text("precious")
    process = torchrun(run)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert errors.count("expected an empty folder or that of a run") == 1  # by the first alone
    assert "another process of the run has ended" not in errors
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]


def test_fsdp_needs_several_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(folder / ranks.STORE), "--out", str(folder / "none"), "--steps", "1", "--fsdp"]
    assert run_command(["train", *options]) == 2
    assert "--fsdp: expected several processes" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_lanes_that_cannot_be_shared_out_evenly_are_refused() -> None:
    assert World(rank=1, size=2).share(4) == 2
    with pytest.raises(WorldError, match="lanes: expected a multiple of the 2 processes, which share them, got 3"):
        World(size=2).share(3)


def test_muon_on_sharded_parameters_and_compiling_for_several_processes_are_refused(folder: Path) -> None:
    store, config = TokenStore.open(folder / ranks.STORE), replace(ranks.CONFIG, optimizer="muon")
    with pytest.raises(WorldError, match="optimizer: expected adamw where parameters are sharded, got muon"):
        train(ranks.make_model(), store, config, folder / "muon", shard=True)
    with pytest.raises(WorldError, match="compile: expected one process, got 2"):
        train(ranks.make_model(), store, replace(ranks.CONFIG, compile=True), folder / "muon", world=World(size=2))
    assert not (folder / "muon").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:1", "device: expected cuda, of which every process takes"), ("cuda", "a GPU for each process .* got 0")],
)
def test_gpus_that_processes_cannot_have(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(WorldError, match=message), joined(torch.device(device)):
        pass


def test_the_tables_of_the_scaling_document_are_what_the_code_says() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    for name, config in PRESETS.items():
        with torch.device("meta"):
            model = Transformer(config)
            bf16, fp32 = (model.new_state(1, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
        sizes = [f"{count / 1e6:,.1f} MB" for count in (bf16.bytes_per_lane, fp32.bytes_per_lane)]
        slots = sum(ring.k.shape[2] for ring in bf16)
        count = model.parameters_count
        row = [name, f"{count:,}", f"{16 * count / 1e6:,.1f} MB", f"{config.segment:,}", f"{slots:,}", *sizes]
        assert f"| {' | '.join(row)} |" in text


def test_half_an_environment_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    message = "WORLD_SIZE=2: expected RANK and LOCAL_RANK too, as torchrun sets them, got no LOCAL_RANK"
    with pytest.raises(WorldError, match=message), joined(torch.device("cpu")):
        pass
