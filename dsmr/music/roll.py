"""Piano roll: a picture of a performance."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator
from numpy.typing import NDArray

from dsmr.music.tokens import Performance
from dsmr.plots import DPI, FAINT, INK, Path, apply_style, save
from dsmr.units import format_clock

BLACK_KEY = "#f3f4f6"

LOUDNESS = LinearSegmentedColormap.from_list(
    "loudness", [(0.0, "#9ad9c9"), (0.3, "#1f9e96"), (0.5, "#3b4ba8"), (0.7, "#c4265e"), (1.0, "#f98e09")]
)
"""Soft to loud, with most of the change where most notes of a performance are."""

ROLL_HEIGHT = 4.6  # inches

ROLL_WIDTHS = (9.0, 48.0)  # inches, the narrowest and the widest picture

ROLL_INCHES_PER_SECOND = 0.16

LEAST_KEYS = (36, 84)  # a roll shows at least C2 to C6


def piano_roll(performance: Performance, path: Path, title: str | None = None) -> None:
    """Draw notes as bars over time, coloured by velocity, above a strip that shows the sustain pedal if there was one.

    The picture's width grows with the music's length, within limits; its keys are those that the music uses.

    Args:
        performance: what to draw; offsets are drawn as they are, when keys were released.
        path: the file to write; its ending decides the format.
        title: printed above.
    """
    notes, pedal = performance.notes, performance.pedal
    end = max(notes["offset"].max(initial=0.0), pedal["time"].max(initial=0.0), 1.0)
    narrowest, widest = ROLL_WIDTHS
    width = min(max(end * ROLL_INCHES_PER_SECOND, narrowest), widest)
    figure = Figure(figsize=(width, ROLL_HEIGHT), dpi=DPI, layout="constrained")
    if len(pedal):
        keys, strip = figure.subplots(2, 1, sharex=True, height_ratios=[14, 1])
        _draw_pedal(strip, pedal, end)
        bottom = strip
    else:
        keys = bottom = figure.subplots()
    drawn = _draw_notes(keys, notes)
    _time_axis(bottom, end, width)
    bar = figure.colorbar(drawn, ax=keys, pad=0.15 / width, fraction=0.6 / width, aspect=25)
    bar.set_label("velocity", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)
    bar.outline.set_visible(False)
    if title:
        keys.set_title(title, loc="left", color=INK, fontweight="bold")
    save(figure, path)


def _draw_notes(axes: Axes, notes: NDArray[np.void]) -> PolyCollection:
    """The notes as rectangles on a keyboard; returns what the colour bar explains."""
    left, right = notes["onset"], notes["offset"]
    low, high = notes["pitch"] - 0.42, notes["pitch"] + 0.42
    corners = np.stack([left, low, left, high, right, high, right, low], axis=-1).reshape(-1, 4, 2)
    drawn = PolyCollection(list(corners), cmap=LOUDNESS, norm=Normalize(1, 127), linewidth=0.3)
    drawn.set_array(notes["velocity"])
    drawn.set_edgecolor("face")
    apply_style(axes, grid="")
    least, most = LEAST_KEYS
    least, most = int(notes["pitch"].min(initial=least)), int(notes["pitch"].max(initial=most))
    for key in range(least, most + 1):
        if key % 12 in (1, 3, 6, 8, 10):
            axes.axhspan(key - 0.5, key + 0.5, color=BLACK_KEY, linewidth=0, zorder=0)
        if key % 12 == 0:
            axes.axhline(key - 0.5, color=FAINT, linewidth=0.8, zorder=0.5)
    axes.add_collection(drawn)
    axes.set_ylim(least - 1, most + 1)
    axes.yaxis.set_major_locator(MultipleLocator(12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda pitch, _: f"C{int(pitch) // 12 - 1}"))
    axes.set_ylabel("key", color=INK)
    if len(notes) == 0:
        axes.text(0.5, 0.5, "no notes", transform=axes.transAxes, ha="center", va="center", color=INK)
    return drawn


def _draw_pedal(axes: Axes, pedal: NDArray[np.void], end: float) -> None:
    in_time = pedal[np.argsort(pedal["time"], kind="stable")]
    time, value = np.append(in_time["time"], end), np.append(in_time["value"], in_time["value"][-1])
    apply_style(axes, grid="")
    axes.fill_between(time, value, step="post", color=INK, alpha=0.55, linewidth=0)
    axes.set_ylim(0, 127)
    axes.set_yticks([])
    axes.set_ylabel("pedal", color=INK, rotation=0, ha="right", va="center")


def _time_axis(axes: Axes, end: float, width: float) -> None:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    wanted = end / width  # seconds: a label every inch, or less often
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MultipleLocator(next((step for step in steps if step >= wanted), steps[-1])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_clock(seconds)))
    axes.set_xlabel("time (min:s)", color=INK)
