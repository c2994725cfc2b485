"""`dsmr study`: a study killed in the middle comes to what an undisturbed one comes to, and the page needs no store."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dsmr.cli import study as command
from dsmr.corpus.store import TokenStore
from dsmr.study.config import BUNDLED, read_study
from tests.dsmr.cli.commands import fails, start, succeeds
from tests.dsmr.cli.test_options import options_of, recorded
from tests.dsmr.study import made
from tests.dsmr.study.small import TABLES, write_toml

TIMED = ("probe_seconds", "tokens_per_second", "ground")
TIMED_RUN = ("seconds", "training_seconds", "validation_seconds", "last_validation_seconds", "peak_memory")


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toml(tmp_path_factory.mktemp("study") / "small.toml")


@pytest.fixture(scope="module")
def done(toml: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nobody disturbed."""
    out = tmp_path_factory.mktemp("studies") / "undisturbed"
    shell("study", toml, "--data", store, "--out", out, "--processes", 2, "--device", "cpu")
    return out


def shell(*arguments: object, exits: int = 0) -> str:
    """Run a study in a process of its own, however busy the machine is; returns its stderr."""
    process = start(*arguments)
    out, error = process.communicate(timeout=900)
    assert process.returncode == exits, out + error
    return error


def outcome(out: Path) -> tuple[dict[str, Any], dict[tuple[str, int], dict[str, Any]]]:
    """The frame, and each line without times."""
    frame, *lines = map(json.loads, (out / "results.jsonl").read_text(encoding="utf-8").splitlines())
    for line in lines:
        for name in TIMED:
            del line[name]
        line["run"] = {name: value for name, value in line["run"].items() if name not in TIMED_RUN}
    found = {(line["variant"], line["seed"]): line for line in lines}
    assert len(found) == len(lines)
    return frame, found


def test_has_a_line_for_each_variant_and_seed_a_page_and_nothing_half_done(done: Path) -> None:
    _, lines = outcome(done)
    assert {*lines} == {(name, seed) for name in ("long", "short", "short, int8") for seed in (0, 1)}
    assert lines["short", 0]["weights"] == lines["short, int8", 0]["weights"] != lines["short", 1]["weights"]
    assert lines["short", 0]["horizon_bytes"] > lines["short, int8", 0]["horizon_bytes"]
    assert lines["long", 0]["run"]["tokens"] == 1536
    assert "missing" not in (done / "page.md").read_text(encoding="utf-8")
    assert not [*(done / "runs").glob("*/seed-?")]  # what trainings needed to go on


