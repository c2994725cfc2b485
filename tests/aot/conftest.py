"""Triton's kernels, compiled for GPUs that need not be there; a process that interprets them cannot compile them."""

import importlib.util

import pytest

from tests.interpreter import INTERPRETED

collect_ignore_glob = ["*"] if INTERPRETED or importlib.util.find_spec("triton") is None else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`aot_full` takes hours: it runs only if asked for by `-m`."""
    if "aot_full" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("aot_full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
