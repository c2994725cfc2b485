"""Figures of the probes, one for each: all models in each, in the manner of the published figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsmr.evaluation.models import Probed
from dsmr.evaluation.probes.bins import Bin
from dsmr.evaluation.probes.recall import Recall
from dsmr.evaluation.probes.returns import KINDS, ReturnGain
from dsmr.plots import Curve, Mark, band, difference_panels, nll_by_position
from dsmr.units import format_horizons, format_tokens

POSITION_FIGURE = "nll_by_position.png"
RETURNS_FIGURE, RECALL_FIGURE = "returns.png", "recall.png"
KRCU_FIGURE, TRUNCATION_FIGURE = "krcu.png", "truncation.png"
EACH_LAYER = "tokens that each layer remembers,\nthe lowest layer first"
MARKED_MODELS = 3
"""The ends of more models' memories would hide the curves; the legend tells them."""
FIGURE_FILES = (POSITION_FIGURE, RETURNS_FIGURE, RECALL_FIGURE, KRCU_FIGURE, TRUNCATION_FIGURE)
MEMORY_ENDS = {":": "horizon of a layer", "--": "reach over all layers"}
"""What the marks' line styles mean."""


def draw(models: Sequence[Probed], folder: Path, title: str) -> None:
    """Draw a figure of each probe that was asked for into a folder that exists."""
    draw_positions(models, folder / POSITION_FIGURE, title)
    if all(model.returns for model in models):
        draw_returns(models, folder / RETURNS_FIGURE, title)
    if all(model.recall for model in models):
        draw_recall(models, folder / RECALL_FIGURE, title)
    if all(model.krcu for model in models):
        draw_krcu(models, folder / KRCU_FIGURE, title)
    if all(model.truncation for model in models):
        draw_truncation(models, folder / TRUNCATION_FIGURE, title)


def draw_positions(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw the NLL by position in the piece: of several models over whole pieces, of one beside its baselines."""
    if len(models) == 1:
        nll_by_position(models[0].assessment.curves(), path, title)
    else:
        curves = [replace(model.assessment.curves()[0], label=_label(model)) for model in models]
        nll_by_position(curves, path, title, EACH_LAYER)


def draw_returns(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw the gain by distance, exact and transposed returns apart, and where each model's memory ends."""
    _draw_by_distance(models, [model.returns for model in models], path, title, "return gain (nats per token)")


def draw_recall(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw the recall by distance in the same way."""
    found = [model.recall for model in models]
    _draw_by_distance(models, found, path, title, "recall: NLL(source forgotten) - NLL (nats per token)")


def _draw_by_distance(
    models: Sequence[Probed], found: Sequence[ReturnGain | Recall | None], path: Path, title: str, ylabel: str
) -> None:
    panels: dict[str, list[Curve]] = {f"{kind} returns": [] for kind in KINDS}
    least, most = np.inf, 0.0
    for model, probe in zip(models, found, strict=True):
        assert probe is not None
        for kind in KINDS:
            bins = probe.distance_bins(kind)
            ends = [_ends(each) for each in bins]
            least, most = min([least, *(low for low, _ in ends)]), max([most, *(high for _, high in ends)])
            x = [float(np.sqrt(low * high)) for low, high in ends]
            gain = [each.mean for each in bins]
            panels[f"{kind} returns"].append(Curve(_label(model), x, gain, *band([each.interval for each in bins])))
    difference_panels(
        panels,
        path,
        title,
        xlabel="distance to the nearest earlier occurrence (tokens)",
        ylabel=ylabel,
        xlim=(least, most),
        marks=_memory_ends(models),
        mark_names=MEMORY_ENDS if len(models) <= MARKED_MODELS else None,
        log=True,
        legend_title=EACH_LAYER,
    )


def draw_krcu(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw dNLL after the reset: by position if there is one reset, else by tokens since any of them."""
    curves = []
    first = end = 0
    for model in models:
        assert model.krcu is not None
        at = model.krcu.resets.at
        first = at[0] if len(at) == 1 else 0
        bins = model.krcu.bins
        end = max(end, *(first + _stop(each) for each in bins))
        x = [first + (each.start + _stop(each)) / 2 for each in bins]
        label = f"{_label(model)}\nmean {model.krcu.auc:.4f}"
        curves.append(Curve(label, x, [each.mean for each in bins], *band([each.interval for each in bins])))
    difference_panels(
        {"": curves},
        path,
        title,
        xlabel="position in the piece (tokens)" if first else "tokens since the reset",
        ylabel="KRCU: NLL(memory cleared) - NLL (nats per token)",
        xlim=(first, end),
        marks=_memory_ends(models, first),
        mark_names=MEMORY_ENDS if len(models) <= MARKED_MODELS else None,
        legend_title=EACH_LAYER,
    )


def draw_truncation(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw dNLL with the history cut, a panel a model and a curve for each number of tokens kept."""
    panels: dict[str, list[Curve]] = {}
    ends: set[int] = set()
    for model in models:
        assert model.truncation is not None
        panel = panels[_label(model)] = []
        for number, keep in enumerate(model.truncation.cuts.keeps):
            cells = model.truncation.row(number)
            ends |= {end for cell in cells for end in (cell.start, _stop(cell))}
            x = [(cell.start + _stop(cell)) / 2 for cell in cells]
            dnll = [cell.mean for cell in cells]
            label = f"last {format_tokens(keep)} tokens kept"
            panel.append(Curve(label, x, dnll, *band([cell.interval for cell in cells])))
    difference_panels(
        panels,
        path,
        title,
        xlabel="position in the piece (tokens)",
        ylabel="NLL(history cut) - NLL (nats per token)",
        xlim=(min(ends), max(ends)),
    )


def _label(model: Probed) -> str:
    """Its name, and below it what its layers remember and how far they reach together."""
    memory = f"{format_horizons(model.span.horizons)}; reach {format_tokens(model.span.reach)}"
    return f"{model.label}\n{textwrap.fill(memory, 44)}"


def _memory_ends(models: Sequence[Probed], first: int = 0) -> list[Mark]:
    """Marks of each model's horizons and reach, counted from `first`; none of more than `MARKED_MODELS` models."""
    if len(models) > MARKED_MODELS:
        return []
    return [
        Mark(first + at, number, style)
        for number, model in enumerate(models)
        for at, style in [*((horizon, ":") for horizon in sorted(set(model.span.horizons))), (model.span.reach, "--")]
    ]


def _ends(bin_: Bin) -> tuple[float, float]:
    """Where a bin begins and ends on a logarithmic axis: the first has no beginning there, the last has no end."""
    stop = 2.0 * bin_.start if bin_.stop is None else float(bin_.stop)
    return max(float(bin_.start), stop / 2), stop


def _stop(bin_: Bin) -> int:
    """Where a bin of positions ends: all of them do."""
    assert bin_.stop is not None
    return bin_.stop
