"""Results of a study that nobody ran: written line by line, with effects of pieces and seeds that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dsmr.evaluation.probes.returns import KINDS, RETURN_DISTANCES
from dsmr.study.config import Study, Variant
from dsmr.study.results import settings_of

PIECES = 24
STORE = "a store"


def frame(study: Study, pieces: int = PIECES) -> dict[str, Any]:
    """The first line: every probe that the study asks for, with tokens in every bin that it can have."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 4000, (pieces, 1))
    counts = {"nll": tokens}
    asked = study.questions
    if asked.resets:
        counts["krcu"] = np.full((pieces, asked.resets.bins), asked.resets.width)
    if asked.cuts:
        counts |= {f"keep {keep}": np.full((pieces, len(asked.cuts.buckets) - 1), 256) for keep in asked.cuts.keeps}
    if asked.recall:
        recalled = np.zeros((pieces, len(RETURN_DISTANCES)), dtype=np.int64)
        recalled[:, 1:6] = rng.integers(20, 90, (pieces, 5))
        counts |= {f"recall {kind}": recalled for kind in KINDS}
    return {
        "kind": "frame",
        "study": study.name,
        "store": STORE,
        "split": study.split,
        "questions": json.loads(json.dumps(asdict(asked))),
        "pieces": list(range(pieces)),
        "counts": {name: count.tolist() for name, count in counts.items()},
    }


def line(
    study: Study, variant: Variant, seed: int, *, nll: float = 2.5, noise: float = 0.0, memory: int = 2**20
) -> dict[str, Any]:
    """A result: a mean NLL, effects of the same size with the opposite sign, and noise that depends on the name."""
    rng = np.random.default_rng([seed, *variant.name.encode()])
    totals = {}
    for name, rows in frame(study)["counts"].items():
        count = np.array(rows)
        mean = (nll if name == "nll" else 3 - nll) + noise * rng.normal(size=count.shape)
        totals[name] = (mean * count)[count > 0].round(3).tolist()
    return {
        "kind": "result",
        "variant": variant.name,
        "seed": seed,
        "settings": settings_of(variant, seed),
        "ppl": float(np.exp(nll)),
        "krcu_auc": 0.01,
        "horizon_bytes": memory,
        "ring_bytes": 2 * memory,
        "parameters": 1_000_000,
        "probe_seconds": 1.0,
        "run": {"best_ppl": float(np.exp(nll)), "tokens": 4_000_000, "seconds": 1800.0, "peak_memory": 2**29},
        "tokens_per_second": 2000.0,
        "validations": [],
        "ground": {},
        "weights": "0",
        "totals": totals,
    }


def write(folder: Path, study: Study, lines: list[Mapping[str, Any]]) -> Path:
    """A folder with results of these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(each) + "\n" for each in [frame(study), *lines])
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    return folder
