"""The token store: what goes in comes out, damage is noticed, a failed write harms nothing."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmr.cli.terminal import BadInput, open_store
from dsmr.corpus.store import Piece, Return, StoreError, StoreWriter, TokenStore
from dsmr.music.tokens import BEGIN, CODEC, END, NOTE_OFF, PAD, TIME_SHIFT

C_MAJOR = [BEGIN, 60, TIME_SHIFT + 49, NOTE_OFF + 60, 64, TIME_SHIFT + 99, NOTE_OFF + 64, END]
SILENCE = [BEGIN, END]
events = hnp.arrays(np.uint16, st.integers(0, 40), elements=st.integers(0, PAD - 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of three pieces."""
    path = tmp_path / "corpus.dsmr"
    with StoreWriter(path) as store:
        store.add(C_MAJOR, split="train", title="Prélude", composer="Dvořák", source="2004/a.midi")
        store.add(SILENCE, split="validation", title="Silence, 静けさ")
        store.add(
            C_MAJOR,
            split="train",
            title="Rondo",
            returns=[Return("transposed", 4, start=4, stop=5, source_start=1, source_stop=2)],
        )
    return path


def test_pieces_come_back_as_they_were_added(path: Path) -> None:
    store = TokenStore.open(path)
    store.verify()
    assert store.codec == CODEC
    assert store.pieces == (
        Piece(0, 8, "train", "Prélude", "Dvořák", "2004/a.midi", 1.5),
        Piece(8, 2, "validation", "Silence, 静けさ", "", "", 0.0),
        Piece(10, 8, "train", "Rondo", "", "", 1.5, (Return("transposed", 4, 4, 5, 1, 2),)),
    )
    assert [store.piece(index).tolist() for index in range(3)] == [C_MAJOR, SILENCE, C_MAJOR]
    assert store.tokens.tolist() == C_MAJOR + SILENCE + C_MAJOR
    assert [store.indices(split) for split in ("train", "validation", "test")] == [[0, 2], [1], []]


