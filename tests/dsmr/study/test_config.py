"""A study's file: what is wrong in it is named, and what is right becomes the variants that it describes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsmr.model.transformer import Transformer
from dsmr.study.config import BUNDLED, Study, parse_study, read_study
from tests.dsmr.study.small import TABLES


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tables with one value replaced or added; a number in the path is that of a variant."""
    tables: dict[str, Any] = copy.deepcopy(TABLES)
    *parents, last = path.split(".")
    at: Any = tables
    for name in parents:
        at = at[int(name)] if name.isdigit() else at.setdefault(name, {})
    at[last] = value
    return tables


WRONG: list[tuple[str, Any, str]] = [
    ("studies", {}, r"study: expected keys among .*variant, got 'studies'"),
    ("study", 3, r"\[study\]: expected a table of name.*, got 3"),
    ("study.named", "x", r"\[study\]: expected keys among .*, got 'named'"),
    ("study.name", "", r"\[study\]: name: expected text, got ''"),
    ("study.split", "dev", r"\[study\]: split: expected 'train', 'validation' or 'test', got 'dev'"),
    ("study.seeds", [], r"\[study\]: seeds: expected different whole numbers of at least 0, got \[\]"),
    ("study.seeds", [1, 1], r"seeds: expected different"),
    ("study.seeds", [True], r"seeds: expected different"),
    ("study.seeds", 1, r"seeds: expected different"),
    ("study.tokens", 0, r"\[study\]: tokens: expected a number of at least 1, got 0"),
    ("study.tokens", 1.5, r"tokens: expected a number"),
    ("study.baseline", "nobody", r"\[study\]: baseline: expected one of long, short.*, got 'nobody'"),
    ("study.baseline", ["long"], r"baseline: expected one of"),
    ("model.widht", 1, r"\[model\]: expected keys among .*, got 'widht'"),
    ("model.width", "wide", r"variant 'long': width: expected an integer"),
    ("model.layers", "two", r"variant 'long': layers: expected a number, got 'two'"),
    ("model.layers", 10**30, r"variant 'long': layers: expected a number"),
    ("model.schedule", "longer", r"variant 'long': unknown schedule 'longer'; the schedules are full, .*explicit"),
    ("model.schedule", 1, r"variant 'long': schedule: expected its name, got 1"),
    ("model.key_shift", [0, 1, 1], r"variant 'long': key_shift: expected .*2"),
    ("model.rotary_share", [2.0, 1.0], r"variant 'long': rotary_share: expected a number from 0 to 1"),
    ("training.lanse", 1, r"\[training\]: expected keys among .*, got 'lanse'"),
    ("training.seed", 1, r"\[training\]: expected keys among .*, got 'seed'"),
    ("training.lanes", 0, r"variant 'long': lanes: expected at least 1, got 0"),
    ("training.steps", 3, r"variant 'long': expected a budget: either tokens in \[study\], or steps or minutes"),
    ("probes.piece", 1, r"\[probes\]: expected keys among .*, got 'piece'"),
    ("probes.pieces", 0, r"\[probes\]: pieces: expected at least 1, got 0"),
    ("probes.recall", -1, r"\[probes\]: recall: expected at least 0, got -1"),
    ("probes.returns", "yes", r"\[probes\]: returns: expected True, False, got 'yes'"),
    ("probes.resets", 3, r"\[probes.resets\]: expected a table of at, width, end, got 3"),
    ("probes.resets.at", [8, 4], r"\[probes.resets\]: resets: expected increasing positions"),
    ("probes.cuts.blocks", 0, r"\[probes.cuts\]: blocks: expected at least 1, got 0"),
    ("probes.cuts.keep", [4], r"\[probes.cuts\]: expected keys among .*, got 'keep'"),
    ("variant", [], r"\[\[variant\]\]: expected one or more, got \[\]"),
    ("variant", [3], r"\[\[variant\]\]: expected a name with letters or digits, got None"),
    ("variant.0.name", "--", r"\[\[variant\]\]: expected a name with letters or digits, got '--'"),
    ("variant.1.name", "LONG!", r"variant 'LONG!': expected a name unlike all others, got one like 'long'"),
    ("variant.1.colour", "red", r"variant 'short': table: expected keys among .*, got 'colour'"),
    ("variant.1.storage", "int4", r"variant 'short': storage: expected one of int8, float8_e4m3, got 'int4'"),
    ("variant.1.horizons", [1, "2"], r"variant 'short': horizons: expected a list of numbers"),
    ("variant.1.budget", "8MB", r"variant 'short': budget: expected a number of tokens, got '8MB'"),
    ("variant.1.retention", {"strides": 2}, r"variant 'short': retention: expected keys among stride, keep"),
    ("variant.1.paper", {"ppl": "six"}, r"variant 'short': paper: expected finite numbers"),
    ("variant.1.paper", {"ppl": float("nan")}, r"variant 'short': paper: expected finite numbers"),
    ("variant.1.paper", {"ppl": -1.0}, r"variant 'short': paper: expected .* that of ppl above 0"),
    (
        "variant.2.evaluates",
        "short, int8",
        r"evaluates: expected a variant above that is trained, long, short, got",
    ),
    ("variant.2.width", 64, r"variant 'short, int8': table: expected keys among name, evaluates, storage, paper"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_study(changed(path, value))


@pytest.mark.parametrize("text", ["[study", "a = 1\na = 2", "\xff"], ids=["syntax", "twice", "encoding"])
def test_what_is_no_toml_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.toml: expected a TOML file, got: "):
        read_study(path)


def test_needs_a_budget() -> None:
    tables = copy.deepcopy(TABLES)
    del tables["study"]["tokens"]
    with pytest.raises(ValueError, match="variant 'long': expected a budget"):
        parse_study(tables)


def test_a_budget_in_tokens_is_as_many_steps_as_read_them() -> None:
    for variant in parse_study(changed("study.tokens", 1001)).variants:
        assert variant.training.steps is not None
        read = variant.training.steps * variant.training.lanes * variant.model.segment
        assert 1001 <= read < 1001 + variant.training.lanes * variant.model.segment


def test_variants_inherit_what_belongs_to_their_schedule() -> None:
    tables = changed("model.budget", 100)
    tables["variant"][1] = {"name": "short", "schedule": "uniform"}
    long, short, _ = parse_study(tables).variants
    assert long.model.schedule.horizons == (64, 64)  # which no budget shapes
    assert short.model.schedule.horizons == (50, 50)


def test_lists_become_tuples_and_the_first_variant_the_baseline() -> None:
    study = parse_study(changed("model.rotary_share", [1, 0.25]))
    assert study.variants[0].model.rotary_share == (1, 0.25)
    assert study.variants[0].model.key_shift == (0, 1)
    assert study.variants[0].training.betas == (0.9, 0.99)
    assert study.questions.resets is not None
    assert study.questions.resets.at == (16, 32)
    assert study.baseline == "long"
    assert parse_study(changed("study.baseline", "short")).baseline == "short"


def test_a_variant_may_be_probed_with_anothers_weights() -> None:
    study = parse_study(TABLES)
    long, short, quantised = study.variants
    assert study.trained == (long, short)
    assert study.probed_with(short) == (short, quantised)
    assert (quantised.model, quantised.training, quantised.storage) == (short.model, short.training, "int8")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["at", "name", "stride"]), inner),
    max_leaves=6,
)


