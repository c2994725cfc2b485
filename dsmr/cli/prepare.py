"""Command `dsmr prepare`: from MIDI files, or the built-in pianist, to a token store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from dsmr.audience import Audience
from dsmr.cli.terminal import (
    Command,
    CommandError,
    ForceOption,
    Group,
    Interrupted,
    JsonOption,
    check_file,
    explained,
    naming,
    print_json,
    reading_input,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from dsmr.corpus.prepare import PrepareReport

app = typer.Typer(
    cls=Group,
    help="Turn MIDI files, or music by the built-in pianist, into a token store, the one file that training reads.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="Token store to write.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Worker processes; 0: work in this process.", show_default="one per core"),
]


@app.command(cls=Command)
def maestro(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder or zip file of the release; with --download a folder.")
    ],
    download: Annotated[
        bool, typer.Option("--download", help="Download MAESTRO v3.0.0 to PATH first (58 MB, CC BY-NC-SA 4.0).")
    ] = False,
    out: OutOption = Path("data/maestro.tokens"),
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare MAESTRO, or a corpus of the same layout, with the splits of its table.

    Files that cannot be used are left out. STORE.left-out.tsv lists them with the reasons.
    """
    from dsmr.corpus.prepare import prepare_maestro

    _check(out, force)
    if download:
        path = _download(path)
    begun = time.monotonic()
    with _to_the_end(out), Audience(stderr, "reading", "files") as audience:
        report = prepare_maestro(path, out, workers=workers, progress=audience.show)
    _tell(report, time.monotonic() - begun, as_json)


@app.command(cls=Command)
def folder(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of MIDI files, with all folders in it.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="STORE", help="Token store to write.", show_default="data/<folder>.tokens"),
    ] = None,
    validation: Annotated[float, typer.Option(metavar="X", help="Fraction of the pieces for validation.")] = 0.05,
    test: Annotated[float, typer.Option(metavar="X", help="Fraction of the pieces for testing.")] = 0.05,
    group_by: Annotated[
        str,
        typer.Option(
            metavar="name|parent|TABLE",
            help="What stays in one split: files of one **name**, files of one folder (**parent**), or files of one "
            "group in a .csv table with the columns path and group.",
        ),
    ] = "name",
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare every .mid, .midi and .rmi file in a folder.

    The name of a group decides its split, whatever else is in the folder. A warning tells if two splits hold nearly
    the same music. Files that cannot be used are left out. STORE.left-out.tsv lists them with the reasons.
    """
    from dsmr.corpus.prepare import prepare_folder

    out = out or Path("data") / f"{path.resolve().name}.tokens"
    _check(out, force)
    begun = time.monotonic()
    with _to_the_end(out), Audience(stderr, "reading", "files") as audience:
        report = prepare_folder(
            path,
            out,
            validation=validation,
            test=test,
            group_by="name" if group_by == "name" else "parent" if group_by == "parent" else Path(group_by),
            workers=workers,
            progress=audience.show,
        )
    _tell(report, time.monotonic() - begun, as_json)


@app.command(cls=Command)
def pianist(
    out: OutOption = Path("data/pianist.tokens"),
    tokens: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="Length of the corpus, about.")] = (2_000_000),
    shortest: Annotated[int, typer.Option(metavar="TOKENS", help="Length of the shortest pieces, about.")] = 2_000,
    longest: Annotated[int, typer.Option(metavar="TOKENS", help="Length of the longest pieces, about.")] = 30_000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed: another one composes other pieces.")] = 0,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let the built-in pianist compose a corpus; nothing is downloaded.

    A tenth of the pieces is for validation and a tenth for testing. The store says which passages return where.
    """
    from dsmr.corpus.prepare import prepare_pianist

    _check(out, force)
    begun = time.monotonic()
    with _to_the_end(out), Audience(stderr, "composing", "pieces") as audience:
        report = prepare_pianist(
            out, seed=seed, tokens=tokens, shortest=shortest, longest=longest, workers=workers, progress=audience.show
        )
    _tell(report, time.monotonic() - begun, as_json)


def _check(out: Path, force: bool) -> None:
    """Refuse, before any work, a store or a list of what it lacks that could not be written."""
    from dsmr.corpus.left_out import left_out_path

    check_file(out, force)
    check_file(left_out_path(out), force)


@contextmanager
def _to_the_end(out: Path) -> Iterator[None]:
    """Within, what is wrong is the user's input, or the system's; Ctrl-C says what becomes of the work so far."""
    from dsmr.corpus.parallel import ProcessesError

    try:
        with reading_input():
            try:
                yield
            except OSError as error:
                if error.filename == str(out):
                    raise CommandError(f"{out}: cannot be written: {error.strerror}") from error
                raise
    except ProcessesError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: {out} was not written; the same command starts anew") from error


def _download(folder: Path) -> Path:
    from dsmr.corpus.download import download_maestro

    try:
        with Audience(stderr, "downloading") as audience:
            return download_maestro(
                folder, lambda done, total: audience.show(done, total, f"{decimal(done)} of {decimal(total)}")
            )
    except OSError as error:
        raise CommandError(explained(error)) from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted: what has come is kept in {folder}; the same command goes on there") from error


def _tell(report: PrepareReport, seconds: float, as_json: bool) -> None:
    """List what was left out in a file beside the store, and print the report."""
    from dsmr.corpus.left_out import left_out_path, write_left_out

    beside = left_out_path(report.path)
    try:
        with naming(beside):
            write_left_out(report.left_out, beside)
    finally:  # the store is there
        if as_json:
            print_json(_to_dict(report, beside))
        else:
            _print(report, beside, seconds)


def _print(report: PrepareReport, beside: Path, seconds: float) -> None:
    from dsmr.corpus.left_out import summary

    stdout.print(
        f"{report.path}: {sum(report.pieces.values()):,} pieces, {sum(report.tokens.values()):,} tokens, "
        f"{report.seconds / 3600:,.1f} hours of music, the longest piece {report.longest:,} tokens; "
        f"prepared in {seconds:.1f} s"
    )
    for split, pieces in report.pieces.items():
        stdout.print(f"  {split:<10} {pieces:>6,} pieces {report.tokens[split]:>12,} tokens")
    for split, pieces in report.pieces.items():
        if not pieces:
            stdout.print(f"the {split} split is empty")
    if report.straddling:
        (one, other), pairs = report.straddling[0], len(report.straddling)
        stdout.print(
            f"warning: nearly the same music lies in two splits, {pairs:,} times; "
            f"the first: {one} and {other}; prepare folder --group-by keeps them together"
        )
    if report.left_out:
        stdout.print(f"{beside}: every file that was left out, and why")
        stdout.print(f"{len(report.left_out):,} files left out:")
        for line in summary(report.left_out):
            stdout.print(f"  {line}")


def _to_dict(report: PrepareReport, beside: Path) -> dict[str, Any]:
    return {
        "store": str(report.path),
        "pieces": report.pieces,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "longest": report.longest,
        "left_out_file": str(beside) if report.left_out else None,
        "straddling": [list(pair) for pair in report.straddling],
        "left_out": [{"source": each.source, "reason": each.reason} for each in report.left_out],
    }
