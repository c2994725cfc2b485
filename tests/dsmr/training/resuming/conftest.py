"""One run to the end, and copies of it that end before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsmr.corpus.store import TokenStore
from dsmr.training import RunFolder, train
from tests.dsmr.training.kill_and_resume import write_store
from tests.dsmr.training.resuming.runs import SHORT, model


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("corpus") / "store")


@pytest.fixture(scope="session")
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
