"""Command `dsmr evaluate`: how well checkpoints predict whole pieces, and what they do with their memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dsmr.audience import Audience
from dsmr.cli.models import WHERE, load
from dsmr.cli.scores import print_probed
from dsmr.cli.terminal import (
    BadInput,
    DeviceOption,
    ForceOption,
    JsonOption,
    check_file,
    check_folder,
    choose_device,
    json_text,
    naming,
    open_store,
    print_json,
    reading_input,
    stderr,
    stdout,
    writing,
)
from dsmr.files import filled

RESULTS = "evaluation.json"
PROBES = "Probes of memory"


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help=WHERE),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="Token store with the pieces.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="**train**, **validation** or **test**.")] = "test",
    pieces: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Score a sample of N pieces, always the same ones.", show_default="all"),
    ] = None,
    reset_every: Annotated[
        int,
        typer.Option(
            metavar="TOKENS",
            min=0,
            help="Context length of a second score, with the context cleared every so many tokens; 0: no second score.",
        ),
    ] = 2048,
    krcu: Annotated[
        bool,
        typer.Option("--krcu", help="Measure what clearing the memory inside a piece costs.", rich_help_panel=PROBES),
    ] = False,
    reset_at: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...", help="KRCU: positions at which the memory is cleared.", rich_help_panel=PROBES
        ),
    ] = "8192",
    krcu_bin: Annotated[
        int, typer.Option(metavar="TOKENS", help="KRCU: width of a bin.", rich_help_panel=PROBES)
    ] = 1024,
    krcu_end: Annotated[
        int, typer.Option(metavar="TOKENS", help="KRCU: position at which the last bin ends.", rich_help_panel=PROBES)
    ] = 30720,
    truncation: Annotated[
        bool,
        typer.Option("--truncation", help="Measure what a shorter context costs.", rich_help_panel=PROBES),
    ] = False,
    context: Annotated[
        str,
        typer.Option(metavar="TOKENS,...", help="Truncation: context lengths.", rich_help_panel=PROBES),
    ] = "1024,4096,8192,16384",
    buckets: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="Truncation: positions at which rows of the table begin, and at which the last one ends.",
            rich_help_panel=PROBES,
        ),
    ] = "1024,4096,8192,16384,24576,32768",
    block: Annotated[
        int,
        typer.Option(
            metavar="TOKENS", help="Truncation: tokens in a block, which are scored together.", rich_help_panel=PROBES
        ),
    ] = 1024,
    blocks: Annotated[int, typer.Option(metavar="N", help="Truncation: blocks per row.", rich_help_panel=PROBES)] = 32,
    returns: Annotated[
        bool,
        typer.Option(
            "--returns",
            help="Measure how much better returning themes are predicted. Needs a store of the built-in pianist.",
            rich_help_panel=PROBES,
        ),
    ] = False,
    recall: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Score N returns of each kind and distance again without what they return to. Needs --returns.",
            rich_help_panel=PROBES,
        ),
    ] = 0,
    skip: Annotated[
        int,
        typer.Option(
            metavar="TOKENS",
            min=0,
            help="Tokens to leave out at the beginning of each return, where it cannot be recognised yet.",
            rich_help_panel=PROBES,
        ),
    ] = 16,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model to compare all others with: its checkpoint, or its name in the tables.",
            show_default="every pair",
        ),
    ] = None,
    lanes: Annotated[int, typer.Option(metavar="N", min=1, help="Batch size: pieces read side by side.")] = 4,
    device: DeviceOption = "auto",
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the loss by position in the piece into this file, too.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the numbers (JSON) and all figures."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score every token of a split's pieces, read whole, and print the perplexity.

    The perplexity has a 95 % interval over pieces. Beside it stand the perplexity with short contexts and that of a
    bigram model fitted to the store's training split. Several checkpoints are compared in the same tables and figures,
    by paired sign-flip tests over pieces with Holm's correction. Fewer than six pieces get neither intervals nor tests.
    """
    from dsmr.evaluation.figures import draw, draw_positions
    from dsmr.evaluation.models import Questions, check_baseline, differences, labels, probe, to_dict
    from dsmr.evaluation.probes.krcu import Resets
    from dsmr.evaluation.probes.truncation import Cuts

    if png is not None:
        check_file(png, force)
    if out is not None:
        check_folder(out, force)
    if len(set(checkpoints)) != len(checkpoints):
        raise BadInput(f"CHECKPOINT: expected every one once, got {' '.join(checkpoints)}")
    names = labels(checkpoints)
    if baseline is not None:
        baseline = dict(zip(checkpoints, names, strict=True)).get(baseline, baseline)
        with reading_input():
            check_baseline(baseline, names)
    with reading_input():
        resets = Resets(_numbers("--reset-at", reset_at), krcu_bin, krcu_end) if krcu else None
        cuts = (
            Cuts(_numbers("--context", context), _numbers("--buckets", buckets), block, blocks) if truncation else None
        )
    where = choose_device(device)
    with reading_input():
        store = open_store(data, split)
    plan = Questions(pieces, reset_every or None, lanes, returns, skip, resets, cuts, recall)
    begun = time.monotonic()
    found = []
    for checkpoint, label in zip(checkpoints, names, strict=True):
        model, info = load(checkpoint, where)
        with Audience(stderr, "scoring") as audience, reading_input():
            show = _showing(audience, label)
            found.append(
                probe(model, store, split, plan, label=label, checkpoint=checkpoint, digest=info.digest, progress=show)
            )
    seconds = time.monotonic() - begun
    compared = differences(found, baseline)
    values = to_dict(found, store, compared)
    whose = ", ".join(model.label for model in found) if len(found) <= 3 else f"{len(found)} models"
    title = f"{whose}: {split} split"
    try:
        if png is not None:
            with writing(png) as file:
                draw_positions(found, file, title)
        if out is not None:
            with writing(out / RESULTS) as file:
                file.write_text(f"{json_text(values)}\n", encoding="utf-8")
            with naming(out), filled(out) as folder:
                draw(found, folder, title)
    finally:  # neither a full disk nor a closed pipe may cost the other
        if as_json:
            print_json(values)
        else:
            print_probed(found, compared)
            scored = sum(model.scored for model in found)
            stdout.print(f"{scored:,} tokens scored in {seconds:.1f} s, {scored / seconds:,.0f} tokens/s")


def _showing(audience: Audience, label: str) -> Callable[[int, int], None]:
    """What to call with the tokens scored and those there are, of the model of this name."""
    return lambda done, total: audience.show(done, total, f"{done:,} of {total:,} tokens", label)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers of an option that takes several, separated by commas."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise BadInput(f"{name}: expected whole numbers separated by commas, got {text!r}") from error
