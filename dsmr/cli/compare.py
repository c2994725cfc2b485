"""Command `dsmr compare`: music by numbers, beside a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dsmr.cli.terminal import (
    ForceOption,
    JsonOption,
    check_file,
    open_store,
    print_json,
    reading_input,
    stdout,
    writing,
)
from dsmr.units import format_clock

if TYPE_CHECKING:
    from dsmr.music.analysis.comparison import Group
    from dsmr.music.analysis.order import OrderNumber
    from dsmr.music.analysis.statistics import Comparison
    from dsmr.music.analysis.themes import ThemeCompared


def compare(
    music: Annotated[list[Path], typer.Argument(metavar="MUSIC.mid...", help="MIDI files, such as generated ones.")],
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="Token store to compare with.")],
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split to compare with: **train**, **validation** or **test**.")
    ] = "train",
    theme: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MIDI file of a theme, such as the prompt: find where it returns."),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the histograms into this file, too.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare music with a corpus: density, order, histograms, self-similarity, and whether it quotes.

    Beside every number stands its range in corpus excerpts of equal length. Beside quotations stands what pieces of
    the other splits share with this one, since music of one style shares figures without copying. Music is called
    noise if its notes are in less order than in all but 5 % of the corpus, by key and figures together.
    """
    from dsmr.corpus.reference import corpus_of
    from dsmr.music.analysis.comparison import compare_music
    from dsmr.music.analysis.themes import compare_theme
    from dsmr.music.midi import read_midi

    if png is not None:
        check_file(png, force)
    store = open_store(data, split)
    with reading_input():
        names = [path.name for path in music]
        if len(set(names)) < len(names):
            names = [str(path) for path in music]
        read = dict(zip(names, map(read_midi, music), strict=True))
        themes = []
        if theme is not None:
            themes = compare_theme(read_midi(theme), read, [store.piece(index) for index in store.indices(split)])
        groups = compare_music(read, corpus_of(store, split))
    try:
        if png is not None:
            _draw(groups, png)
    finally:  # neither a full disk nor a closed pipe may cost the other
        if as_json:
            found = {} if theme is None else {"theme": [each.to_dict() for each in themes]}
            print_json({"store": store.digest, "groups": [group.to_dict() for group in groups], **found})
        else:
            for group in groups:
                print_group(group)
            if theme is not None:
                print_themes(themes, theme.name, split)


def _draw(groups: Sequence[Group], png: Path) -> None:
    from dsmr.music.analysis.panels import histogram_panels

    drawn = {each.name: each.histograms for group in groups for each in group.music}
    with writing(png) as file:
        histogram_panels(groups[0].reference.profile.counts, drawn, file)


def print_group(group: Group) -> None:
    """Five tables: single numbers, order, distances of histograms, self-similarity, quotations."""
    from dsmr.music.analysis.histograms import FEWEST_DISTANCES

    reference = group.reference
    corpus = f"{reference.profile.excerpts:,} excerpts of {reference.seconds:.0f} s, {reference.split} split"
    table = _table(f"numbers, beside {corpus}", *(each.name.replace("_", " ") for each in group.music[0].numbers))
    table.add_row(f"corpus, {what_is_usual(group.music[0].numbers)}", *map(_range, group.music[0].numbers))
    for each in group.music:
        table.add_row(each.name, *map(_value, each.numbers))
    stdout.print(table)

    print_order(group)
    first = group.music[0].distances
    table = _table("histograms: distance from the corpus, in bits", *(d.feature.replace("_", " ") for d in first))
    fewest = min(d.excerpts for d in first)
    high = "95th percentile" if fewest >= FEWEST_DISTANCES else f"greatest: {_too_few(fewest, FEWEST_DISTANCES)}"
    table.add_row(f"corpus, median and {high}", *(f"{d.median:.3f}, {d.high:.3f}" for d in first))
    for each in group.music:
        table.add_row(each.name, *(f"{d.value:.3f}" + " (far)" * bool(d.far) for d in each.distances))
    stdout.print(table)

    similar = [
        (own.distance, c)
        for own, cs in zip(group.music[0].self_similarity, group.music[0].similar, strict=True)
        for c in cs
    ]
    table = _table("self-similarity, at so many tokens", *(f"{c.name} {d:,}" for d, c in similar))
    usual = what_is_usual([c for _, c in similar])
    table.add_row(f"corpus, {reference.tokens:,} tokens, {usual}", *(_range(c) for _, c in similar))
    for each in group.music:
        table.add_row(each.name, *(_value(c) for compared in each.similar for c in compared))
    stdout.print(table)

    table = Table("", "equal are", "longest", "at", "also in", title=f"passages found in the {reference.split} split")
    for equality, (median, most) in (reference.quoted or {}).items():
        table.add_row(f"{reference.held_out:,} held-out excerpts", equality, f"{median:.0f}, at most {most}")
    for each in group.music:
        for q in each.quotations:
            unit = "tokens" if q.equality == "tokens" else "notes"
            where = "" if q.piece is None else f"{q.title}, {format_clock(q.piece_seconds)}, {q.semitones:+d}"
            table.add_row(each.name, q.equality, f"{q.length} {unit}", format_clock(q.seconds[0]), where)
    stdout.print(table)


