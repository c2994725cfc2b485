"""`dsmr doctor`: what works on this machine, and what to run next."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from dsmr.cli import app, doctor
from dsmr.process import SHORT_SPINS
from dsmr_kernels.backends.cpu import library
from tests.dsmr.cli.commands import ROOT, shell, succeeds


def test_prints_what_works() -> None:
    text = succeeds("doctor")
    assert re.search(r"│ eager +│ cpu +│ works", text)
    assert "DSMR_KERNELS_IMPL" in text


def test_tells_machines_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSMR_KERNELS_IMPL", "eager")
    monkeypatch.delenv("HF_HOME", raising=False)
    found = json.loads(succeeds("doctor", "--json"))
    assert found["back_ends"]["eager"]["cpu"] is None
    assert found["packages"]["torch"]
    assert found["environment"]["DSMR_KERNELS_IMPL"] == "eager"
    assert found["environment"]["HF_HOME"] is None


def test_says_why_a_back_end_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsmr_kernels.backends.NAMES", ("eager", "imaginary"))
    reasons = doctor.examine()["back_ends"]
    assert reasons["eager"]["cpu"] is None
    assert "imaginary" in reasons["imaginary"]["cpu"]
    assert "not installed" in reasons["triton"]["cpu"]


def test_says_which_back_end_calls_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSMR_KERNELS_IMPL", raising=False)
    best = "eager" if library.absence() else "cpu"
    assert json.loads(succeeds("doctor", "--json"))["in_use"]["cpu"] == best
    assert re.search(rf"│ {best} +│ cpu +│ works, and is what calls take", succeeds("doctor"))
    monkeypatch.setenv("DSMR_KERNELS_IMPL", "eager")
    assert doctor.examine()["in_use"]["cpu"] == "eager"
    monkeypatch.setenv("DSMR_KERNELS_IMPL", "nonsense")
    assert doctor.examine()["in_use"]["cpu"] is None


def test_says_what_to_run_next() -> None:
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


def test_says_which_native_kernels_there_are_or_why_none(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_says_how_idle_threads_wait_and_what_other_programs_have_to_do() -> None:
    text, _ = shell("doctor")
    said = re.search(r"^Idle CPU threads: (.*)$", text, re.MULTILINE)
    assert said is not None
    assert all(f"{name}={value}" in said[1].partition(";")[2] for name, value in SHORT_SPINS.items())
    assert doctor.describe_waiting({}).startswith("as they come")
    assert doctor.describe_waiting({"OMP_WAIT_POLICY": "ACTIVE"}).startswith("OMP_WAIT_POLICY=ACTIVE, by you")
    assert set(doctor.WAITING) <= set(doctor.VARIABLES)


def test_fails_if_the_commands_lack_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "the test")
    assert app.run(["doctor"]) == 1


def test_knows_every_package_of_the_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    music = re.search(r"^music = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert dependencies is not None
    assert music is not None
    names = re.findall(r'"([\w-]+)', dependencies[1] + music[1])
    assert set(names) <= set(doctor.PACKAGES)


def test_knows_every_environment_variable_that_is_read() -> None:
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
