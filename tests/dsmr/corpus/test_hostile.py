"""Files that nobody wants to meet: each is read, or left out with a reason; none crashes, hangs or eats the memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import fuzz_midi
from tests.hostile_midi import FILES

pytest.importorskip("resource")  # Windows has no such limits, and no fork

ROOT = Path(__file__).parents[3]
MOST_MEMORY = 300 * 10**6


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each file, read in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, file in FILES.items():
        (folder / name).write_bytes(file.build())
    command = [sys.executable, "-m", "tests.read_apart", folder]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_read_or_left_out_with_a_reason(name: str, fates: dict[str, dict[str, Any]]) -> None:
    fate, outcome = fates[name], FILES[name].outcome
    assert fate["exit"] == 0
    assert fate["memory"] < MOST_MEMORY
    if isinstance(outcome, int):
        assert fate["notes"] == outcome
    else:
        assert re.search(outcome, fate["reason"])


def test_there_are_at_least_forty_hostile_files() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_damaged_files_are_read_or_refused(first: int) -> None:
    # 20,000 and more by hand: python -m tests.fuzz_midi
    fates = [fuzz_midi.try_input((number, "")) for number in range(first, first + 100)]
    assert [fate for fate, good in fates if not good] == []
    assert sum(fate == "read" for fate, _ in fates) >= 10  # else nothing but the reader's first checks is tested
