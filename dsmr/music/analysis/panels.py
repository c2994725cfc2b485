"""Histogram panels: a picture of music beside a corpus, feature by feature."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dsmr.music.analysis.histograms import FEATURES, Counts
from dsmr.plots import DPI, FAINT, INK, Path, apply_style, look, save, shown_in_legend


def histogram_panels(corpus: Mapping[str, Counts], music: Mapping[str, Mapping[str, Counts]], path: Path) -> None:
    """Draw the histograms of music as lines over those of a corpus, as grey bars: the share of each bin.

    Args:
        corpus: a histogram for each of `dsmr.music.analysis.histograms.FEATURES`.
        music: the same for each piece of music, by name.
        path: the file to write; its ending decides the format.
    """
    figure = Figure(figsize=(11.0, 6.2), dpi=DPI, layout="constrained")
    for (name, feature), axes in zip(FEATURES.items(), figure.subplots(2, 3).flat, strict=True):
        apply_style(axes, grid="")
        bins = np.arange(len(feature.labels))
        axes.bar(bins, _shares(corpus[name]), width=1.0, color=FAINT, label="corpus")
        for number, (label, counts) in enumerate(music.items()):
            line = {"color": look(number)["color"], "linestyle": look(number)["linestyle"], "linewidth": 1.2}
            axes.step(bins, _shares(counts[name]), where="mid", label=shown_in_legend(label), **line)
        every = -(-len(bins) // 13)
        axes.set_xticks(bins[::every], feature.labels[::every])
        axes.tick_params(axis="x", labelsize=7)
        axes.set_yticks([])
        axes.set_title(feature.title, loc="left", color=INK, fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    save(figure, path)


def _shares(counts: Counts) -> Counts:
    return np.asarray(counts / max(counts.sum(), 1e-12))
