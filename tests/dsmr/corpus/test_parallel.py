"""A map over processes: order, progress, and what happens when one dies.

Items are expressions and the function is `eval`, which every spawned process can import.
"""

from __future__ import annotations

import re
import signal

import pytest

from dsmr.corpus.parallel import ProcessDied, map_in_order


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_in_order_of_the_items(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    items = ["__import__('time').sleep(0.05) or 'slow'", "2 + 2", "'x'"]
    assert map_in_order(eval, items, workers, lambda done, total: seen.append((done, total))) == ["slow", 4, "x"]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_death_of_a_process_costs_only_its_item() -> None:
    first, died, *others = map_in_order(eval, ["1", "__import__('os')._exit(3)", "3", "4"], 2)
    assert isinstance(died, ProcessDied)
    assert [first, *others] == [1, 3, 4]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        pytest.param("__import__('os')._exit(3)", "its process ended with code 3", id="exit"),
        pytest.param("__import__('os').abort()", "ended by the system: Aborted", id="crash"),
        pytest.param("all(True for _ in iter(int, 1))", "ended by the system: .*, after too long a time", id="hang"),
        pytest.param("__import__('signal').raise_signal(9)", "Killed, perhaps for want of memory", id="killed"),
    ],
)
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has neither such signals nor such a timer")
def test_death_of_a_process_is_explained(end: str, message: str) -> None:
    first, died = map_in_order(eval, ["1", end], 1, seconds=0.5)
    assert first == 1
    assert isinstance(died, ProcessDied)
    assert re.search(message, str(died))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_exception_of_the_function_ends_the_run(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        map_in_order(eval, ["1", "1 / 0", "3"], workers)


def test_no_items_no_processes() -> None:
    assert map_in_order(eval, [], 2) == []


def test_workers_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        map_in_order(eval, ["1"], -1)
