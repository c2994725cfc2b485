"""`dsmr prepare`: stores, and what is left out of them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from dsmr.corpus.left_out import summary
from dsmr.corpus.sources import LeftOut
from dsmr.corpus.store import TokenStore
from tests.dsmr.cli.commands import fails, start, succeeds


def test_reports_the_store_and_every_file_left_out(music: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "corpus.tokens"
    text = succeeds("prepare", "folder", music, "--out", path, "--workers", 1)
    prepared = TokenStore.open(path)
    assert len(prepared.pieces) == 6
    assert f"{path}: 6 pieces, {len(prepared.tokens):,} tokens" in text
    assert re.search(r"1 files left out:\n  broken.mid: .+\n$", text)


def test_says_which_splits_are_empty(music: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    piece = next(path for path in sorted(music.rglob("*.mid")) if path.name != "broken.mid")
    (tmp_path / "one" / piece.name).write_bytes(piece.read_bytes())
    text = succeeds("prepare", "folder", tmp_path / "one", "--out", tmp_path / "x.tokens", "--workers", 1)
    assert "the validation split is empty\nthe test split is empty\n" in text


def test_tells_machines_the_same(music: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.tokens"
    found = json.loads(succeeds("prepare", "folder", music, "--out", path, "--workers", 1, "--json"))
    assert found["store"] == str(path)
    assert sum(found["pieces"].values()) == 6
    assert sum(found["tokens"].values()) == len(TokenStore.open(path).tokens)
    assert [each["source"] for each in found["left_out"]] == ["broken.mid"]


def test_replaces_a_store_only_if_told_to(music: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.tokens"
    path.write_bytes(b"precious")
    assert f"{path}: exists already; --force replaces it" in fails("prepare", "folder", music, "--out", path)
    assert path.read_bytes() == b"precious"
    succeeds("prepare", "folder", music, "--out", path, "--workers", 1, "--force")
    assert len(TokenStore.open(path).pieces) == 6


def test_lets_the_pianist_compose(tmp_path: Path) -> None:
    path = tmp_path / "pianist.tokens"
    succeeds("prepare", "pianist", "--out", path, "--tokens", 9000, "--longest", 3000, "--workers", 1)
    pieces = TokenStore.open(path).pieces
    assert len(pieces) >= 3
    assert any(piece.returns for piece in pieces)


@pytest.mark.parametrize("kind", ["folder", "maestro"])
def test_explains_what_is_no_corpus(kind: str, tmp_path: Path) -> None:
    assert "nowhere: expected a" in fails("prepare", kind, tmp_path / "nowhere", "--out", tmp_path / "out.tokens")
    assert not (tmp_path / "out.tokens").exists()


def test_lists_what_was_left_out_beside_the_store(music: Path, tmp_path: Path) -> None:
    path, beside = tmp_path / "corpus.tokens", tmp_path / "corpus.tokens.left-out.tsv"
    text = succeeds("prepare", "folder", music, "--out", path, "--workers", 0)
    assert f"{beside}: every file that was left out, and why" in text
    head, row = beside.read_text(encoding="utf-8").splitlines()
    assert head == "file\treason"
    assert row.startswith("broken.mid\texpected a MIDI file")
    path.unlink()
    assert f"{beside}: exists already" in fails("prepare", "folder", music, "--out", path)
    found = json.loads(
        succeeds("prepare", "folder", music / "more", "--out", path, "--workers", 0, "--force", "--json")
    )
    assert found["left_out_file"] is None
    assert not beside.exists()


def test_sums_up_many_files_left_out(music: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    shutil.copytree(music, folder)
    for number in range(300):
        (folder / f"bad {number}.mid").write_bytes(b"MThd" if number % 3 else b"")
        shutil.copy(music / "piece 0.mid", folder / f"same {number}.mid")
    path = tmp_path / "corpus.tokens"
    text = succeeds("prepare", "folder", folder, "--out", path, "--workers", 0)
    assert "601 files left out:" in text
    assert "  300 files, the first same 0.mid: the same music as another file\n" in text
    assert len(text.splitlines()) <= 16
    assert len((tmp_path / "corpus.tokens.left-out.tsv").read_text().splitlines()) == 602


def test_summary_is_short_however_many_reasons_there_are() -> None:
    lines = summary([LeftOut(f"{number}.mid", f"reason {number % 40}, got {number}") for number in range(1000)])
    assert len(lines) == 10
    assert lines[0] == "25 files, the first 0.mid: reason 0"
    assert lines[-1] == "775 files for 31 other reasons"


def test_says_at_ctrl_c_that_it_will_start_anew(music: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number}.mid").hardlink_to(music / "piece 0.mid")
    path = tmp_path / "out" / "corpus.tokens"
    process = start("prepare", "folder", folder, "--out", path, "--workers", 2, group=True)
    while len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) < 3:  # workers have begun
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert error.splitlines()[-1] == f"dsmr: interrupted: {path} was not written; the same command starts anew"
    assert not path.parent.exists()


def test_needs_no_processes_where_the_system_has_none(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("dsmr.corpus.parallel.ProcessPoolExecutor", without)
    arguments = ["prepare", "folder", music, "--out", tmp_path / "corpus.tokens"]
    assert "/dev/shm): Read-only file system; with workers=0 none are needed" in fails(*arguments, exits=1)
    succeeds(*arguments, "--workers", 0)
