from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from dsmr.plots import (
    COLOURS,
    DPI,
    ROLL_INCHES_PER_SECOND,
    ROLL_WIDTHS,
    Curve,
    Mark,
    band,
    difference_panels,
    nll_by_position,
    piano_roll,
    schedule_bars,
    training_curve,
)
from dsmr.schedules import make_schedule
from dsmr.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance
from dsmr_kernels import Retention


@pytest.fixture(autouse=True)
def no_global_state(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises


def performance(*rows: tuple[float, float, int, int], pedal: tuple[tuple[float, int], ...] = ()) -> Performance:
    return Performance(np.array(list(rows), NOTE_DTYPE), np.array(list(pedal), PEDAL_DTYPE))


def picture(path: Path) -> np.ndarray:
    """The picture's pixels, float [height, width, 3]."""
    return imread(path)[..., :3]


def coloured(pixels: np.ndarray) -> np.ndarray:
    """bool [height, width]: neither white, grey nor black; the colour bar at the right cut off."""
    inside = pixels[:, :-DPI]
    return inside.max(-1) - inside.min(-1) > 0.15


def is_colour(pixels: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(pixels - np.array(to_rgb(colour))).max(-1) < 0.01


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


def test_schedule_bars_are_in_proportion_to_horizons(tmp_path):
    schedule_bars([make_schedule("explicit", 3, horizons=[400, 0, 100])], tmp_path / "bars.png")
    bars = is_colour(picture(tmp_path / "bars.png"), COLOURS[0])
    lengths = bars.sum(1)
    drawn = np.flatnonzero(lengths)
    layers = np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)
    top, bottom = (np.median(lengths[layer]) for layer in layers)  # the lowest layer at the bottom, layer 1 empty
    assert bottom / top == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("count", [2, 4, 7], ids=lambda n: f"{n}-schedules")
def test_many_schedules_share_a_figure(tmp_path, count):
    schedules = [make_schedule("uniform", 2 + n, retention=Retention(1 + n)) for n in range(count)]
    schedule_bars(schedules, tmp_path / "bars.png")
    assert is_colour(picture(tmp_path / "bars.png"), COLOURS[0]).sum() > 1000 * count


@pytest.mark.parametrize("draw", [nll_by_position, training_curve], ids=lambda f: f.__name__)
def test_curves_have_their_colours_and_bands(tmp_path, draw):
    x = np.arange(40) * 1024
    plain = Curve("validation", x, np.linspace(2.0, 1.8, 40))
    banded = Curve("train", x, np.linspace(3.0, 2.5, 40), np.linspace(2.9, 2.4, 40), np.linspace(3.1, 2.6, 40))
    draw([plain], tmp_path / "plain.png", title="loss")
    draw([plain, banded], tmp_path / "both.png", title="loss")
    one, both = (picture(tmp_path / f"{name}.png") for name in ("plain", "both"))
    assert is_colour(one, COLOURS[0]).sum() > 500
    assert not is_colour(one, COLOURS[1]).any()
    assert is_colour(both, COLOURS[0]).sum() > 500
    assert is_colour(both, COLOURS[1]).sum() > 500
    tinted = (both[..., 0] > 0.9) & (both[..., 1] < 0.92) & (both[..., 1] > 0.7)
    assert tinted.sum() > 10_000


def test_the_same_figure_twice_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        nll_by_position([Curve("whole", [0, 1024], [2.0, 1.9])], tmp_path / name, title="same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_curves_and_empty_figures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"y: expected x's shape \[N\] = \(2,\), got \(3,\)"):
        Curve("a", [0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="low, high: expected both or neither"):
        Curve("a", [0, 1], [0, 1], low=[0, 1])
    with pytest.raises(ValueError, match="curves: expected at least one, got none"):
        training_curve([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="schedules: expected at least one, got none"):
        schedule_bars([], tmp_path / "x.png")


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_differences_are_drawn_with_their_intervals_and_marks_within_the_axis(tmp_path, log):
    x, y = [200, 400, 800], [0.1, 0.2, 0.3]
    curves = [
        Curve("certain", x, y, *band([(0.1, 0.1), (0.2, 0.2), None])),
        Curve("not", x, [-v for v in y], *band([(-0.4, 0.4), (-0.4, 0.4), None])),
    ]
    axes = {"xlabel": "x", "ylabel": "y", "xlim": (100, 1000), "log": log}
    pixels = []
    for number, marks in enumerate([[], [Mark(300, 2, "-")], [Mark(5000, 2, "-"), Mark(50, 2, "-")]]):
        path = tmp_path / f"{number}.png"
        difference_panels({"left": curves, "right": curves[:1]}, path, marks=marks, **axes)
        pixels.append(picture(path))
    plain, marked, outside = pixels
    assert is_colour(plain, COLOURS[0]).any()
    rows, columns = np.nonzero(is_colour(marked, COLOURS[2]))
    assert len(rows) > 200
    middle = marked.shape[1] / 2
    assert columns.min() < middle < columns.max()  # a line in each panel
    np.testing.assert_array_equal(plain, outside)
    # The right panel has nothing of the second curve.
    _, second = np.nonzero(is_colour(plain, COLOURS[1]))
    assert second.max() < plain.shape[1] / 2


def test_no_differences_are_refused(tmp_path):
    with pytest.raises(ValueError, match="panels: expected at least one curve, got none"):
        difference_panels({"left": []}, tmp_path / "x.png", xlabel="x", ylabel="y", xlim=(0, 1))
