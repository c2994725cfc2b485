from __future__ import annotations

import numpy as np
import pytest

from dsmr.music.roll import ROLL_INCHES_PER_SECOND, ROLL_WIDTHS, piano_roll
from dsmr.plots import DPI
from tests.dsmr.pictures import coloured, picture
from tests.dsmr.playing import performance

pytestmark = pytest.mark.usefixtures("no_pyplot")


def test_a_roll_shows_notes_where_they_are(tmp_path):
    piano_roll(performance((2.0, 4.0, 48, 40), (6.0, 7.0, 72, 110), (9.0, 10.0, 72, 110)), tmp_path / "roll.png")
    pixels = picture(tmp_path / "roll.png")
    rows, columns = np.nonzero(coloured(pixels))
    lower = rows > (rows.min() + rows.max()) / 2
    assert columns[lower].max() < columns[~lower].min()  # C3 before C5, and below it
    high = np.unique(columns[~lower])
    first, second = np.split(high, np.flatnonzero(np.diff(high) > 1) + 1)
    second_long = len(second)  # 1 s
    assert len(first) / second_long == pytest.approx(1, abs=0.1)
    assert (second[0] - first[-1]) / second_long == pytest.approx(2, abs=0.1)
    assert (np.ptp(columns[lower]) + 1) / second_long == pytest.approx(2, abs=0.1)


def test_a_roll_colours_notes_by_velocity(tmp_path):
    for name, velocity in (("soft", 20), ("loud", 110), ("loud-again", 110)):
        piano_roll(performance((0.0, 4.0, 60, velocity)), tmp_path / f"{name}.png")
    soft, loud, again = (picture(tmp_path / f"{name}.png") for name in ("soft", "loud", "loud-again"))
    here = coloured(loud)
    assert here.any()
    np.testing.assert_array_equal(here, coloured(soft))
    red, blue = (pixels[:, :-DPI][here].mean(0) for pixels in (loud, soft))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    np.testing.assert_array_equal(loud, again)


@pytest.mark.parametrize("seconds", [1, 100, 4000], ids=lambda s: f"{s}-s")
def test_a_roll_is_as_wide_as_the_music_is_long_within_limits(tmp_path, seconds):
    piano_roll(performance((0.0, seconds, 60, 64)), tmp_path / "roll.png")
    inches = np.clip(seconds * ROLL_INCHES_PER_SECOND, *ROLL_WIDTHS)
    assert picture(tmp_path / "roll.png").shape[1] == pytest.approx(inches * DPI, abs=1)


def test_a_roll_shows_the_pedal_only_if_there_is_one(tmp_path):
    note = (0.0, 8.0, 60, 64)
    piano_roll(performance(note), tmp_path / "dry.png")
    piano_roll(performance(note, pedal=((1.0, 127), (4.0, 0))), tmp_path / "pedal.png")
    dry, pedal = (picture(tmp_path / f"{name}.png") for name in ("dry", "pedal"))
    widest = [((pixels.max(-1) < 0.7) & (np.ptp(pixels, -1) < 0.1)).sum(1).max() for pixels in (dry, pedal)]
    assert widest[0] < 0.2 * dry.shape[1]  # letters only
    assert widest[1] > 0.3 * pedal.shape[1]  # 3 of 8 s


def test_a_roll_grows_its_keyboard_for_extreme_keys(tmp_path):
    piano_roll(performance((0.0, 4.0, 21, 64), (0.0, 4.0, 108, 64)), tmp_path / "roll.png")
    rows = np.flatnonzero(coloured(picture(tmp_path / "roll.png")).any(1))
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(runs) == 2


def test_a_roll_without_notes_says_so(tmp_path):
    piano_roll(performance(), tmp_path / "empty.png")
    assert not coloured(picture(tmp_path / "empty.png")).any()


def test_a_title_is_drawn(tmp_path):
    note = performance((0.0, 8.0, 60, 64))
    piano_roll(note, tmp_path / "bare.png")
    piano_roll(note, tmp_path / "titled.png", title="Nocturne")
    top = slice(0, 30)
    dark = [int((picture(tmp_path / f"{name}.png")[top].max(-1) < 0.4).sum()) for name in ("bare", "titled")]
    assert dark[1] > dark[0] + 100


@pytest.mark.parametrize("pedal", [(), ((0.0, 127), (20.0, 0))], ids=["dry", "pedal"])
def test_notes_never_cover_the_names_of_times_and_keys(tmp_path, pedal):
    keys = [(0.0, 20.0, key, 100) for key in range(128)]
    piano_roll(performance(*keys, pedal=pedal), tmp_path / "full.png")
    here = coloured(picture(tmp_path / "full.png"))
    below, beside = round(0.35 * DPI), round(0.3 * DPI)  # where the axes' names and numbers are printed
    assert here.sum() > here.size / 3
    assert not here[-below:].any()
    assert not here[:, :beside].any()
