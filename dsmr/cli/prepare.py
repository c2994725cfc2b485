"""`dsmr prepare`: from MIDI files, or the built-in pianist, to a token store."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import DownloadColumn, TransferSpeedColumn

from dsmr.cli.terminal import (
    CommandError,
    ForceOption,
    JsonOption,
    check_free,
    print_json,
    progress_bar,
    reading_input,
    stdout,
)

if TYPE_CHECKING:
    from dsmr.corpus.prepare import PrepareReport

app = typer.Typer(
    help="Turn MIDI files, or music by the built-in pianist, into a token store: one file that training reads.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="The store to write.")]
WorkersOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes.", show_default="all cores")]


@app.command()
def maestro(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The release's folder or zip file; the folder to download to.")
    ],
    download: Annotated[
        bool, typer.Option("--download", help="Fetch MAESTRO v3.0.0 into PATH first (58 MB, CC BY-NC-SA 4.0).")
    ] = False,
    out: OutOption = Path("data/maestro.tokens"),
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare MAESTRO, or a corpus laid out like it, with the splits of its table.

    Files that cannot be used are left out and listed, each with the reason.
    """
    from dsmr.corpus.prepare import prepare_maestro

    check_free(out, force)
    if download:
        path = _download(path)
    begun = time.monotonic()
    with reading_input(), progress_bar("reading") as progress:
        report = prepare_maestro(path, out, workers=workers, progress=progress)
    _print(report, time.monotonic() - begun, as_json)


@app.command()
def folder(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder; those below it are searched too.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="STORE", help="The store to write.", show_default="data/<folder>.tokens"),
    ] = None,
    validation: Annotated[float, typer.Option(metavar="X", help="Part of the pieces to validate on.")] = 0.05,
    test: Annotated[float, typer.Option(metavar="X", help="Part of the pieces to test on.")] = 0.05,
    group_by: Annotated[
        str,
        typer.Option(
            metavar="name|parent|TABLE",
            help="What stays in one split: files of one **name**; those of one folder, the **parent**; those of one "
            "group in a .csv table with the columns path and group.",
        ),
    ] = "name",
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare every .mid, .midi and .rmi file in a folder.

    Splits follow from the groups' names alone; a warning says if nearly the same music lies in two of them. Files
    that cannot be used are left out and listed, each with the reason.
    """
    from dsmr.corpus.prepare import prepare_folder

    out = out or Path("data") / f"{path.resolve().name}.tokens"
    check_free(out, force)
    begun = time.monotonic()
    with reading_input(), progress_bar("reading") as progress:
        report = prepare_folder(
            path,
            out,
            validation=validation,
            test=test,
            group_by="name" if group_by == "name" else "parent" if group_by == "parent" else Path(group_by),
            workers=workers,
            progress=progress,
        )
    _print(report, time.monotonic() - begun, as_json)


@app.command()
def pianist(
    out: OutOption = Path("data/pianist.tokens"),
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="About how many tokens to compose.")] = (2_000_000),
    shortest: Annotated[int, typer.Option(metavar="N", help="Tokens of the shortest pieces, about.")] = 2_000,
    longest: Annotated[int, typer.Option(metavar="N", help="Tokens of the longest pieces, about.")] = 30_000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another seed composes other pieces.")] = 0,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let the built-in pianist compose a corpus; nothing is downloaded.

    A tenth of its pieces is for validation and a tenth for testing. Which passages return is labelled in the store.
    """
    from dsmr.corpus.prepare import prepare_pianist

    check_free(out, force)
    begun = time.monotonic()
    with reading_input(), progress_bar("composing") as progress:
        report = prepare_pianist(
            out, seed=seed, tokens=tokens, shortest=shortest, longest=longest, workers=workers, progress=progress
        )
    _print(report, time.monotonic() - begun, as_json)


def _download(folder: Path) -> Path:
    from dsmr.corpus.download import download_maestro

    try:
        with progress_bar("downloading", DownloadColumn(), TransferSpeedColumn()) as progress:
            return download_maestro(folder, progress)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def _print(report: PrepareReport, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(_to_dict(report))
        return
    stdout.print(
        f"{report.path}: {sum(report.pieces.values()):,} pieces, {sum(report.tokens.values()):,} tokens, "
        f"{report.seconds / 3600:,.1f} hours of music, the longest piece {report.longest:,} tokens; "
        f"prepared in {seconds:.1f} s",
        markup=False,
    )
    for split, pieces in report.pieces.items():
        stdout.print(f"  {split:<10} {pieces:>6,} pieces {report.tokens[split]:>12,} tokens")
    if report.straddling:
        (one, other), pairs = report.straddling[0], len(report.straddling)
        stdout.print(
            f"warning: nearly the same music lies in two splits, {pairs:,} times; "
            f"the first: {_without_controls(one)} and {_without_controls(other)}; "
            "prepare folder --group-by keeps them together",
            markup=False,
        )
    if report.left_out:
        stdout.print(f"{len(report.left_out):,} files left out:")
    for each in report.left_out:
        stdout.print(f"  {_without_controls(f'{each.source}: {each.reason}')}", markup=False)


def _without_controls(text: str) -> str:
    """Text from files' names and contents, in which nothing commands the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _to_dict(report: PrepareReport) -> dict[str, Any]:
    return {
        "store": str(report.path),
        "pieces": report.pieces,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "longest": report.longest,
        "straddling": [list(pair) for pair in report.straddling],
        "left_out": [{"source": each.source, "reason": each.reason} for each in report.left_out],
    }
