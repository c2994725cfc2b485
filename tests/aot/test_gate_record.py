"""The gate's record: it vouches for the table as it is now, and comes about piece by piece."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl

from bench.compiled import gate
from bench.compiled import record as gate_record
from bench.compiled.record import Entry, Record, Row, entries
from dsmr_kernels.backends.triton.backward import dq_kernel
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.forward import forward_kernel
from dsmr_kernels.backends.triton.launch import Launch

VERSION = "3.7.1"  # whose record must be complete


def test_every_entry_is_on_record() -> None:
    record = Record.read(VERSION)
    renew = f"run `python -m bench.compiled.gate --record` with Triton {VERSION} and commit bench/compiled"
    stale = [
        entry
        for entry in entries()
        if not record.holds(entry, len(gate.distinct(entry.kind, entry.kernel)), gate.source(entry))
    ]
    assert not stale, f"{len(stale)} entries were not compiled as they are now, such as {stale[0]}: {renew}"
    bad = [gate_record.line(entry, row) for entry, row in record.rows.items() if row.problems]
    assert not bad, "choose other entries than\n" + "\n".join(bad)


def test_a_kernel_tells_its_variants_apart() -> None:
    assert [len(gate.distinct(kind, "dq")) for kind in gate.VARIANTS] == [2, 3, 3, 2, 6]
    assert [len(gate.distinct(kind, "dkdv")) for kind in gate.VARIANTS] == [2, 2, 1, 2, 2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gate_record, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """What was compiled, in place of compiling it."""
    done: list[Entry] = []

    def examine_entry(entry: Entry, variants: Sequence[gate.Variant]) -> Row:
        done.append(entry)
        problems = ["dq_kernel: spills 8", "dq_kernel: no wgmma or mma.sync"] if entry.kernel == "dq" else []
        return Row(
            entry.config, gate.source(entry), len(variants), 255, 0, 1024, {"mma.sync": 64, "cp.async.cg": 8}, problems
        )

    monkeypatch.setattr(gate, "examine_entry", examine_entry)
    return done


ARGUMENTS = ["sm_80", "--dims", "64", "--kinds", "half", "--record"]


def test_what_is_on_record_is_not_compiled_again(
    folder: Path, compilations: list[Entry], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gate.main(ARGUMENTS) == 1  # dq has problems
    printed = capsys.readouterr().out
    assert printed.startswith(f"Triton {triton.__version__}")
    assert [entry.kernel for entry in compilations] == ["forward", "dq", "dkdv", "decode"]
    assert printed.partition("\n\n")[2] in Record.path(triton.__version__).read_text()

    assert gate.main(ARGUMENTS) == 1
    assert len(compilations) == 4
    assert capsys.readouterr().out == printed

    other = Config(16, 16, 4, 1)
    with gate.using("sm_80", "forward", other):
        gate.main(ARGUMENTS)
        assert [entry.kernel for entry in compilations[4:]] == ["forward"]
        row = Record.read(triton.__version__).rows[Entry("sm_80", 64, "half", "forward")]
        assert row == (other, row.source, 2, 255, 0, 1024, {"mma.sync": 64, "cp.async.cg": 8}, [])

    gate.main(ARGUMENTS)  # the forward kernel's old entry again
    before = gate.source
    monkeypatch.setattr(gate, "source", lambda entry: "changed" if entry.kernel == "dkdv" else before(entry))
    gate.main(ARGUMENTS)
    assert [entry.kernel for entry in compilations[5:]] == ["forward", "dkdv"]


def test_an_interrupted_run_keeps_what_it_found(
    folder: Path, compilations: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gate.examine_entry

    def interrupted(entry: Entry, variants: Sequence[gate.Variant]) -> Row:
        if entry.kernel == "dkdv":
            raise KeyboardInterrupt
        return whole(entry, variants)

    with monkeypatch.context() as patch:
        patch.setattr(gate, "examine_entry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gate.main(ARGUMENTS)
    gate.main(ARGUMENTS)
    assert [entry.kernel for entry in compilations] == ["forward", "dq", "dkdv", "decode"]


def test_one_variant_does_not_stand_for_all(folder: Path, compilations: list[Entry]) -> None:
    gate.main([*ARGUMENTS, "--first"])
    gate.main(ARGUMENTS)
    gate.main([*ARGUMENTS, "--first"])
    assert len(compilations) == 8


@triton.jit
def inner(x):
    return x * FACTOR  # [1]


class Pair(NamedTuple):
    first: object
    second: object


@triton.jit
def outer(x_ptr, n, pair, SIZE: tl.constexpr):
    made = Pair(inner(tl.load(x_ptr)), SIZE)
    tl.store(x_ptr, made.first + n + own.other(n, inner) + made.second)


@triton.jit
def applied(x, f: tl.constexpr):
    return f(x)


FACTOR = tl.constexpr(2)
own = ModuleType("tests.own")  # a module that is used by its name
own.other = applied


def launch(**changes: object) -> Launch:
    present = {"x_ptr": torch.zeros(4), "n": 3, "pair": Pair(torch.zeros(4), 3), "SIZE": 4, "num_warps": 4}
    return Launch(outer, (1, 1, 1), present | changes)


def test_what_a_launch_compiles_from_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values at run time make no difference; types, alignment, constants and options do."""
    present = gate_record.digest([launch()])
    for same in (launch(n=5), launch(x_ptr=torch.ones(8)), launch(pair=Pair(torch.ones(8), 5))):
        assert gate_record.digest([same]) == present
    for other in (
        *(launch(n=16), launch(n=1), launch(SIZE=8), launch(num_warps=8)),
        *(launch(x_ptr=torch.zeros(4).half()), launch(x_ptr=torch.zeros(5)[1:])),
        *(launch(pair=Pair(torch.zeros(4).half(), 3)), launch(pair=Pair(torch.zeros(5)[1:], 3))),
        *(launch(pair=Pair(torch.zeros(4), 16)), launch(pair=Pair(None, 3)), launch(pair=Pair(torch.zeros(4), 3.0))),
        launch(pair=Pair(Pair(torch.zeros(4), 3), 3)),
    ):
        assert gate_record.digest([other]) != present, other


def test_a_changed_function_or_constant_is_a_changed_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gate_record.kernel_source(outer)
    assert "[1]" not in before
    changes = (("FACTOR", tl.constexpr(3)), ("inner", applied), ("Pair", NamedTuple("Pair", [("first", int)])))
    for name, changed in changes:
        gate_record.kernel_source.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(globals(), name, changed)
            assert gate_record.kernel_source(outer) != before, name
    gate_record.kernel_source.cache_clear()
    monkeypatch.setattr(own, "other", inner)
    assert gate_record.kernel_source(outer) != before, "own.other"
    monkeypatch.undo()
    gate_record.kernel_source.cache_clear()
    assert gate_record.kernel_source(outer) == before


def test_appending_is_no_part_of_the_backward_kernels() -> None:
    """What one kernel calls makes no other kernel's entries out of date."""
    assert "def append(" in gate_record.kernel_source(forward_kernel)
    assert "def attend_block(" in gate_record.kernel_source(forward_kernel)  # which is handed on, not called
    assert "def append(" not in gate_record.kernel_source(dq_kernel)
