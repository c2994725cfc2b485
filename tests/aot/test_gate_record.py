"""The gate's record: it vouches for the table as it is now, and comes about piece by piece."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import triton

from bench import gate, gate_record
from bench.gate_record import Entry, Record, Row, entries
from dsmr_kernels.backends.triton import configs
from dsmr_kernels.backends.triton.configs import Config

VERSION = "3.7.1"  # whose record must be complete


def test_every_entry_is_on_record() -> None:
    record = Record.read(VERSION)
    renew = f"run `python -m bench.gate --record` with Triton {VERSION} and commit bench/compiled"
    assert record.sources == gate_record.sources(), f"the kernels have changed since they were compiled: {renew}"
    lacking = [entry for entry in entries() if not record.holds(entry, len(gate.distinct(entry.kind, entry.kernel)))]
    assert not lacking, f"{len(lacking)} entries were not compiled as they are now, such as {lacking[0]}: {renew}"
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
        return Row(entry.config, len(variants), 255, 0, 1024, {"mma.sync": 64, "cp.async.cg": 8}, problems)

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
        assert row == (other, 2, 255, 0, 1024, {"mma.sync": 64, "cp.async.cg": 8}, [])

    monkeypatch.setattr(gate_record, "sources", lambda: "changed")
    gate.main(ARGUMENTS)
    assert len(compilations) == 9


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


def test_only_code_counts_as_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs.py").write_text("TABLE = {}\n")
    (tmp_path / "kernel.py").write_text("x = 1\n")
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "configs.py"))
    before = gate_record.sources()
    (tmp_path / "configs.py").write_text("TABLE = {1: 2}\n")
    (tmp_path / "kernel.py").write_text("# why\n\nx = 1  # [1]\n")
    assert gate_record.sources() == before
    (tmp_path / "kernel.py").write_text("x = 2\n")
    assert gate_record.sources() != before
