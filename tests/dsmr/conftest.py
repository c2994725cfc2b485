"""What tests of several rooms ask for."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing matplotlib's module of global state raises."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