@given(st.lists(events, min_size=1, max_size=5))
def test_any_events_survive(tmp_path_factory: pytest.TempPathFactory, pieces: list[np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("store") / "corpus.dsmr"
    with StoreWriter(path) as writer:
        for number, ids in enumerate(pieces):
            writer.add(np.concatenate([[BEGIN], ids, [END]]), split="test", title=str(number))
    store = TokenStore.open(path)
    store.verify()
    assert [store.piece(index)[1:-1].tolist() for index in range(len(pieces))] == [ids.tolist() for ids in pieces]


def test_tokens_are_mapped_aligned_and_read_only(path: Path) -> None:
    store = TokenStore.open(path)
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.uint16
    assert store.tokens.offset % 64 == 0
    assert np.shares_memory(store.piece(2), store.tokens)
    with pytest.raises(ValueError, match="read-only"):
        store.piece(0)[0] = 1


def test_equal_content_makes_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with StoreWriter(tmp_path / name) as store:
            store.add(C_MAJOR, split="train", title="Rondo")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class TestAtomicity:
    def test_error_while_collecting_leaves_the_old_store(self, path: Path) -> None:
        before = path.read_bytes()

        def fail_half_way() -> None:
            with StoreWriter(path) as store:
                store.add(C_MAJOR, split="test", title="new")
                raise RuntimeError("interrupted")

        with pytest.raises(RuntimeError, match="interrupted"):
            fail_half_way()
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_full_disk_leaves_the_old_store_and_no_litter(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = path.read_bytes()

        def no_space(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"), StoreWriter(path) as store:
            store.add(C_MAJOR, split="test", title="new")
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_open_store_outlives_its_replacement(self, path: Path) -> None:
        old = TokenStore.open(path)
        with StoreWriter(path) as store:
            store.add(SILENCE, split="test", title="new")
        old.verify()
        assert old.piece(0).tolist() == C_MAJOR
        assert TokenStore.open(path).tokens.tolist() == SILENCE

    def test_nothing_added_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected at least one piece"), StoreWriter(tmp_path / "empty"):
            pass
        assert os.listdir(tmp_path) == []


class TestAdd:
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            pytest.param([], "expected BEGIN .. END, got nothing", id="empty"),
            pytest.param([BEGIN], "expected BEGIN .. END, got BEGIN .. BEGIN", id="one-token"),
            pytest.param([60, END], "expected BEGIN .. END, got note-on 60 .. END", id="no-begin"),
            pytest.param([BEGIN, 60], "expected BEGIN .. END, got BEGIN .. note-on 60", id="no-end"),
            pytest.param([BEGIN, 60, END, END], "got END at index 2", id="end-inside"),
            pytest.param([BEGIN, PAD, END], "got PAD at index 1", id="pad-inside"),
            pytest.param([BEGIN, 391, END], "got 391 at index 1", id="outside-the-vocabulary"),
        ],
    )
    def test_ids_must_be_one_framed_piece(self, tmp_path: Path, ids: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            StoreWriter(tmp_path / "x").add(ids, split="train", title="x")

    def test_split_must_be_known(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'dev'"):
            StoreWriter(tmp_path / "x").add(SILENCE, split="dev", title="x")

    @pytest.mark.parametrize(
        "each",
        [
            Return("exact", 0, 4, 9, 1, 2),
            Return("exact", 0, 4, 4, 1, 2),
            Return("exact", 0, 4, 5, -1, 2),
        ],
        ids=["past-the-end", "empty", "before-the-beginning"],
    )
    def test_returns_must_lie_inside_the_piece(self, tmp_path: Path, each: Return) -> None:
        with pytest.raises(ValueError, match="returns: expected two passages inside the 8 tokens"):
            StoreWriter(tmp_path / "x").add(C_MAJOR, split="train", title="x", returns=[each])


def rewrite_header(path: Path, **changes: Any) -> None:
    """Change the header; the tokens stay as they are."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<I", raw, 12)
    values = {**json.loads(raw[16 : 16 + length]), **changes}
    header = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    tokens = raw[16 + length + -(16 + length) % 64 :]
    path.write_bytes(raw[:12] + struct.pack("<I", len(header)) + header + bytes(-(16 + len(header)) % 64) + tokens)


class TestDamage:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such token store; build one with `dsmr prepare`"):
            TokenStore.open(tmp_path / "nowhere")

    @pytest.mark.parametrize("content", [b"", b"DSMR", b"MThd" * 10], ids=["empty", "short", "a-midi-file"])
    def test_not_a_store(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"corpus.dsmr: expected a token store, .* rebuild it with `dsmr prepare"):
            TokenStore.open(path)

    def test_another_version(self, path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[:8] + struct.pack("<I", 2) + raw[12:])
        with pytest.raises(StoreError, match="expected version 1 of the file format, got 2; rebuild it"):
            TokenStore.open(path)

    def test_another_codec(self, path: Path) -> None:
        rewrite_header(path, codec="remi/7")
        with pytest.raises(
            StoreError, match=f"expected tokens of codec '{CODEC}'.*, got 'remi/7'; rebuild it".replace("+", r"\+")
        ):
            TokenStore.open(path)

    def test_cut_short_anywhere(self, path: Path) -> None:
        raw = path.read_bytes()
        for length in range(len(raw)):
            path.write_bytes(raw[:length])
            with pytest.raises(StoreError, match="rebuild it with"):
                TokenStore.open(path)

    def test_too_long(self, path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(StoreError, match="bytes for 18 tokens, got"):
            TokenStore.open(path)

    def test_header_that_is_no_json(self, path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[:16] + b"?" + raw[17:])
        with pytest.raises(StoreError, match="expected a JSON header"):
            TokenStore.open(path)

    @pytest.mark.parametrize("pieces", [[], [{"title": "x"}], "x"], ids=["none", "incomplete", "no-list"])
    def test_piece_table_that_does_not_fit(self, path: Path, pieces: Any) -> None:
        rewrite_header(path, pieces=pieces)
        with pytest.raises(StoreError, match="rebuild it with"):
            TokenStore.open(path)

    def test_flipped_bit_is_found_by_verify(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        store = TokenStore.open(path)
        with pytest.raises(
            StoreError, match=f"expected tokens of SHA-256 {store.digest}, got [0-9a-f]{{64}}; rebuild it"
        ):
            store.verify()

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"tokens": "18"}, id="count-as-text"),
            pytest.param({"tokens": float("inf")}, id="infinite-count"),
            pytest.param({"tokens": -18}, id="negative-count"),
            pytest.param({"sha256": 5}, id="checksum-as-number"),
            pytest.param({"pieces": 5}, id="pieces-as-number"),
        ],
    )
    def test_header_of_other_types(self, path: Path, changes: dict[str, Any]) -> None:
        rewrite_header(path, **changes)
        with pytest.raises(StoreError, match="rebuild it with"):
            TokenStore.open(path)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"start": False}, id="start-as-truth"),
            pytest.param({"length": 8.0}, id="length-as-float"),
            pytest.param({"split": ["train"]}, id="split-as-list"),
            pytest.param({"title": None}, id="no-title"),
            pytest.param({"duration": float("nan")}, id="no-duration"),
            pytest.param({"duration": -1.0}, id="negative-duration"),
            pytest.param({"returns": [{"kind": "exact"}]}, id="incomplete-return"),
            pytest.param({"more": 1}, id="unknown-field"),
        ],
    )
    def test_piece_of_other_types(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        path = tmp_path / "store"
        with StoreWriter(path) as store:
            store.add(C_MAJOR, split="train", title="Rondo")
        row = {**asdict(TokenStore.open(path).pieces[0]), **changes}
        rewrite_header(path, pieces=[row])
        with pytest.raises(StoreError, match="rebuild it with"):
            TokenStore.open(path)

    def test_return_that_leaves_its_piece(self, path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"stop":5', b'"stop":9'))
        with pytest.raises(StoreError, match="expected two passages inside the 8 tokens"):
            TokenStore.open(path)

    def test_header_nested_without_end(self, path: Path) -> None:
        header = b"[" * 100_000
        path.write_bytes(struct.pack("<8sII", b"DSMRTOKS", 1, len(header)) + header + bytes(64))
        with pytest.raises(StoreError, match="expected a JSON header"):
            TokenStore.open(path)

    @pytest.mark.parametrize(
        ("at", "token", "message"),
        [
            pytest.param(1, 391, "piece 0: ids: expected values in 0..390, got 391", id="outside-the-vocabulary"),
            pytest.param(1, PAD, "piece 0: ids: expected events between BEGIN and END, got PAD at index 1", id="pad"),
            pytest.param(9, 60, "piece 1: ids: expected BEGIN .. END, got BEGIN .. note-on 60", id="no-end"),
        ],
    )
    def test_wrong_tokens_with_the_right_checksum(self, path: Path, at: int, token: int, message: str) -> None:
        tokens = TokenStore.open(path).tokens.copy()
        tokens[at] = token
        raw = path.read_bytes()
        path.write_bytes(raw[: -tokens.nbytes] + tokens.tobytes())
        rewrite_header(path, sha256=hashlib.sha256(tokens.tobytes()).hexdigest())
        with pytest.raises(StoreError, match=f"{message}.*; rebuild it with"):
            TokenStore.open(path).verify()

    def test_commands_refuse_a_damaged_store(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
        with pytest.raises(BadInput, match=r"expected tokens of SHA-256 .*; rebuild it with `dsmr prepare maestro`"):
            open_store(path, "train")

    @given(st.data())
    def test_any_damage_is_noticed_unless_it_is_in_a_name(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("store") / "corpus"
        with StoreWriter(path) as writer:
            writer.add(C_MAJOR, split="train", title="Rondo")
            writer.add(SILENCE, split="test", title="Pause")
        raw = bytearray(path.read_bytes())
        before = TokenStore.open(path)
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        try:
            store = TokenStore.open(path)
            store.verify()
        except StoreError:
            return
        assert store.tokens.tolist() == before.tokens.tolist()
        for old, new in zip(before.pieces, store.pieces, strict=True):
            assert (old.start, old.length, old.split) == (new.start, new.length, new.split)
