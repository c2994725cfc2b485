"""A study so small that it runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLES: dict[str, Any] = {
    "study": {"name": "small", "seeds": [0, 1], "tokens": 1536, "split": "test"},
    "model": {
        "layers": 2,
        "width": 32,
        "heads": 2,
        "kv_heads": 2,
        "segment": 32,
        "dropout": 0.1,  # so that random numbers matter
        "key_shift": [0, 1],
        "schedule": "full",
        "longest": 64,
    },
    "training": {"lanes": 2, "optimizer": "muon", "learning_rate": 0.01, "betas": [0.9, 0.99], "validations": 3},
    "probes": {
        "lanes": 4,
        "resets": {"at": [16, 32], "width": 16, "end": 96},
        "cuts": {"keeps": [16, 32], "buckets": [32, 64, 128], "block": 16, "blocks": 8},
    },
    "variant": [
        {"name": "long", "paper": {"ppl": 5.9, "krcu": 0.02}},
        {"name": "short", "schedule": "uniform", "budget": 32, "paper": {"ppl": 6.5, "krcu": 0.01}},
        {"name": "short, int8", "evaluates": "short", "storage": "int8"},
    ],
}


def write_toml(path: Path, tables: dict[str, Any] = TABLES) -> Path:
    """Write tables of plain values as TOML, in which JSON's numbers, texts and lists are as they are."""
    lines = []
    for name in ("study", "model", "training", "probes"):
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in tables[name].items()]
    for variant in tables["variant"]:
        lines.append("[[variant]]")
        lines += [f"{key} = {_value(value)}" for key, value in variant.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
