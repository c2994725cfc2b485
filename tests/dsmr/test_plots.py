from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dsmr.model.schedule_bars import schedule_bars
from dsmr.plots import COLOURS, Curve, Mark, band, difference_panels, nll_by_position, training_curve
from tests.dsmr.pictures import is_colour, picture

pytestmark = pytest.mark.usefixtures("no_pyplot")


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
