"""`dsmr compare`: what it prints of copied, of new and of odd music."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsmr.cli import app
from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.reference import corpus_of
from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.music.analysis.comparison import NUMBERS, compare_music
from dsmr.music.analysis.histograms import FEATURES
from dsmr.music.analysis.order import ORDER_NUMBERS
from dsmr.music.analysis.quotation import EQUALITIES
from dsmr.music.analysis.similarity import DISTANCES
from dsmr.music.midi import write_midi
from dsmr.music.tokens import NOTE_DTYPE, Performance, decode


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("store") / "corpus.tokens"
    prepare_pianist(path, seed=3, tokens=60_000, longest=6_000)
    return TokenStore.open(path)


@pytest.fixture(scope="module")
def music(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 30 seconds of a training piece, the same length of noise, and ten seconds of silence with one note."""
    folder = tmp_path_factory.mktemp("music")
    notes = decode(store.piece(store.indices("train")[0])).notes
    write_midi(Performance(notes[notes["offset"] <= 30]), folder / "copy.mid")
    rng = np.random.default_rng(0)
    noise = np.zeros(300, NOTE_DTYPE)
    noise["onset"] = np.sort(rng.integers(0, 2900, 300)) / 100
    noise["offset"] = noise["onset"] + 0.5
    noise["pitch"], noise["velocity"] = rng.integers(1, 128, (2, 300))
    write_midi(Performance(noise), folder / "noise.mid")
    write_midi(Performance(np.array([(9, 10, 60, 64)], NOTE_DTYPE)), folder / "note.mid")
    return folder


def compare(capsys: pytest.CaptureFixture[str], *arguments: object, exits: int = 0) -> tuple[str, str]:
    assert app.run(["compare", *map(str, arguments)]) == exits
    return capsys.readouterr()


def test_tells_machines_everything(store: TokenStore, music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = compare(capsys, music / "noise.mid", music / "copy.mid", "--data", store.path, "--json")
    found = json.loads(out)
    assert found["store"] == store.digest
    (group,) = found["groups"]
    copied, noise = sorted(group["music"], key=lambda each: each["name"])
    assert [each["name"] for each in copied["numbers"]] == list(NUMBERS)
    usual, odd = (sum(each["within"] for each in music["numbers"]) for music in (copied, noise))
    assert usual > odd
    assert [each["feature"] for each in copied["distances"]] == list(FEATURES)
    assert all(0 < each["value"] < 1 and 0 <= each["further"] <= 1 for each in copied["distances"])
    # All velocities equally often: no pianist plays like this.
    further = {each["feature"]: each["further"] for each in noise["distances"]}
    assert further["velocity"] == 1 / (1 + group["excerpts"])
    assert [each["distance"] for each in copied["self_similarity"]] == list(DISTANCES)

    title = store.pieces[store.indices("train")[0]].title
    quoted = {each["equality"]: each for each in copied["quotations"]}
    assert quoted["pitches"]["length"] == copied["statistics"]["notes"]
    for equality in EQUALITIES:
        assert (quoted[equality]["title"], quoted[equality]["semitones"]) == (title, 0)
        assert quoted[equality]["length"] > 5 * group["quoted_by_held_out"][equality]["median"]
    assert all(each["length"] < 10 for each in noise["quotations"])


def test_calls_noise_noise(music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_pianist(tmp_path / "many.tokens", seed=4, tokens=60_000, longest=2_500)
    arguments = (music / "noise.mid", music / "copy.mid", "--data", tmp_path / "many.tokens")
    (group,) = json.loads(compare(capsys, *arguments, "--json")[0])["groups"]
    orders = {each["name"]: each["order"] for each in group["music"]}
    assert (orders["noise.mid"]["ordered"], orders["copy.mid"]["ordered"]) == (False, True)
    assert [each["name"] for each in orders["copy.mid"]["numbers"]] == list(ORDER_NUMBERS)
    assert orders["noise.mid"]["verdict"].startswith("it is noise, not music: ")


def test_finds_where_a_theme_returns(
    store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    notes = decode(store.piece(store.indices("test")[0])).notes
    theme, later = notes[notes["onset"] < 5].copy(), notes[notes["onset"] < 5].copy()
    for field in ("onset", "offset"):
        later[field] += 30
    later["pitch"] += 2
    between = notes[(notes["onset"] >= 12) & (notes["offset"] < 30)]
    write_midi(Performance(theme), tmp_path / "theme.mid")
    write_midi(Performance(np.concatenate([theme, between, later])), tmp_path / "music.mid")
    arguments = (tmp_path / "music.mid", "--data", store.path, "--theme", tmp_path / "theme.mid")
    (found,) = json.loads(compare(capsys, *arguments, "--json")[0])["theme"]
    assert found["begins_with_theme"]
    last = found["returns"][-1]
    assert (last["semitones"], last["share"]) == (2, 1.0)
    assert last["seconds"][0] == pytest.approx(30 + theme["onset"].min(), abs=0.01)
    assert len(found["corpus"]) == len(store.indices("train"))
    out, _ = compare(capsys, *arguments)
    assert "returns of theme.mid, beside excerpts of train pieces that are as long" in out
    assert "0:30 +2" in out
    write_midi(Performance(theme[:3]), tmp_path / "theme.mid")
    assert "theme: expected at least 8 notes, got 3" in compare(capsys, *arguments, exits=2)[1]


def test_prints_tables_and_draws(
    store: TokenStore, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = (music / "copy.mid", music / "note.mid", "--data", store.path, "--png", tmp_path / "x.png")
    out, _ = compare(capsys, *arguments)
    assert out.count("passages found in the train split") == 2  # music of unequal length has excerpts of its own
    assert "excerpts of 10 s, train split" in out
    assert "note.mid: it has too few notes to tell music from noise" in out
    assert "pieces are too few to tell music from noise, 19 would do" in out
    assert "too short" in out
    assert "(outside)" in out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "exists already" in compare(capsys, *arguments, exits=2)[1]


def test_names_files_of_one_name_by_their_paths(
    store: TokenStore, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.mid").write_bytes((music / "note.mid").read_bytes())
    paths = [music / "note.mid", tmp_path / "note.mid"]
    (group,) = json.loads(compare(capsys, *paths, "--data", store.path, "--json")[0])["groups"]
    assert [each["name"] for each in group["music"]] == [str(path) for path in paths]


def test_a_corpus_without_held_out_pieces_has_nothing_to_set_quotations_beside(
    store: TokenStore, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StoreWriter(tmp_path / "all.tokens") as writer:
        for index, piece in enumerate(store.pieces[:2]):
            writer.add(store.piece(index), split="train", title=piece.title)
    arguments = (music / "note.mid", "--data", tmp_path / "all.tokens")
    assert json.loads(compare(capsys, *arguments, "--json")[0])["groups"][0]["quoted_by_held_out"] is None
    assert "held-out" not in compare(capsys, *arguments)[0]


def test_explains_what_is_wrong(store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.mid").write_bytes(b"no music")
    assert "expected a MIDI file" in compare(capsys, tmp_path / "x.mid", "--data", store.path, exits=2)[1]
    assert "nothing.mid" in compare(capsys, tmp_path / "nothing.mid", "--data", store.path, exits=2)[1]
    with pytest.raises(ValueError, match="x: expected music with notes, got none"):
        compare_music({"x": Performance(np.empty(0, NOTE_DTYPE))}, corpus_of(store, "train"))
