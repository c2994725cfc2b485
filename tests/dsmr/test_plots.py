from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from dsmr.model.schedules import make_schedule
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
from dsmr_kernels import Retention
from tests.dsmr.playing import performance


@pytest.fixture(autouse=True)
def no_global_state(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now raises


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
        whole = picture(path)
        pixels.append(whole[:, : int(0.85 * whole.shape[1])])  # without the legend
    plain, marked, outside = pixels
    assert is_colour(plain, COLOURS[0]).any()
    rows, columns = np.nonzero(is_colour(marked, COLOURS[2]))
    assert len(rows) > 200
    middle = whole.shape[1] / 2  # the left panel ends before it, and what the right one shows begins after it
    assert columns.min() < middle < columns.max()  # a line in each panel
    np.testing.assert_array_equal(plain, outside)
    # The right panel has nothing of the second curve.
    _, second = np.nonzero(is_colour(plain, COLOURS[1]))
    assert second.max() < middle


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are written, instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    return figures


LABELS = [f"model {number}\n{'1.07k, ' * 7}" for number in range(10)]


def draw_ten(name: str, path: Path) -> None:
    curves = [Curve(label, np.arange(20), np.arange(20) + n, *band([None] * 20)) for n, label in enumerate(LABELS)]
    axes = {"xlabel": "x", "ylabel": "y", "xlim": (0, 20)}
    if name == "differences":
        difference_panels({"left": curves[:3], "right": curves}, path, "t", legend_title="which", **axes)
    elif name == "differences, one panel":
        difference_panels({"": curves}, path, **axes)
    else:
        {"positions": nll_by_position, "training": training_curve}[name](curves, path, "t")


@pytest.mark.parametrize("name", ["differences", "differences, one panel", "positions", "training"])
def test_ten_curves_are_ten_distinct_lines_with_the_legend_beside_them(drawn, name):
    draw_ten(name, "ten.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    lines = [line for line in figure.axes[-1 if name == "differences" else 0].lines if "model" in line.get_label()]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern), line.get_marker()) for line in lines}
    assert len(lines) == len(looks) == 10
    assert len({line.get_marker() for line in lines}) == 10
    assert len({(colour, dash) for colour, dash, _ in looks}) == 10  # where lines are too short for markers
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == LABELS
    frame = legend.get_window_extent()
    assert all(frame.x0 >= axes.get_tightbbox().x1 for axes in figure.axes)
    assert figure.bbox.y0 <= frame.y0
    assert frame.y1 <= figure.bbox.y1
    assert frame.x1 <= figure.bbox.x1


def test_many_panels_are_in_rows_of_four(drawn):
    curve = Curve("kept", [1, 2], [0.1, 0.2])
    difference_panels({str(n): [curve] for n in range(10)}, "x.png", xlabel="x", ylabel="y", xlim=(0, 3))
    (figure,) = drawn
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 10
    assert len({round(axes.get_position().x0, 3) for axes in shown}) == 4
    assert figure.get_size_inches()[0] < 25
    with_numbers = [axes for axes in shown if any(label.get_visible() for label in axes.get_xticklabels())]
    assert len(with_numbers) == 4  # the lowest of each column


@pytest.mark.parametrize("character", ["a", "中", "$"])
def test_no_name_however_long_runs_into_the_next_panel(drawn, character):
    name = character * 90
    panels = {f"{name}{n}": [Curve(name, [1, 2], [0.1, 0.2])] for n in range(8)}
    long = "recall: NLL(source forgotten) - NLL (nats per token)"
    difference_panels(panels, "x.png", xlabel="position in the piece (tokens)", ylabel=long, xlim=(0, 3))
    (figure,) = drawn
    figure.draw_without_rendering()
    assert figure.axes[0].get_ylabel() == long
    for row in (figure.axes[:4], figure.axes[4:]):
        boxes = [text.get_window_extent() for axes in row for text in (axes._left_title, axes.xaxis.label)]
        for one, other in itertools.combinations([box for box in boxes if box.width > 0], 2):
            assert not one.overlaps(other)


def test_colours_are_told_apart_by_colour_blind_eyes():
    """Machado et al. (2009): what protanopes and deuteranopes see of linear RGB; 10 is a clear difference in CIELAB."""
    seen = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    linear = ((np.array([to_rgb(colour) for colour in COLOURS]) + 0.055) / 1.055) ** 2.4
    for matrix in seen.values():
        xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ to_xyz.T / to_xyz.sum(1)
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
        assert apart[~np.eye(len(COLOURS), dtype=bool)].min() > 10


def test_no_differences_are_refused(tmp_path):
    with pytest.raises(ValueError, match="panels: expected at least one curve, got none"):
        difference_panels({"left": []}, tmp_path / "x.png", xlabel="x", ylabel="y", xlim=(0, 1))
