"""Job of a study, in a process of its own: train one variant with one seed, then probe all that use its weights.

    OUT/runs/VARIANT/seed-0            its training, while it lasts (see `dsmr.training.folder`)
    OUT/runs/VARIANT/seed-0.log        what it printed
    OUT/runs/VARIANT/seed-0.lock       locked while a process works on it
    OUT/checkpoints/VARIANT/seed-0     its best checkpoint, as soon as training is over

`python -m dsmr.study.job JOB` reads one `Job` as JSON from its argument and writes a line of JSON on its standard
output for each variant that it has probed. A process that is killed at any moment loses nothing but what came after the
last saved state; the next one for the same job goes on from there. When its standard input ends, because whoever
started it is gone, it ends as if it had been sent SIGTERM: training saves itself first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.models import probe
from dsmr.model.checkpoint import load_checkpoint, read_info, save_checkpoint
from dsmr.model.schedules import STORAGES, MemoryFormat
from dsmr.model.transformer import Transformer
from dsmr.study.config import Study, Variant, read_study
from dsmr.study.results import frame_of, settings_of, totals_of
from dsmr.training import BEST, METRICS_FILE, DivergedError, RunFolder, TrainingConfig, train
from dsmr.training.ground import describe_ground
from dsmr.training.optimisation import make_precision
from dsmr_kernels import MemoryStack

STUDY, RUNS, CHECKPOINTS = "study.toml", "runs", "checkpoints"
INTERRUPTED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        out: the study's folder, with its `STUDY`.
        store: the token store.
        variant: the name of the variant to train.
        slug: the same as the name of a file.
        seed: of its training.
        probe: the names of the variants to probe with its weights.
        device: where.
        core: the processor's core to keep to; None: any.
    """

    out: str
    store: str
    variant: str
    slug: str
    seed: int
    probe: tuple[str, ...]
    device: str
    core: int | None

    @property
    def run(self) -> Path:
        """The folder of its training."""
        return Path(self.out) / RUNS / self.slug / f"seed-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The folder of its best checkpoint."""
        return Path(self.out) / CHECKPOINTS / self.slug / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.run.with_suffix(".log")

    @property
    def lock(self) -> Path:
        """Locked while a process works on it."""
        return self.run.with_suffix(".lock")


class InterruptedTraining(Exception):
    """A signal ended a training before its time; it is saved."""


def run_job(job: Job) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Train, unless that is done, and probe; yield the frame and the line of each variant (see `results`).

    Raises:
        InterruptedTraining: see there.
        ValueError, OSError, DivergedError: it cannot be done.
    """
    study, store, device = read_study(Path(job.out) / STUDY), TokenStore.open(job.store), torch.device(job.device)
    variants = {variant.name: variant for variant in study.variants}
    train_variant(job, variants[job.variant], store, device)
    for name in job.probe:
        yield probe_variant(job, study, variants[name], store, device)


def train_variant(job: Job, variant: Variant, store: TokenStore, device: torch.device) -> None:
    """Train a variant until its best checkpoint is there, from where an earlier process came to.

    Raises:
        InterruptedTraining: see there.
        ValueError: there is a checkpoint or a run of other settings.
        DivergedError, OSError: see `dsmr.training.train`.
    """
    config = replace(variant.training, seed=job.seed)
    if job.checkpoint.is_dir():
        info = read_info(job.checkpoint)
        there = (info.training["store"], info.config, TrainingConfig.from_dict(info.training["config"]))
        if there != (store.digest, variant.model, config):
            raise ValueError(f"{job.checkpoint}: expected a checkpoint of {job.variant!r}, got one of other settings")
        return
    torch.manual_seed(job.seed)  # of the weights
    model, folder = Transformer(variant.model).to(device), RunFolder(job.run)
    console = Console(file=sys.stderr, width=120)
    run = train(model, store, config, folder.path, resume=bool(folder.steps()), keep=1, console=console)
    if run.interrupted is not None:
        raise InterruptedTraining
    best, info = load_checkpoint(folder.path / BEST)
    rows = map(json.loads, (folder.path / METRICS_FILE).read_text(encoding="utf-8").splitlines())
    summary = {
        **info.training,
        "run": run.counters(),
        "tokens_per_second": run.tokens_per_second,
        "validations": [[row["tokens"], row["val_loss"]] for row in rows if row["val_loss"] is not None],
        "ground": describe_ground(device, 1),
    }
    save_checkpoint(job.checkpoint, best, summary)
    folder.remove()


def probe_variant(
    job: Job, study: Study, variant: Variant, store: TokenStore, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Probe the job's checkpoint as a variant asks for; returns the frame and the variant's line."""
    model, info = load_checkpoint(job.checkpoint, device)
    asked, begun = replace(study.questions, storage=variant.storage), time.monotonic()
    with make_precision(variant.training.autocast, device):
        found = probe(
            model,
            store,
            study.split,
            asked,
            label=variant.name,
            checkpoint=str(job.checkpoint),
            digest=info.digest,
        )
        memory = model.new_state(1, storage=variant.storage)
    line = {
        "kind": "result",
        "variant": variant.name,
        "seed": job.seed,
        "settings": settings_of(variant, job.seed),
        "ppl": found.assessment.whole.ppl,
        "krcu_auc": found.krcu and found.krcu.auc,
        "horizon_bytes": horizon_bytes(memory, variant),
        "ring_bytes": memory.bytes_per_lane,
        "parameters": model.parameters_count,
        "probe_seconds": round(time.monotonic() - begun, 1),
        **{name: info.training[name] for name in ("run", "tokens_per_second", "validations", "ground")},
        "weights": info.digest,
        "totals": totals_of(found),
    }
    return frame_of(study, store.digest, found), line


def horizon_bytes(memory: MemoryStack, variant: Variant) -> int:
    """Bytes per lane of the entries that all layers may see, as budgets in bytes count them."""
    (storage,) = (name for name, kind in STORAGES.items() if kind == _kind(memory))
    model = variant.model
    return sum(model.schedule.horizon_bytes(MemoryFormat(model.kv_heads, model.head_dim, storage)))


def _kind(memory: MemoryStack) -> tuple[torch.dtype, str | None]:
    """As in `STORAGES`, where the type in which quantised memory is computed does not count."""
    return (torch.float32 if memory.storage else memory.dtype, memory.storage)


def main(argument: str) -> int:
    """Run a job; what went wrong is a line of JSON, too. Returns the exit code."""
    values = json.loads(argument)
    job = Job(**{**values, "probe": tuple(values["probe"])})
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    if job.device == "cpu":
        torch.set_num_threads(1)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        with FileLock(job.lock):  # a process whose starter was killed may take a moment to save and end
            for frame, line in run_job(job):
                _say(frame=frame, line=line)
    except InterruptedTraining:
        return INTERRUPTED
    except (ValueError, OSError, DivergedError) as error:
        _say(error=str(error))
        return 1
    return 0


def _end_with_starter() -> None:
    """Wait for the end of standard input, which nobody writes to."""
    os.read(0, 1)  # not by way of sys.stdin, whose lock this thread would hold when Python ends
    os.kill(os.getpid(), signal.SIGTERM)


def _say(**values: Any) -> None:
    print(json.dumps(values, allow_nan=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
