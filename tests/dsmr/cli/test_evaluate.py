"""`dsmr evaluate`: one object for machines, tables for people."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from dsmr.corpus.store import TokenStore
from tests.dsmr.cli.commands import ENVIRONMENT, fails, succeeds


def test_prints_one_json_object(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "nll.png"
    found = json.loads(
        succeeds("evaluate", checkpoint, "--data", store, "--json", "--png", picture, "--reset-every", 100)
    )
    opened = TokenStore.open(store)
    tokens = sum(opened.pieces[index].length - 1 for index in opened.indices("test"))
    for score in ("whole", "reset", "bigram"):
        assert found[score]["tokens"] == tokens
        assert 1 < found[score]["ppl"] < 1000
    assert found["reset"]["reset_every"] == 100
    assert found["store"] == opened.digest
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_prints_tables_for_people(store: Path, checkpoint: Path) -> None:
    text = succeeds("evaluate", checkpoint, "--data", store, "--split", "validation", "--reset-every", 0)
    assert re.search(r"│ whole pieces +│ +\d+\.\d\d │ +too few pieces +│", text)  # two: no interval holds of them
    assert "│ bigram " in text
    assert "context reset" not in text
    assert "tokens/s" in text


def test_explains_what_is_wrong(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert "expected a checkpoint" in fails("evaluate", tmp_path / "nothing", "--data", store)
    assert "no such token store" in fails("evaluate", checkpoint, "--data", tmp_path / "nothing.tokens")
    assert "split: expected one of" in fails("evaluate", checkpoint, "--data", store, "--split", "half")


def test_tables_in_a_pipe_are_as_wide_as_they_need(trained: tuple[Path, str], store: Path) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"}
    command = [
        sys.executable,
        "-m",
        "dsmr",
        "evaluate",
        trained[0] / "last",
        trained[0] / "best",
        "--data",
        store,
        "--krcu",
    ]
    options = ["--reset-at", "64", "--krcu-bin", "64", "--krcu-end", "256"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=True)
    assert "95 % interval" in done.stdout
    assert "…" not in done.stdout
