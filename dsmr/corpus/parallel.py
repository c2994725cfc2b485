"""Parallel map: a function over many items on all cores, results in order, that outlives the death of a process.

Beyond `concurrent.futures`, whose pool breaks with any of its processes, as little as possible. Pebble's pool outlives
them, too, but it limits wall time, of which items take more on a busy machine; here it is processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TypeVar

from dsmr.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessesError(RuntimeError):
    """Processes cannot be started, or one died whose result is needed."""


class ProcessDied(Exception):
    """Takes the place of a result when the item's process ended: by a crash in native code, for want of memory, or
    because it ran too long. The message says which.
    """


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Result | ProcessDied]:
    """Return ``[function(item) for item in items]``, computed by several processes.

    Processes are spawned: function, items and results must be picklable, and a script that calls this needs the usual
    ``if __name__ == "__main__":``.

    Args:
        function: a function of a module. An exception that it raises ends the run.
        items: what to call it with.
        workers: how many processes; None takes all cores that this process may use. With 0 the work happens in the
            calling process, which then dies with an item and is not bound to ``seconds``.
        progress: called after each item.
        seconds: how much processor time an item may take before its process is ended; None sets no limit, nor does
            Windows, which has no such timer.

    Raises:
        ValueError: a negative number of workers.
        ProcessesError: processes cannot be started.
    """
    workers = _usable_cores() if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers: expected at least 0, got {workers}")
    results: dict[int, Result | ProcessDied] = {}

    def finish(index: int, result: Result | ProcessDied) -> None:
        results[index] = result
        if progress is not None:
            progress(len(results), len(items))

    if workers == 0 or not items:
        for index, item in enumerate(items):
            finish(index, function(item))
    else:
        limited = partial(_within, seconds, function) if seconds and hasattr(signal, "setitimer") else function
        pool = _pool(min(workers, len(items)))
        try:
            futures: dict[Future[Result], int] = {}
            with (
                suppress(BrokenProcessPool),
                _deaf_to_ctrl_c(),
            ):  # what cannot be submitted any more goes one by one, below
                for index, item in enumerate(items):
                    futures[pool.submit(limited, item)] = index
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    finish(futures[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)
        # A process that dies takes its pool with it and nobody knows on which item: the rest go one by one.
        rest = [index for index in range(len(items)) if index not in results]
        for index, result in zip(rest, _one_by_one(limited, [items[index] for index in rest]), strict=True):
            finish(index, result)
    return [results[index] for index in range(len(items))]


def _within(seconds: float, function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function; the system ends the process, native code and all, once this took so much processor time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function(item)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _one_by_one(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result | ProcessDied]:
    pool: ProcessPoolExecutor | None = None
    try:
        for item in items:
            if pool is None:
                pool = _pool(1)
                with _deaf_to_ctrl_c():
                    process = _process_of(pool)
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                pool.shutdown()  # waits until the process's exit code is known
                pool = None
                yield ProcessDied(_how_it_ended(process))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    try:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_the_caller)
    except OSError as error:
        raise ProcessesError(
            f"worker processes need semaphores of the system (on Linux in /dev/shm): {error.strerror}; "
            "with workers=0 none are needed"
        ) from error


def _end_with_the_caller() -> None:
    """Let this process end when the one that started it does, however that ended: it would wait for items for ever."""
    caller = multiprocessing.parent_process()
    assert caller is not None

    def end() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start within never see Ctrl-C, which the terminal sends to all; this one sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _process_of(pool: ProcessPoolExecutor) -> BaseProcess:
    """The process of a pool that has one, after asking it whether it is alive."""
    try:
        pid = pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise ProcessesError(
            "worker processes die as soon as they start; does the calling script lack `if __name__ == '__main__':`? "
            "With workers=0 none is needed"
        ) from error
    return next(child for child in multiprocessing.active_children() if child.pid == pid)


def _how_it_ended(process: BaseProcess) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"its process ended with code {code}"
    meaning = ""
    if code == -signal.SIGPROF:
        meaning = ", after too long a time"
    elif code == -signal.SIGKILL:
        meaning = ", perhaps for want of memory"
    return f"its process was ended by the system: {signal.strsignal(-code)}{meaning}"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and batch systems often grant fewer than exist
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
