"""Settings that every test shares."""

import os
import tempfile
from collections.abc import Generator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import settings

from tests.interpreter import INTERPRETED, quicken

# The same examples every time: a failure seen by one person is seen by all, and nothing fails by the clock.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

if INTERPRETED:
    quicken()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, tests marked `gpu` are left out."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_configure(config: pytest.Config) -> None:
    """Compile for this run alone: graphs that an earlier version of the operators left in a cache would be reused."""
    folder = tempfile.TemporaryDirectory(prefix="dsmr-inductor-")
    config.add_cleanup(folder.cleanup)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `gpu` make their tensors there."""
    with torch.device("cuda") if item.get_closest_marker("gpu") else nullcontext():
        return (yield)
