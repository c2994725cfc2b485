"""Runner of a study: a queue of jobs, one process for each core or GPU, and a line in the results for each variant.

OUT/dsmr-study.lock    by which a study's folder is known; locked while a process runs the study
OUT/study.toml         the study as it was last run
OUT/results.jsonl      see `dsmr.study.results`
OUT/runs, checkpoints  see `dsmr.study.job`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import dsmr
from dsmr.audience import Audience
from dsmr.claim import claimed, saving
from dsmr.corpus.store import TokenStore
from dsmr.files import write_durably
from dsmr.process import cores
from dsmr.study.config import Variant, read_study
from dsmr.study.job import STUDY, Job
from dsmr.study.results import RESULTS, Result, Results

if TYPE_CHECKING:
    from rich.console import Console

STUDY_MARK = "dsmr-study.lock"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class FailedJobsError(RuntimeError):
    """Some jobs could not be done; all others are."""


def run_study(
    source: Path,
    store: TokenStore,
    out: Path,
    *,
    places: Sequence[tuple[str, int | None]],
    console: Console | None = None,
) -> Results:
    """Train and probe every variant with every seed, but for what is done already.

    Seed by seed, so that a study that is still running compares all variants. Whatever ends this, also a power cut, the
    next call with the same folder goes on from there; variants and seeds may have been added to the study meanwhile.

    Args:
        source: the study's file.
        store: what to learn from, and what to probe with.
        out: the study's folder; made if missing.
        places: where to run jobs side by side, each a device and, on CPUs, the core to keep to; see `places_on`.
        console: where to say what is going on; None: nowhere.

    Raises:
        OccupiedError: `out` holds something else, or another process runs a study there.
        ValueError: the study's file is wrong, or the results in `out` are of other settings or another store.
        SaveError: `out` cannot be written; what was there is as it was.
        FailedJobsError: names the jobs that failed and why; calling this again tries them again.
        KeyboardInterrupt: Ctrl-C; the trainings are saved.
    """
    study = read_study(source)
    with claimed(out, STUDY_MARK, "a study"):
        results = Results(out / RESULTS)
        results.check_frame(study, store.digest)
        jobs = [
            (variant, seed, missing)
            for seed in study.seeds
            for variant in study.trained
            if (missing := results.missing(seed, study.probed_with(variant)))
        ]
        with saving(out):
            write_durably(out / STUDY, source.read_bytes())
        lines = len(study.seeds) * len(study.variants)
        with Audience(console, "studying", "results") as audience:
            _Queue(results, lines, audience, out, store.path).run(jobs, places)
    return results


def places_on(device: str, processes: int | None) -> list[tuple[str, int | None]]:
    """Where to run so many jobs side by side: by default one on each core that this process may use, or each GPU.

    Args:
        device: "cpu" or "cuda".
        processes: how many; more than there are GPUs share them. On CPUs each keeps to a core of its own, where the
            system allows that and there are enough.
    """
    if device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        return [(f"cuda:{number % gpus}", None) for number in range(processes or gpus)]
    count = processes or cores()
    own: list[int | None] = [None] * count
    if hasattr(os, "sched_getaffinity") and count <= cores():
        own = [*sorted(os.sched_getaffinity(0))[:count]]
    return [(device, core) for core in own]


class _Queue:
    """Jobs, and the processes that run them."""

    def __init__(self, results: Results, lines: int, audience: Audience, out: Path, store: Path) -> None:
        self._results, self._lines, self._audience = results, lines, audience
        self._out, self._store = out, store
        self._turn = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(
        self, jobs: Sequence[tuple[Variant, int, tuple[Variant, ...]]], places: Sequence[tuple[str, int | None]]
    ) -> None:
        """Run all of them, as many side by side as there are places; FailedJobsError, KeyboardInterrupt."""
        free: SimpleQueue[tuple[str, int | None]] = SimpleQueue()
        for place in places:
            free.put(place)

        def run_one(variant: Variant, seed: int, missing: tuple[Variant, ...]) -> None:
            device, core = place = free.get()
            try:
                names = tuple(each.name for each in missing)
                self._run_job(
                    Job(str(self._out), str(self._store), variant.name, variant.slug, seed, names, device, core)
                )
            finally:
                free.put(place)

        with ThreadPoolExecutor(len(places)) as pool:
            running = [pool.submit(run_one, *job) for job in jobs]
            try:
                wait(running)
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        if failures := [str(error) for each in running if (error := each.exception()) is not None]:
            raise FailedJobsError("; ".join(failures))

    def _run_job(self, job: Job) -> None:
        """Run a job in a process of its own and add what it finds to the results."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(dsmr.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, **(ONE_THREAD if job.device == "cpu" else {})}
        reason = None
        with open(job.log, "a", encoding="utf-8") as log:
            with self._turn:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    [sys.executable, "-m", "dsmr.study.job", json.dumps(asdict(job))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for the one who asked for the study, who passes it on once
                )
                self._running.add(process)
                self._audience.print(f"{job.variant}, seed {job.seed}: begins on {job.device}")
            with process:
                assert process.stdout is not None
                for text in process.stdout:
                    said = json.loads(text)
                    if (reason := said.get("error")) is None:
                        self._add(said)
        with self._turn:
            self._running.discard(process)
            stopped = self._stopped
        if process.returncode and not stopped:
            reason = reason or f"ended with exit code {process.returncode}"
            raise RuntimeError(f"{job.variant}, seed {job.seed}: {reason}; see {job.log}")

    def _add(self, said: dict[str, dict[str, object]]) -> None:
        with self._turn:
            result = self._results.add(said["frame"], said["line"])
            self._audience.print(describe(result))
            self._audience.show(len(self._results.all), self._lines)

    def _stop(self) -> None:
        """Let all processes save and end."""
        with self._turn:
            self._stopped = True
            for process in self._running:
                process.terminate()


def describe(result: Result) -> str:
    """A result in a line."""
    facts = result.facts
    krcu = "" if facts["krcu_auc"] is None else f", KRCU-AUC {facts['krcu_auc']:.4f}"
    return (
        f"{result.variant}, seed {result.seed}: best val PPL {facts['run']['best_ppl']:.2f}, "
        f"whole pieces PPL {facts['ppl']:.2f}{krcu}; {facts['tokens_per_second']:,.0f} tokens/s"
    )
