"""Application: its commands, and what a shell sees of an error."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated

import typer

from dsmr.cli import compare, demo, doctor, evaluate, generate, prepare, schedule, share, study, train
from dsmr.cli.terminal import Command, CommandError, Group, explained, stderr, stdout
from dsmr.version import __version__


class InOrderOfUse(Group):
    """Lists the commands as one needs them."""

    def list_commands(self, ctx: object) -> list[str]:
        """Their names."""
        return [
            *("demo", "prepare", "train", "evaluate", "generate", "compare", "export", "push"),
            *("study", "schedule", "doctor"),
        ]


app = typer.Typer(
    name="dsmr",
    cls=InOrderOfUse,
    help="Piano music by a Transformer that reads whole pieces, with a memory horizon per layer.",
    epilog="Start with **dsmr generate --out new.mid**, which needs nothing else; with **dsmr demo**; or with "
    "**dsmr prepare**, **train**, **evaluate**, **generate**, in this order.",
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
MUSIC, TOOLS = "From music to music", "Tools"
app.add_typer(prepare.app, name="prepare", rich_help_panel=MUSIC)
app.command("train", cls=Command, rich_help_panel=MUSIC)(train.train)
app.command("evaluate", cls=Command, rich_help_panel=MUSIC)(evaluate.evaluate)
app.command("generate", cls=Command, rich_help_panel=MUSIC)(generate.generate)
app.command("compare", cls=Command, rich_help_panel=MUSIC)(compare.compare)
app.command("export", cls=Command, rich_help_panel=MUSIC)(share.export)
app.command("push", cls=Command, rich_help_panel=MUSIC)(share.push)
app.command("demo", cls=Command, rich_help_panel=MUSIC)(demo.demo)
app.command("study", cls=Command, rich_help_panel=TOOLS)(study.study)
app.command("schedule", cls=Command, rich_help_panel=TOOLS)(schedule.schedule)
app.command("doctor", cls=Command, rich_help_panel=TOOLS)(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        stdout.print(f"dsmr {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is one line on stderr, a traceback only for a bug.

    Args:
        arguments: without the program's name; None takes them from the command line.
    """
    try:
        return int(app(arguments, prog_name="dsmr", standalone_mode=False) or 0)
    except CommandError as error:
        message, exit_code = str(error), error.exit_code
    except typer.TyperException as error:  # what typer itself finds wrong in the arguments
        message, exit_code = " ".join(error.format_message().split()), error.exit_code
    except OSError as error:  # a file, a disk or a terminal that does not do what it should is no bug
        message, exit_code = explained(error), CommandError.exit_code
    rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    with suppress(OSError):  # where standard error is what cannot be written, only the exit code is left to tell
        stderr.print(f"dsmr: {rank}{message}", style="red", highlight=False)
    return exit_code
