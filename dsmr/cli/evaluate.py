"""`dsmr evaluate`: how well a checkpoint predicts whole pieces."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dsmr.cli.terminal import (
    DeviceOption,
    ForceOption,
    JsonOption,
    check_free,
    choose_device,
    open_store,
    print_json,
    progress_bar,
    reading_input,
    stdout,
    writing,
)

if TYPE_CHECKING:
    from dsmr.assessment import Assessment


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Its folder, or owner/name on the Hugging Face Hub.")
    ],
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="The token store with the pieces.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")] = "test",
    reset_every: Annotated[
        int,
        typer.Option(
            metavar="TOKENS",
            min=0,
            help="Score once more with the context cleared so often, as models trained on crops are; 0: do not.",
        ),
    ] = 2048,
    lanes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Pieces read side by side: more memory, less time.")
    ] = 4,
    device: DeviceOption = "auto",
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the loss by position in the piece into this file.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score every token of a split's pieces, read whole, and print the perplexity.

    With a 95 % bootstrap interval over pieces, and beside it what the model makes of short contexts and what a bigram
    model fitted to the store's training split makes of the same tokens.
    """
    from dsmr.assessment import assess
    from dsmr.checkpoint import load_checkpoint

    if png is not None:
        check_free(png, force)
    where = choose_device(device)
    with reading_input():
        store = open_store(data, split)
        model, info = load_checkpoint(checkpoint, where)
    begun = time.monotonic()
    with progress_bar("scoring tokens") as progress:
        found = assess(model, store, split, reset_every=reset_every or None, lanes=lanes, progress=progress)
    seconds = time.monotonic() - begun
    if as_json:
        print_json({"checkpoint": checkpoint, "weights": info.digest, "store": store.digest, **found.to_dict()})
    else:
        print_assessment(found)
        scored = found.whole.tokens + (found.reset.tokens if found.reset else 0)
        stdout.print(f"{scored:,} tokens scored in {seconds:.1f} s, {scored / seconds:,.0f} tokens/s")
    if png is not None:
        from dsmr.plots import nll_by_position

        with writing(png):
            nll_by_position(found.curves(), png, f"{checkpoint}, {split} split")


def print_assessment(found: Assessment) -> None:
    """Two tables: perplexities with their intervals, and the loss by position in the piece."""
    table = Table(title=f"{len(found.whole.pieces):,} {found.split} pieces, {found.whole.tokens:,} tokens")
    table.add_column("score", no_wrap=True)
    for heading in ("PPL", "95 % interval", "nats / token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, score in found.scores.items():
        interval = score.ppl_interval()
        between = "" if interval is None else f"{interval[0]:.2f} - {interval[1]:.2f}"
        table.add_row(name, f"{score.ppl:.2f}", between, f"{score.nll:.4f}")
    stdout.print(table)

    table = Table(title="nats per token by position in the piece")
    table.add_column("from token", justify="right")
    for name in found.scores:
        table.add_column(name, justify="right")
    table.add_column("tokens", justify="right")
    for bins in zip(*(score.by_position() for score in found.scores.values()), strict=True):
        table.add_row(f"{bins[0].start:,}", *(f"{each.nll:.4f}" for each in bins), f"{bins[0].tokens:,}")
    stdout.print(table)
