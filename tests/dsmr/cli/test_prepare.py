"""`dsmr prepare`: stores, and what is left out of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dsmr.corpus.store import TokenStore
from tests.dsmr.cli.commands import fails, succeeds


def test_reports_the_store_and_every_file_left_out(music: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "corpus.tokens"
    text = succeeds("prepare", "folder", music, "--out", path, "--workers", 1)
    prepared = TokenStore.open(path)
    assert len(prepared.pieces) == 6
    assert f"{path}: 6 pieces, {len(prepared.tokens):,} tokens" in text
    assert re.search(r"1 files left out:\n  broken.mid: .+\n$", text)


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
