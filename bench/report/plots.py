"""Plots of one machine's results: attention's speed, roofline, memory and scaling; whole models' speed and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.results import Row, Run
from bench.report.duels import base_of, grouped
from bench.report.roofs import roofs

COLOURS = matplotlib.colormaps["tab20"].colors[::2] + matplotlib.colormaps["tab20"].colors[1::2]
MOST_LINES = 6  # a panel
Lines = dict[str, list[tuple[float, float]]]
"""Points `(x, y)` of each contender, at least two of them."""


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """`speed`, `more` and `models`, each with the panels that there are results for."""
    return {**_attention(runs), **_models(runs)}


def _attention(runs: Sequence[Run]) -> dict[str, Figure]:
    first = next((run for run in runs if run.rows), runs[0])
    alike = [run for run in runs if run.device != "cpu" or run.threads == first.threads]
    rows = [row for run in alike for row in run.rows]
    ours = {row.contender for row in rows if row.ours}
    wanted = {
        "speed": [_speed(rows, "forward", first.place), _decode(rows, first.place)],
        "more": [
            _roofline(alike),
            _memory(rows),
            _speed(rows, "training", first.place),
            *(_scaling(rows, field, symbol) for field, symbol in (("tokens", "T"), ("heads", "H"), ("lanes", "lanes"))),
        ],
    }
    made = {}
    for what, panels in wanted.items():
        shown = [panel for panel in panels if panel is not None]
        if not shown:
            continue
        columns = min(len(shown), 3)
        lines = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(5.2 * columns, 4 * lines + 0.6), layout="constrained")
        colours = Colours()
        for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flat, shown, strict=False):
            panel(axes, colours, ours)
        for axes in figure.axes[len(shown) :]:
            axes.remove()
        made[what] = figure
    return made


class Colours(dict[str, Any]):
    """A contender's colour, the same in all panels of a figure; no two have the same."""

    def __missing__(self, name: str) -> Any:
        self[name] = COLOURS[len(self)]
        return self[name]


Panel = Callable[[Axes, Colours, set[str]], None]


