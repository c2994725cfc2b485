"""What tests of several rooms ask for."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests import chromium


@pytest.fixture
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing matplotlib's module of global state raises."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def installed_browser() -> str:
    """Where a browser is; skips the test on machines without one, for no package of ours brings one."""
    if (path := chromium.find()) is None:
        pytest.skip(f"needs a browser: none of {', '.join(chromium.NAMES)} is installed")
    return path


@pytest.fixture
def browser() -> Iterator[chromium.Chromium]:
    """A browser with a page of a desktop's size."""
    with chromium.Chromium(installed_browser()) as started:
        yield started


@pytest.fixture
def phone() -> Iterator[chromium.Chromium]:
    """A browser with a page of a small phone's size, 360 pixels wide."""
    with chromium.Chromium(installed_browser(), width=360, height=740, phone=True) as started:
        started.ask("Emulation.setScrollbarsHidden", hidden=False)  # they are, without a window
        yield started
