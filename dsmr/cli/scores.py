"""Score tables for the terminal: of one model or several, and what the probes found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dsmr.cli.terminal import stdout, title_of

if TYPE_CHECKING:
    from dsmr.evaluation.baselines import Assessment
    from dsmr.evaluation.bootstrap import Interval
    from dsmr.evaluation.models import ModelDifference, Probed
    from dsmr.evaluation.probes.recall import Recall
    from dsmr.evaluation.probes.returns import ReturnGain

TOO_FEW = "too few pieces"
"""What stands in place of an interval."""


def print_assessment(found: Assessment) -> None:
    """Two tables: perplexities with their intervals, and the loss by position in the piece."""
    table = Table(title=f"{len(found.whole.pieces):,} {found.split} pieces, {found.whole.tokens:,} tokens")
    table.add_column("score", no_wrap=True)
    for heading in ("PPL", "95 % interval", "nats / token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, score in found.scores.items():
        table.add_row(name, f"{score.ppl:.2f}", _between(score.ppl_interval(), 2), f"{score.nll:.4f}")
    stdout.print(table)

    table = Table(title="nats per token by position in the piece")
    table.add_column("from token", justify="right")
    for name in found.scores:
        table.add_column(name, justify="right")
    table.add_column("tokens", justify="right")
    for bins in zip(*(score.by_position() for score in found.scores.values()), strict=True):
        table.add_row(f"{bins[0].start:,}", *(f"{each.nll:.4f}" for each in bins), f"{bins[0].tokens:,}")
    stdout.print(table)


def print_probed(models: Sequence[Probed], differences: Sequence[ModelDifference]) -> None:
    """One model's scores, or those of several side by side; a table of each probe; and the paired tests."""
    if len(models) == 1:
        print_assessment(models[0].assessment)
    else:
        print_models(models)
    if models[0].krcu is not None:
        print_krcu(models)
    if models[0].truncation is not None:
        print_truncation(models)
    if models[0].returns is not None:
        skip = models[0].returns.skip
        print_by_distance(
            models,
            [model.returns for model in models],
            "return gain: NLL at the first statement - NLL at the return, nats per token (95 % interval)",
            f"positive: memory helps; the first {skip} tokens of each return left out",
        )
    if models[0].recall is not None:
        skip = models[0].recall.skip
        print_by_distance(
            models,
            [model.recall for model in models],
            "recall: NLL of the return with its source and all before it forgotten - NLL (95 % interval)",
            f"positive: the source helps; the first {skip} tokens of each return left out",
        )
    if differences:
        print_differences(differences)


def print_models(models: Sequence[Probed]) -> None:
    """A row a model: its memory, its perplexity whole and with the context cleared."""
    from dsmr.units import format_horizons

    first = models[0].assessment
    table = Table(title=f"{len(first.whole.pieces):,} {first.split} pieces, {first.whole.tokens:,} tokens")
    table.add_column("model", no_wrap=True)
    for heading in ("horizons, lowest layer first", "reach", "PPL", "95 % interval", "nats / token"):
        table.add_column(heading, justify="right", no_wrap=True)
    if first.reset is not None:
        table.add_column(f"PPL, reset every {first.reset.reset_every:,}", justify="right")
    for model in models:
        whole, reset = model.assessment.whole, model.assessment.reset
        row = [format_horizons(model.span.horizons), f"{model.span.reach:,}"]
        row += [f"{whole.ppl:.2f}", _between(whole.ppl_interval(), 2), f"{whole.nll:.4f}"]
        table.add_row(model.label, *row, *([f"{reset.ppl:.2f}"] if reset else []))
    stdout.print(table)
    if first.bigram is not None:
        stdout.print(f"a bigram model on the same tokens: PPL {first.bigram.ppl:.2f}")


