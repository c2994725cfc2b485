"""What the commands share: where they print, how they show progress, refuse to overwrite, and fail."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from dsmr.corpus.store import TokenStore

# Where the width is nobody's, in a file or a pipe, tables get all the room that they need.
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240)
stderr = Console(stderr=True, soft_wrap=True)

ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="**cpu**, **cuda**, **cuda:1** ...; **auto** takes a GPU if there is one.",
    ),
]
SeedOption = Annotated[int, typer.Option(metavar="N", min=0, help="Equal seeds give equal results on equal machines.")]


class CommandError(Exception):
    """Ends the command with one line on stderr and an exit code."""

    exit_code = 1


class BadInput(CommandError):
    """The arguments, or the files they name, cannot be used."""

    exit_code = 2


@contextmanager
def reading_input() -> Iterator[None]:
    """Within, a ValueError or OSError is about what the user gave, not a bug: its message is for the user."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an OSError means that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_free(path: Path, force: bool) -> None:
    """Refuse to write over a file or folder that exists, unless told to."""
    if os.path.lexists(path) and not force:  # a link that leads nowhere, too: writing would follow it
        raise BadInput(f"{path}: exists already; --force replaces it")


def choose_device(name: str) -> torch.device:
    """The device called `name`, after trying that it works."""
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")  # not the first one: each of several processes takes its own
    if name == "auto":
        return torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        raise BadInput(f"--device: expected one that works here, got {name!r}: {str(error).splitlines()[0]}") from error


def open_store(path: Path, *splits: str) -> TokenStore:
    """Open a token store that is undamaged and has pieces in all of these splits."""
    from dsmr.corpus.store import TokenStore

    with reading_input():
        store = TokenStore.open(path)
        store.verify()
        for split in splits:
            if not store.indices(split):
                raise BadInput(f"{path}: expected pieces in the split {split!r}, got none")
    return store


class Bar(Protocol):
    """How a task reports."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Show how much is done of how much there is, and a note behind the bar."""


@contextmanager
def progress_bar(what: str, *columns: ProgressColumn) -> Iterator[Bar]:
    """A bar on stderr, if that is a terminal; yields the function to report with.

    Args:
        what: what is being done, printed before the bar.
        columns: what is shown behind it besides the time left; by default how much of how much.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(columns or [MofNCompleteColumn()]),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    ) as bars:
        task = bars.add_task(what, total=None, note="")

        def report(done: float, total: float, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield report


def json_text(values: dict[str, Any]) -> str:
    """One JSON object as text; ValueError for a number that is not finite."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, indent=2)


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json_text(values))