@given(st.sampled_from([path for path, *_ in WRONG]), ANYTHING)
def test_any_value_anywhere_is_a_study_or_an_error_of_one_line(path: str, value: Any) -> None:
    error = None
    try:
        assert isinstance(parse_study(changed(path, value)), Study)
    except ValueError as caught:
        error = str(caught)
    assert error is None or "\n" not in error


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_studies_make_models(name: str) -> None:
    study = read_study(BUNDLED[name])
    with torch.device("meta"):
        for variant in study.variants:
            assert Transformer(variant.model).parameters_count > 0
    assert len({(variant.training.steps, variant.training.minutes) for variant in study.variants}) == 1
    assert len({variant.model.segment for variant in study.variants}) == 1
    assert len({variant.model.width for variant in study.variants}) == 1


@pytest.mark.parametrize(("name", "full", "budget"), [("paper", 16_384, 6_400), ("base", 131_072, 51_200)])
def test_the_papers_rows_have_its_names_and_equal_budgets(name: str, full: int, budget: int) -> None:
    rows = {variant.name: variant for variant in read_study(BUNDLED[name]).variants if variant.paper}
    assert len(rows) == 10
    for row, variant in rows.items():
        assert variant.model.schedule.total == (full if row in ("full horizon", "FHCR") else budget)
    assert rows["FHCR"].model.kv_heads == 2 < rows["full horizon"].model.kv_heads


def test_the_rows_of_real_pieces() -> None:
    rows = {variant.name: variant.model.schedule.horizons for variant in read_study(BUNDLED["asap"]).variants}
    assert rows["full horizon"] == rows["FHCR"] == rows["FHCR, int8"] == (8192,) * 4
    assert rows["two-scale"] == (8192, 512, 512, 512)
    assert rows["short"] == (256,) * 4
