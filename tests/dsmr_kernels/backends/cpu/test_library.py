"""The native library: what is said when it is missing, and the choice of an instruction set when it is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmr_kernels.backends.cpu import library
from dsmr_kernels.backends.cpu.library import ABI, NativeLibrary, Unavailable

ISAS = ["avx512bf16", "avx512", "avx2", "neon", "scalar"]  # the best first


@pytest.fixture
def built() -> Iterator[NativeLibrary]:
    """The library of this source tree; afterwards it uses what it used before."""
    if reason := library.absence():
        pytest.skip(reason)
    found = library.load()
    before = found.isa
    yield found
    found.use(before)


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"was never built: run `make build` in .* \(it needs a C\+\+17 compiler"):
        NativeLibrary(tmp_path, "dsmr_kernels", ABI)


def test_an_installed_package_without_its_library_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_ROOT", tmp_path)
    with pytest.raises(Unavailable, match=r"install a C.*pip install --force-reinstall --no-cache-dir"):
        NativeLibrary(tmp_path, "dsmr_kernels", ABI)


def test_a_file_that_is_no_library_is_told_apart_from_none(tmp_path: Path) -> None:
    (tmp_path / f"libdsmr_kernels{library._SUFFIX}").write_text("not a library")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        NativeLibrary(tmp_path, "dsmr_kernels", ABI)


def test_a_library_of_another_version_is_refused(built: NativeLibrary) -> None:
    with pytest.raises(Unavailable, match=f"has interface {ABI} and this version needs {ABI + 1}: run `make build`"):
        NativeLibrary(built.path.parent, "dsmr_kernels", ABI + 1)


def test_absence_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "absence", lambda: "never built")
    library.announce_absence.cache_clear()
    with pytest.warns(RuntimeWarning, match="attention on CPUs goes without the native kernels: never built"):
        library.announce_absence()
    library.announce_absence()  # a second warning would be an error
    library.announce_absence.cache_clear()


def test_the_best_instruction_set_comes_first_and_every_one_can_be_used(built: NativeLibrary) -> None:
    assert [isa for isa in ISAS if isa in built.available] == list(built.available)
    assert "scalar" in built.available
    for isa in built.available:
        built.use(isa)
        assert built.isa == isa


def test_an_unknown_instruction_set_is_refused_with_those_there_are(built: NativeLibrary) -> None:
    before = built.isa
    with pytest.raises(ValueError, match=r"DSMR_KERNELS_ISA: expected one of .*'scalar'.*, got 'mmx'"):
        built.use("mmx")
    assert built.isa == before


def test_the_environment_chooses_the_instruction_set(
    built: NativeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(built.path, tmp_path)  # another file is another library, with a choice of its own
    assert NativeLibrary(tmp_path, "dsmr_kernels", ABI).isa == built.available[0]
    monkeypatch.setenv("DSMR_KERNELS_ISA", "scalar")
    assert NativeLibrary(tmp_path, "dsmr_kernels", ABI).isa == "scalar"
    monkeypatch.setenv("DSMR_KERNELS_ISA", "mmx")
    with pytest.raises(ValueError, match="DSMR_KERNELS_ISA"):
        NativeLibrary(tmp_path, "dsmr_kernels", ABI)