def _best_lines(rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> Lines:
    """Ours, and of the peers those that come best."""
    series: dict[str, dict[float, float]] = {}
    ours = {row.contender for row in rows if row.ours}
    for row in rows:
        series.setdefault(row.contender, {})[x(row)] = y(row)
    long = {name: points for name, points in series.items() if len(points) > 1}
    best = sorted(long, key=lambda name: (name not in ours, -max(long[name].values())))
    return {name: sorted(long[name].items()) for name in best[:MOST_LINES]}


def _panel(lines: Lines, title: str, **settings: Any) -> Panel | None:
    """A panel of these lines, ours thick; None if there are none."""

    def draw(axes: Axes, colours: Colours, ours: set[str]) -> None:
        for name, points in lines.items():
            width = 2.5 if name in ours else 1.2
            axes.plot(*zip(*points, strict=True), marker="o", lw=width, ms=4, color=colours[name], label=name)
        axes.set(**settings)
        axes.set_title(title, fontsize=8)
        axes.legend(fontsize=7)

    return draw if lines else None


def _rows_of(rows: Sequence[Row], task: str, **fields: Any) -> list[Row]:
    return [row for row in rows if row.status == "timed" and row.task == task and fields.items() <= row.fields.items()]


def _plane(rows: Sequence[Row], *names: str) -> tuple[list[Row], dict[str, Any]]:
    """The rows that share the commonest values of some fields, the plane that a sweep lies in, and these values."""
    planes = [tuple(row.fields[name] for name in names) for row in rows]
    plane = dict(zip(names, max(planes, key=planes.count), strict=True)) if planes else {}
    return [row for row in rows if plane.items() <= row.fields.items()], plane


def _gigaflops(row: Row) -> float:
    return row.work["flops"] / row.seconds[1] / 1e9


def _speed(rows: Sequence[Row], task: str, place: str) -> Panel | None:
    timed = [row for row in _rows_of(rows, task, window="segment") if row.like_for_like and row.fields["horizon"]]
    shown, plane = _plane(timed, "tokens", "lanes", "heads", "kv_heads", "head_dim", "dtype")
    title = ", ".join(f"{key} {value}" for key, value in plane.items() if key in ("tokens", "heads", "dtype"))
    settings = {"xscale": "log", "xlabel": "M, memory entries", "ylabel": "useful GFLOP/s", "ylim": (0, None)}
    return _panel(_best_lines(shown, _horizon, _gigaflops), f"{task}: {title}, {place}", **settings)


def _horizon(row: Row) -> float:
    return float(row.fields["horizon"])


def _decode(rows: Sequence[Row], place: str) -> Panel | None:
    timed = _rows_of(rows, "decode", hot=False)
    shown, plane = _plane(timed, "lanes", "heads", "kv_heads", "head_dim", "dtype", "graph")
    title = ", ".join(f"{key} {value}" for key, value in plane.items() if key in ("lanes", "kv_heads", "dtype"))
    settings = {
        "xscale": "log",
        "yscale": "log",
        "xlabel": "M, memory entries",
        "ylabel": "steps of one layer a second",
    }
    return _panel(
        _best_lines(shown, _horizon, lambda row: 1 / row.seconds[1]), f"decode, cold: {title}, {place}", **settings
    )


def _roofline(runs: Sequence[Run]) -> Panel | None:
    """Ours under the roofs: a point a case that counts FLOPs and bytes and is not over what lies in a cache."""
    groups = [group for run in runs for group in grouped(run.rows).values()]
    own = [row for row in map(base_of, groups) if row and row.work and row.work["flops"] and row.work["bytes"]]
    own = [row for row in own if not row.fields.get("hot")]
    (roof,) = roofs(runs).values()

    def draw(axes: Axes, colours: Colours, ours: set[str]) -> None:
        intensities = [2.0**i for i in range(-2, 13)]
        for dtype, colour in zip(roof.flops, COLOURS, strict=False):
            best = [min(roof.flops[dtype], x * roof.read) / 1e9 for x in intensities]
            axes.plot(intensities, best, color=colour, lw=1, label=f"{dtype} roof")
            points = [row for row in own if row.fields["dtype"] == dtype]
            x = [row.work["flops"] / row.work["bytes"] for row in points]
            axes.plot(x, [_gigaflops(row) for row in points], "o", ms=4, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
        axes.set_title("ours under this machine's measured roofs", fontsize=8)
        axes.legend(fontsize=7)

    return draw if own else None


def _memory(rows: Sequence[Row]) -> Panel | None:
    weighed = [row for row in rows if row.status == "weighed" and row.task == "training" and row.like_for_like]
    lines = _best_lines(weighed, _horizon, lambda row: (row.peak_bytes or 0) / 2**20)
    title = "peak of memory beyond the inputs, forward + backward"
    return _panel(lines, title, xlabel="M, memory entries", ylabel="MiB", ylim=(0, None))


def _scaling(rows: Sequence[Row], field: str, symbol: str) -> Panel | None:
    others = [name for name in ("tokens", "lanes", "heads", "head_dim", "dtype", "horizon") if name != field]
    timed = [row for row in _rows_of(rows, "forward", window="segment") if row.like_for_like]
    if field == "heads":
        timed = [row for row in timed if row.fields["heads"] == row.fields["kv_heads"]]
    else:
        others.append("kv_heads")
    planes: dict[tuple[Any, ...], set[Any]] = {}
    for row in timed:
        planes.setdefault(tuple(row.fields[name] for name in others), set()).add(row.fields[field])
    if not planes:
        return None
    plane = max(planes, key=lambda key: len(planes[key]))
    shown = [row for row in timed if tuple(row.fields[name] for name in others) == plane]
    lines = _best_lines(shown, lambda row: row.fields[field], _gigaflops)
    title = ", ".join(f"{name} {value}" for name, value in zip(others, plane, strict=True))
    return _panel(lines, f"forward: {title}", xlabel=symbol, ylabel="useful GFLOP/s", ylim=(0, None))


def _models(runs: Sequence[Run]) -> dict[str, Figure]:
    """Of the first thread count and size; nothing where no training was measured."""
    rows = [row for run in runs if run.command == "train" for row in run.rows if row.status == "timed"]
    if not rows:
        return {}
    first = next(run for run in runs if run.command == "train")
    rows = [row for row in first.rows if row in rows and row.fields["size"] == rows[0].fields["size"]]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    played = [row for run in runs if run.command == "generate" for row in run.rows if "resident" in row.extra]
    speed, memory, *generation = figure.subplots(1, 3 if played else 2)
    title = f"{rows[0].fields['size']}, {rows[0].fields['lanes']} x {rows[0].fields['segment']} tokens, {first.place}"
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
        axes.bar(at, [y(row) for row in own], width, color=COLOURS[number], label=contender)
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
