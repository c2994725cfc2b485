"""Progress fits every width, tells the time that is left, and is a line a minute where there is no terminal."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import termios
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from dsmr.audience import LOG, Audience
from dsmr.cli.terminal import Terminal
from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.training import Trainer, TrainingConfig, train
from tests.dsmr.cli.commands import ENVIRONMENT, SMALL_MODEL, start


class Screen(io.StringIO):
    """What a terminal is given."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return lines_of(self.getvalue())


def lines_of(text: str) -> list[str]:
    """The lines that a terminal shows, one picture after another."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)) if line]


def on_a_screen(width: int) -> Terminal:
    return Terminal(file=Screen(), width=width, _environ={"TERM": "xterm"})


def in_a_file(width: int = 80) -> Console:
    return Terminal(file=io.StringIO(), width=width, _environ={})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


TRAINING = ("step 1,234", "loss 3.123", "val PPL 20.10", "12,345 tok/s", "PPL 22.71", "lr 1.0e-03")


def shown(width: int, clock: list[float], notes: tuple[str, ...] = TRAINING, what: str = "training") -> list[str]:
    console = on_a_screen(width)
    with Audience(console, what) as audience:
        for done in range(4):
            audience.show(done, 10, *notes)
            clock[0] += 3600
    assert isinstance(console.file, Screen)
    return console.file.lines


@pytest.mark.parametrize(
    ("width", "bar", "notes"),
    [(120, 28, TRAINING), (80, 10, TRAINING[:4]), (60, 10, TRAINING[:2]), (40, 10, TRAINING[:1])],
)
def test_terminal_of_any_width_shows_bar_and_time_and_whole_notes(
    width: int, bar: int, notes: tuple[str, ...], clock: list[float]
) -> None:
    lines = shown(width, clock)
    assert {cell_len(line) for line in lines} == {width}
    found = re.fullmatch(r"training ([━╸╺]+) 7:00:00 (.*?) *", lines[-1])
    assert found is not None
    assert (len(found[1]), found[2]) == (bar, "  ".join(notes))


@given(
    width=st.integers(1, 200),
    notes=st.lists(st.text(max_size=30), max_size=6),
    what=st.sampled_from(["", "training", "downloading"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_is_wider_than_the_terminal(width: int, notes: list[str], what: str, clock: list[float]) -> None:
    assert all(cell_len(line) <= width for line in shown(width, clock, tuple(notes), what))


def test_time_left_is_that_of_the_clock_that_counts(clock: list[float]) -> None:
    """A budget of minutes counts training alone: its clock stands still while the model is validated."""
    trained, console = [0.0], in_a_file()
    with Audience(console, "training", clock=lambda: trained[0]) as audience:
        for minute in range(4):
            trained[0] = 60.0 * minute + 0.5
            audience.show(trained[0] / 7200, 1.0)
            clock[0] += 1000.0
    assert re.findall(r"\d+:\d\d:\d\d", written(console)) == ["1:59:00", "1:58:00", "1:57:00"]


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("pause", [0.01, 1.0, 7.0, 59.0, 61.0, 600.0])
def test_a_file_gets_a_line_a_minute_the_first_and_the_last(pause: float, clock: list[float]) -> None:
    console, steps = in_a_file(), 500
    with Audience(console, "reading", "files") as audience:
        for done in range(1, steps + 1):
            audience.show(done, steps)
            clock[0] += pause
    lines = written(console).splitlines()
    at = [int(found[1]) for line in lines if (found := re.search(r" (\d+) of 500 files", line))]
    assert len(at) == len(lines)
    assert (at[0], at[-1]) == (2, steps)  # of one file alone nobody knows how long the others take
    between = [(later - earlier) * pause for earlier, later in pairwise(at[:-1])]
    assert all(LOG <= seconds < LOG + pause for seconds in between)
    assert not set("".join(lines)) & {"\x1b", "\r"}


def test_a_line_that_is_printed_anyway_takes_the_place_of_the_next(clock: list[float]) -> None:
    console = in_a_file()
    with Audience(console, "training") as audience:
        for done in range(10):
            audience.show(done, 10)
            audience.print("a validation")
            clock[0] += 40.0
    lines = [line.strip() for line in written(console).splitlines()]
    assert lines.count("a validation") == 10
    assert len(lines) == 12  # the first line of progress, and the last


def test_work_that_fails_has_no_last_line(clock: list[float]) -> None:
    console = in_a_file()
    with pytest.raises(ValueError, match="no"), Audience(console, "reading", "files") as audience:
        fail_after(audience, clock)
    assert [line.split()[-4:] for line in written(console).splitlines()] == [["2", "of", "10", "files"]]


def fail_after(audience: Audience, clock: list[float]) -> None:
    for done in range(1, 5):
        audience.show(done, 10)
        clock[0] += 1.0
    raise ValueError("no")


@pytest.mark.parametrize("environment", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}], ids=["forced", "dumb"])
def test_what_is_no_place_for_a_moving_line_gets_lines(environment: dict[str, str], clock: list[float]) -> None:
    file = io.StringIO() if "FORCE_COLOR" in environment else Screen()
    with Audience(Terminal(file=file, width=80, _environ=environment), "reading", "files") as audience:
        for done in range(1, 101):
            audience.show(done, 100)
            clock[0] += 1.0
    assert "\x1b[1A" not in file.getvalue()
    assert "\x1b[2K" not in file.getvalue()
    assert [line for line in lines_of(file.getvalue()) if "100 of 100 files" in line]
    assert len(lines_of(file.getvalue())) == 3


def test_nobody_is_told_nothing(clock: list[float]) -> None:
    with Audience(None, "reading") as audience:
        audience.show(1, 2)
        audience.print("a line")
    assert clock == [1000.0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "x.tokens"
    prepare_pianist(path, tokens=9_000, shortest=1_000, longest=1_500, validation=0.2, test=0.2, workers=0)
    return path


def train_a_little(corpus: Path, out: Path, console: Console) -> None:
    shape = make_schedule("uniform", 1, budget_tokens=16)
    net = Transformer(ModelConfig(16, 2, 1, shape, segment=16))
    config = TrainingConfig(steps=60, lanes=1, validations=2, validation_tokens=64)
    train(net, TokenStore.open(corpus), config, out, console=console)


def test_training_fits_a_narrow_terminal(corpus: Path, tmp_path: Path) -> None:
    console = on_a_screen(40)
    train_a_little(corpus, tmp_path, console)
    assert isinstance(console.file, Screen)
    assert max(map(cell_len, console.file.lines)) == 40
    assert any(re.fullmatch(r"training [━╸╺]{10} \d+:\d\d:\d\d step \d+ *", line) for line in console.file.lines)


def test_training_into_a_pipe_says_a_line_a_minute(
    corpus: Path, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Callable[[Trainer], float] = Trainer.step

    def of_five_seconds(trainer: Trainer) -> float:
        clock[0] += 5.0
        trainer.run.training_seconds += 5.0
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", of_five_seconds)
    console = in_a_file()
    train_a_little(corpus, tmp_path, console)
    lines = [line for line in written(console).splitlines() if line.startswith("training ")]
    steps = [int(found[1]) for line in lines if (found := re.search(r" step (\d+) ", line))]
    # Of 5 minutes: at once; a minute later; a minute after the validation at step 30; the end.
    assert steps == [2, 14, 26, 42, 54, 60]
    left = [60 * int(found[1]) + int(found[2]) for line in lines if (found := re.search(r" 0:(\d\d):(\d\d) ", line))]
    assert left == pytest.approx([5 * (60 - step) for step in steps], abs=1)  # rounded up to whole seconds
    assert all(cell_len(line) <= 80 for line in lines)


def test_every_line_of_training_fits_a_terminal(corpus: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "NO_COLOR")}
    arguments = ["train", "--data", corpus, "--out", "run", *SMALL_MODEL, "--steps", 12, "--validations", 1]
    process = start(
        *arguments,
        environment={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
    )
    os.close(theirs)
    text = b""
    try:
        while more := os.read(ours, 1 << 16):
            text += more
    except OSError:  # what Linux says where the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    lines = lines_of(text.decode())
    assert all(cell_len(line) <= 80 for line in lines)
    shown = [line for line in lines if line.startswith("training ")]
    assert re.match(r"training ━{10} -:--:-- step 1 ", shown[0])
    assert re.match(r"training ━{10} 0:00:00 step 12 ", shown[-1])
