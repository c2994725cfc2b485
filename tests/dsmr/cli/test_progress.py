"""Every command that takes long says how far it is, and all of them in the same way."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.dsmr.cli.commands import ROOT, SMALL_MODEL, here

COMMANDS: dict[str, tuple[list[object], str]] = {
    "prepare folder": (["prepare", "folder", "MUSIC", "--out", "OUT", "--workers", 0], "reading .* 7 of 7 files"),
    "prepare pianist": (
        ["prepare", "pianist", "--tokens", 4000, "--out", "OUT", "--workers", 0],
        "composing .* pieces",
    ),
    "train": (["train", "--data", "STORE", "--out", "OUT", *SMALL_MODEL, "--steps", 2], "training .* step 2 "),
    "evaluate": (["evaluate", "CHECKPOINT", "--data", "STORE"], r"scoring .* tokens"),
    "generate": (["generate", "CHECKPOINT", "--tokens", 20, "--out", "OUT.mid"], "generating .* 20 tokens"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_is_told_without_a_terminal(
    command: str, music: Path, store: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsmr.audience.LOG", math.inf)
    names = {"MUSIC": music, "STORE": store, "CHECKPOINT": checkpoint}
    names |= {"OUT": tmp_path / "out", "OUT.mid": tmp_path / "out.mid"}
    arguments, last = COMMANDS[command]
    _, error = here(*(names.get(str(argument), argument) for argument in arguments))
    told = [line for line in error.splitlines() if re.search(r" \d+:\d\d:\d\d ", line)]
    assert re.match(last, told[-1])
    assert " 0:00:00 " in told[-1]
    assert len(told) <= 2  # the first and the last


def test_is_shown_in_one_place() -> None:
    shows = [
        path.name for path in (ROOT / "dsmr").rglob("*.py") if re.search(r"rich\.progress import", path.read_text())
    ]
    assert sorted(shows) == ["audience.py", "progress_line.py"]
