"""Plots: the look that all figures share, and curves of what a model learned.

Every function draws one figure of its own and writes it to a file; none touches matplotlib's global state, so they can
be called from any thread, with or without a display.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, MultipleLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from dsmr.text import escaped
from dsmr.units import format_tokens

Path = str | os.PathLike[str]

DPI = 150
INK, FAINT = "#222222", "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito (2008): told apart by colour-blind eyes, too."""
DASHES = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")
"""Curves differ in dashes and markers as well as in colour, so that they do on paper and beyond six."""
LEGEND_POINTS = 8
MARKED = 12
"""Markers on a curve of more than `DENSE` points."""
DENSE = 30

LONGEST_LINE = 52  # characters of a title or a name: as many as fit above one of four panels


@dataclass(frozen=True)
class Curve:
    """A labelled line, with a band of uncertainty if `low` and `high` are given.

    Args:
        label: its name in the legend.
        x, y: numbers of equal shape [N].
        low, high: the band's borders, [N]; both or neither.

    Raises:
        ValueError: shapes that differ or are not [N], or only one border.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("low, high: expected both or neither")
        for name in ("y", "low", "high"):
            value = getattr(self, name)
            if value is not None and (np.ndim(value) != 1 or np.shape(value) != np.shape(self.x)):
                raise ValueError(f"{name}: expected x's shape [N] = {np.shape(self.x)}, got {np.shape(value)}")


def band(intervals: Sequence[tuple[float, float] | None]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve's `low` and `high` from one interval a point; NaN, which is not drawn, where there is None."""
    low, high = np.array([each or (np.nan, np.nan) for each in intervals]).reshape(-1, 2).T
    return low, high


@dataclass(frozen=True)
class Mark:
    """A vertical line, e.g. where a model's memory ends; `curve` is the number of the curve whose colour it takes."""

    x: float
    curve: int
    style: str = ":"


def nll_by_position(
    curves: Sequence[Curve], path: Path, title: str | None = None, legend_title: str | None = None
) -> None:
    """Draw the loss over the position in a piece: what a model gains from having heard more of it.

    Args:
        curves: `x` in tokens since the piece began, `y` (and the band) in nats per token.
        path: the file to write; its ending decides the format.
        title: printed above.
        legend_title: what the curves' labels say.
    """
    _loss_figure(curves, path, title, "position in the piece (tokens)", legend_title)


def training_curve(curves: Sequence[Curve], path: Path, title: str | None = None) -> None:
    """Draw the loss over training, e.g. one curve of the training split and one of the validation split.

    Args:
        curves: `x` in tokens seen, `y` (and the band) in nats per token.
        path: the file to write; its ending decides the format.
        title: printed above.
    """
    _loss_figure(curves, path, title, "tokens seen")


