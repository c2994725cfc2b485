"""A plot of one machine's results for whole models: by schedule, how fast training is and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.results import Row, Run

COLOURS = matplotlib.colormaps["tab10"].colors


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """`models`, of the first thread count and size; nothing where no training was measured."""
    rows = [row for run in runs if run.command == "train" for row in run.rows if row.status == "timed"]
    if not rows:
        return {}
    first = next(run for run in runs if run.command == "train")
    rows = [row for row in first.rows if row in rows and row.fields["size"] == rows[0].fields["size"]]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    played = [row for run in runs if run.command == "generate" for row in run.rows if "resident" in row.extra]
    speed, memory, *generation = figure.subplots(1, 3 if played else 2)
    threads = f", {first.threads} thread{'s' * (first.threads > 1)}" if first.device == "cpu" else ""
    title = f"{rows[0].fields['size']}, {rows[0].fields['lanes']} x {rows[0].fields['segment']} tokens{threads}"
    _bars(speed, rows, lambda row: row.extra["tokens_per_second"][1], "tokens/s", title)
    _bars(memory, rows, lambda row: (row.peak_bytes or 0) / 2**20, "peak memory of training, MiB", title)
    for axes in generation:
        _generation(axes, played)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return {"models": figure}


def _bars(axes: Axes, rows: Sequence[Row], y: Callable[[Row], float], label: str, title: str) -> None:
    """A group of bars a schedule, a bar a contender."""
    schedules = list(dict.fromkeys(row.fields["schedule"] for row in rows))
    contenders = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / len(contenders)
    for number, contender in enumerate(contenders):
        own = [row for row in rows if row.contender == contender]
        at = [schedules.index(row.fields["schedule"]) + (number + 0.5) * width - 0.4 for row in own]
        axes.bar(at, [y(row) for row in own], width, color=COLOURS[number % 10], label=contender)
    axes.set_xticks(range(len(schedules)), [schedule.replace(", ", ",\n") for schedule in schedules], fontsize=8)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=9)


def _generation(axes: Axes, rows: Sequence[Row]) -> None:
    """How fast the engines play, and by how much the process grew meanwhile."""
    for place, row in enumerate(rows):
        speed = row.extra["tokens_per_second"][1]
        held = [size for _, size in row.extra["resident"] if size is not None]
        grown = f"\n{(held[-1] - held[0]) / 2**20:+.1f} MiB" if held else ""
        axes.bar(place, speed, 0.7, color="tab:gray")
        axes.annotate(f"{speed:,.0f}{grown}", (place, speed), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(rows)), [row.contender.replace(", ", ",\n").replace(" and ", "\nand ") for row in rows])
    axes.tick_params(axis="x", labelsize=7)
    axes.margins(y=0.2)
    axes.set_ylabel("tokens/s")
    tokens = rows[0].extra["resident"][-1][0]
    axes.set_title(f"{rows[0].fields['size']} plays {tokens:,} tokens: how fast, how much memory grew", fontsize=9)
