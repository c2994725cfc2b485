"""Archives, tables and folders that nobody should trust: nothing leaves its place, and the row is named."""

from __future__ import annotations

import os
import stat
import struct
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dsmr.cli.prepare import app
from dsmr.corpus import sources
from dsmr.corpus.prepare import prepare_folder, prepare_maestro
from dsmr.corpus.sources import LeftOut, Member, MidiFile, maestro_files
from dsmr.corpus.store import TokenStore
from dsmr.music.midi import MAX_BYTES, MidiError
from tests.midi_bytes import NOTE
from tests.midi_bytes import file as midi_file

HEADER = "canonical_composer,canonical_title,split,midi_filename"
MIDI = midi_file(NOTE)


def table(*rows: str) -> str:
    return "\n".join([HEADER, *rows]) + "\n"


def archive(path: Path, rows: str, *members: tuple[zipfile.ZipInfo | str, bytes], method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("t.csv", rows)
        for name, content in members:
            file.writestr(name, content, method)
    return path


def folder(path: Path, rows: str | bytes, *names: str) -> Path:
    path.mkdir()
    (path / "t.csv").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    for name in names:
        (path / name).write_bytes(MIDI)
    return path


class TestArchive:
    @pytest.mark.parametrize(
        "name",
        ["../a.midi", "/a.midi", "x/../../a.midi", "C:a.midi", "\\\\server\\a.midi", "..\\a.midi", ""],
    )
    def test_paths_that_lead_out(self, tmp_path: Path, name: str) -> None:
        path = archive(tmp_path / "zip", table(f"Bach,Fugue,train,{name}"), (name or "x", MIDI))
        assert maestro_files(path) == [LeftOut(name, "row 2 of t.csv: not a path inside the release")]

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO], ids=["link", "device", "pipe"])
    def test_links_and_devices(self, tmp_path: Path, kind: int) -> None:
        link = zipfile.ZipInfo("a.midi")
        link.external_attr = (kind | 0o777) << 16
        path = archive(tmp_path / "zip", table("Bach,Fugue,train,a.midi"), (link, b"/etc/passwd"))
        (left,) = maestro_files(path)
        assert left == LeftOut("a.midi", "row 2 of t.csv: expected a plain file in the archive, got a link or a device")

    @pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
    def test_bombs_in_methods_that_unpack_without_measure(self, tmp_path: Path, method: int, number: int) -> None:
        # 4 KB of bzip2, which zipfile unpacks at once, may hold gigabytes.
        path = archive(tmp_path / "zip", table("B,F,train,a.midi"), ("a.midi", bytes(MAX_BYTES)), method=method)
        (left,) = maestro_files(path)
        assert left == LeftOut(
            "a.midi", f"row 2 of t.csv: expected a file that is stored or deflated, got method {number}"
        )

    def test_bomb_that_states_its_size(self, tmp_path: Path) -> None:
        member = ("a.midi", bytes(MAX_BYTES + 1))
        path = archive(tmp_path / "zip", table("B,F,train,a.midi"), member, method=zipfile.ZIP_DEFLATED)
        (left,) = maestro_files(path)
        assert left == LeftOut("a.midi", f"row 2 of t.csv: expected at most {MAX_BYTES} bytes, got {MAX_BYTES + 1}")

    def test_bomb_that_lies_about_its_size(self, tmp_path: Path) -> None:
        content = bytes(2 * MAX_BYTES)
        path = archive(tmp_path / "zip", table("B,F,train,a.midi"), ("a.midi", content), method=zipfile.ZIP_DEFLATED)
        raw = path.read_bytes()
        path.write_bytes(raw.replace(struct.pack("<I", len(content)), struct.pack("<I", 1000)))
        (file,) = maestro_files(path)
        assert isinstance(file, MidiFile)
        with pytest.raises(MidiError, match="cannot be unpacked: Bad CRC-32"):
            file.content.read()

    def test_many_members_are_not_in_memory_together(self, tmp_path: Path) -> None:
        rows = table(*(f"B,F,train,{number}.midi" for number in range(3)))
        files = maestro_files(archive(tmp_path / "zip", rows, *((f"{number}.midi", MIDI) for number in range(3))))
        contents = [file.content for file in files if isinstance(file, MidiFile)]
        assert len(contents) == 3
        assert all(isinstance(content, Member) and content.read() == MIDI for content in contents)

    def test_encrypted_member(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "zip", table("B,F,train,a.midi", "B,G,train,b.midi"), ("a.midi", MIDI))
        raw = bytearray(path.read_bytes())
        for word, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of the local and the central entry
            raw[raw.rindex(word) + at] |= 1
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"first: a\.midi: cannot be unpacked: .*password required"):
            prepare_maestro(path, tmp_path / "out", workers=0)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_member_that_is_there_twice(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "zip", table("B,F,train,a.midi"), ("a.midi", MIDI), ("a.midi", b""))
        (left,) = maestro_files(path)
        assert left == LeftOut("a.midi", "row 2 of t.csv: expected one file of this name in the archive, got 2")

    def test_archive_that_changed_is_opened_anew(self, tmp_path: Path) -> None:
        for number in range(2):
            path = archive(tmp_path / "zip", table("B,F,train,a.midi"), ("a.midi", MIDI + bytes(number)))
            os.utime(path, ns=(number, number))
            (file,) = maestro_files(path)
            assert isinstance(file, MidiFile)
            assert len(file.content.read()) == len(MIDI) + number

    def test_archive_cut_short(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "zip", table("B,F,train,a.midi"), ("a.midi", MIDI))
        raw = path.read_bytes()
        path.write_bytes(raw[:100] + raw[200:])
        with pytest.raises(ValueError, match="zip: expected a zip file that is whole"):
            maestro_files(path)

    @given(st.data())
    def test_damaged_archive_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("zip") / "zip"
        rows = table("B,F,train,a.midi", "B,G,test,b.midi")
        archive(path, rows, ("a.midi", MIDI), ("b.midi", MIDI), method=zipfile.ZIP_DEFLATED)
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        try:
            files = maestro_files(path)
        except ValueError:
            return
        for file in files:
            if isinstance(file, MidiFile):
                try:
                    assert len(file.content.read()) <= MAX_BYTES
                except MidiError:
                    continue


