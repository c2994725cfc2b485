"""What cannot be written, or is not what it should be: one line that names the path and the reason, and nothing lost.

All of it works as an ordinary user and as root: `/proc` takes nobody's files, and a bound on the size of files ends a
write as a full disk does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dsmr.corpus import download
from tests.dsmr.cli.commands import ENVIRONMENT, SMALL_MODEL, fails, here, start
from tests.full_disk import files_of_at_most

Arguments = list[object]
WRITERS: dict[str, Callable[[Path], Arguments]] = {
    "prepare folder": lambda path: ["prepare", "folder", "MUSIC", "--workers", 0, "--out", path / "x.tokens"],
    "prepare pianist": lambda path: ["prepare", "pianist", "--tokens", 9, "--workers", 0, "--out", path / "x.tokens"],
    "generate": lambda path: ["generate", "MODEL", "--tokens", 40, "--out", path / "x.mid"],
    "evaluate --png": lambda path: ["evaluate", "MODEL", "--data", "STORE", "--png", path / "x.png"],
    "evaluate --out": lambda path: ["evaluate", "MODEL", "--data", "STORE", "--out", path / "x"],
    "export": lambda path: ["export", "MODEL", "--out", path / "x"],
    "compare": lambda path: ["compare", "MUSIC/piece 0.mid", "--data", "STORE", "--png", path / "x.png"],
    "schedule": lambda path: ["schedule", "uniform", "--png", path / "x.png"],
    "demo": lambda path: ["demo", "--quick", "--out", path / "x"],
}
ALL = pytest.mark.parametrize("writer", WRITERS)


@pytest.fixture
def command(music: Path, store: Path, checkpoint: Path) -> Callable[[str, Path], Arguments]:
    """A writer's arguments for a folder to write into."""
    real = {"MUSIC": str(music), "STORE": str(store), "MODEL": str(checkpoint)}

    def arguments(writer: str, path: Path) -> Arguments:
        texts = map(str, WRITERS[writer](path))
        return [re.sub("|".join(real), lambda match: real[match[0]], text) for text in texts]

    return arguments


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long must not begin."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    for name in (
        "dsmr.corpus.prepare.prepare_folder",
        "dsmr.corpus.prepare.prepare_pianist",
        "dsmr.generation.takes.generate",
        "dsmr.evaluation.models.probe",
        "dsmr.sharing.export",
        "dsmr.music.analysis.comparison.compare_music",
        "dsmr.demo.run.train",
    ):
        monkeypatch.setattr(name, begun)


@ALL
@pytest.mark.usefixtures("no_work")
def test_system_that_takes_no_files_is_named_before_the_work(
    writer: str, command: Callable[[str, Path], Arguments]
) -> None:
    error = fails(*command(writer, Path("/proc")), exits=1)
    assert re.search(r"^dsmr: /proc/x\S*: cannot be written: No such file or directory$", error)


@ALL
@pytest.mark.usefixtures("no_work")
def test_file_in_place_of_a_folder_is_named_before_the_work(
    writer: str, command: Callable[[str, Path], Arguments], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    error = fails(*command(writer, tmp_path / "file"), exits=1)
    assert re.search(r"^dsmr: .*/file/x\S*: cannot be written: Not a directory$", error)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@ALL
@pytest.mark.usefixtures("no_work")
def test_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_named_before_the_work(
    writer: str, command: Callable[[str, Path], Arguments], tmp_path: Path
) -> None:
    arguments = command(writer, tmp_path)
    path = Path(str(arguments[-1]))
    if path.suffix:
        path.mkdir()
        expected = "expected a file to write, got a folder"
    else:
        path.write_bytes(b"mine")
        expected = "expected a folder to write into, got a file"
    for force in ([], ["--force"]):
        assert fails(*arguments, *force) == f"dsmr: {path}: {expected}\n"
    assert path.is_dir() or path.read_bytes() == b"mine"


@pytest.mark.usefixtures("no_work")
def test_device_is_never_replaced_by_a_file(command: Callable[[str, Path], Arguments], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert "expected a file to write, got a device" in fails(*command("compare", tmp_path), "--force")
    assert (tmp_path / "x.png").is_fifo()


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "demo"])
def test_missing_folders_are_made(writer: str, command: Callable[[str, Path], Arguments], tmp_path: Path) -> None:
    arguments = command(writer, tmp_path / "new" / "folder")
    here(*arguments)
    assert Path(str(arguments[-1])).exists()


