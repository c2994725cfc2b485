"""From MIDI files and the pianist to a store: what goes in, what is left out and why, and the same bytes every time."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dsmr.cli.prepare import app
from dsmr.corpus import prepare
from dsmr.corpus.parallel import ProcessDied, map_in_order
from dsmr.corpus.prepare import draw_splits, prepare_folder, prepare_maestro, prepare_pianist
from dsmr.corpus.sources import LeftOut
from dsmr.corpus.store import TokenStore
from dsmr.music.midi import read_midi, write_midi
from dsmr.music.tokens import BEGIN, END, NOTE_DTYPE, NOTE_OFF, STEP_SECONDS, TIME_SHIFT, Performance, decode, encode


def midi_bytes(seed: int, tmp_path: Path, count: int = 40) -> bytes:
    """A MIDI file of some notes: pedal folded, nothing on the 10 ms grid."""
    random = np.random.default_rng(seed)
    notes = np.empty(count, NOTE_DTYPE)
    notes["onset"] = np.cumsum(random.exponential(0.1, count))
    notes["offset"] = notes["onset"] + random.exponential(0.3, count)
    notes["pitch"] = random.integers(40, 80, count)
    notes["velocity"] = random.integers(1, 128, count)
    write_midi(Performance(notes), tmp_path / "scratch")
    return (tmp_path / "scratch").read_bytes()


def table(rows: Iterable[tuple[str, str, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration"]
    )
    for composer, title, split, filename in rows:
        writer.writerow([composer, title, split, 2004, filename, "", "1.0"])
    return text.getvalue().encode()


@pytest.fixture
def release(tmp_path: Path) -> dict[str, bytes]:
    """A MAESTRO release in small, with one file wrong in each way: name -> content."""
    good = [midi_bytes(seed, tmp_path) for seed in range(3)]
    rows = [
        ("Dvořák", "Prélude", "train", "2004/a.midi"),
        ("Bach", "Fugue", "validation", "2004/b.midi"),
        ("Bach", "Broken", "train", "2004/broken.midi"),
        ("Bach", "Empty", "train", "2004/empty.midi"),
        ("Bach", "Missing", "train", "2004/missing.midi"),
        ("Bach", "Fugue again", "test", "2006/again.midi"),
        ("Bach", "Outside", "train", "../outside.midi"),
        ("Bach", "Root", "train", "/etc/passwd"),
        ("Bach", "Strange split", "dev", "2004/a.midi"),
        ("Chopin", "Étude", "test", "2006/c.midi"),
    ]
    return {
        "maestro-v3.0.0.csv": table(rows),
        "2004/a.midi": good[0],
        "2004/b.midi": good[1],
        "2004/broken.midi": good[0][:100],
        "2004/empty.midi": b"",
        "2006/again.midi": good[1],
        "2006/c.midi": good[2],
        "LICENSE": b"",
    }


def as_folder(release: dict[str, bytes], root: Path) -> Path:
    for name, content in release.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def as_zip(release: dict[str, bytes], path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in release.items():
            archive.writestr(inside + name, content)
    return path


class TestMaestro:
    @pytest.mark.parametrize("shape", ["folder", "folder-inside", "zip", "zip-inside"])
    def test_pieces_and_what_is_left_out(self, release: dict[str, bytes], tmp_path: Path, shape: str) -> None:
        if shape == "folder":
            path = as_folder(release, tmp_path / "maestro")
        elif shape == "folder-inside":
            path = as_folder(release, tmp_path / "maestro" / "maestro-v3.0.0").parent
        else:
            path = as_zip(release, tmp_path / "maestro.zip", inside="maestro-v3.0.0/" if shape == "zip-inside" else "")
        seen: list[tuple[int, int]] = []
        report = prepare_maestro(
            path, tmp_path / "out", workers=0, progress=lambda done, total: seen.append((done, total))
        )
        store = TokenStore.open(tmp_path / "out")
        store.verify()
        assert [(piece.title, piece.composer, piece.split, piece.source) for piece in store.pieces] == [
            ("Prélude", "Dvořák", "train", "2004/a.midi"),
            ("Fugue", "Bach", "validation", "2004/b.midi"),
            ("Étude", "Chopin", "test", "2006/c.midi"),
        ]
        for index, piece in enumerate(store.pieces):
            expected = encode(read_midi(release[piece.source]))
            np.testing.assert_array_equal(store.piece(index), [BEGIN, *expected, END])
        assert seen[-1] == (6, 6)  # the files there are; four rows lead to none
        assert report.pieces == {"train": 1, "validation": 1, "test": 1}
        assert sum(report.tokens.values()) == len(store.tokens)
        assert report.longest == max(piece.length for piece in store.pieces)
        assert report.seconds == sum(piece.duration for piece in store.pieces)
        reasons = {left.source: left.reason for left in report.left_out}
        assert len(reasons) == len(report.left_out) == 7
        assert reasons["2004/broken.midi"].startswith("expected a MIDI file")
        assert reasons["2004/empty.midi"].startswith("expected a MIDI file")
        table = "maestro-v3.0.0/maestro-v3.0.0.csv" if shape.endswith("inside") else "maestro-v3.0.0.csv"
        assert reasons["2004/missing.midi"] == f"row 6 of {table}: in the table, but missing"
        assert reasons["2006/again.midi"] == "the same music as 2004/b.midi"
        assert reasons["../outside.midi"] == f"row 8 of {table}: not a path inside the release"
        assert reasons["/etc/passwd"] == f"row 9 of {table}: not a path inside the release"
        assert reasons["2004/a.midi"] == f"row 10 of {table}: expected a split of train, validation, test, got 'dev'"

    def test_bytes_do_not_depend_on_workers_or_packing(self, release: dict[str, bytes], tmp_path: Path) -> None:
        folder = as_folder(release, tmp_path / "maestro")
        prepare_maestro(folder, tmp_path / "alone", workers=0)
        prepare_maestro(folder, tmp_path / "together", workers=2)
        prepare_maestro(as_zip(release, tmp_path / "maestro.zip"), tmp_path / "zipped", workers=0)
        assert (tmp_path / "alone").read_bytes() == (tmp_path / "together").read_bytes()
        assert (tmp_path / "alone").read_bytes() == (tmp_path / "zipped").read_bytes()

    def test_nothing_is_unpacked(self, release: dict[str, bytes], tmp_path: Path) -> None:
        release["../escaped.midi"] = release["2004/a.midi"]
        archive = as_zip(release, tmp_path / "maestro.zip")
        before = set(tmp_path.rglob("*"))
        prepare_maestro(archive, tmp_path / "out", workers=0)
        assert set(tmp_path.rglob("*")) - before == {tmp_path / "out"}

    def test_damaged_member_is_left_out(self, release: dict[str, bytes], tmp_path: Path) -> None:
        path = as_zip(release, tmp_path / "maestro.zip")
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("2004/b.midi").header_offset + 30 + len("2004/b.midi")
        raw = bytearray(path.read_bytes())
        raw[at : at + 8] = b"\xff" * 8
        path.write_bytes(raw)
        report = prepare_maestro(path, tmp_path / "out", workers=0)
        assert {left.source: left.reason for left in report.left_out}["2004/b.midi"].startswith("cannot be unpacked")
        assert report.pieces == {"train": 1, "validation": 0, "test": 2}

    def test_member_without_end_is_not_unpacked_whole(
        self, release: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("dsmr.corpus.sources.MAX_BYTES", "dsmr.music.midi.MAX_BYTES"):
            monkeypatch.setattr(module, 10_000)
        release["2004/b.midi"] = bytes(1_000_000)
        report = prepare_maestro(as_zip(release, tmp_path / "maestro.zip"), tmp_path / "out", workers=0)
        reason = {left.source: left.reason for left in report.left_out}["2004/b.midi"]
        assert reason == "row 3 of maestro-v3.0.0.csv: expected at most 10000 bytes, got 1000000"

    def test_other_csv_files_do_not_matter(self, release: dict[str, bytes], tmp_path: Path) -> None:
        others = {"._maestro-v3.0.0.csv": release["maestro-v3.0.0.csv"], "notes.csv": b"\xff\xfe,1\n2,3\n"}
        for path in (as_folder(release | others, tmp_path / "maestro"), as_zip(release | others, tmp_path / "zip")):
            assert prepare_maestro(path, tmp_path / "out", workers=0).pieces == {"train": 1, "validation": 1, "test": 1}

    def test_file_listed_twice_is_stored_as_listed_first(self, tmp_path: Path) -> None:
        rows = [("Bach", "First", "test", "a.midi"), ("Bach", "Second", "train", "a.midi")]
        release = {"t.csv": table(rows), "a.midi": midi_bytes(1, tmp_path)}
        report = prepare_maestro(as_folder(release, tmp_path / "maestro"), tmp_path / "out", workers=0)
        (piece,) = TokenStore.open(tmp_path / "out").pieces
        assert (piece.title, piece.split) == ("First", "test")
        assert report.left_out == (LeftOut("a.midi", "row 3 of t.csv: listed before, in row 2"),)

    def test_two_tables(self, release: dict[str, bytes], tmp_path: Path) -> None:
        folder = as_folder(release | {"maestro-v2.0.0.csv": release["maestro-v3.0.0.csv"]}, tmp_path / "maestro")
        with pytest.raises(ValueError, match=r"got maestro-v2\.0\.0\.csv, maestro-v3\.0\.0\.csv"):
            prepare_maestro(folder, tmp_path / "out")

    def test_path_that_is_no_release(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="expected a MAESTRO folder or zip file, found nothing"):
            prepare_maestro(tmp_path / "nowhere", tmp_path / "out")
        (tmp_path / "piece.mid").write_bytes(b"MThd")
        with pytest.raises(ValueError, match="expected a MAESTRO folder or zip file, got a file that is neither"):
            prepare_maestro(tmp_path / "piece.mid", tmp_path / "out")

    def test_no_usable_file_leaves_the_old_store(self, release: dict[str, bytes], tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"old")
        only_table = {"maestro-v3.0.0.csv": release["maestro-v3.0.0.csv"]}
        with pytest.raises(
            ValueError,
            match=r"got 10 of which none can be used; the first: 2004/a.midi: row 2 of maestro-v3.0.0.csv: in the",
        ):
            prepare_maestro(as_folder(only_table, tmp_path / "maestro"), tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"old"

    def test_bug_or_crash_of_the_reader_costs_one_file(
        self, release: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reader(content: bytes) -> Performance:
            if content == release["2004/b.midi"]:
                raise IndexError("a bug")
            return read_midi(content)

        def map_with_a_death(*arguments: Any) -> list[Any]:
            _, *others = map_in_order(*arguments)
            return [ProcessDied("the process died"), *others]

        monkeypatch.setattr(prepare, "read_midi", reader)
        monkeypatch.setattr(prepare, "map_in_order", map_with_a_death)
        report = prepare_maestro(as_zip(release, tmp_path / "maestro.zip"), tmp_path / "out", workers=0)
        assert LeftOut("2004/a.midi", "cannot be read: the process died") in report.left_out
        assert LeftOut("2004/b.midi", "IndexError: a bug") in report.left_out
        assert report.pieces == {"train": 0, "validation": 0, "test": 1}


class TestFolder:
    def test_every_midi_file_below_by_path(self, tmp_path: Path) -> None:
        files = {
            "b/Waltz.MID": midi_bytes(1, tmp_path),
            "a.midi": midi_bytes(2, tmp_path),
            "b/c/Étude.rmi": midi_bytes(3, tmp_path),
            "notes.txt": b"",
            "broken.mid": b"",
        }
        report = prepare_folder(as_folder(files, tmp_path / "music"), tmp_path / "out", workers=0)
        store = TokenStore.open(tmp_path / "out")
        assert [(piece.source, piece.title) for piece in store.pieces] == [
            ("a.midi", "a"),
            ("b/Waltz.MID", "Waltz"),
            ("b/c/Étude.rmi", "Étude"),
        ]
        assert sorted(piece.split for piece in store.pieces) == ["test", "train", "validation"]
        assert [left.source for left in report.left_out] == ["broken.mid"]

    def test_files_of_one_name_stay_together(self, tmp_path: Path) -> None:
        files = {
            f"{player}/{title}.mid": midi_bytes(10 * player + title, tmp_path)
            for player in range(2)
            for title in range(6)
        }
        prepare_folder(as_folder(files, tmp_path / "music"), tmp_path / "out", validation=0.3, test=0.3, workers=0)
        pieces = TokenStore.open(tmp_path / "out").pieces
        assert len({(piece.title, piece.split) for piece in pieces}) == 6
        assert {piece.split for piece in pieces} == {"train", "validation", "test"}

    def test_folder_must_exist_and_hold_music(self, tmp_path: Path) -> None:
        with pytest.raises(NotADirectoryError, match="nowhere: expected a folder of MIDI files"):
            prepare_folder(tmp_path / "nowhere", tmp_path / "out")
        with pytest.raises(ValueError, match="expected MIDI files, got 0 of which none can be used"):
            prepare_folder(tmp_path, tmp_path / "out")
        (tmp_path / "bad.mid").touch()
        with pytest.raises(
            ValueError, match=r"got 1 of which none can be used; the first: bad\.mid: expected a MIDI file"
        ):
            prepare_folder(tmp_path, tmp_path / "out", workers=0)
        assert os.listdir(tmp_path) == ["bad.mid"]

    @pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.1)])
    def test_parts_must_leave_something_to_train_on(self, tmp_path: Path, validation: float, test: float) -> None:
        with pytest.raises(ValueError, match="validation, test: expected parts >= 0 that leave some to train on"):
            prepare_folder(tmp_path, tmp_path / "out", validation=validation, test=test)

    def test_notes_of_real_length_survive(self, tmp_path: Path) -> None:
        content = midi_bytes(7, tmp_path, count=3_000)
        prepare_folder(as_folder({"piece.mid": content}, tmp_path / "music"), tmp_path / "out", workers=0)
        played = read_midi(content).notes
        stored = decode(TokenStore.open(tmp_path / "out").piece(0)).notes
        assert len(stored) == len(played)
        by_onset = np.lexsort((played["pitch"], np.rint(played["onset"] / STEP_SECONDS)))
        assert (stored["pitch"] == played["pitch"][by_onset]).all()
        assert abs(stored["onset"] - played["onset"][by_onset]).max() <= STEP_SECONDS / 2 + 1e-9


def performed(work: int, player: int, tmp_path: Path) -> bytes:
    """A work of 300 notes by a player: own tempo, touch, velocities and key, and one note in thirty is another."""
    score, dice = np.random.default_rng(work), np.random.default_rng([work, player])
    notes = np.empty(300, NOTE_DTYPE)
    notes["onset"] = np.cumsum(score.uniform(0.08, 0.4, len(notes))) * dice.uniform(0.8, 1.2)
    notes["offset"] = notes["onset"] + dice.exponential(0.3, len(notes))
    notes["pitch"] = score.integers(40, 80, len(notes)) + np.where(dice.random(len(notes)) < 1 / 30, 1, 0) + player
    notes["velocity"] = dice.integers(30, 120, len(notes))
    write_midi(Performance(notes), tmp_path / "scratch")
    return (tmp_path / "scratch").read_bytes()


class TestGrouping:
    """Performances of one work stay in one split, however the corpus says which they are; else a warning says so."""

    PARTS: ClassVar = {"validation": 0.2, "test": 0.2, "workers": 0}

    @pytest.fixture
    def works(self, tmp_path: Path) -> Path:
        names = (
            f"Composer/Work {work}/Player {work * 7 % 5 + player}.mid" for work in range(10) for player in range(4)
        )
        contents = (performed(work, player, tmp_path) for work in range(10) for player in range(4))
        return as_folder(dict(zip(names, contents, strict=True)), tmp_path / "music")

    @staticmethod
    def works_in_several_splits(store: Path) -> int:
        splits: dict[str, set[str]] = {}
        for piece in TokenStore.open(store).pieces:
            splits.setdefault(piece.source.split("/")[1], set()).add(piece.split)
        return sum(len(each) > 1 for each in splits.values())

    def test_by_name_works_are_apart_and_each_such_pair_is_told(self, works: Path, tmp_path: Path) -> None:
        report = prepare_folder(works, tmp_path / "out", **self.PARTS)
        assert self.works_in_several_splits(tmp_path / "out") > 0
        split = {piece.source: piece.split for piece in TokenStore.open(tmp_path / "out").pieces}
        apart = {
            (one, other)
            for one in split
            for other in split
            if one < other and one.split("/")[1] == other.split("/")[1] and split[one] != split[other]
        }
        assert {tuple(sorted(pair)) for pair in report.straddling} == apart

    def test_by_parent(self, works: Path, tmp_path: Path) -> None:
        report = prepare_folder(works, tmp_path / "out", group_by="parent", **self.PARTS)
        assert self.works_in_several_splits(tmp_path / "out") == 0
        assert report.straddling == ()
        assert report.pieces == {"train": 24, "validation": 8, "test": 8}

    def test_by_table(self, works: Path, tmp_path: Path) -> None:
        rows = [f'"{path.relative_to(works).as_posix()}",{path.parent.name}' for path in works.rglob("*.mid")]
        (tmp_path / "works.csv").write_text("\n".join(["path,group", *rows, "not/there.mid,x"]))
        report = prepare_folder(works, tmp_path / "out", group_by=tmp_path / "works.csv", **self.PARTS)
        assert self.works_in_several_splits(tmp_path / "out") == 0
        assert report.straddling == ()

    def test_splits_of_a_table_that_part_a_work_are_told(self, tmp_path: Path) -> None:
        rows = [("Bach", "Fugue", split, f"{split}.midi") for split in ("train", "test", "validation")]
        release = {f"{row[2]}.midi": performed(1 + number // 2, number, tmp_path) for number, row in enumerate(rows)}
        path = as_folder(release | {"t.csv": table(rows)}, tmp_path / "maestro")
        assert prepare_maestro(path, tmp_path / "out", workers=0).straddling == (("train.midi", "test.midi"),)

    def test_command_says_it_and_what_to_do(self, works: Path, tmp_path: Path) -> None:
        arguments = ["folder", str(works), "--validation", "0.2", "--test", "0.2", "--workers", "1", "--force"]
        arguments += ["--out", str(tmp_path / "out")]
        warned = CliRunner().invoke(app, arguments).stdout
        assert "warning: nearly the same music lies in two splits" in " ".join(warned.split())
        assert "--group-by" in warned
        kept = CliRunner().invoke(app, [*arguments, "--group-by", "parent"])
        assert kept.exit_code == 0
        assert "warning" not in kept.stdout
        assert self.works_in_several_splits(tmp_path / "out") == 0
        missing = CliRunner().invoke(app, [*arguments, "--group-by", str(tmp_path / "nowhere.csv")])
        assert missing.exit_code != 0


class TestPianist:
    ORDER: ClassVar = {"tokens": 6_000, "shortest": 1_000, "longest": 2_000, "validation": 0.2, "test": 0.2}

    def test_pieces_lengths_and_splits(self, tmp_path: Path) -> None:
        report = prepare_pianist(tmp_path / "out", **self.ORDER, workers=0)
        store = TokenStore.open(tmp_path / "out")
        assert 0.8 * 6_000 <= len(store.tokens) <= 1.2 * (6_000 + 2_000)
        assert all(0.8 * 1_000 <= piece.length <= 1.2 * 2_000 for piece in store.pieces)
        assert min(report.pieces.values()) >= 1
        assert report.left_out == ()
        assert len({piece.source for piece in store.pieces}) == len(store.pieces) > 2

    def test_labelled_returns_restate_their_sources(self, tmp_path: Path) -> None:
        prepare_pianist(tmp_path / "out", tokens=20_000, shortest=8_000, longest=9_000, workers=0)
        store = TokenStore.open(tmp_path / "out")
        labelled = [
            (store.piece(index).astype(int), each) for index, piece in enumerate(store.pieces) for each in piece.returns
        ]
        assert {each.kind for _, each in labelled} == {"exact", "transposed"}
        for ids, each in labelled:
            source, again = ids[each.source_start : each.source_stop], ids[each.start : each.stop]
            assert source[0] < NOTE_OFF
            assert source[-1] < NOTE_OFF
            np.testing.assert_array_equal(again, source + each.semitones * (source < TIME_SHIFT))

    def test_bytes_depend_on_the_seed_and_not_on_workers(self, tmp_path: Path) -> None:
        for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
            prepare_pianist(tmp_path / name, seed=seed, **self.ORDER, workers=workers)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()

    @pytest.mark.parametrize(
        "wrong",
        [{"seed": -1}, {"tokens": 0}, {"shortest": 5_000, "longest": 4_000}, {"shortest": 10}, {"test": 1.0}],
        ids=str,
    )
    def test_impossible_orders_are_refused(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected"):
            prepare_pianist(tmp_path / "out", **wrong)


class TestSplits:
    names = st.lists(st.text(max_size=5), min_size=1, max_size=40)
    parts = st.floats(0, 0.49)

    @given(names, parts, parts)
    def test_parts_are_met_and_something_is_left_to_train_on(
        self, names: list[str], validation: float, test: float
    ) -> None:
        split = draw_splits(names, validation, test)
        titles = {name.casefold(): split[name] for name in names}
        assert all(titles[name.casefold()] == split[name] for name in names)
        counts = {key: list(titles.values()).count(key) for key in ("train", "validation", "test")}
        assert counts["train"] >= 1
        assert counts["validation"] <= np.ceil(validation * len(titles))
        assert counts["test"] <= np.ceil(test * len(titles))
        if len(titles) > 4:
            assert (counts["validation"] > 0, counts["test"] > 0) == (validation > 0, test > 0)

    @given(st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, random: Random) -> None:
        names = [f"piece {number}" for number in range(30)]
        shuffled = random.sample(names, len(names))
        assert draw_splits(names, 0.1, 0.2) == draw_splits(shuffled, 0.1, 0.2)

    def test_new_name_moves_three_others_at_most(self) -> None:
        names = [f"piece {number}" for number in range(50)]
        for count in range(1, len(names)):
            before, after = draw_splits(names[:count], 0.1, 0.2), draw_splits(names[: count + 1], 0.1, 0.2)
            assert sum(before[name] != after[name] for name in before) <= 3
