"""Command line: every module here parses one command's arguments, calls the library and prints what came."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command in `sys.argv` and exit: 0 done, 1 the run failed, 2 the arguments or the input are wrong."""
    try:
        import rich  # noqa: F401  # asked for here, where its absence can be explained
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"dsmr: the commands need the extra 'music', and {error.name} is missing: pip install 'dsmr[music]'")
    from dsmr.cli.app import run
    from dsmr.cli.terminal import print_any_name
    from dsmr.process import keep_spins_short

    print_any_name()
    keep_spins_short()  # no command has imported torch yet
    sys.exit(run())
