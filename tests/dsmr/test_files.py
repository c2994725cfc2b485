"""Files that appear whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsmr.files import IN_USE, PARTIAL, filled, replaced
from tests.full_disk import files_of_at_most

KILLED = """
import os, signal, sys
from pathlib import Path
from dsmr.files import replaced
with replaced(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    if sys.argv[2] == "wait":
        print("writing", flush=True)
        sys.stdin.read()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(path: Path, way: str) -> subprocess.Popen[str]:
    """A process that is killed while it writes a file, or waits until it is told to go on."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", KILLED, path, way], stdin=pipe, stdout=pipe, text=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_with_its_folders_and_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replaced(path) as partial:
        assert partial.name == "a.txt"  # its ending may decide the format
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a.txt"]


def _write_and_raise(path: Path, error: type[BaseException]) -> None:
    path.write_bytes(b"new")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError], ids=lambda error: error.__name__)
def test_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), replaced(tmp_path / "a") as partial:
        _write_and_raise(partial, error)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_full_disk_leaves_what_was_there_and_the_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    refused = pytest.raises(OSError, match=r"File too large: '.*/a'$")
    with files_of_at_most(4096), refused as caught, replaced(tmp_path / "a") as partial:
        partial.write_bytes(bytes(10_000))
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "link").symlink_to("precious")
    with replaced(tmp_path / "link") as partial:
        partial.write_bytes(b"new")
    assert (tmp_path / "precious").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_folder_keeps_its_other_files(tmp_path: Path) -> None:
    for name in ("mine", "a"):
        (tmp_path / name).write_bytes(b"old")
    with filled(tmp_path) as partial:
        for name in ("a", "b"):
            (partial / name).write_bytes(b"new")
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == {
        "a": b"new",
        "b": b"new",
        "mine": b"old",
    }


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = writer(tmp_path / "a", "die")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert PARTIAL.fullmatch(left.name)
    with replaced(tmp_path / "a") as partial:
        partial.write_bytes(b"new")
    assert names(tmp_path) == ["a"]


def test_what_a_living_process_writes_is_not_removed(tmp_path: Path) -> None:
    process = writer(tmp_path / "a", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    with replaced(tmp_path / "b") as partial:
        partial.write_bytes(b"new")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == {"a": b"half", "b": b"new"}


def test_what_only_looks_like_a_leftover_is_not_removed(tmp_path: Path) -> None:
    mine, elsewhere = tmp_path / ".partial-abcdefgh", tmp_path / "elsewhere"
    for folder in (mine, elsewhere):
        folder.mkdir()
        (folder / "precious").write_bytes(b"mine")
    (elsewhere / IN_USE).write_bytes(b"")
    (tmp_path / ".partial-ijklmnop").symlink_to(elsewhere)
    with replaced(tmp_path / "a") as partial:
        partial.write_bytes(b"new")
    assert names(tmp_path) == [".partial-abcdefgh", ".partial-ijklmnop", "a", "elsewhere"]
    assert (mine / "precious").read_bytes() == (elsewhere / "precious").read_bytes() == b"mine"


def test_two_files_of_one_folder_are_written_at_once(tmp_path: Path) -> None:
    with replaced(tmp_path / "a") as first, replaced(tmp_path / "b") as second:
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert names(tmp_path) == ["a", "b"]