def difference_panels(
    panels: Mapping[str, Sequence[Curve]],
    path: Path,
    title: str | None = None,
    *,
    xlabel: str,
    ylabel: str,
    xlim: tuple[float, float],
    marks: Sequence[Mark] = (),
    mark_names: Mapping[str, str] | None = None,
    log: bool = False,
    legend_title: str | None = None,
) -> None:
    """Draw differences of the NLL around the line of no difference: panels of the same scales, four in a row at most.

    Args:
        panels: each panel's title and curves; `y`, `low` and `high` in nats per token, the last two drawn as error
            bars, NaN where they are unknown. Curves of equal number look the same in all panels and have one entry in
            the legend, so they have one label.
        path: the file to write; its ending decides the format.
        title: printed above.
        xlabel, ylabel: what the axes show.
        xlim: where the horizontal axis begins and ends.
        marks: vertical lines, drawn in every panel if they lie within the axis.
        mark_names: what a mark's style means, for the legend.
        log: show x on a logarithmic scale.
        legend_title: what the curves' labels say.
    """
    if not any(panels.values()):
        raise ValueError("panels: expected at least one curve, got none")
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width = 3.2 + (6.3 if columns == 1 else 4.6 * columns)
    figure = Figure(figsize=(width, 4.2 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[len(panels) :]:
        unused.set_visible(False)
    row = grid.flat[: len(panels)]
    for axes, (name, curves) in zip(row, panels.items(), strict=True):
        apply_style(axes, grid="both")
        axes.axhline(0, color=INK, linewidth=0.9)
        for number, curve in enumerate(curves):
            aside = 0.007 * (number - (len(curves) - 1) / 2)  # bars of several curves would hide each other
            x = np.asarray(curve.x)
            x = x * (xlim[1] / xlim[0]) ** aside if log else x + aside * (xlim[1] - xlim[0])
            _draw_bars(axes, replace(curve, x=x), number)
        if name:
            axes.set_title(name, loc="left", color=INK, fontsize=10)
    for number, axes in enumerate(row):
        last_in_its_column = number + columns >= len(row)
        axes.tick_params(labelbottom=last_in_its_column)
        if last_in_its_column:
            axes.set_xlabel(xlabel, color=INK)
    for first_in_its_row in grid[:, 0]:
        first_in_its_row.set_ylabel(ylabel, color=INK)
    if log:
        row[0].set_xscale("log", base=2)
        row[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        row[0].xaxis.set_major_locator(MultipleLocator(2 ** int(np.ceil(np.log2((xlim[1] - xlim[0]) / 8)))))
    row[0].xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_tokens(tokens)))
    for axes in row:
        for mark in marks:
            if xlim[0] <= mark.x <= xlim[1]:
                axes.axvline(mark.x, color=COLOURS[mark.curve % len(COLOURS)], linestyle=mark.style, linewidth=1.2)
    fullest = row[int(np.argmax([len(curves) for curves in panels.values()]))]
    for style, name in (mark_names or {}).items():
        fullest.plot([], [], color=INK, linestyle=style, linewidth=1.2, label=name)
    row[0].set_xlim(xlim)
    _legend_beside(figure, fullest, legend_title)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold")
    save(figure, path)


def look(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a figure's curve: the first twelve differ in colour or dashes, ten in marker."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4.0,
    }


def _draw_bars(axes: Axes, curve: Curve, number: int) -> None:
    x, of_line = np.asarray(curve.x), look(number)
    axes.plot(x, np.asarray(curve.y), label=shown_in_legend(curve.label), linewidth=1.6, **of_line)
    if curve.low is not None and curve.high is not None:
        axes.vlines(x, np.asarray(curve.low), np.asarray(curve.high), of_line["color"], linewidth=1.0, alpha=0.7)


def _draw_curve(axes: Axes, curve: Curve, number: int, alpha: float) -> None:
    x, of_line = np.asarray(curve.x), look(number)
    every = 1 if len(x) <= DENSE else -(-len(x) // MARKED)
    linewidth = 1.6 if len(x) <= 300 else 0.7  # many points are many ups and downs
    axes.plot(
        x, np.asarray(curve.y), label=shown_in_legend(curve.label), linewidth=linewidth, markevery=every, **of_line
    )
    if curve.low is not None and curve.high is not None:
        low, high = np.asarray(curve.low), np.asarray(curve.high)
        axes.fill_between(x, low, high, color=of_line["color"], alpha=alpha, linewidth=0)


def _legend_beside(figure: Figure, axes: Axes, title: str | None) -> None:
    """The legend of `axes` to the right of all panels, where it hides nothing; the figure grows to hold it."""
    handles, labels = axes.get_legend_handles_labels()
    lines = sum(1.25 * (text.count("\n") + 1) + 0.5 for text in (*labels, title or ""))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, max(height, lines * LEGEND_POINTS / 72 + 0.3))
    legend = figure.legend(
        handles,
        labels,
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        fontsize=LEGEND_POINTS,
        handlelength=3.6,
        title=title,
        title_fontsize=LEGEND_POINTS,
        alignment="left",
    )
    legend.get_title().set_color(INK)


def _loss_figure(
    curves: Sequence[Curve], path: Path, title: str | None, xlabel: str, legend_title: str | None = None
) -> None:
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    figure = Figure(figsize=(9.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    apply_style(axes, grid="both")
    for number, curve in enumerate(curves):
        _draw_curve(axes, curve, number, alpha=min(0.18, 0.6 / len(curves)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel("NLL (nats per token)", color=INK)
    # The same ticks in the other unit: exp(NLL) at each grid line.
    perplexity = axes.secondary_yaxis("right")
    perplexity.yaxis.set_major_formatter(FuncFormatter(lambda nll, _: f"{np.exp(nll):.3g}"))
    perplexity.set_ylabel("perplexity", color=INK)
    perplexity.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)
    perplexity.spines["right"].set_visible(False)
    _legend_beside(figure, axes, legend_title)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold")
    save(figure, path)


def shown_in_legend(label: str) -> str:
    """A label as the legend takes it: one that begins with an underscore would be left out."""
    return f" {label}" if label.startswith("_") else label


def save(figure: Figure, path: Path) -> None:
    """Write a figure in which every title and name is text: no formula, and nothing that its font cannot draw."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text("\n".join(_drawable(line, text) for line in text.get_text().split("\n")))
    figure.savefig(path)


def _drawable(line: str, text: Text) -> str:
    """A line with each character that the text's font lacks written as ``\\u4e2d``, its middle left out if too long."""
    line = escaped(line)
    if not line.isascii():
        glyphs = get_font(findfont(text.get_fontproperties())).get_charmap()
        line = "".join(char if ord(char) in glyphs else escaped(char, "ascii") for char in line)
    return (
        line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2 - 4]} ... {line[-LONGEST_LINE // 2 + 5 :]}"
    )


def apply_style(axes: Axes, grid: str) -> None:
    """The look that all figures share; `grid` is "x", "both" or "" for none."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)
    axes.set_axisbelow(True)
    if grid == "both":
        axes.grid(visible=True, color=FAINT, linewidth=0.6)
    elif grid == "x":
        axes.xaxis.grid(visible=True, color=FAINT, linewidth=0.6)