def print_order(group: Group) -> None:
    """What tells music from noise, and the verdict in a sentence."""
    first = group.music[0].order
    table = _table("order: the less, the higher the number", *(each.name.replace("_", " ") for each in first.numbers))
    corpus = [f"{each.median:.2f}, {each.limit:.2f}" for each in first.numbers]
    table.add_row(f"corpus, {first.pieces:,} pieces, median and limit", *corpus)
    for music in group.music:
        table.add_row(music.name, *map(_order_value, music.order.numbers))
    stdout.print(table)
    for music in group.music:
        stdout.print(f"{music.name}: {music.order.sentence}", highlight=False, markup=False)


def print_themes(themes: Sequence[ThemeCompared], name: str, split: str) -> None:
    """Where a theme returns in each piece of music, and how often it does by chance."""
    columns = ("returns", "by chance", "as often", "at, semitones above")
    table = Table("", *columns, title=f"returns of {name}, beside excerpts of {split} pieces that are as long")
    for each in themes:
        where = ", ".join(f"{format_clock(found.seconds[0])} {found.semitones:+d}" for found in each.returns)
        chance = f"{each.corpus.mean():.2f} in other pieces, {each.shuffled:.2f} in shuffled notes"
        label = f"{each.name}, after the theme" if each.begins_with_theme else each.name
        table.add_row(label, str(len(each.returns)), chance, f"p = {each.p:.3f}", where)
    stdout.print(table)


def what_is_usual(compared: Sequence[Comparison]) -> str:
    """Say what the ranges are that numbers are set beside, and whether they allow a verdict."""
    from dsmr.music.analysis.statistics import FEWEST_EXCERPTS, PERCENTILES

    fewest = min((each.excerpts for each in compared if each.excerpts), default=0)
    if fewest >= 99:
        return f"{PERCENTILES[0]}st to {PERCENTILES[1]}th percentile"
    return "least to greatest" + (f": {_too_few(fewest, FEWEST_EXCERPTS)}" if fewest < FEWEST_EXCERPTS else "")


def _too_few(excerpts: int, enough: int) -> str:
    return f"{excerpts} excerpts, too few to call music unusual, {enough} would do"


def _table(title: str, *columns: str) -> Table:
    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _range(each: Comparison) -> str:
    return "" if each.low != each.low else f"{each.low:.2g} .. {each.high:.2g}"


def _order_value(each: OrderNumber) -> str:
    if each.value != each.value:
        return "too short"
    return f"{each.value:.2f}" + (" (above)" if each.value > each.limit else "")


def _value(each: Comparison) -> str:
    if each.value != each.value or each.low != each.low:
        return "too short"
    return f"{each.value:.3g}" + (" (outside)" if each.within is False else "")
