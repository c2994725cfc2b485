"""Command `dsmr study`: variants of one model, trained and probed on equal terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dsmr.cli.terminal import (
    BadInput,
    CommandError,
    DeviceOption,
    Interrupted,
    JsonOption,
    choose_device,
    explained,
    naming,
    open_store,
    print_json,
    reading_input,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from dsmr.study.results import Results


def study(
    which: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="**paper**, **base** or **asap**, which come with dsmr, or a TOML file."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the study.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="STORE",
            help="Token store to learn from. Without it nothing is trained: the page is made from the results so far.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Trainings side by side, each on one core or GPU.",
            show_default="one for each core or GPU",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train several variants of a model with the same data, tokens and seeds, probe them, and compare.

    FOLDER/page.md is a page of tables and figures. It is made from the study and FOLDER/results.jsonl, which has a
    line for each variant and seed. Ctrl-C, SIGTERM, a crash: the same command goes on from where it was, and variants
    or seeds may have been added to the study meanwhile.
    """
    from dsmr.study.config import BUNDLED, read_study
    from dsmr.study.findings import Findings
    from dsmr.study.page import write_page
    from dsmr.study.results import RESULTS, Results

    source = BUNDLED.get(which, Path(which))
    with reading_input():
        if not source.is_file():
            raise BadInput(f"STUDY: expected one of {', '.join(BUNDLED)}, or a TOML file, got {which!r}")
        asked = read_study(source)
        if data is None and (processes is not None or device != "auto"):
            raise BadInput("--processes, --device: expected only with --data; without a store nothing is trained")
    if data is not None:
        _run(source, data, out, processes, device)
    with reading_input():
        if not (path := out / RESULTS).is_file():
            raise BadInput(f"{out}: expected the results of a study, got none; with --data they are made")
        results = Results(path)
        findings = Findings(asked, results)
    with naming(out):
        page = write_page(findings, out)
    if as_json:
        found = [{"variant": each.variant, "seed": each.seed, **each.facts} for each in results.all]
        print_json({"page": str(page), "results": found})
    else:
        _print(results)
        stdout.print(f"{page}: the comparison")


def _run(source: Path, data: Path, out: Path, processes: int | None, device: str) -> None:
    """Run what is not done yet."""
    from dsmr.claim import OccupiedError
    from dsmr.study.runner import FailedJobsError, places_on, run_study

    where = choose_device(device)
    store = open_store(data, "train", "validation")
    try:
        run_study(source, store, out, places=places_on(where.type, processes), console=stderr)
    except OccupiedError as error:
        raise BadInput(explained(error)) from error
    except ValueError as error:
        raise BadInput(str(error)) from error
    except FailedJobsError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; the same command goes on with the study in {out}") from error


def _print(results: Results) -> None:
    table = Table(title="one line for each variant and seed")
    table.add_column("variant", no_wrap=True)
    for heading in ("seed", "best val PPL", "PPL", "KRCU-AUC", "bytes a lane", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in results.all:
        facts = each.facts
        krcu = "" if facts["krcu_auc"] is None else f"{facts['krcu_auc']:+.4f}"
        row = [f"{facts['run']['best_ppl']:.2f}", f"{facts['ppl']:.2f}", krcu, f"{facts['horizon_bytes']:,}"]
        table.add_row(each.variant, f"{each.seed}", *row, f"{facts['tokens_per_second']:,.0f}")
    stdout.print(table)
