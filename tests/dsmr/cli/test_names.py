"""Names and titles are text, and any of them can be printed: on every stream, by every command, in every figure."""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.table import Table

from dsmr.audience import Audience
from dsmr.cli.terminal import Terminal, stdout, title_of
from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.music.midi import write_midi
from dsmr.music.tokens import BEGIN, END, encode
from tests.dsmr.cli.commands import ENVIRONMENT, SMALL_MODEL, encoded, fails, here, start, succeeds
from tests.dsmr.cli.conftest import a_performance

CHARACTERS = "中é[red][b] :smile: $x^{_ \x1b[31m\x9b\u202e\n"
ODD = CHARACTERS + os.fsdecode(b"\xff")
"""A name of everything that has ended a command, vanished, or commanded the terminal; the last byte is no UTF-8."""
SEEN = r"[red][b] :smile: $x^{_ \x1b[31m\x9b\u202e\x0a"

ENCODINGS = pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii"])


@pytest.fixture
def odd(music: Path, tmp_path: Path) -> Path:
    """A folder of an odd name, with two pieces and a file that is none, oddly named."""
    folder = tmp_path / "in[/b]" / ODD
    folder.mkdir(parents=True)
    shutil.copy(music / "piece 0.mid", folder / f"{ODD}.mid")
    shutil.copy(music / "piece 2.mid", folder / "_2.mid")
    (folder / f"bad{ODD}.mid").write_bytes(b"junk")
    return folder


def check(text: str) -> None:
    """See that nothing in what was printed commands a terminal."""
    assert not {unicodedata.category(char) for char in text.replace("\n", "")} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@ENCODINGS
def test_that_the_terminal_cannot_print_are_escaped_by_prepare(encoding: str, odd: Path) -> None:
    store = odd / "out.tokens"
    out, _ = encoded(encoding, "prepare", "folder", odd, "--out", store, "--workers", 0)
    check(out)
    assert rf"{SEEN}\xff.mid: expected a MIDI file" in out
    assert ("中é[red]" in out) == (encoding == "utf-8")
    assert r"中é" in (odd / "out.tokens.left-out.tsv").read_text(encoding="utf-8")
    out, _ = encoded(encoding, "prepare", "folder", odd, "--out", store, "--workers", 0, "--force", "--json")
    check(out)
    found = json.loads(out)
    assert os.fsencode(found["store"]) == os.fsencode(store)
    assert len(found["left_out"]) == 1


@ENCODINGS
def test_that_the_terminal_cannot_print_are_escaped_by_generate(encoding: str, checkpoint: Path, odd: Path) -> None:
    path = odd / f"new{ODD}.mid"
    arguments = ["generate", checkpoint, "--tokens", 20, "--out", path, "--force"]
    out, _ = encoded(encoding, *arguments, "--png", "--html")
    check(out)
    assert rf"{SEEN}\xff.mid: " in out
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert rf"{SEEN}\xff.mid" in path.with_suffix(".html").read_text(encoding="utf-8")
    assert json.loads(encoded(encoding, *arguments, "--json")[0])["takes"][0]["file"] == str(path)


@ENCODINGS
def test_that_the_terminal_cannot_print_are_escaped_by_evaluate(
    encoding: str, checkpoint: Path, store: Path, tmp_path: Path
) -> None:
    models = [tmp_path / name for name in (CHARACTERS, "_2")]
    for model in models:
        shutil.copytree(checkpoint.resolve(), model)
    folder, picture = tmp_path / f"out{ODD}", tmp_path / f"{ODD}.png"
    arguments = ["evaluate", *models, "--data", store, "--krcu", "--reset-at", 64, "--krcu-bin", 64, "--krcu-end", 256]
    out, _ = encoded(encoding, *arguments, "--out", folder, "--png", picture)
    check(out)
    assert SEEN in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "nll_by_position.png", "krcu.png"}
    found = json.loads((folder / "evaluation.json").read_bytes())
    assert [each["checkpoint"] for each in found["models"]] == [str(model) for model in models]