class TestTable:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            pytest.param("", "got t.csv: row 1 lacks canonical_composer, .*, midi_filename", id="empty"),
            pytest.param(
                "canonical_composer,canonical_title,split\nB,F,train\n", "row 1 lacks midi_filename", id="one"
            ),
            pytest.param(f"{HEADER},split\n", "t.csv: row 1: expected each column once, got split 2 times", id="twice"),
            pytest.param(f'"{HEADER}', "row 1: unexpected end of data", id="open-quote-in-the-first-row"),
            pytest.param("x" * 200_000, r"row 1: field larger than field limit \(131072\)", id="wide-first-row"),
            pytest.param("x" * (2**24 + 1), "t.csv: expected at most 16777216 bytes, got more", id="large"),
        ],
    )
    def test_columns_must_be_there_once(self, tmp_path: Path, rows: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            maestro_files(folder(tmp_path / "release", rows))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            pytest.param("B,F,train", "row 3: expected 4 fields as in row 1, got 3", id="short"),
            pytest.param("B,F,train,b.midi,x", "row 3: expected 4 fields as in row 1, got 5", id="long"),
            pytest.param('B,"F,train,b.midi', "row 3: unexpected end of data", id="open-quote"),
            pytest.param('B,"F"x,train,b.midi', "row 3: ',' expected after", id="quote-inside"),
            pytest.param("B,F,train," + "x" * 200_000, "row 3: field larger than field limit", id="wide"),
        ],
    )
    def test_row_that_cannot_be_read_is_named(self, tmp_path: Path, row: str, message: str) -> None:
        path = folder(tmp_path / "release", table("B,F,train,a.midi", row), "a.midi")
        with pytest.raises(ValueError, match=rf"release: t\.csv: {message}"):
            maestro_files(path)

    @pytest.mark.parametrize("again", ["a.midi", "./a.midi", "/a.midi"])
    def test_file_listed_again_is_left_out(self, tmp_path: Path, again: str) -> None:
        path = folder(tmp_path / "release", table("B,F,train,a.midi", "", f"B,F,test,{again}"), "a.midi")
        first, second = maestro_files(path)
        assert isinstance(first, MidiFile)
        reason = "not a path inside the release" if again.startswith("/") else "listed before, in row 2"
        assert second == LeftOut(again, f"row 4 of t.csv: {reason}")

    def test_other_table_in_an_archive_is_not_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("bomb.csv", table("B,F,train,a.midi"), zipfile.ZIP_BZIP2)
        with pytest.raises(
            ValueError, match=r"got bomb\.csv: expected a file that is stored or deflated, got method 12"
        ):
            maestro_files(path)

    def test_bytes_that_are_no_utf8(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "release", table("B,F,train,a.midi").encode().replace(b"F,", b"\xff\x00,"), "a.midi")
        (file,) = maestro_files(path)
        assert isinstance(file, MidiFile)
        assert file.title == "\ufffd\x00"


