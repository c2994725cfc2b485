"""Sound: notes at their pitch, time and loudness; a soundfont, or a clear refusal."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pretty_midi
import pytest

from dsmr.music.sound import SAMPLE_RATE, write_wav
from tests.dsmr.playing import performance


def samples_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)


class TestSound:
    LOUDEST = round(10 ** (-1 / 20) * 32_767)  # -1 dB

    def test_loudest_sample_stays_below_full_scale(self, tmp_path: Path) -> None:
        chord = performance(*((0.0, 1.0, pitch, 127) for pitch in range(21, 109)))
        for name, played in (("chord", chord), ("pianissimo", performance((0.0, 1.0, 60, 1)))):
            write_wav(played, tmp_path / name)
            assert abs(samples_of(tmp_path / name)).max() == self.LOUDEST

    @pytest.mark.parametrize("pitch", [21, 69, 108])
    def test_note_sounds_at_its_pitch_while_it_lasts(self, tmp_path: Path, pitch: int) -> None:
        write_wav(performance((0.5, 1.5, pitch, 80)), tmp_path / "note.wav")
        samples = samples_of(tmp_path / "note.wav")
        assert abs(samples[: SAMPLE_RATE // 2]).max() == 0
        assert abs(samples[int(1.6 * SAMPLE_RATE) :]).max() == 0
        spectrum = abs(np.fft.rfft(samples[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2]))  # 1 s: bins of 1 Hz
        assert (
            abs(spectrum.argmax() - pretty_midi.note_number_to_hz(pitch)) <= 2.5
        )  # stiffness: +0.02 %, 0.9 Hz at 4,186

    def test_louder_notes_are_louder(self, tmp_path: Path) -> None:
        write_wav(performance((0.0, 0.5, 60, 30), (1.0, 1.5, 60, 60), (2.0, 2.5, 60, 120)), tmp_path / "crescendo.wav")
        peaks = [abs(part).max() for part in np.split(samples_of(tmp_path / "crescendo.wav")[: 3 * SAMPLE_RATE], 3)]
        assert peaks[0] < peaks[1] / 2 < peaks[2] / 4 + 1

    def test_time_of_a_note_does_not_change_its_sound(self, tmp_path: Path) -> None:
        # The music is rendered in windows of 10 s: from the third into the fourth, and inside the first.
        for name, onset in (("early", 1.0), ("late", 29.5)):
            write_wav(performance((onset, onset + 4.0, 50, 80), (onset + 1.0, onset + 2.0, 57, 80)), tmp_path / name)
        early = samples_of(tmp_path / "early")[SAMPLE_RATE:]
        late = samples_of(tmp_path / "late")[int(29.5 * SAMPLE_RATE) :]
        assert len(early) == len(late)
        assert abs(early - late).max() <= 1

    def test_pedal_prolongs_notes(self, tmp_path: Path) -> None:
        write_wav(performance((0.0, 0.1, 60, 80), pedal=((0.05, 127), (2.0, 0))), tmp_path / "pedal.wav")
        assert abs(samples_of(tmp_path / "pedal.wav")[int(1.8 * SAMPLE_RATE) : int(1.9 * SAMPLE_RATE)]).max() > 100

    def test_nothing_played_is_silence(self, tmp_path: Path) -> None:
        write_wav(performance(), tmp_path / "silence.wav")
        samples = samples_of(tmp_path / "silence.wav")
        assert len(samples) > 0
        assert not samples.any()

    def test_soundfont_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"soundfont: expected an .sf2 file, got .*nowhere\.sf2"):
            write_wav(performance((0, 1, 60, 64)), tmp_path / "x.wav", soundfont=tmp_path / "nowhere.sf2")

    def test_soundfont_without_fluidsynth_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pretty_midi.fluidsynth, "_HAS_FLUIDSYNTH", False)
        (tmp_path / "piano.sf2").touch()
        with pytest.raises(ImportError, match="needs pyfluidsynth"):
            write_wav(performance((0, 1, 60, 64)), tmp_path / "x.wav", soundfont=tmp_path / "piano.sf2")

    def test_soundfont_is_played_by_fluidsynth(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        def fluidsynth(score: pretty_midi.PrettyMIDI, fs: int, synthesizer: str) -> np.ndarray:
            asked.update(notes=[note.pitch for note in score.instruments[0].notes], fs=fs, synthesizer=synthesizer)
            return np.array([0.0, -0.5, 0.25])

        monkeypatch.setattr(pretty_midi.PrettyMIDI, "fluidsynth", fluidsynth)
        (tmp_path / "piano.sf2").touch()
        write_wav(performance((0, 1, 60, 64)), tmp_path / "x.wav", soundfont=tmp_path / "piano.sf2")
        assert asked == {"notes": [60], "fs": SAMPLE_RATE, "synthesizer": str(tmp_path / "piano.sf2")}
        assert samples_of(tmp_path / "x.wav").tolist() == [0, -self.LOUDEST, round(self.LOUDEST / 2)]
