"""Horizon bars: a picture of schedules, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dsmr.model.schedules import Schedule
from dsmr.plots import COLOURS, DPI, INK, Path, apply_style, save


def schedule_bars(schedules: Sequence[Schedule], path: Path) -> None:
    """Draw each schedule's horizon per layer, the lowest layer at the bottom, all on one scale.

    Args:
        schedules: at least one, of any numbers of layers.
        path: the file to write; its ending decides the format.
    """
    if not schedules:
        raise ValueError("schedules: expected at least one, got none")
    columns = min(len(schedules), 4)
    rows = -(-len(schedules) // columns)
    layers = max(len(schedule.horizons) for schedule in schedules)
    size = (1.0 + 2.6 * columns, rows * (1.1 + 0.22 * layers))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(schedules):
            axes.set_visible(False)
            continue
        schedule = schedules[number]
        apply_style(axes, grid="x")
        axes.barh(range(len(schedule.horizons)), schedule.horizons, height=0.72, color=COLOURS[0])
        kept = f", {r.keep} of every {r.stride}" if (r := schedule.retention) else ""
        axes.set_title(f"{schedule.name}\n{schedule.total:,} entries{kept}", loc="left", color=INK, fontsize=9)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda entries, _: f"{entries:,.0f}"))
        axes.set_xlim(left=0)
        last_in_its_column = number + columns >= len(schedules)
        axes.tick_params(labelbottom=last_in_its_column)
        if last_in_its_column:
            axes.set_xlabel("horizon (entries)", color=INK)
        if number % columns == 0:
            axes.set_ylabel("layer", color=INK)
    save(figure, path)