class TestFolder:
    @pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
    def test_name_that_is_no_utf8_is_stored_and_reported(self, tmp_path: Path) -> None:
        (tmp_path / "music").mkdir()
        for name, content in ((b"\xc9tude.mid", MIDI), (b"\xff.mid", b"")):
            Path(os.fsdecode(os.fsencode(tmp_path / "music") + b"/" + name)).write_bytes(content)
        report = prepare_folder(tmp_path / "music", tmp_path / "out", workers=0)
        (piece,) = TokenStore.open(tmp_path / "out").pieces
        assert (piece.source, piece.title) == ("\\xc9tude.mid", "\\xc9tude")
        assert [left.source for left in report.left_out] == ["\\xff.mid"]

    def test_pipe_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "music").mkdir()
        os.mkfifo(tmp_path / "music" / "pipe.mid")  # opening it would wait for ever
        assert sources.folder_files(tmp_path / "music") == []

    def test_names_do_not_command_the_terminal(self, tmp_path: Path) -> None:
        music = tmp_path / "music"
        music.mkdir()
        (music / "a.mid").write_bytes(MIDI)
        (music / "red \x1b[31m.mid").write_bytes(b"")
        done = CliRunner().invoke(app, ["folder", str(music), "--out", str(tmp_path / "out"), "--workers", "1"])
        assert done.exit_code == 0
        assert "red \\x1b[31m.mid: expected a MIDI file" in done.stdout
        assert "\x1b" not in done.stdout


class TestGroups:
    @staticmethod
    def files(*sources: str) -> list[MidiFile]:
        return [MidiFile(source, Path(source).stem, "", None, Path(source)) for source in sources]

    def test_folders_that_hold_files(self) -> None:
        # The layouts of composer/piece/player, of a piece with its versions in a folder beside it, and of files alone.
        files = self.files("Bach/Fugue/A.mid", "Bach/Fugue/B.mid", "Bach/Aria/A.mid")
        files += self.files("001/001.mid", "001/versions/001-v1.mid", "001/versions/more/x.mid", "Waltz.mid")
        assert sources.groups_by_folder(files) == [
            *("Bach/Fugue", "Bach/Fugue", "Bach/Aria", "001", "001", "001", "Waltz"),
        ]

    def test_table(self, tmp_path: Path) -> None:
        path = tmp_path / "groups.csv"
        path.write_text("group,who,path\nx,me,b/one.mid\ny,you,./two.mid\nx,me,other.mid\nx,me,b/one.mid\n")
        assert sources.groups_in_table(self.files("two.mid", "b/one.mid"), path) == ["y", "x"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("path\na.mid\n", "row 1 lacks group"),
            ("path,group\na.mid,x\n", "expected every file, got none for b.mid, 1 in all"),
            ("path,group\na.mid,x\nb.mid,x\na.mid,y\n", "row 4: expected one group for a.mid, got x before"),
            ("path,group\na.mid,x\nb.mid,\n", "row 3: expected a group for b.mid, got none"),
            ("path,group\na.mid\n", "row 2: expected 2 fields as in row 1, got 1"),
            ("", "row 1 lacks path, group"),
        ],
    )
    def test_table_that_does_not_say_it(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "groups.csv"
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"groups\.csv: {message}"):
            sources.groups_in_table(self.files("a.mid", "b.mid"), path)

    def test_table_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            sources.groups_in_table(self.files("a.mid"), tmp_path / "groups.csv")