def print_by_distance(models: Sequence[Probed], found: Sequence[ReturnGain | Recall | None], *title: str) -> None:
    """A probe of returns: rows are kinds and distances, columns are models."""
    from dsmr.evaluation.probes.returns import KINDS

    probes = [each for each in found if each is not None]
    table = Table(title=title_of(*title))
    table.add_column("returns", no_wrap=True)
    table.add_column("distance", justify="right", no_wrap=True)
    _add_columns(table, models)
    for kind in KINDS:
        for row in zip(*(each.distance_bins(kind) for each in probes), strict=True):
            cells = [_with_interval(each.mean, each.interval) for each in row]
            table.add_row(kind, row[0].name, *cells, f"{row[0].tokens:,}", f"{row[0].pieces:,}")
        table.add_section()
    stdout.print(table)


def print_krcu(models: Sequence[Probed]) -> None:
    """The dNLL after the reset, bin by bin, and its mean: rows are bins, columns are models."""
    from dsmr.units import format_tokens

    found = [model.krcu for model in models if model.krcu is not None]
    first, resets = found[0], found[0].resets
    table = Table(
        title=title_of(
            f"KRCU: NLL with the memory cleared at {_listed(resets.at)} - NLL, nats per token (95 % interval)",
            f"{len(first.pieces):,} pieces, {first.short:,} too short; {len(first.bins)} of {resets.bins} bins up to "
            f"{format_tokens(resets.end)} hold tokens",
        )
    )
    table.add_column("after the reset", justify="right", no_wrap=True)
    _add_columns(table, models)
    for row in zip(*(each.bins for each in found), strict=True):
        cells = [_with_interval(each.mean, each.interval, 4) for each in row]
        table.add_row(row[0].name, *cells, f"{row[0].tokens:,}", f"{row[0].pieces:,}")
    table.add_section()
    table.add_row("mean (AUC)", *(_with_interval(each.auc, each.auc_interval, 4) for each in found))
    stdout.print(table)


def print_truncation(models: Sequence[Probed]) -> None:
    """The dNLL with the history cut: rows are histories and positions, columns are models."""
    from dsmr.units import format_tokens

    found = [model.truncation for model in models if model.truncation is not None]
    table = Table(title="NLL with only the last tokens kept - NLL, nats per token (95 % interval)")
    for heading in ("kept", "position"):
        table.add_column(heading, justify="right", no_wrap=True)
    _add_columns(table, models)
    for number, keep in enumerate(found[0].cuts.keeps):
        for row in zip(*(each.row(number) for each in found), strict=True):
            cells = [_with_interval(each.mean, each.interval, 4) for each in row]
            table.add_row(format_tokens(keep), row[0].name, *cells, f"{row[0].tokens:,}", f"{row[0].pieces:,}")
        table.add_section()
    stdout.print(table)


def print_differences(found: Sequence[ModelDifference]) -> None:
    """The paired tests, a row each."""
    table = Table(
        title=f"differences between models: paired sign-flip tests over pieces, p corrected for {len(found):,} rows"
    )
    for heading in ("quantity", "first - second"):
        table.add_column(heading, overflow="fold")  # in a narrow terminal names break, numbers do not
    for heading in ("nats (95 % interval)", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        by = each.difference
        p = "" if each.p_holm is None else f"{each.p_holm:.4f}"
        table.add_row(each.quantity, f"{each.first} - {each.second}", _with_interval(by.value, by.interval, 4), p)
    stdout.print(table)


def _add_columns(table: Table, models: Sequence[Probed]) -> None:
    """A column a model, and how much a row rests on."""
    for heading in (*(model.label for model in models), "tokens", "pieces"):
        table.add_column(heading, justify="right", no_wrap=True)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _between(interval: Interval | None, digits: int) -> str:
    """An interval as text."""
    return TOO_FEW if interval is None else f"{interval[0]:.{digits}f} - {interval[1]:.{digits}f}"


def _with_interval(value: float, interval: Interval | None, digits: int = 3) -> str:
    """A difference in nats as text: +0.045 [+0.018, +0.076], or +0.045 (too few pieces)."""
    if interval is None:
        return f"{_signed(value, digits)} ({TOO_FEW})"
    return f"{_signed(value, digits)} [{', '.join(_signed(end, digits) for end in interval)}]"


def _signed(value: float, digits: int) -> str:
    """What rounds to 0 has no sign."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
