"""Commands `dsmr export` and `dsmr push`: a checkpoint with its model card, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dsmr.cli.models import WHERE
from dsmr.cli.terminal import (
    BadInput,
    CommandError,
    ForceOption,
    JsonOption,
    check_folder,
    explained,
    naming,
    print_json,
    reading_input,
    stdout,
)

CARD = "Model card: what the checkpoint does not say of itself"

CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=WHERE)]
LicenseOption = Annotated[
    str | None,
    typer.Option(
        "--license",
        metavar="ID",
        help="Licence, as the hub spells it, such as **apache-2.0**.",
        show_default="not stated",
        rich_help_panel=CARD,
    ),
]
TrainedOnOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the model learned from.", show_default="not stated", rich_help_panel=CARD),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="What **dsmr evaluate --json** printed of it: perplexities, recall by distance.",
        show_default="only what training measured",
        rich_help_panel=CARD,
    ),
]


def export(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")],
    weights: Annotated[
        Literal["float32", "bf16"] | None,
        typer.Option(help="Type to store the weights in.", show_default="as they are"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the card calls the model.", show_default="FOLDER's", rich_help_panel=CARD
        ),
    ] = None,
    license_id: LicenseOption = None,
    trained_on: TrainedOnOption = None,
    evaluation: EvaluationOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint for others: weights, configuration and a model card (README.md).

    The card says what the model is, what it learned from, what was measured, and by what command it was made. With
    --weights bf16 the file takes half as much, and the weights lose all but eight binary digits; to measure what that
    costs, evaluate FOLDER and export again with --evaluation and --force.
    """
    from dsmr.model.checkpoint import WEIGHTS_FILE
    from dsmr.sharing import WEIGHTS, About
    from dsmr.sharing import export as prepare

    check_folder(out, force)
    about = About(name or out.resolve().name, license_id, trained_on, evaluation)
    with reading_input():
        made = prepare(checkpoint, about, None if weights is None else WEIGHTS[weights])
    with naming(out):
        try:
            info = made.write(out)
        except FileExistsError as error:  # somebody else's files
            raise BadInput(explained(error)) from error
    size = (out / WEIGHTS_FILE).stat().st_size
    if as_json:
        print_json({"folder": str(out), "weights": info.digest, "bytes": size})
    else:
        stdout.print(f"{out}: weights in {size:,} bytes, SHA-256 {info.digest}")


def push(
    checkpoint: CheckpointArgument,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; made if it is not there.")],
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a repository that only its owner sees; one that exists stays as it is."),
    ] = False,
    license_id: LicenseOption = None,
    trained_on: TrainedOnOption = None,
    evaluation: EvaluationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a checkpoint and its model card to the Hugging Face Hub.

    Log in first with **hf auth login**, or set HF_TOKEN. What the repository holds of an older checkpoint is replaced,
    and nothing else there is touched. If there is a README.md beside the weights, as **dsmr export** writes it, it is
    the card, as it is. From then on OWNER/NAME is a CHECKPOINT for every command.
    """
    from dsmr.model.checkpoint import find_checkpoint
    from dsmr.sharing import CARD_FILE, About, HubError
    from dsmr.sharing import push as upload

    about: About | None = About(repository, license_id, trained_on, evaluation)
    with reading_input():
        card = find_checkpoint(checkpoint) / CARD_FILE
    if card.is_file():
        if about != About(repository):
            raise BadInput(f"--license, --trained-on, --evaluation: {card} is the card; give them to dsmr export")
        about = None
    try:
        with reading_input():
            url = upload(checkpoint, repository, about, private=private or None)
    except HubError as error:
        raise CommandError(str(error)) from error
    if as_json:
        print_json({"repository": repository, "url": url})
    else:
        stdout.print(f"{url}: dsmr generate {repository} --out new.mid")
