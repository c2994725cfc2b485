"""Commands run as a shell runs them, or in this process."""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dsmr.cli import app
from dsmr.cli.terminal import print_any_name

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
SMALL_MODEL = ["--layers", 2, "--width", 32, "--segment", 64]
SMALL_MODEL += ["--schedule", "two_scale", "--budget", 256]


def start(
    *arguments: object,
    environment: Mapping[str, str] = ENVIRONMENT,
    group: bool = False,
    controlling: bool = False,
    **streams: Any,
) -> subprocess.Popen[str]:
    """Start a command, in a group of processes of its own if wanted, as a shell starts one.

    `controlling`: its stdin is the terminal that it belongs to.
    """
    command = [sys.executable, "-m", "dsmr", *map(str, arguments)]
    pipe = subprocess.PIPE

    def prepare() -> None:
        # In a background job the shell has signals ignored, and children inherit that: make them count again.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if controlling:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    given = {"stdout": pipe, "stderr": pipe, **streams}
    return subprocess.Popen(command, env=environment, text=True, preexec_fn=prepare, start_new_session=group, **given)


def shell(*arguments: object, exits: int = 0, environment: Mapping[str, str] = ENVIRONMENT) -> tuple[str, str]:
    """Run a command in a process of its own; returns its stdout and stderr."""
    process = start(*arguments, environment=environment)
    out, error = process.communicate(timeout=120)
    assert process.returncode == exits, out + error
    return out, error


def here(*arguments: object, exits: int = 0) -> tuple[str, str]:
    """The same in this process: starting one, and importing torch there, takes longer than most commands."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = app.run([*map(str, arguments)])
    assert code == exits, out.getvalue() + error.getvalue()
    return out.getvalue(), error.getvalue()


def encoded(encoding: str, *arguments: object) -> tuple[str, str]:
    """The same with a standard output and error of an encoding, on which what it lacks is an error."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        print_any_name()
        code = app.run([*map(str, arguments)])
        for stream in streams:
            stream.flush()
    out, error = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert code == 0, out + error
    return out, error


def succeeds(*arguments: object) -> str:
    """Run a command that has to succeed; returns its stdout."""
    return here(*arguments)[0]


def fails(*arguments: object, exits: int = 2) -> str:
    """Run a command that has to fail with one line on stderr and nothing on stdout; returns the line."""
    out, error = here(*arguments, exits=exits)
    assert out == ""
    assert re.fullmatch(r"dsmr: [^\n]+\n", error)
    return error
