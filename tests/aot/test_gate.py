"""What the table of `configs.toml` compiles to, on a machine without a GPU: see `bench.compiled.gate`."""

from typing import get_args

import pytest
import torch
import triton

from bench.compiled import gate
from bench.compiled import record as gate_record
from bench.compiled.gate import VARIANTS, Variant
from dsmr_kernels.backends.triton import configs
from dsmr_kernels.backends.triton.configs import DIMS, Config, Kernel, Kind

HALF, SINGLE = torch.bfloat16, torch.float32
CHOSEN = [
    *((architecture, 128, "half", Variant(HALF, bounded=True)) for architecture in gate.ARCHITECTURES),
    *((architecture, 64, "half", Variant(torch.float16)) for architecture in ("sm_90", "sm_100")),
    ("sm_90", 80, "half", Variant(HALF)),  # padded to 128
    ("sm_90", 16, "half", Variant(HALF)),
    ("sm_90", 256, "half", Variant(HALF, bounded=True)),
    ("sm_80", 64, "quantised", Variant(HALF, "int8", bounded=True)),
    ("sm_90", 128, "quantised", Variant(HALF, "float8_e4m3", bounded=True)),
    ("sm_90", 64, "special", Variant(HALF, bounded=True, special=True)),
    ("sm_120", 64, "float32", Variant(SINGLE, bounded=True)),
    ("sm_90", 64, "float32", Variant(SINGLE, bounded=True, tf32=True)),
]


def assert_good(examined: list[gate.Examined]) -> None:
    bad = [one for one in examined if one.problems]
    assert not bad, "\n" + "\n".join(map(str, bad))


@pytest.mark.parametrize(("architecture", "dim", "kind", "variant"), CHOSEN)
def test_chosen_entries_compile_well(architecture: str, dim: int, kind: Kind, variant: Variant) -> None:
    examined = gate.examine(architecture, kind, dim, [variant])
    assert {one.kernel.name for one in examined} >= set(gate.PRODUCTS)
    assert_good(examined)


@pytest.mark.aot_full
@pytest.mark.parametrize("entry", list(gate_record.entries()), ids=lambda entry: "-".join(map(str, entry)))
def test_every_entry_compiles_well(entry: gate_record.Entry) -> None:
    assert not gate.examine_entry(entry, gate.distinct(entry.kind, entry.kernel)).problems


@pytest.mark.parametrize(
    ("architecture", "kernel", "config", "problem"),
    [
        ("sm_90", "forward", Config(128, 64, 4, 3, True), "spills"),
        ("sm_80", "forward", Config(128, 128, 8, 3), "shared memory"),
        ("sm_90", "dkdv", Config(32, 128, 4, 2), "matrix products are serialised"),
        ("sm_90", "forward", Config(32, 64, 4, 2, True), "no wgmma"),
        ("gfx942", "dkdv", Config(64, 128, 8, 2), "spills"),
    ],
)
def test_a_bad_config_fails(architecture: str, kernel: Kernel, config: Config, problem: str) -> None:
    with gate.using(architecture, kernel, config):
        examined = gate.examine(architecture, "half", 128, [Variant(HALF)], [kernel])
    problems = [text for one in examined for text in one.problems]
    assert any(text.startswith(problem) for text in problems), problems


def test_the_gate_leaves_no_trace() -> None:
    driver, run = triton.runtime.driver._active, triton.runtime.jit.JITFunction.run
    folder, always = triton.knobs.cache.dir, triton.knobs.compilation.always_compile
    with gate.compiling_for("sm_90") as kernels:
        assert configs.architecture() == "sm_90"
    assert not kernels
    assert (triton.runtime.driver._active, triton.runtime.jit.JITFunction.run) == (driver, run)
    assert (triton.knobs.cache.dir, triton.knobs.compilation.always_compile) == (folder, always)


def test_the_table_has_every_entry() -> None:
    assert configs.TABLE.keys() == gate.ARCHITECTURES.keys()
    for kernels in configs.TABLE.values():
        assert set(kernels) == set(get_args(Kernel))
        for kernel, kinds in kernels.items():
            assert set(kinds) == set(get_args(Kind)) - ({"quantised"} if kernel == "dkdv" else set())
            assert all(len(entries) == len(DIMS) for entries in kinds.values())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_call_finds_the_line_of_its_kind(kind: Kind) -> None:
    for variant in VARIANTS[kind]:
        assert configs.kind("forward", variant.call(64, 8)) == kind


@pytest.mark.parametrize(
    ("asked", "serving"),
    [
        ("sm_90", "sm_90"),
        ("sm_87", "sm_86"),
        ("sm_103", "sm_100"),
        ("sm_110", "sm_100"),
        ("sm_121", "sm_120"),
        ("gfx950", "gfx942"),
        ("gfx1100", "gfx942"),
        ("gfx90a", "gfx942"),
    ],
)
def test_an_architecture_without_entries_gets_the_newest_older_ones_of_its_vendor(asked: str, serving: str) -> None:
    assert configs.serving(asked) == serving
