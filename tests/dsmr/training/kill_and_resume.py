"""Kill a training process again and again, resume it, and compare with a run that nobody disturbed.

    python tests/dsmr/training/kill_and_resume.py FOLDER --kills 200 --seed 1

Every attempt is a process of its own (forked, because importing PyTorch takes longer than all the rest), ended by a
real SIGKILL: half of the times at a random moment, otherwise a random moment after it began to write or remove a state.
Where it hit is read off what it left behind. When a run is complete it must equal the undisturbed one in every row of
`metrics.jsonl`, times excepted, and in its weights; then the next run begins. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.model.checkpoint import read_info
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, NOTE_DTYPE, Performance, encode
from dsmr.training import RunFolder, TrainingConfig, train

CONFIG = TrainingConfig(
    steps=40, lanes=3, accumulate=2, log_every=3, validations=4, optimizer="muon", learning_rate=3e-3
)
MODEL = ModelConfig(
    width=32,
    heads=2,
    kv_heads=1,
    schedule=make_schedule("explicit", 2, horizons=[64, 16]),
    segment=16,
    key_shift=(3,),
    rotary_share=(0.5,),
    qk_norm=True,
    dropout=0.1,  # so that random numbers matter; augmentation is on, too
)
KEEP = 3


def write_store(path: Path, seed: int = 0) -> TokenStore:
    rng = np.random.default_rng(seed)
    with StoreWriter(path) as store:
        for number, split in enumerate(["train"] * 6 + ["validation"] * 2):
            notes = np.zeros(40 + 15 * number, NOTE_DTYPE)
            notes["onset"] = np.sort(rng.integers(0, 20 * len(notes), len(notes))) / 100
            notes["offset"] = notes["onset"] + rng.integers(5, 60, len(notes)) / 100
            notes["pitch"] = rng.integers(40, 90, len(notes))
            notes["velocity"] = rng.integers(30, 110, len(notes))
            store.add([BEGIN, *encode(Performance(notes)), END], split=split, title=f"piece {number}")
    return TokenStore.open(path)


def go_on(store: TokenStore, run: Path, save_seconds: float) -> None:
    """Begin the run, or resume it."""
    torch.manual_seed(0)
    resume = bool(RunFolder(run).steps())
    train(Transformer(MODEL), store, CONFIG, run, resume=resume, keep=KEEP, save_minutes=save_seconds / 60)


def attempt(store: TokenStore, run: Path, moment: random.Random, seconds: float) -> str | None:
    """Go on with the run in a process that is killed; returns where it was hit, or None if it was complete before.

    `seconds`: what a whole run takes, about.
    """
    child = os.fork()
    if child == 0:
        try:
            go_on(store, run, save_seconds=seconds * moment.uniform(0.01, 0.1))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    time.sleep(seconds * moment.uniform(0.0, 0.6))
    if moment.random() < 0.5:
        while not list(run.glob("checkpoints/.*")) and alive(child):
            time.sleep(1e-4)
        time.sleep(moment.uniform(0.0, 5e-3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        if os.WEXITSTATUS(status):
            raise SystemExit("an attempt failed: see above")
        return None
    return where(run)


def alive(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def where(run: Path) -> str:
    """What a process was doing when it was killed, by what it left behind."""
    folder = RunFolder(run)
    if not folder.steps():
        return "before the first state was whole"
    for path in run.glob("checkpoints/.*"):
        if path.name.endswith(".removed"):
            return "removing an old state"
        files = sorted(re.sub(r"\.\d+\.partial", ".partial", file.name) for file in path.iterdir())
        return f"writing a state: {', '.join(files) or 'nothing yet'}"
    if (run / "last").resolve() != folder.newest().resolve():
        return "between a state and the link to it"
    return "computing"


def outcome(run: Path) -> tuple[list[dict[str, Any]], str]:
    """All that a run must have in common with another: measurements without times, and the weights' digest."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in row.items() if k not in ("tokens_per_second", "seconds")} for row in rows]
    return untimed, read_info(run / "last").digest


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Kill as often as the arguments say; returns what is printed, SystemExit when a run differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a process in which PyTorch has threads cannot be forked
    moment = random.Random(options.seed)
    store = write_store(options.folder / "store")
    train(Transformer(MODEL), store, replace(CONFIG, steps=1), options.folder / "warm")  # imports what is imported late
    begun = time.monotonic()
    go_on(store, options.folder / "undisturbed", save_seconds=3600)
    seconds = time.monotonic() - begun
    expected = outcome(options.folder / "undisturbed")
    hits: Counter[str] = Counter()
    runs = resumed = 0
    while hits.total() < options.kills:
        run = options.folder / f"run-{runs}"
        runs += 1
        while (hit := attempt(store, run, moment, seconds)) is not None:
            hits[hit] += 1
            resumed += bool(RunFolder(run).steps())
        if outcome(run) != expected:
            raise SystemExit(f"{run}: differs from {options.folder / 'undisturbed'}")
    return {
        "kills": hits.total(),
        "resumed": resumed,
        "complete_runs": runs,
        "rows_compared": runs * len(expected[0]),
        "differences": 0,
        "where": dict(hits.most_common()),
    }


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
