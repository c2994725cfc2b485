"""One corpus for all runs."""

from __future__ import annotations

import pytest

from dsmr.corpus.store import TokenStore
from tests.dsmr.training.small import cycles, write_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("corpus") / "cycles.tokens"
    pieces = [cycles([60, 64, 67], 11), cycles([60, 64, 67], 7), cycles([60, 64, 67], 9)]
    return write_store(path, pieces, [cycles([60, 64, 67], 10)])
