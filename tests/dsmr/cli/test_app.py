"""The commands together: their help, their defaults, and how they fail."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from dsmr.cli import app, evaluate, generate, prepare, schedule, schedule_table, train
from dsmr.corpus.prepare import prepare_folder, prepare_pianist
from dsmr.evaluation.baselines import RESET_EVERY
from dsmr.generation.sampling import Sampling
from dsmr.model import schedules
from dsmr.model.config import PRESETS
from dsmr.training import TrainingConfig
from dsmr.version import __version__
from tests.dsmr.cli.commands import ENVIRONMENT, fails, shell, succeeds

COMMANDS = ["demo", "prepare", "train", "evaluate", "generate", "compare", "export", "push"]
COMMANDS += ["study", "schedule", "doctor"]


def defaults(command: Callable[..., None]) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(command).parameters.items()}


class TestHelp:
    def test_lists_the_commands_in_the_order_of_use(self) -> None:
        text, _ = shell("--help")
        assert re.findall(r"^│ (\w+) ", text, re.MULTILINE) == COMMANDS
        assert shell()[0] == text

    @pytest.mark.parametrize("command", [*COMMANDS, "prepare maestro", "prepare folder", "prepare pianist"])
    def test_of_a_command_says_how_it_is_used(self, command: str) -> None:
        assert f"Usage: dsmr {command} " in succeeds(*command.split(), "--help")

    def test_needs_neither_torch_nor_matplotlib(self) -> None:
        code = "import sys, dsmr.cli.app; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
        subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)

    def test_names_all_schedules_storages_and_presets(self) -> None:
        assert {*schedules.NAMES, *schedules.STORAGES} <= set(re.findall(r"\w+", succeeds("schedule", "--help")))
        assert set(PRESETS) <= set(re.findall(r"\w+", succeeds("train", "--help")))

    def test_defaults_are_the_libraries_own(self) -> None:
        training = TrainingConfig(steps=1)
        for name in (field.name for field in fields(training) if field.name != "steps"):
            assert defaults(train.train)[name] == getattr(training, name)
        for name in ("temperature", "top_p", "min_p"):
            assert defaults(generate.generate)[name] == getattr(Sampling(), name)
        for command in (schedule.schedule, train.train):
            for name in ("ratio", "longest"):
                assert defaults(command)[name] == defaults(schedules.make_schedule)[name]
        for name in ("tokens", "shortest", "longest", "seed"):
            assert defaults(prepare.pianist)[name] == defaults(prepare_pianist)[name]
        for name in ("validation", "test"):
            assert defaults(prepare.folder)[name] == defaults(prepare_folder)[name]
        assert defaults(evaluate.evaluate)["reset_every"] == RESET_EVERY

    def test_prints_the_version(self) -> None:
        assert shell("--version")[0] == f"dsmr {__version__}\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["compose"], "No such command 'compose'"),
            (["schedule"], "Missing argument 'NAME'"),
            (["schedule", "uniform", "--layers", "many"], "--layers"),
            (["train", "--steps", 1], "--data"),
        ],
        ids=["command", "argument", "number", "option"],
    )
    def test_of_usage_are_one_line(self, arguments: list[object], message: str) -> None:
        assert message in fails(*arguments)

    def test_reach_the_shell(self) -> None:
        out, error = shell("schedule", "sawtooth", exits=2)
        assert out == ""
        assert re.fullmatch(r"dsmr: unknown schedule 'sawtooth'[^\n]+\n", error)

    def test_of_a_missing_extra_say_what_to_install(self) -> None:
        code = "import sys; sys.modules['typer'] = None; from dsmr.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == (
            "dsmr: the commands need the extra 'music', and typer is missing: pip install 'dsmr[music]'\n"
        )

    def test_that_are_bugs_keep_their_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(schedule_table, "schedule_table", broken)
        with pytest.raises(ValueError, match="a bug"):
            app.run(["schedule", "uniform"])
