"""What the documents tell their readers to type works as it stands there, on a small corpus and with a small model.

Run are every fenced block of Python, in a program of its own, and every line of a block that begins with `dsmr`, in the
document's order and in one folder that holds `~/midi` and `theme.mid`. Numbers that make a run long are made small. A
line that cannot be run here says so where its readers see it: `# not run by the tests: why`. Commands inside the prose
are not run; that they and their options exist is checked.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsmr.cli import app
from dsmr.music.midi import write_midi
from dsmr.music.tokens import NOTE_DTYPE, Performance

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "# not run by the tests: "
SMALL_MODEL = "--layers 2 --width 32 --segment 64 --schedule two_scale --budget 256"
SMALLER = (
    (r"--minutes \d+", "--steps 2 --lanes 1 --validations 1"),
    (r"--preset \w+", SMALL_MODEL),
    (r"(dsmr prepare pianist.*) --tokens \d+", r"\1 --tokens 20000 --longest 2000"),
    (r"--seconds \d+", "--seconds 2"),
    (r"(dsmr generate (?!.*--seconds).*)", r"\1 --seconds 2"),
)


def lines_of_code(document: Path) -> list[str]:
    """Lines of indented blocks, and of fenced ones that are not Python."""
    text = re.sub(r"^```python\n.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)
    return [line.strip() for block in fenced for line in block.splitlines()] + indented


def commands(document: Path) -> list[str]:
    return [line for line in lines_of_code(document) if re.match(r"(\$ )?dsmr ", line)]


def python_blocks() -> list[object]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            line = text[: block.start()].count("\n") + 2
            found.append(pytest.param(block[1], id=f"{document.name}:{line}"))
    return found


@pytest.mark.parametrize("code", python_blocks())
def test_python_runs(code: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a folder of MIDI files."""
    path = tmp_path_factory.mktemp("home")
    (path / "midi").mkdir()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        notes = np.zeros(150, NOTE_DTYPE)
        notes["onset"] = np.sort(rng.integers(0, 3000, 150)) / 100
        notes["offset"] = notes["onset"] + 0.3
        notes["pitch"], notes["velocity"] = rng.integers(40, 90, 150), rng.integers(30, 110, 150)
        write_midi(Performance(notes), path / "midi" / f"{seed}.mid")
    return path


@pytest.mark.parametrize("document", [pytest.param(each, id=each.name) for each in DOCUMENTS if commands(each)])
def test_commands_run(
    document: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theme.mid").write_bytes((home / "midi" / "0.mid").read_bytes())
    for line in commands(document):
        if NOT_RUN in line:
            continue
        for pattern, replacement in SMALLER:
            line = re.sub(pattern, replacement, line.partition(" #")[0])
        arguments = [os.path.expanduser(each) for each in shlex.split(line)[1:]]
        assert app.run(arguments) == 0, (line, capsys.readouterr().err)


def test_commands_in_the_prose_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for code in re.findall(r"`dsmr ([^`]+)`", document.read_text(encoding="utf-8")):
            words = [word for word in code.split() if re.fullmatch(r"[a-z]+", word)]
            if not words:  # `dsmr ...`
                continue
            command = words[0]
            if command not in options:
                assert app.run([command, "--help"]) == 0, (document.name, code)
                options[command] = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
            missing = set(re.findall(r"--[a-z-]+", code)) - options[command]
            assert not missing, (document.name, code)


def test_finds_what_there_is() -> None:
    assert len(python_blocks()) >= 3
    assert len(commands(ROOT / "README.md")) >= 6
    assert len(commands(ROOT / "docs" / "how-to.md")) >= 10
    unrun = [line for document in DOCUMENTS for line in commands(document) if NOT_RUN in line]
    assert all(line.partition(NOT_RUN)[2] for line in unrun)


def test_files_that_documents_name_exist() -> None:
    named = {
        (document.name, path)
        for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "bench" / "METHOD.md"]
        for path in re.findall(
            r"`((?:dsmr|dsmr_kernels|bench|tests|examples|docs)/[\w./-]+)`", document.read_text(encoding="utf-8")
        )
    }
    assert len([path for document, path in named if document == "architecture.md"]) >= 30
    assert not {(document, path) for document, path in named if not (ROOT / path).exists()}


@pytest.mark.parametrize("package", ["dsmr", "bench"])
def test_the_picture_of_the_rooms_shows_every_room(package: str) -> None:
    shown = re.findall(r'font-weight="bold"[^>]*>([^<]+)<', (ROOT / "docs" / "images" / "rooms.svg").read_text())
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert len(rooms) >= 5
    assert not rooms - set(shown)
