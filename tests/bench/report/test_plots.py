"""Every figure of the committed results: no empty panel, no line that lies on zero, no colour for two contenders."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.harness import results
from bench.harness.results import FOLDER

matplotlib = pytest.importorskip("matplotlib")
plots = importlib.import_module("bench.report.plots")  # after the skip: it needs matplotlib


def data(axes) -> list[np.ndarray]:
    """The heights of all that an axes shows: lines of several points, and bars."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines if len(line.get_ydata()) > 1]
    bars = [np.array([bar.get_height() for bar in container]) for container in axes.containers]
    return [x for x in (*lines, *bars) if not np.array_equal(x, [0, 1])]  # a rule from edge to edge


def faults(figure) -> list[str]:
    """What is wrong with a figure, panel by panel."""
    found, colours = [], {}
    for number, axes in enumerate(figure.axes):
        heights = data(axes)
        if not heights:
            found.append(f"panel {number} is empty")
        if any(not np.any(x) for x in heights):
            found.append(f"panel {number} shows zeros only")
        if not axes.get_title() or not axes.get_ylabel():
            found.append(f"panel {number} does not say what it shows")
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            colour = handle.patches[0].get_facecolor() if hasattr(handle, "patches") else handle.get_color()
            colours.setdefault(matplotlib.colors.to_hex(colour), set()).add(label)
    roofs = {"fp32 roof", "bf16 roof", "fp16 roof"}  # in a panel where no contender has a name
    shared = {colour: labels - roofs for colour, labels in colours.items() if len(labels - roofs) > 1}
    return [*found, *(f"{colour} stands for {sorted(labels)}" for colour, labels in shared.items())]


@pytest.mark.parametrize("folder", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_figure_of_the_committed_results_shows_something_in_each_panel(folder: Path) -> None:
    figures = plots.figures(results.load_machine(folder.glob("*.jsonl")))
    assert figures
    for name, figure in figures.items():
        assert not faults(figure), name


def test_the_check_finds_empty_panels_zeros_and_shared_colours() -> None:
    figure = matplotlib.figure.Figure()
    first, second, third = figure.subplots(1, 3)
    first.plot([1, 2], [3, 4], color="C0", label="a")
    second.plot([1, 2], [0, 0], color="C0", label="b")
    for axes in (first, second, third):
        axes.set(title="t", ylabel="y")
    assert faults(figure) == ["panel 1 shows zeros only", "panel 2 is empty", "#1f77b4 stands for ['a', 'b']"]


def test_results_make_a_plot_and_the_same_results_the_same_plot(bench, tmp_path):
    done = bench("train", "--quick", "--contenders", "SDPA", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (run,) = results.load(tmp_path / "train-cpu-1.jsonl")
    for name in ("first", "again"):
        (figure,) = plots.figures([run]).values()
        figure.savefig(tmp_path / f"{name}.png", metadata={"Software": None})
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert plots.figures([replace(run, rows=[])]) == {}
