"""A function over many items on all cores, results in order, that outlives the death of a process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""


class ProcessDied(Exception):
    """Takes the place of a result when the item's process was killed, for instance by a crash in native code."""


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Result | ProcessDied]:
    """Return ``[function(item) for item in items]``, computed by several processes.

    Processes are spawned: function, items and results must be picklable, and a script that calls this needs the usual
    ``if __name__ == "__main__":``. Only with one worker does the work happen in the calling process.

    Args:
        function: a function of a module. An exception that it raises ends the run.
        items: what to call it with.
        workers: how many processes; None takes all cores that this process may use.
        progress: called after each item.

    Raises:
        ValueError: fewer than one worker.
        RuntimeError: processes cannot be started.
    """
    workers = _usable_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    results: dict[int, Result | ProcessDied] = {}

    def finish(index: int, result: Result | ProcessDied) -> None:
        results[index] = result
        if progress is not None:
            progress(len(results), len(items))

    if workers == 1 or len(items) < 2:
        for index, item in enumerate(items):
            finish(index, function(item))
    else:
        pool = _pool(min(workers, len(items)))
        try:
            futures: dict[Future[Result], int] = {}
            with suppress(BrokenProcessPool):  # what cannot be submitted any more goes one by one, below
                for index, item in enumerate(items):
                    futures[pool.submit(function, item)] = index
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    finish(futures[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)
        # A process that dies takes its pool with it and nobody knows on which item: the rest go one by one.
        rest = [index for index in range(len(items)) if index not in results]
        for index, result in zip(rest, _one_by_one(function, [items[index] for index in rest]), strict=True):
            finish(index, result)
    return [results[index] for index in range(len(items))]


def _one_by_one(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result | ProcessDied]:
    pool: ProcessPoolExecutor | None = None
    try:
        for item in items:
            if pool is None:
                pool = _pool(1)
                _check_alive(pool)
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                pool = None
                yield ProcessDied("the process died")
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _check_alive(pool: ProcessPoolExecutor) -> None:
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes die as soon as they start; does the calling script lack `if __name__ == '__main__':`? "
            "With workers=1 none is needed"
        ) from error


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and batch systems often grant fewer than exist
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
