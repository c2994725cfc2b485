"""Plots of one machine's results: speed against M; roofline, memory against M, scaling with T, H and lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Row, Run
from bench.summary import base_of, grouped

COLOURS = matplotlib.colormaps["tab10"].colors


def draw(runs: Sequence[Run], folder: Path, name: str) -> list[Path]:
    """Write `NAME-speed.png` and `NAME-more.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for run in runs if run.device != "cpu" or run.threads == runs[0].threads for row in run.rows]
    first = runs[0]
    threads = f", {first.threads} thread{'s' * (first.threads > 1)}" if first.device == "cpu" else ""
    speed = Figure(figsize=(11, 4), layout="constrained")
    left, right = speed.subplots(1, 2)
    _speed(left, rows, "forward", threads)
    _decode(right, rows, threads)
    more = Figure(figsize=(15, 8), layout="constrained")
    axes = more.subplots(2, 3).flat
    _roofline(axes[0], first, rows)
    _memory(axes[1], rows)
    _speed(axes[2], rows, "training", threads)
    for place, (field, symbol) in zip(axes[3:], (("tokens", "T"), ("heads", "H"), ("lanes", "lanes")), strict=True):
        _scaling(place, rows, field, symbol)
    paths = [folder / f"{name}-{what}.png" for what in ("speed", "more")]
    for figure, path in zip((speed, more), paths, strict=True):
        figure.savefig(path, dpi=110, metadata={"Software": None})  # the same results make the same bytes
    return paths


def _lines(
    axes: Axes, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float], most: int = 6
) -> None:
    """One line a contender over at least two x; ours thick; of the peers those that come best."""
    series: dict[str, dict[float, float]] = {}
    ours = {row.contender for row in rows if row.ours}
    for row in rows:
        series.setdefault(row.contender, {})[x(row)] = y(row)
    series = {name: points for name, points in series.items() if len(points) > 1}
    for i, name in enumerate(sorted(series, key=lambda name: (name not in ours, -max(series[name].values())))[:most]):
        points = sorted(series[name].items())
        width = 2.5 if name in ours else 1.2
        axes.plot(*zip(*points, strict=True), marker="o", lw=width, ms=4, color=COLOURS[i % 10], label=name)
    if series:
        axes.legend(fontsize=7)


def _timed(rows: Sequence[Row], task: str, **fields: Any) -> list[Row]:
    return [
        row
        for row in rows
        if row.status == "timed"
        and row.task == task
        and all(row.fields.get(key) == value for key, value in fields.items())
    ]


def _commonest(rows: Sequence[Row], *names: str) -> dict[str, Any]:
    """The values of some fields that most rows share: the plane that a sweep lies in."""
    planes = [tuple(row.fields[name] for name in names) for row in rows]
    return dict(zip(names, max(planes, key=planes.count), strict=True)) if planes else {}


def _speed(axes: Axes, rows: Sequence[Row], task: str, threads: str) -> None:
    timed = [row for row in _timed(rows, task, window="segment") if row.like_for_like and row.fields["horizon"]]
    plane = _commonest(timed, "tokens", "lanes", "heads", "kv_heads", "head_dim", "dtype")
    shown = [row for row in timed if all(row.fields[key] == value for key, value in plane.items())]
    _lines(axes, shown, lambda row: row.fields["horizon"], lambda row: row.work["flops"] / row.seconds[1] / 1e9)
    title = ", ".join(f"{key} {value}" for key, value in plane.items() if key in ("tokens", "heads", "dtype"))
    axes.set(xscale="log", xlabel="M, memory entries", ylabel="useful GFLOP/s", ylim=(0, None))
    axes.set_title(f"{task}: {title}{threads}", fontsize=9)


def _decode(axes: Axes, rows: Sequence[Row], threads: str) -> None:
    timed = _timed(rows, "decode", hot=False)
    plane = _commonest(timed, "lanes", "heads", "kv_heads", "head_dim", "dtype", "graph")
    shown = [row for row in timed if all(row.fields[key] == value for key, value in plane.items())]
    _lines(axes, shown, lambda row: row.fields["horizon"], lambda row: 1 / row.seconds[1])
    title = ", ".join(f"{key} {value}" for key, value in plane.items() if key in ("lanes", "kv_heads", "dtype"))
    axes.set(xscale="log", yscale="log", xlabel="M, memory entries", ylabel="steps of one layer a second")
    axes.set_title(f"decode, cold: {title}{threads}", fontsize=9)


def _roofline(axes: Axes, run: Run, rows: Sequence[Row]) -> None:
    bandwidth = max(run.peaks["read"], run.peaks["copy"])
    intensities = [2.0**i for i in range(-2, 13)]
    for i, (dtype, peak) in enumerate(run.peaks["flops"].items()):
        roof = [min(peak, x * bandwidth) / 1e9 for x in intensities]
        axes.plot(intensities, roof, color=COLOURS[i], lw=1, label=f"{dtype} roof")
        own = [base_of(group) for group in grouped(rows).values()]
        rated = [row for row in own if row and row.roofline is not None]
        points = [row for row in rated if row.work["bytes"]]  # whole models count none
        points = [row for row in points if row.fields.get("dtype") == dtype]
        x = [row.work["flops"] / row.work["bytes"] for row in points]
        axes.plot(x, [row.work["flops"] / row.seconds[1] / 1e9 for row in points], "o", ms=4, color=COLOURS[i])
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    axes.set_title("ours under this machine's measured roofs", fontsize=9)
    axes.legend(fontsize=7)


def _memory(axes: Axes, rows: Sequence[Row]) -> None:
    weighed = [row for row in rows if row.status == "weighed" and row.task == "training" and row.like_for_like]
    _lines(axes, weighed, lambda row: row.fields["horizon"], lambda row: (row.peak_bytes or 0) / 2**20)
    axes.set(xlabel="M, memory entries", ylabel="MiB", ylim=(0, None))
    axes.set_title("peak of memory beyond the inputs, forward + backward", fontsize=9)


def _scaling(axes: Axes, rows: Sequence[Row], field: str, symbol: str) -> None:
    others = [name for name in ("tokens", "lanes", "heads", "head_dim", "dtype", "horizon") if name != field]
    timed = [row for row in _timed(rows, "forward", window="segment") if row.like_for_like]
    if field == "heads":
        timed = [row for row in timed if row.fields["heads"] == row.fields["kv_heads"]]
    else:
        others.append("kv_heads")
    planes: dict[tuple[Any, ...], set[Any]] = {}
    for row in timed:
        planes.setdefault(tuple(row.fields[name] for name in others), set()).add(row.fields[field])
    if not planes:
        return
    plane = max(planes, key=lambda key: len(planes[key]))
    shown = [row for row in timed if tuple(row.fields[name] for name in others) == plane]
    _lines(axes, shown, lambda row: row.fields[field], lambda row: row.work["flops"] / row.seconds[1] / 1e9)
    title = ", ".join(f"{name} {value}" for name, value in zip(others, plane, strict=True))
    axes.set(xlabel=symbol, ylabel="useful GFLOP/s", ylim=(0, None))
    axes.set_title(f"forward: {title}", fontsize=7)
