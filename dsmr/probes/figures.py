"""Figures of the probes, one for each: all models in each, in the manner of the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsmr.plots import Curve, Mark, band, difference_panels, nll_by_position
from dsmr.probes.comparison import Probed
from dsmr.probes.returns import KINDS, GainBin

RETURNS_FIGURE, POSITION_FIGURE = "returns.png", "nll_by_position.png"


def draw(models: Sequence[Probed], folder: Path, title: str) -> None:
    """Draw a figure of each probe that was asked for into a folder that exists."""
    draw_positions(models, folder / POSITION_FIGURE, title)
    if all(model.returns for model in models):
        draw_returns(models, folder / RETURNS_FIGURE, title)


def draw_positions(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw the NLL by position in the piece: of several models over whole pieces, of one beside its baselines."""
    if len(models) == 1:
        nll_by_position(models[0].assessment.curves(), path, title)
    else:
        curves = [replace(model.assessment.curves()[0], label=model.label) for model in models]
        nll_by_position(curves, path, title)


def draw_returns(models: Sequence[Probed], path: Path, title: str) -> None:
    """Draw the gain by distance, exact and transposed returns apart, and where each model's memory ends."""
    panels: dict[str, list[Curve]] = {f"{kind} returns": [] for kind in KINDS}
    least, most = np.inf, 0.0
    for number, model in enumerate(models):
        assert model.returns is not None
        beside = 1.03 ** (number - (len(models) - 1) / 2)  # error bars of several models would hide each other
        for kind in KINDS:
            bins = model.returns.distance_bins(kind)
            ends = [_ends(each) for each in bins]
            least, most = min([least, *(low for low, _ in ends)]), max([most, *(high for _, high in ends)])
            x = [float(np.sqrt(low * high)) * beside for low, high in ends]
            gain = [each.gain for each in bins]
            panels[f"{kind} returns"].append(Curve(model.label, x, gain, *band([each.interval for each in bins])))
    marks = [
        Mark(at, number, style)
        for number, model in enumerate(models)
        for at, style in [*((horizon, ":") for horizon in model.span.horizons), (model.span.reach, "--")]
    ]
    difference_panels(
        panels,
        path,
        title,
        xlabel="distance to the nearest earlier occurrence (tokens)",
        ylabel="return gain (nats per token)",
        xlim=(least, most),
        marks=marks,
        mark_names={":": "horizon of a layer", "--": "reach over all layers"},
        log=True,
    )


def _ends(bin_: GainBin) -> tuple[float, float]:
    """Where a bin begins and ends on a logarithmic axis: the first has no beginning there, the last has no end."""
    stop = 2.0 * bin_.start if bin_.stop is None else float(bin_.stop)
    return max(float(bin_.start), stop / 2), stop
