"""Figures of a study: recall by distance, KRCU, and what the bytes of a memory buy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dsmr.evaluation.probes.krcu import Resets
from dsmr.evaluation.probes.returns import KINDS, RETURN_DISTANCES
from dsmr.plots import DPI, INK, Curve, apply_style, band, difference_panels, look, save, shown_in_legend
from dsmr.study.estimates import FEWEST_PIECES, Estimate
from dsmr.study.findings import NLL, Findings, Row, recall_from
from dsmr.units import format_bytes

RECALL_FIGURE, KRCU_FIGURE, PARETO_FIGURE = "recall.png", "krcu.png", "pareto.png"


def draw(findings: Findings, folder: Path) -> list[str]:
    """Draw a figure of each probe that has something to show into a folder that exists; returns the files' names."""
    drawn = []
    if any(_reached(findings, f"recall {kind}") for kind in KINDS):
        draw_recall(findings.rows, folder / RECALL_FIGURE)
        drawn.append(RECALL_FIGURE)
    if (resets := findings.study.questions.resets) is not None and _reached(findings, "krcu"):
        draw_krcu(findings.rows, resets, folder / KRCU_FIGURE)
        drawn.append(KRCU_FIGURE)
    draw_pareto(findings, folder / PARETO_FIGURE)
    return [*drawn, PARETO_FIGURE]


def draw_recall(rows: Sequence[Row], path: Path) -> None:
    """Draw the recall of exact and of transposed returns by distance, where enough pieces have some."""
    ends = [*RETURN_DISTANCES[1:], 2 * RETURN_DISTANCES[-1]]
    # The first bin has no beginning on a logarithmic axis.
    spans = [(start or stop // 2, stop) for start, stop in zip(RETURN_DISTANCES, ends, strict=True)]
    panels: dict[str, list[Curve]] = {}
    drawn = []
    for kind in KINDS:
        curves = panels[f"{kind} returns"] = []
        for row in rows:
            there = [(span, e) for span, e in zip(spans, row.bins(f"recall {kind}"), strict=True) if _is_known(e)]
            drawn += [span for span, _ in there]
            x = [math.sqrt(start * stop) for (start, stop), _ in there]
            curves.append(_curve(row.name, x, [e for _, e in there]))
    difference_panels(
        panels,
        path,
        xlabel="distance to the nearest earlier occurrence (tokens)",
        ylabel="recall: NLL(source forgotten) - NLL (nats per token)",
        xlim=(min(start for start, _ in drawn), max(stop for _, stop in drawn)),
        log=True,
    )


def draw_krcu(rows: Sequence[Row], resets: Resets, path: Path) -> None:
    """Draw dNLL by tokens since the reset, where enough pieces go on for so long."""
    curves = []
    end = resets.width
    for row in rows:
        there = [(number, e) for number, e in enumerate(row.bins("krcu")) if _is_known(e)]
        end = max([end, *(resets.width * (number + 1) for number, _ in there)])
        curves.append(_curve(row.name, [resets.width * (number + 0.5) for number, _ in there], [e for _, e in there]))
    difference_panels(
        {"": curves},
        path,
        xlabel="tokens since the reset",
        ylabel="KRCU: NLL(memory cleared) - NLL (nats per token)",
        xlim=(0, end),
    )


def draw_pareto(findings: Findings, path: Path) -> None:
    """Draw perplexity and, where it was asked for, recall against the bytes of a lane's memory, with their fronts."""
    recall = recall_from("exact")
    panels = [NLL, *([recall] if recall in findings.quantities else [])]
    figure = Figure(figsize=(3.2 + 5.2 * len(panels), 5.2), dpi=DPI, layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        apply_style(axes, grid="both")
        _draw_front(axes, findings, quantity)
        if quantity == NLL:
            axes.set_ylabel("perplexity, whole pieces", color=INK)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda nll, _: f"{math.exp(nll):.3g}"))
        else:
            axes.set_ylabel(f"{quantity} tokens away (nats per token)", color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("memory of a lane", color=INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: format_bytes(round(count))))
        axes.xaxis.set_minor_formatter(NullFormatter())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8)
    save(figure, path)


def _draw_front(axes: Axes, findings: Findings, quantity: str) -> None:
    for number, row in enumerate(findings.rows):
        memory, estimate = row.fact("horizon_bytes"), row.estimate(quantity)
        style = {**look(number), "linestyle": "none", "markersize": 7.0}
        axes.plot([memory], [estimate.value], label=shown_in_legend(row.name), **style)
        if (interval := estimate.interval) is not None:
            axes.vlines([memory], *interval, look(number)["color"], linewidth=1.0, alpha=0.7)
    best = findings.front(quantity)
    x, y = [row.fact("horizon_bytes") for row in best], [row.estimate(quantity).value for row in best]
    axes.plot(x, y, color=INK, linewidth=0.9, zorder=0)


def _curve(label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> Curve:
    return Curve(label, x, [each.value for each in estimates], *band([each.interval for each in estimates]))


def _reached(findings: Findings, probe: str) -> bool:
    """Whether the study asked for a probe, and enough pieces reach one of its bins."""
    return probe in findings.sums and bool((findings.sums[probe].pieces >= FEWEST_PIECES).any())


def _is_known(estimate: Estimate) -> bool:
    """Whether enough pieces reach a bin; the mean of fewer would be somebody's only piece."""
    return estimate.pieces >= FEWEST_PIECES
