"""The commands as a shell sees them: what they print, what they write, and how they fail."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsmr import native, schedules
from dsmr.assessment import RESET_EVERY
from dsmr.checkpoint import read_info
from dsmr.cli import app, doctor, evaluate, generate, prepare, schedule, train
from dsmr.corpus.prepare import prepare_folder, prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.generation import Sampling
from dsmr.midi import read_midi, write_midi
from dsmr.model import PRESETS
from dsmr.tokens import NOTE_DTYPE, Performance, encode
from dsmr.training import Trainer, TrainingConfig
from dsmr.training.state import load_state
from dsmr.version import __version__
from dsmr_kernels.backends.cpu import library

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
COMMANDS = ["demo", "prepare", "train", "evaluate", "generate", "compare", "schedule", "doctor"]
SMALL_MODEL = ["--layers", 2, "--width", 32, "--heads", 2, "--kv-heads", 2, "--segment", 64]
SMALL_MODEL += ["--schedule", "two_scale", "--budget", 256]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dsmr", *map(str, arguments)]
    pipe = subprocess.PIPE
    # In a background job the shell has Ctrl-C ignored, and children inherit that: make it count again.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)


def shell(*arguments: object, exits: int = 0) -> tuple[str, str]:
    """Run a command in a process of its own; returns its stdout and stderr."""
    process = start(*arguments)
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


def succeeds(*arguments: object) -> str:
    """Run a command that has to succeed; returns its stdout."""
    return here(*arguments)[0]


def fails(*arguments: object, exits: int = 2) -> str:
    """Run a command that has to fail with one line on stderr and nothing on stdout; returns the line."""
    out, error = here(*arguments, exits=exits)
    assert out == ""
    assert re.fullmatch(r"dsmr: [^\n]+\n", error)
    return error


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])


def a_performance(seed: int, notes: int = 120) -> Performance:
    rng = np.random.default_rng(seed)
    array = np.zeros(notes, NOTE_DTYPE)
    array["onset"] = np.sort(rng.integers(0, 20 * notes, notes)) / 100
    array["offset"] = array["onset"] + rng.integers(5, 60, notes) / 100
    array["pitch"] = rng.integers(40, 90, notes)
    array["velocity"] = rng.integers(30, 110, notes)
    return Performance(array)


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six MIDI files and one that is none."""
    path = tmp_path_factory.mktemp("music")
    (path / "more").mkdir()
    for seed in range(6):
        write_midi(a_performance(seed), path / ("more" if seed % 2 else ".") / f"piece {seed}.mid")
    (path / "broken.mid").write_bytes(b"MThd, and then nothing of the kind")
    return path


