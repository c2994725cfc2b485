"""Settings of the process: short spins before PyTorch starts its threads, and whatever is changed is put back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsmr.process import DECIDES, SHORT_SPINS, keep_spins_short, own_random_numbers, torch_threads

ROOT = Path(__file__).resolve().parents[2]
FREE = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
COMMANDS = {
    "dsmr": "import runpy, sys; sys.argv = ['dsmr', 'doctor', '--json']; runpy.run_module('dsmr', run_name='__main__')",
    "the script": "import sys; sys.argv = ['dsmr', 'doctor', '--json']; from dsmr.cli import main; main()",
    "bench": "import sys; sys.argv = ['bench', '--help']; import bench.__main__; import torch",
    "bench.models.native_step": "import bench.models.native_step",
    "bench.compiled.gate": "import bench.harness.machine",
    "drop_in_attention": "import runpy; runpy.run_path('examples/drop_in_attention.py', run_name='__main__')",
    "language_model": "import runpy; runpy.run_path('examples/language_model.py')",
}


def told_by_openmp(code: str, **environment: str) -> dict[str, str]:
    """What the pool that a program loads says of its settings."""
    command = [sys.executable, "-c", code]
    told = {**FREE, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **environment}
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = (line.strip().removeprefix("[host] ").partition("=") for line in done.stderr.splitlines())
    return {name.strip(): value.strip().strip("'") for name, _, value in lines}


def effect(settings: dict[str, str]) -> str | None:
    return settings.get("GOMP_SPINCOUNT") or settings.get("KMP_BLOCKTIME")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_ours_keeps_spins_short(command: str) -> None:
    assert effect(told_by_openmp(COMMANDS[command])) in SHORT_SPINS.values()


@pytest.mark.parametrize("name", sorted({*SHORT_SPINS, *(name for names in DECIDES.values() for name in names)}))
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (*SHORT_SPINS, *DECIDES["KMP_BLOCKTIME"]):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "7")
    monkeypatch.delitem(sys.modules, "torch")
    keep_spins_short()
    assert os.environ[name] == "7"
    for ours, value in SHORT_SPINS.items():
        left_alone = name in (ours, *DECIDES[ours])
        assert os.environ.get(ours) == ({ours: "7"}.get(name) if left_alone else value)


def test_a_user_who_wants_threads_to_spin_has_them_spin() -> None:
    code = COMMANDS["the script"]
    assert effect(told_by_openmp(code, OMP_WAIT_POLICY="ACTIVE")) not in SHORT_SPINS.values()


@pytest.mark.parametrize("module", ["dsmr_kernels", "dsmr", "dsmr.training"])
def test_a_library_sets_nothing(module: str) -> None:
    code = f"import os; before = dict(os.environ); import {module}; assert dict(os.environ) == before; import torch"
    assert effect(told_by_openmp(code)) not in SHORT_SPINS.values()


def test_nothing_is_set_once_the_pool_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SHORT_SPINS:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    keep_spins_short()
    assert dict(os.environ) == before


def test_threads_are_put_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with torch_threads(before + 2):
            raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=str(before + 2)):
        fail()
    assert torch.get_num_threads() == before


def test_random_numbers_are_put_back_even_after_an_error() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        with own_random_numbers():
            torch.manual_seed(1)
            raise ValueError(torch.rand(3))

    with pytest.raises(ValueError, match="tensor"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
