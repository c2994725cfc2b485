"""A folder of music, its store, and a model trained on it for a moment: made once for all commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsmr.corpus.prepare import prepare_folder
from dsmr.music.midi import write_midi
from dsmr.music.tokens import NOTE_DTYPE, Performance
from tests.dsmr.cli.commands import ENVIRONMENT, SMALL_MODEL, succeeds


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])


def a_performance(seed: int, notes: int = 120) -> Performance:
    rng = np.random.default_rng(seed)
    array = np.zeros(notes, NOTE_DTYPE)
    array["onset"] = np.sort(rng.integers(0, 20 * notes, notes)) / 100
    array["offset"] = array["onset"] + rng.integers(5, 60, notes) / 100
    array["pitch"] = rng.integers(40, 90, notes)
    array["velocity"] = rng.integers(30, 110, notes)
    return Performance(array)


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six MIDI files and one that is none."""
    path = tmp_path_factory.mktemp("music")
    (path / "more").mkdir()
    for seed in range(6):
        write_midi(a_performance(seed), path / ("more" if seed % 2 else ".") / f"piece {seed}.mid")
    (path / "broken.mid").write_bytes(b"MThd, and then nothing of the kind")
    return path


@pytest.fixture(scope="session")
def store(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "corpus.tokens"
    prepare_folder(music, path, validation=0.2, test=0.2, workers=1)
    return path


@pytest.fixture(scope="session")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of four steps, and what training printed."""
    path = tmp_path_factory.mktemp("runs") / "small"
    return path, succeeds(
        "train", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 2, "--steps", 4, "--validations", 2
    )


@pytest.fixture(scope="session")
def checkpoint(trained: tuple[Path, str]) -> Path:
    return trained[0] / "last"
