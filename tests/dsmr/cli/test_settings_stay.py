"""No command leaves a setting of its process changed: whatever runs in the process afterwards computes as before.

`train --compile` is not among them: what PyTorch's compiler keeps for itself (a pool of threads, a variable of its own,
filters of warnings that its imports add) is not ours to remove.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from bench.__main__ import main as bench
from dsmr.demo import run as demo
from dsmr.process import torch_threads
from dsmr.training import TrainingConfig
from tests.dsmr.cli.commands import SMALL_MODEL, here, succeeds

THREADS = 2  # neither what one core has nor what a command chooses


def settings() -> dict[str, Any]:
    """Everything that somebody else in the process would notice."""
    return {
        "threads": torch.get_num_threads(),
        "threads between operators": torch.get_num_interop_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "precision": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "PyTorch's random numbers": torch.get_rng_state().tolist(),
        "NumPy's random numbers": repr(np.random.get_state(legacy=False)),  # noqa: NPY002  # everybody's own
        "Python's random numbers": random.getstate(),
        "NumPy's errors": np.geterr(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "mask": os.umask(os.umask(0o022)),
        "cores": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "warnings": list(warnings.filters),
        "log": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "drawing": dict(matplotlib.rcParams),
        "other threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
    }


@contextmanager
def unchanged() -> Iterator[None]:
    with torch_threads(THREADS):
        before = settings()
        yield
        after = settings()
        assert {name: value for name, value in after.items() if value != before[name]} == {}


@pytest.fixture(autouse=True)
def a_mask_of_its_own() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


MUSIC = ["generate", "CHECKPOINT", "--tokens", 20, "--out", "OUT.mid"]
COMMANDS: dict[str, list[object]] = {
    "prepare folder": ["prepare", "folder", "MUSIC", "--out", "OUT", "--workers", 2],
    "prepare pianist": ["prepare", "pianist", "--tokens", 4000, "--longest", 2000, "--out", "OUT"],
    "train": ["train", "--data", "STORE", "--out", "OUT", *SMALL_MODEL, "--steps", 2, "--tensorboard"],
    "train, resumed": ["train", "--resume", "--data", "STORE", "--out", "RUN"],
    "train --init-from": ["train", "--init-from", "CHECKPOINT", "--data", "STORE", "--out", "OUT", "--steps", 1],
    "evaluate": ["evaluate", "CHECKPOINT", "--data", "STORE", "--out", "OUT"],
    "generate, natively": [*MUSIC, "--wav", "--png", "--html"],
    "generate, by PyTorch": [*MUSIC, "--engine", "python"],
    "compare": ["compare", "MIDI", "--data", "STORE", "--png", "OUT.png"],
    "export": ["export", "CHECKPOINT", "--out", "OUT", "--weights", "bf16"],
    "schedule": ["schedule", "uniform", "--layers", 2, "--budget", 64],
    "doctor": ["doctor"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_of_the_process_stay_as_they_are(
    command: str, music: Path, store: Path, trained: tuple[Path, str], checkpoint: Path, tmp_path: Path
) -> None:
    names = {"MUSIC": music, "STORE": store, "CHECKPOINT": checkpoint, "RUN": trained[0]}
    names |= {"MIDI": music / "piece 0.mid", "OUT": tmp_path / "out"}
    names |= {f"OUT.{suffix}": tmp_path / f"out.{suffix}" for suffix in ("mid", "png")}
    with unchanged():
        succeeds(*(names.get(str(argument), argument) for argument in COMMANDS[command]))


def test_of_the_process_stay_as_they_are_after_a_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig(steps=2, lanes=1, validations=1, validation_tokens=500)
    tiny = replace(demo.QUICK, corpus_tokens=9_000, longest=3_000, training=training, seconds=2.0, takes=1)
    monkeypatch.setattr(demo, "QUICK", tiny)
    with unchanged():
        here("demo", "--quick", "--out", tmp_path / "demo")


@pytest.mark.parametrize(
    "arguments", [["train", "--data", "STORE", "--learning-rate", 1e30, "--steps", 20, *SMALL_MODEL]], ids=["diverged"]
)
def test_of_the_process_stay_as_they_are_after_a_failure(arguments: list[object], store: Path, tmp_path: Path) -> None:
    everything = [store if argument == "STORE" else argument for argument in arguments]
    with unchanged():
        here(*everything, "--out", tmp_path / "run", exits=1)


def test_of_the_process_stay_as_they_are_after_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # as it is then, the measurement is made in this process
    try:
        with unchanged():
            bench(["overhead", "--quick", "--out", str(tmp_path)])
    finally:
        os.sched_setaffinity(0, before)
    assert "written" in capsys.readouterr().out