@ENCODINGS
def test_that_the_terminal_cannot_print_are_escaped_by_compare(encoding: str, odd: Path, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store") as writer:
        for seed in range(6):
            ids = [BEGIN, *encode(a_performance(seed)).tolist(), END]
            title = f"{seed} [/b] {CHARACTERS}"
            writer.add(ids, split="train" if seed < 3 else "test", title=title)
    pieces = [odd / f"{ODD}.mid", odd / "_2.mid"]
    picture = odd / f"{ODD}.png"
    out, _ = encoded(encoding, "compare", *pieces, "--data", tmp_path / "store", "--png", picture)
    check(out)
    assert rf"{SEEN}\xff.mid" in out
    assert "0 [/b] " in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(encoded(encoding, "compare", *pieces, "--data", tmp_path / "store", "--json")[0])
    assert {each["name"] for each in found["groups"][0]["music"]} == {path.name for path in pieces}


def test_that_the_terminal_cannot_print_end_no_process(odd: Path) -> None:
    for language in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        environment = {**ENVIRONMENT, **language}
        arguments = ["prepare", "folder", odd, "--out", odd / "out.tokens", "--workers", 1, "--force"]
        process = start(*arguments, environment=environment)
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "3 of 3 files" in error
        assert rf"{SEEN}\xff.mid: expected a MIDI file" in out


def test_are_text_in_errors(tmp_path: Path, store: Path, checkpoint: Path) -> None:
    for arguments in (
        ["compare", tmp_path / ODD, "--data", store],
        ["schedule", ODD],
        ["train", "--data", ODD, "--out", tmp_path / "run", "--steps", 1],
        ["evaluate", ODD, "--data", store],
        ["generate", checkpoint, "--out", ODD],
        ["prepare", "folder", tmp_path / ODD, "--out", tmp_path / "out.tokens"],
        [ODD],
    ):
        error = fails(*arguments)
        check(error)
        assert "[red]" in error


def test_are_text_wherever_a_table_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(CHARACTERS, title=CHARACTERS, caption=CHARACTERS)
    table.add_column(CHARACTERS, CHARACTERS)
    table.add_row(CHARACTERS, CHARACTERS)
    stdout.print(table)
    stdout.print(title_of(CHARACTERS, CHARACTERS))
    stdout.print(CHARACTERS, CHARACTERS)
    out, _ = capsys.readouterr()
    check(out)
    assert out.count(SEEN) == 10


def test_are_text_in_progress() -> None:
    shown = io.StringIO()
    with Audience(Terminal(file=shown, width=200), "scoring", "[/unit]") as audience:
        audience.show(2, 2, "[/b]\u202e\n")
        audience.show(2, 2)
    first, last = (line.rstrip() for line in shown.getvalue().splitlines())
    assert first.endswith(r"[/b]\u202e\x0a")
    assert last.endswith("2 of 2 [/unit]")


def test_lines_of_our_own_stay_lines(store: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", store, "--out", tmp_path / "run", *SMALL_MODEL, "--lanes", 1, "--steps", 1]
    _, error = here(*arguments, "--validations", 1)
    assert r"\x0a" not in error
    assert "\nrecurrent state: " in error
    assert "\nreceptive field: " in succeeds("schedule", "uniform")


def test_warn_of_nothing_in_figures(tmp_path: Path) -> None:
    from dsmr.model.schedule_bars import schedule_bars
    from dsmr.model.schedules import make_schedule
    from dsmr.music.roll import piano_roll
    from dsmr.plots import Curve, nll_by_position, training_curve

    odd = [r"$\frac{", "$a$", r"\$", "x^2", "a\x00b", "_hidden", "中", "a" * 250, "\U0001f3b9", " ", ODD]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in odd:
            piano_roll(a_performance(0, 3), tmp_path / "a.png", name)
            nll_by_position([Curve(name, [1, 2], [1, 2]), Curve(f"{name}2", [1, 2], [2, 1])], tmp_path / "b.png", name)
            training_curve([Curve(name, [1, 2], [1, 2])], tmp_path / "c.svg", name)
        schedule_bars([make_schedule("uniform", 2, budget_tokens=64)], tmp_path / "d.png")


def test_that_are_odd_reach_the_store_as_text(odd: Path, tmp_path: Path) -> None:
    write_midi(a_performance(9), odd / "plain.mid")
    succeeds("prepare", "folder", odd, "--out", tmp_path / "store", "--workers", 0)
    titles = [piece.title for piece in TokenStore.open(tmp_path / "store").pieces]
    assert len(titles) == 3
    assert all(title.encode() for title in titles)
