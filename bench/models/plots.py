"""A plot of one machine's results for whole models: by schedule, how fast training is and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Row, Run

COLOURS = matplotlib.colormaps["tab10"].colors


def draw(runs: Sequence[Run], folder: Path, name: str) -> list[Path]:
    """Write `NAME-models.png`, of the first thread count and size; nothing where no training was measured."""
    rows = [row for run in runs if run.command == "train" for row in run.rows if row.status == "timed"]
    if not rows:
        return []
    first = next(run for run in runs if run.command == "train")
    rows = [row for row in first.rows if row in rows and row.fields["size"] == rows[0].fields["size"]]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    speed, memory, held = figure.subplots(1, 3)
    threads = f", {first.threads} thread{'s' * (first.threads > 1)}" if first.device == "cpu" else ""
    title = f"{rows[0].fields['size']}, {rows[0].fields['lanes']} x {rows[0].fields['segment']} tokens{threads}"
    _bars(speed, rows, lambda row: row.extra["tokens_per_second"][1], "tokens/s", title)
    _bars(memory, rows, lambda row: (row.peak_bytes or 0) / 2**20, "peak memory of training, MiB", title)
    generated = next((run.rows for run in runs if run.command == "generate"), [])
    _held(held, [row for row in generated if "resident" in row.extra])
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-models.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same results make the same bytes
    return [path]


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


def _held(axes: Axes, rows: Sequence[Row]) -> None:
    """What a process holds beyond what it held at first, while it generates."""
    most = 50.0
    for number, row in enumerate(rows):
        points = [(tokens, size) for tokens, size in row.extra["resident"] if size is not None]
        if points:
            grown = [(size - points[0][1]) / 2**20 for _, size in points]
            most = max(most, *grown)
            axes.plot(
                [tokens for tokens, _ in points],
                grown,
                marker="o",
                ms=3,
                color=COLOURS[number % 10],
                label=row.contender,
            )
    if rows:
        axes.axvline(rows[0].extra["full_after"], color="grey", lw=1, ls="--")
        axes.legend(fontsize=7)
    axes.set_ylim(-10, 1.1 * most)
    axes.set_xlabel("tokens generated; dashed: all rings full")
    axes.set_ylabel("grown since the beginning, MiB")
    axes.set_title("generation, resident memory", fontsize=9)