def test_killed_in_the_middle_it_comes_to_the_same_bit_for_bit(
    done: Path, toml: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    arguments = ["study", toml, "--data", store, "--out", out, "--processes", 1, "--device", "cpu"]
    process = start(*arguments)
    results = out / "results.jsonl"
    until = time.monotonic() + 900
    while not results.exists() and time.monotonic() < until:  # then one job is done and another begins
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    there = len(results.read_text(encoding="utf-8").splitlines()) - 1
    assert 1 <= there < 6
    error = shell(*arguments)
    assert error.count("begins on cpu") <= 4 - there // 2  # a job has one or two lines
    assert outcome(out) == outcome(done)


def test_done_it_trains_nothing_again(done: Path, toml: Path, store: Path) -> None:
    before = (done / "results.jsonl").read_bytes()
    assert "page.md: the comparison" in succeeds("study", toml, "--data", store, "--out", done)
    assert (done / "results.jsonl").read_bytes() == before


def test_changed_settings_another_store_and_another_folder_are_refused_by_name(
    done: Path, toml: Path, store: Path, tmp_path: Path
) -> None:
    tables = copy.deepcopy(TABLES)
    tables["training"]["learning_rate"] = 0.02
    changed = write_toml(tmp_path / "changed.toml", tables)
    before = {path: path.read_bytes() for path in (done / "results.jsonl", done / "study.toml")}
    for more in ([], ["--data", store]):
        assert "variant 'long': expected results of learning_rate=0.02, got those of 0.01" in fails(
            "study", changed, "--out", done, *more
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "mine" in fails("study", toml, "--data", store, "--out", tmp_path / "mine")
    other = tmp_path / "other.tokens"
    succeeds(
        "prepare", "pianist", "--tokens", 9000, "--shortest", 1000, "--longest", 1300, "--workers", 0, "--out", other
    )
    assert "expected results of store" in fails("study", toml, "--data", other, "--out", done)
    assert {path: path.read_bytes() for path in before} == before


def test_a_job_that_fails_is_named_and_the_others_are_done(store: Path, tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["study"]["seeds"] = [0]
    tables["variant"] = [{"name": "mad", "learning_rate": 1e30, "clip": 1e30}, {"name": "sound"}]
    tables["probes"] = {}
    toml = write_toml(tmp_path / "mad.toml", tables)
    arguments = ["study", toml, "--out", tmp_path / "out"]
    error = fails_after_progress(*arguments, "--data", store, "--device", "cpu")
    assert "mad, seed 0: " in error
    assert "seed-0.log" in error
    assert "- mad: seed 0" in page_of(*arguments)


def fails_after_progress(*arguments: object) -> str:
    return shell(*arguments, exits=1).splitlines()[-1]


def page_of(*arguments: object) -> str:
    return Path(json.loads(succeeds(*arguments, "--json"))["page"]).read_text(encoding="utf-8")


class TestPageAlone:
    @pytest.fixture
    def folder(self, toml: Path, tmp_path: Path) -> Path:
        """Results without the store, the checkpoints and the runs that they came from."""
        study = read_study(toml)
        lines = [made.line(study, study.variants[0], 0), made.line(study, study.variants[1], 0, nll=2.6)]
        return made.write(tmp_path / "only", study, lines)

    def test_needs_nothing_but_the_results(self, toml: Path, folder: Path) -> None:
        printed = json.loads(succeeds("study", toml, "--out", folder, "--json"))
        assert printed["page"] == str(folder / "page.md")
        assert [(each["variant"], each["seed"]) for each in printed["results"]] == [("long", 0), ("short", 0)]
        assert {path.name for path in folder.iterdir()} == {"page.md", "krcu.png", "pareto.png", "results.jsonl"}
        assert "- short, int8: seeds 0, 1" in (folder / "page.md").read_text(encoding="utf-8")

    def test_without_results_is_an_error(self, toml: Path, tmp_path: Path) -> None:
        assert "expected the results of a study, got none; with --data they are made" in fails(
            "study", toml, "--out", tmp_path / "nowhere"
        )
        assert not (tmp_path / "nowhere").exists()

    def test_of_a_damaged_line_is_an_error(self, toml: Path, folder: Path) -> None:
        with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
            file.write('{"kind": "result"')
        assert "results.jsonl: line 4: expected a line of a study's results" in fails("study", toml, "--out", folder)

    @pytest.mark.parametrize("option", [["--processes", 2], ["--device", "cpu"]], ids=str)
    def test_options_of_training_are_refused(self, option: list[object], toml: Path, folder: Path) -> None:
        assert "expected only with --data" in fails("study", toml, "--out", folder, *option)


class TestOptions:
    def test_each_has_a_test(self) -> None:
        assert options_of(command.study) == ["which", "out", "data", "processes", "device", "as_json"]

    def test_which(self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("paper", "base", "asap"):
            arguments = ["study", name, "--data", store, "--out", tmp_path]
            ((positional, _),) = recorded(monkeypatch, "dsmr.study.runner.run_study", *arguments)
            assert positional[0] == BUNDLED[name]
        assert "expected one of asap, base, paper, or a TOML file, got 'papers'" in fails("study", "papers", "-o", "x")

    def test_data_and_out(self, toml: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["study", toml, "--data", store, "--out", tmp_path / "there"]
        ((positional, _),) = recorded(monkeypatch, "dsmr.study.runner.run_study", *arguments)
        assert positional[1].digest == TokenStore.open(store).digest
        assert positional[2] == tmp_path / "there"

    def test_processes_and_device(
        self, toml: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["study", toml, "--data", store, "--out", tmp_path, "--processes", 3, "--device", "cpu"]
        ((_, named),) = recorded(monkeypatch, "dsmr.study.runner.run_study", *arguments)
        assert [device for device, _ in named["places"]] == ["cpu"] * 3

    def test_json(self, done: Path, toml: Path) -> None:
        printed = json.loads(succeeds("study", toml, "--out", done, "--json"))
        assert {(each["variant"], each["seed"]) for each in printed["results"]} == {*outcome(done)[1]}
