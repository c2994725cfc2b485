"""Every example runs as its reader would run it, and says what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(example: str) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_drop_in_attention() -> None:
    assert run("drop_in_attention.py") == "5.0 MiB a lane, however long the stream; lengths [2048, 0]\n"


def test_the_language_models_memory_earns_its_keep() -> None:
    without, with_memory = map(float, re.findall(r"memory of \d+ tokens: ([\d.]+) nats", run("language_model.py")))
    assert with_memory < without - 0.2
