"""What the commands share: where they print, how they refuse to overwrite, and fail."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from dsmr.files import replaced
from dsmr.text import escaped

if TYPE_CHECKING:
    import torch

    from dsmr.corpus.store import TokenStore


class Terminal(Console):
    """A console on which a `str`, wherever it stands, is one line of text: names and titles command nothing.

    What is to be seen as more than one line, or in a style, is a `Text`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is to be seen: without markup; what commands a terminal or cannot be encoded is escaped."""
        return super().render_str(escaped(text, self.encoding), **{**options, "markup": False, "emoji": False})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; OutputError if standard output cannot be written."""
        with nullcontext() if self.stderr else to_standard_output():
            super().print(*objects, **options)


@contextmanager
def to_standard_output() -> Iterator[None]:
    """Within, an OSError means that standard output cannot be written, and nothing more is written there."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits there would fail again at exit
        raise OutputError(f"standard output: cannot be written: {explained(error)}") from error


class _Help:
    """Help that says so if it cannot be written."""

    def format_help(self, *arguments: Any) -> None:
        with to_standard_output():
            super().format_help(*arguments)  # type: ignore[misc]  # of the class that this one is mixed into


class Command(_Help, TyperCommand):
    """A command."""


class Group(_Help, TyperGroup):
    """A command of several commands."""


def title_of(*lines: str) -> Text:
    """A table's title of several lines."""
    return Text("\n".join(escaped(line, stdout.encoding) for line in lines), style="table.title")


def _width() -> int | None:
    """Where the width is nobody's, in a file or a pipe, tables get all the room that they need."""
    on_a_terminal = sys.stdout is not None and sys.stdout.isatty()
    return None if on_a_terminal or "COLUMNS" in os.environ else 240


def print_any_name() -> None:
    """From here on no character ends the process because the terminal lacks it; it is written as ``\\u4e2d``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


stdout = Terminal(soft_wrap=True, highlight=False, width=_width())
stderr = Terminal(stderr=True, soft_wrap=True)

ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="**cpu**, **cuda**, **cuda:1** ...; **auto**: a GPU if there is one.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(metavar="N", min=0, help="Random seed: the same one gives the same result on the same machine.")
]


class CommandError(Exception):
    """Ends the command with one line on stderr and an exit code."""

    exit_code = 1


class BadInput(CommandError):
    """The arguments, or the files they name, cannot be used."""

    exit_code = 2


class OutputError(CommandError, OSError):
    """Standard output cannot be written."""


class Interrupted(CommandError):
    """Ctrl-C, where there is something to be said about it."""

    exit_code = 130


def explained(error: OSError) -> str:
    """What the system says, in one line that begins with the file's name if the system names one."""
    if error.strerror is None:
        return " ".join(str(error).split())  # a library's own words, which may be paragraphs
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


@contextmanager
def reading_input() -> Iterator[None]:
    """Within, a ValueError or OSError is about what the user gave, not a bug: its message is for the user."""
    try:
        yield
    except OSError as error:
        raise BadInput(explained(error)) from error
    except ValueError as error:
        raise BadInput(str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield where to write a file that appears at `path`, whole, when the block ends.

    Within, an OSError means that `path` cannot be written; what was there before stays as it was.
    """
    with naming(path), replaced(path) as partial:
        yield partial


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an OSError means that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_free(path: Path, force: bool) -> None:
    """Refuse to write over a file or folder that exists, unless told to."""
    if os.path.lexists(path) and not force:  # a link that leads nowhere, too: writing would follow it
        raise BadInput(f"{path}: exists already; --force replaces it")


def check_file(path: Path, force: bool) -> None:
    """Refuse, before any work, a file that could not be written or that is there already, unless told to replace it."""
    if path.is_dir():
        raise BadInput(f"{path}: expected a file to write, got a folder")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: expected a file to write, got a device or the like")
    check_free(path, force)
    _try_writing(path, path.parent)


def check_folder(path: Path, force: bool) -> None:
    """The same for a folder to write into."""
    if os.path.lexists(path) and not path.is_dir():
        raise BadInput(f"{path}: expected a folder to write into, got a file")
    check_free(path, force)
    _try_writing(path, path)


def _try_writing(path: Path, folder: Path) -> None:
    """See that a folder, or the one that it would be made in, takes files: this one leaves no trace."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    with naming(path), tempfile.TemporaryFile(dir=there):
        pass


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


def json_text(values: dict[str, Any]) -> str:
    """One JSON object as ASCII text, from which names come back byte for byte; ValueError for numbers not finite."""
    return json.dumps(values, allow_nan=False, indent=2).replace("\x7f", "\\u007f")


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    stdout.print(Text(json_text(values)))
