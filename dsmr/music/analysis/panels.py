"""Pictures of music beside a corpus: histograms, feature by feature, and what is played again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dsmr.music.analysis.histograms import FEATURES, Counts
from dsmr.music.analysis.repetition import Repetition
from dsmr.plots import DPI, FAINT, INK, Path, apply_style, look, save, shown_in_legend

QUIET = "#8a8f98"


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


def repetition_rows(music: Mapping[str, Sequence[Repetition]], path: Path) -> None:
    """Draw what music plays again, a row a take, over where excerpts of a corpus and shuffled snippets lie.

    Args:
        music: for each player its takes; those too short to repeat anything have an empty row.
        path: the file to write; its ending decides the format.
    """
    takes = [(number, take) for number, each in enumerate(music.values()) for take in each]
    figure = Figure(figsize=(9.5, 1.4 + 0.36 * len(takes)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    apply_style(axes, grid="x")
    for row, (_, take) in enumerate(takes):
        for shares, height, colour in ((take.corpus, 0.62, FAINT), (take.shuffled, 0.34, QUIET)):
            if len(shares):
                low, middle, high = np.percentile(shares, (5, 50, 95))
                axes.barh(row, high - low, left=low, height=height, color=colour)
                axes.plot([middle, middle], [row - height / 2, row + height / 2], color=INK, linewidth=1.0)
    for player, name in enumerate(music):
        at = [row for row, (number, _) in enumerate(takes) if number == player]
        style = {"color": look(player)["color"], "marker": look(player)["marker"], "linestyle": "none"}
        axes.plot([takes[row][1].share for row in at], at, label=shown_in_legend(name), **style)
    axes.barh(0, 0, color=FAINT, label="the corpus, 90 of 100 excerpts")
    axes.barh(0, 0, color=QUIET, label="its shuffled snippets, 90 of 100")
    axes.set_yticks(range(len(takes)), [take.name for _, take in takes])
    axes.invert_yaxis()
    axes.set_xlim(left=-0.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("notes in passages that were played before", color=INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    save(figure, path)


def _shares(counts: Counts) -> Counts:
    return np.asarray(counts / max(counts.sum(), 1e-12))
