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
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="Token store to learn from.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the study.")],
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

    FOLDER/results.jsonl has a line for each variant and seed. Ctrl-C, SIGTERM, a crash: the same command goes on from
    where it was, and variants or seeds may have been added to the study meanwhile.
    """
    from dsmr.claim import OccupiedError
    from dsmr.study.config import BUNDLED, read_study
    from dsmr.study.runner import FailedJobsError, places_on, run_study

    source = BUNDLED.get(which, Path(which))
    with reading_input():
        if not source.is_file():
            raise BadInput(f"STUDY: expected one of {', '.join(BUNDLED)}, or a TOML file, got {which!r}")
        read_study(source)
    where = choose_device(device)
    store = open_store(data, "train", "validation")
    try:
        results = run_study(source, store, out, places=places_on(where.type, processes), console=stderr)
    except OccupiedError as error:
        raise BadInput(explained(error)) from error
    except ValueError as error:
        raise BadInput(str(error)) from error
    except FailedJobsError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; the same command goes on with the study in {out}") from error
    if as_json:
        print_json({"results": [{"variant": each.variant, "seed": each.seed, **each.facts} for each in results.all]})
    else:
        _print(results)


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