@pytest.fixture(scope="module")
def store(music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "corpus.tokens"
    prepare_folder(music, path, validation=0.2, test=0.2, workers=1)
    return path


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of four steps, and what training printed."""
    path = tmp_path_factory.mktemp("runs") / "small"
    return path, succeeds(
        "train", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 2, "--steps", 4, "--validations", 2
    )


@pytest.fixture(scope="module")
def checkpoint(trained: tuple[Path, str]) -> Path:
    return trained[0] / "last"


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
        for name in ("lanes", "accumulate", "learning_rate", "semitones", "tempo", "validations", "seed"):
            assert defaults(train.train)[name] == getattr(training, name)
        for name in ("temperature", "top_p", "min_p"):
            assert defaults(generate.generate)[name] == getattr(Sampling(), name)
        for name in ("ratio", "longest"):
            assert defaults(schedule.schedule)[name] == defaults(schedules.make_schedule)[name]
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

        monkeypatch.setattr(schedules, "draw", broken)
        with pytest.raises(ValueError, match="a bug"):
            app.run(["schedule", "uniform"])


class TestSchedule:
    def test_prints_layers_bytes_and_reach(self) -> None:
        text = succeeds("schedule", "two_scale", "--layers", 4, "--budget", 4096, "--segment", 512)
        assert "two_scale: 4,096 entries in 4 layers" in text
        assert len(re.findall(r"^│ +\d ", text, re.MULTILINE)) == 4
        assert "receptive field" in text

    @pytest.mark.parametrize(
        ("budget", "entry", "total"),
        [("24576", 4096, 24576), ("64MB", 4096, 15625), ("1.5MiB", 4096, 384), ("0.5GB", 4096, 122070)],
    )
    def test_takes_budgets_in_tokens_and_bytes(self, budget: str, entry: int, total: int) -> None:
        found = json.loads(succeeds("schedule", "uniform", "--budget", budget, "--json"))
        assert found["total"] == sum(found["horizons"]) == total
        assert sum(found["horizon_bytes"]) == total * entry  # K and V of 8 heads of 64 numbers of 4 bytes

    def test_takes_every_shape(self) -> None:
        explicit = json.loads(succeeds("schedule", "explicit", "--layers", 3, "--horizons", "512,64,8", "--json"))
        assert explicit["horizons"] == [512, 64, 8]
        kept = json.loads(succeeds("schedule", "selective", "--stride", 4, "--stride-keep", "random", "--json"))
        assert kept["retention"] == {"stride": 4, "keep": "random"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["sawtooth"], "unknown schedule 'sawtooth'; the schedules are full, uniform"),
            (["uniform", "--budget", "much"], "--budget: expected a number of tokens, or of bytes with one of"),
            (["uniform", "--budget", "12parsecs"], "got '12parsecs'"),
            (["uniform", "--budget", "1KB"], "budget_bytes: expected at least one entry of 4096 bytes, got 1000"),
            (["full", "--budget", 1000], "full: 8 layers of 32,768"),
            (["uniform", "--layers", 0], "layers: expected at least 1, got 0"),
            (["uniform", "--segment", 0], "segment: expected at least 1"),
            (["explicit", "--horizons", "1,2,x"], "--horizons: expected whole numbers separated by commas"),
            (["explicit", "--horizons", "1,2"], "horizons: expected one for each of 8 layers, got 2"),
            (["uniform", "--storage", "int3"], "storage: expected one of fp32"),
            (["selective", "--stride", 0], "stride: expected an integer of at least 1"),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
    )
    def test_explains_what_is_impossible(self, arguments: list[object], message: str) -> None:
        assert message in fails("schedule", *arguments)

    def test_draws_a_picture_once(self, tmp_path: Path) -> None:
        picture = tmp_path / "schedule.png"
        succeeds("schedule", "progressive_up", "--png", picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"{picture}: exists already; --force replaces it" in fails("schedule", "uniform", "--png", picture)


class TestPrepare:
    def test_reports_the_store_and_every_file_left_out(self, music: Path, tmp_path: Path) -> None:
        path = tmp_path / "new" / "corpus.tokens"
        text = succeeds("prepare", "folder", music, "--out", path, "--workers", 1)
        prepared = TokenStore.open(path)
        assert len(prepared.pieces) == 6
        assert f"{path}: 6 pieces, {len(prepared.tokens):,} tokens" in text
        assert re.search(r"1 files left out:\n  broken.mid: .+\n$", text)

    def test_tells_machines_the_same(self, music: Path, tmp_path: Path) -> None:
        path = tmp_path / "corpus.tokens"
        found = json.loads(succeeds("prepare", "folder", music, "--out", path, "--workers", 1, "--json"))
        assert found["store"] == str(path)
        assert sum(found["pieces"].values()) == 6
        assert sum(found["tokens"].values()) == len(TokenStore.open(path).tokens)
        assert [each["source"] for each in found["left_out"]] == ["broken.mid"]

    def test_replaces_a_store_only_if_told_to(self, music: Path, tmp_path: Path) -> None:
        path = tmp_path / "corpus.tokens"
        path.write_bytes(b"precious")
        assert f"{path}: exists already; --force replaces it" in fails("prepare", "folder", music, "--out", path)
        assert path.read_bytes() == b"precious"
        succeeds("prepare", "folder", music, "--out", path, "--workers", 1, "--force")
        assert len(TokenStore.open(path).pieces) == 6

    def test_lets_the_pianist_compose(self, tmp_path: Path) -> None:
        path = tmp_path / "pianist.tokens"
        succeeds("prepare", "pianist", "--out", path, "--tokens", 9000, "--longest", 3000, "--workers", 1)
        pieces = TokenStore.open(path).pieces
        assert len(pieces) >= 3
        assert any(piece.returns for piece in pieces)

    @pytest.mark.parametrize("kind", ["folder", "maestro"])
    def test_explains_what_is_no_corpus(self, kind: str, tmp_path: Path) -> None:
        assert "nowhere: expected a" in fails("prepare", kind, tmp_path / "nowhere", "--out", tmp_path / "out.tokens")
        assert not (tmp_path / "out.tokens").exists()


class TestTrain:
    def test_leaves_checkpoints_and_measurements(self, trained: tuple[Path, str]) -> None:
        path, text = trained
        assert f"{path / 'best'}: validation PPL " in text
        assert f"{path / 'last'}: 4 steps, 512 tokens" in text
        config = read_info(path / "last").config
        assert (config.layers, config.width, config.segment, config.schedule.total) == (2, 32, 64, 256)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 4

    def test_replaces_a_run_only_if_told_to(self, store: Path, tmp_path: Path) -> None:
        path = tmp_path / "run"
        arguments = ["train", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 1, "--validations", 1]
        succeeds(*arguments, "--steps", 1)
        (path / "notes.txt").write_text("my own")
        assert "exists already; --force replaces it" in fails(*arguments, "--steps", 2)
        succeeds(*arguments, "--steps", 2, "--force")
        assert read_info(path / "last").training["step"] == 2
        assert (path / "notes.txt").read_text() == "my own"

    def test_fine_tunes_the_weights_of_a_checkpoint(self, store: Path, checkpoint: Path, tmp_path: Path) -> None:
        path = tmp_path / "run"
        everything = ["train", "--data", store, "--out", path, "--init-from", checkpoint, "--steps", 2]
        succeeds(*everything, "--validations", 1, "--learning-rate", 1e-4, "--keep", 2)
        begin, end = path / "checkpoints" / "step-0000000", path / "last"
        assert read_info(begin).config == read_info(checkpoint).config
        assert read_info(begin).digest == read_info(checkpoint).digest  # the weights are kept
        assert not any(name.startswith("optimizer") for name in load_state(begin).tensors)  # all else is new
        assert read_info(begin).training["tokens"] == 0
        assert float(load_state(end).tensors["optimizer.norm.bias.step"]) == 2
        assert read_info(end).digest != read_info(checkpoint).digest
        assert read_info(end).training["config"]["learning_rate"] == 1e-4
        error = fails("train", "--data", store, "--out", path, "--init-from", checkpoint, "--steps", 1, "--width", 64)
        assert "--width: the model is that of --init-from" in error

    def test_ends_with_a_checkpoint_at_ctrl_c(self, store: Path, tmp_path: Path) -> None:
        path = tmp_path / "run"
        process = start("train", "--data", store, "--out", path, *SMALL_MODEL, "--minutes", 5)
        deadline = time.monotonic() + 60
        measurements = path / "metrics.jsonl"
        while not (measurements.exists() and measurements.stat().st_size):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "finishing the step and saving" in error
        step = read_info(path / "last").training["step"]
        assert f"{path / 'last'}: {step:,} steps" in out
        assert json.loads(measurements.read_text().splitlines()[-1])["step"] == step // 10 * 10

    def test_ends_with_a_checkpoint_at_sigterm(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Trainer.step

        def terminated(trainer: Trainer) -> float:
            if trainer.run.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer)

        monkeypatch.setattr(Trainer, "step", terminated)
        everything = ["train", "--data", store, "--out", tmp_path / "run", *SMALL_MODEL, "--steps", 100]
        out, _ = here(*everything, exits=143)
        assert f"{tmp_path / 'run' / 'last'}: 4 steps" in out
        assert read_info(tmp_path / "run" / "last").training["step"] == 4

    def test_resumes_by_the_runs_own_options_or_the_same_ones(
        self, trained: tuple[Path, str], store: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        shutil.copytree(trained[0], path, symlinks=True)
        shutil.rmtree(path / "checkpoints" / "step-0000004")
        succeeds("train", "--resume", "--data", store, "--out", path)
        assert read_info(path / "last").digest == read_info(trained[0] / "last").digest
        shutil.rmtree(path / "checkpoints" / "step-0000004")
        again = ["train", "--resume", "--data", store, "--out", path, *SMALL_MODEL, "--lanes", 2, "--steps", 4]
        succeeds(*again, "--validations", 2, "--keep", 1, "--save-minutes", 3)
        assert read_info(path / "last").digest == read_info(trained[0] / "last").digest
        assert len(list((path / "checkpoints").iterdir())) in (1, 2)  # the newest, and the best if it is another

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--lanes", 3], "expected to go on with lanes=2, got 3"),
            ([*SMALL_MODEL, "--width", 64], "expected to go on with width=32, got 64"),
            (["--window", "token"], "expected to go on with width=32, got 128"),
            (["--force"], "--force: a run that is resumed goes on as it is"),
            (["--init-from", "x"], "--init-from: a run that is resumed goes on as it is"),
            (["--out", "nowhere"], "nowhere: expected a run to resume, with states in checkpoints; there is none"),
        ],
        ids=["lanes", "width", "preset", "force", "init-from", "nothing"],
    )
    def test_resumes_nothing_else(
        self, trained: tuple[Path, str], store: Path, arguments: list[object], message: str
    ) -> None:
        assert message in fails("train", "--resume", "--data", store, "--out", trained[0], *arguments)

    def test_says_when_it_diverged(self, store: Path, tmp_path: Path) -> None:
        hot = ["--learning-rate", 1e30, "--steps", 20, "--out", tmp_path / "run"]
        _, error = here("train", "--data", store, *SMALL_MODEL, *hot, exits=1)
        assert re.search(r"^dsmr: step \d+: expected a finite .+$", error.splitlines()[-1])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "steps, minutes: expected a budget"),
            (["--steps", 1, "--preset", "huge"], "preset: expected one of tiny"),
            (["--steps", 1, "--budget", 100], "--budget: it needs --schedule"),
            (["--steps", 1, "--heads", 3], "heads: expected a divisor of width"),
            (["--steps", 1, "--lanes", 0], "lanes: expected at least 1, got 0"),
            (["--steps", 1, "--device", "abacus"], "--device: expected one that works here, got 'abacus'"),
            (["--steps", 1, "--data", "nowhere.tokens"], "nowhere.tokens: no such token store"),
        ],
        ids=["budget", "preset", "schedule", "heads", "lanes", "device", "data"],
    )
    def test_explains_what_is_wrong(self, arguments: list[object], message: str, store: Path, tmp_path: Path) -> None:
        everything = ["train", "--data", store, "--out", tmp_path / "run", *arguments]
        assert message in fails(*everything)
        assert not (tmp_path / "run").exists()

    def test_shapes_another_schedule_to_the_presets_budget(self) -> None:
        made = train._schedule("small", "uniform", None, None, None, None)
        assert (len(made.horizons), made.total) == (PRESETS["small"].layers, PRESETS["small"].schedule.total)


class TestEvaluate:
    def test_prints_one_json_object(self, store: Path, checkpoint: Path, tmp_path: Path) -> None:
        picture = tmp_path / "nll.png"
        found = json.loads(
            succeeds("evaluate", checkpoint, "--data", store, "--json", "--png", picture, "--reset-every", 100)
        )
        opened = TokenStore.open(store)
        tokens = sum(opened.pieces[index].length - 1 for index in opened.indices("test"))
        for score in ("whole", "reset", "bigram"):
            assert found[score]["tokens"] == tokens
            assert 1 < found[score]["ppl"] < 1000
        assert found["reset"]["reset_every"] == 100
        assert found["store"] == opened.digest
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_prints_tables_for_people(self, store: Path, checkpoint: Path) -> None:
        text = succeeds("evaluate", checkpoint, "--data", store, "--split", "validation", "--reset-every", 0)
        assert re.search(r"│ whole pieces +│ +\d+\.\d\d │ +\d+\.\d\d - \d+\.\d\d │", text)
        assert "│ bigram " in text
        assert "context reset" not in text
        assert "tokens/s" in text

    def test_explains_what_is_wrong(self, store: Path, checkpoint: Path, tmp_path: Path) -> None:
        assert "expected a checkpoint" in fails("evaluate", tmp_path / "nothing", "--data", store)
        assert "no such token store" in fails("evaluate", checkpoint, "--data", tmp_path / "nothing.tokens")
        assert "split: expected one of" in fails("evaluate", checkpoint, "--data", store, "--split", "half")


class TestGenerate:
    def test_writes_music_sound_and_picture(self, checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "new" / "piece.mid"
        arguments = ["generate", checkpoint, "--seconds", 3, "--out", out, "--wav", "--png", "--seed", 7]
        text = succeeds(*arguments)
        assert f"{out}: 3.0 s of music in " in text
        assert "x real time" in text
        assert out.with_suffix(".wav").read_bytes().startswith(b"RIFF")
        assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        first = out.read_bytes()
        assert f"{out}: exists already; --force replaces it" in fails(*arguments)
        succeeds(*arguments, "--force")
        assert out.read_bytes() == first

    def test_numbers_takes_and_reports_them_to_machines(self, checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "piece.mid"
        made = json.loads(succeeds("generate", checkpoint, "--tokens", 200, "--takes", 2, "--out", out, "--json"))[
            "takes"
        ]
        assert [each["file"] for each in made] == [str(tmp_path / "piece-1.mid"), str(tmp_path / "piece-2.mid")]
        assert [(each["tokens"], each["stopped"]) for each in made] == [(200, "tokens")] * 2
        assert all((tmp_path / f"piece-{number}.mid").is_file() for number in (1, 2))
        assert not out.exists()

    def test_says_what_makes_the_steps(self, checkpoint: Path, tmp_path: Path) -> None:
        arguments = ["generate", checkpoint, "--tokens", 20, "--out", tmp_path / "piece.mid", "--force", "--json"]
        found = json.loads(succeeds(*arguments, "--engine", "python"))
        assert (found["engine"], found["engine_reason"]) == ("python", "as asked for")
        found = json.loads(succeeds(*arguments))
        if native.absence():
            assert (found["engine"], found["engine_reason"]) == ("python", native.absence())
        else:
            assert found["engine"] == "native"
            assert "weights in float32" in found["engine_reason"]
            narrow = json.loads(succeeds(*arguments, "--weights", "int8", "--memory", "bf16"))
            assert "weights in int8" in narrow["engine_reason"]

    def test_continues_a_prompt(self, checkpoint: Path, music: Path, tmp_path: Path) -> None:
        prompt = read_midi(music / "piece 0.mid")
        arguments = ["generate", checkpoint, "--prompt", music / "piece 0.mid", "--seconds", 3, "--seed", 1]
        succeeds(*arguments, "--out", tmp_path / "new.mid")
        succeeds(*arguments, "--out", tmp_path / "both.mid", "--include-prompt")
        new, both = read_midi(tmp_path / "new.mid"), read_midi(tmp_path / "both.mid")
        assert new.notes["offset"].max() <= 3.01
        ids = encode(prompt)
        assert np.array_equal(encode(both)[: len(ids) - 1], ids[:-1])
        assert len(both.notes) == len(prompt.notes) + len(new.notes)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--out", "piece.wav"], "--out: expected a name that ends in .mid, got piece.wav"),
            (["--temperature", -1], "temperature: expected a finite number >= 0"),
            (["--top-p", 0], "top_p: expected a number above 0"),
            (["--engine", "python", "--weights", "int8"], "engine: 'python' cannot have weights in int8"),
            (["--engine", "python", "--memory", "bf16"], "engine: 'python' cannot have memory in bf16"),
            (["--prompt", "nowhere.mid"], "nowhere.mid"),
            (["--include-prompt"], "--include-prompt: there is no --prompt"),
            (["--soundfont", "nowhere.sf2"], "--soundfont: expected an .sf2 file"),
            (["--takes", 0], "--takes"),
            (["--at-end", "explode"], "--at-end"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_explains_what_is_wrong(
        self,
        arguments: list[object],
        message: str,
        checkpoint: Path,
        tmp_path: Path,
    ) -> None:
        everything = ["generate", checkpoint, "--out", tmp_path / "piece.mid", *arguments]
        assert message in fails(*everything)
        assert not any(tmp_path.iterdir())


class TestDoctor:
    def test_prints_what_works(self) -> None:
        text = succeeds("doctor")
        assert re.search(r"│ eager +│ cpu +│ works", text)
        assert "DSMR_KERNELS_IMPL" in text

    def test_tells_machines_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DSMR_KERNELS_IMPL", "eager")
        monkeypatch.delenv("HF_HOME", raising=False)
        found = json.loads(succeeds("doctor", "--json"))
        assert found["back_ends"]["eager"]["cpu"] is None
        assert found["packages"]["torch"]
        assert found["environment"]["DSMR_KERNELS_IMPL"] == "eager"
        assert found["environment"]["HF_HOME"] is None

    def test_says_why_a_back_end_does_not_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dsmr_kernels.backends.NAMES", ("eager", "imaginary"))
        reasons = doctor.examine()["back_ends"]
        assert reasons["eager"]["cpu"] is None
        assert "imaginary" in reasons["imaginary"]["cpu"]
        assert "not installed" in reasons["triton"]["cpu"]

    def test_says_which_back_end_calls_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DSMR_KERNELS_IMPL", raising=False)
        best = "eager" if library.absence() else "cpu"
        assert json.loads(succeeds("doctor", "--json"))["in_use"]["cpu"] == best
        assert re.search(rf"│ {best} +│ cpu +│ works, and is what calls take", succeeds("doctor"))
        monkeypatch.setenv("DSMR_KERNELS_IMPL", "eager")
        assert doctor.examine()["in_use"]["cpu"] == "eager"
        monkeypatch.setenv("DSMR_KERNELS_IMPL", "nonsense")
        assert doctor.examine()["in_use"]["cpu"] is None

    def test_says_what_to_run_next(self) -> None:
        healthy = {
            "packages": {"torch": "2", "tensorboard": None},
            "native": {"attention kernels": {}},
            "in_use": {"cpu": "cpu"},
            "cpu": {"threads": 2, "cores": 4},
            "gpus": [],
        }
        begin = ["dsmr demo", "dsmr prepare folder", "dsmr train"]

        def advised(**changes: object) -> list[str]:
            return [line.partition("    ")[0] for line in doctor.advise({**healthy, **changes})]

        assert [line[: len(b)] for line, b in zip(advised(), begin, strict=True)] == begin
        assert advised(packages={"torch": None})[0] == "pip install 'dsmr[music]'"
        assert advised(native={"attention kernels": "never built"})[0] == "make build"
        assert advised(in_use={"cuda:0": "eager"})[0] == "DSMR_KERNELS_IMPL=triton dsmr doctor"
        assert advised(cpu={"threads": 1, "cores": 4})[0] == "OMP_NUM_THREADS=4 dsmr ..."
        text = succeeds("doctor")
        assert "Next:" in text
        assert "dsmr demo" in text

    def test_says_which_native_kernels_there_are_or_why_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent() -> library.NativeLibrary:
            raise library.Unavailable("never built")

        reason = library.absence()
        if reason:
            assert reason in " ".join(succeeds("doctor").split())
        else:
            for name, native in json.loads(succeeds("doctor", "--json"))["native"].items():
                assert native["in_use"] in native["instruction_sets"]
                assert f"Native {name}: {native['in_use']} of" in succeeds("doctor")
        monkeypatch.setattr(library, "load", absent)
        assert "Native attention kernels: none (never built)" in succeeds("doctor")

    def test_fails_if_the_commands_lack_a_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "the test")
        assert app.run(["doctor"]) == 1

    def test_knows_every_package_of_the_extra(self) -> None:
        text = (ROOT / "pyproject.toml").read_text()
        dependencies = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        music = re.search(r"^music = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        assert dependencies is not None
        assert music is not None
        names = re.findall(r'"([\w-]+)', dependencies[1] + music[1])
        assert set(names) <= set(doctor.PACKAGES)

    def test_knows_every_environment_variable_that_is_read(self) -> None:
        for file in [*ROOT.glob("dsmr/**/*.py"), *ROOT.glob("dsmr_kernels/**/*.py")]:
            if file == Path(doctor.__file__):
                continue
            tree = ast.parse(file.read_text())
            constants = {
                node.targets[0].id: node.value.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and re.search(r"\b(environ\.get|getenv)$", ast.unparse(node.func)):
                    name = node.args[0]
                elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
                    name = node.slice
                else:
                    continue
                value = name.value if isinstance(name, ast.Constant) else constants[ast.unparse(name)]
                assert value in doctor.VARIABLES, f"{file} reads {value}"


def test_tables_in_a_pipe_are_as_wide_as_they_need(trained: tuple[Path, str], store: Path) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"}
    command = [
        sys.executable,
        "-m",
        "dsmr",
        "evaluate",
        trained[0] / "last",
        trained[0] / "best",
        "--data",
        store,
        "--krcu",
    ]
    options = ["--reset-at", "64", "--krcu-bin", "64", "--krcu-end", "256"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=True)
    assert "95 % interval" in done.stdout
    assert "…" not in done.stdout