@pytest.mark.parametrize("writer", [name for name in WRITERS if name not in ("demo", "evaluate --out", "export")])
def test_full_disk_leaves_what_was_there(
    writer: str,
    command: Callable[[str, Path], Arguments],
    tmp_path: Path,
) -> None:
    arguments = command(writer, tmp_path)
    path = Path(str(arguments[-1]))
    path.write_bytes(b"old")
    with files_of_at_most(16):
        _, error = here(*arguments, "--force", exits=1)
    assert error.splitlines()[-1] == f"dsmr: {path}: cannot be written: File too large"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_a_checkpoint_that_was_there(
    command: Callable[[str, Path], Arguments], trained: tuple[Path, str], tmp_path: Path
) -> None:
    arguments = command("export", tmp_path)
    here(*arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    other = ["export", trained[0] / "checkpoints" / "step-0000002", *arguments[2:], "--force"]
    with files_of_at_most(16):
        error = fails(*other, exits=1)
    assert error == f"dsmr: {tmp_path / 'x'}: cannot be written: File too large\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize(("option", "file"), [("--wav", "x-1.wav"), ("--html", "x.html")])
def test_full_disk_costs_neither_the_other_files_nor_the_report(
    option: str, file: str, command: Callable[[str, Path], Arguments], tmp_path: Path
) -> None:
    with files_of_at_most(5000):
        _, error = here(*command("generate", tmp_path), option, "--takes", 2, exits=1)
        out, _ = here(*command("evaluate --png", tmp_path), exits=1)
    assert error.splitlines()[-1] == f"dsmr: {tmp_path / file}: cannot be written: File too large"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.mid", "x-2.mid"]
    assert "tokens scored in" in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
@pytest.mark.parametrize("output", [[], ["--json"]], ids=["text", "json"])
def test_output_that_cannot_be_written_costs_no_file(output: Arguments, tmp_path: Path) -> None:
    arguments = ["schedule", "uniform", "--png", tmp_path / "x.png", *output]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dsmr", *map(str, arguments)],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "dsmr: standard output: cannot be written: No space left on device\n"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_stream_ends_no_command(closed: str) -> None:
    script = f"exec {closed}>&-; exec {sys.executable} -m dsmr schedule uniform --json"
    done = subprocess.run(["sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["compare", "FOLDER", "--data", "STORE"], "Is a directory"),
        (["generate", "MODEL", "--out", "FOLDER/x.mid", "--prompt", "FOLDER"], "Is a directory"),
        (["generate", "MODEL", "--out", "FOLDER/x.mid", "--soundfont", "FOLDER"], "which is no file"),
        (["evaluate", "MODEL", "--data", "FOLDER"], "no such token store"),
        (["evaluate", "STORE", "--data", "STORE"], "expected a checkpoint"),
        (["prepare", "folder", "STORE", "--out", "FOLDER/x"], "expected a folder of MIDI files"),
        (["prepare", "maestro", "STORE", "--out", "FOLDER/x"], "expected a MAESTRO folder or zip file"),
        (["compare", "FOLDER/" + "n" * 300, "--data", "STORE"], "File name too long"),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, list) else "",
)
def test_input_that_is_no_input_is_named(
    arguments: list[str], reason: str, store: Path, checkpoint: Path, tmp_path: Path
) -> None:
    real = {"FOLDER": str(tmp_path), "STORE": str(store), "MODEL": str(checkpoint)}
    error = fails(*(re.sub("|".join(real), lambda match: real[match[0]], each) for each in arguments))
    assert reason in error
    assert str(store) in error or str(tmp_path) in error
    assert "Errno" not in error


def test_download_names_what_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAESTRO_URL", "http://no-such-host.invalid/x.zip")
    (tmp_path / "file").write_bytes(b"")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "in", "Not a directory")):
        arguments = ["prepare", "maestro", "--download", folder, "--out", tmp_path / "x"]
        assert fails(*arguments, exits=1).startswith(f"dsmr: {folder}: cannot be written: {reason}; ")


@pytest.mark.parametrize(
    "argument", ["--version", "--help", "", "train --help", "prepare", "prepare folder --help", "doctor --json"]
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_what_a_command_says_of_itself_cannot_be_written(argument: str) -> None:
    with open("/dev/full", "w") as full:
        process = start(*argument.split(), stdout=full)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error == "dsmr: standard output: cannot be written: No space left on device\n"


def test_train_says_what_it_cannot_write(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    arguments = ["train", "--data", store, "--steps", 1, *SMALL_MODEL, "--out"]
    assert fails(*arguments, tmp_path / "file") == f"dsmr: {tmp_path / 'file'}: expected a folder, got a file\n"
    for folder, reason in (
        (tmp_path / "file" / "run", "Not a directory"),
        (Path("/proc/run"), "No such file or directory"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        assert fails(*arguments, folder, exits=1).startswith(f"dsmr: {folder}: cannot be written: {reason}")
    assert (tmp_path / "file").read_bytes() == b"mine"
