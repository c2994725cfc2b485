"""Lines of results: what was written is read again, and what does not belong to the study is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from dsmr.study.config import parse_study
from dsmr.study.results import Results, settings_of
from tests.dsmr.study import made
from tests.dsmr.study.small import TABLES

STUDY = parse_study(TABLES)
LONG, SHORT, QUANTISED = STUDY.variants


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    assert (results.frame, results.all) == (None, [])
    added = results.add(made.frame(STUDY), made.line(STUDY, LONG, 0, nll=2.0))
    results.add(made.frame(STUDY), made.line(STUDY, SHORT, 0))
    (first, second) = Results(results.path).all
    assert (first.variant, first.seed, first.settings) == ("long", 0, settings_of(LONG, 0))
    assert (second.variant, second.facts["horizon_bytes"]) == ("short", 2**20)
    assert first.sums.keys() == {"nll", "krcu", "keep 16", "keep 32"}
    assert first.sums["nll"].mean.tolist() == pytest.approx([2.0])
    assert first.sums["nll"].total.tolist() == added.sums["nll"].total.tolist()
    assert len(results.path.read_text().splitlines()) == 3


def test_missing_are_those_without_a_line(tmp_path: Path) -> None:
    folder = made.write(tmp_path, STUDY, [made.line(STUDY, SHORT, 0)])
    results = Results(folder / "results.jsonl")
    assert results.missing(0, STUDY.variants) == (LONG, QUANTISED)
    assert results.missing(1, STUDY.variants) == STUDY.variants


@pytest.mark.parametrize(
    ("table", "name", "value", "message"),
    [
        (
            "training",
            "learning_rate",
            0.02,
            r"'long': expected results of learning_rate=0.02, got those of 0.01",
        ),
        ("model", "width", 64, r"variant 'long': expected results of width=64, got those of 32"),
        (
            "model",
            "longest",
            128,
            r"'long': expected results of horizons=\[128, 128\], got those of \[64, 64\]",
        ),
        ("study", "tokens", 3072, r"variant 'long': expected results of steps=48, got those of 24"),
    ],
)
def test_changed_settings_are_refused_by_name(
    table: str, name: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = made.write(tmp_path, STUDY, [made.line(STUDY, LONG, 0)])
    tables = copy.deepcopy(TABLES)
    tables[table][name] = value
    with pytest.raises(ValueError, match=message):
        Results(folder / "results.jsonl").missing(0, parse_study(tables).variants)


def test_settings_that_a_field_was_added_to_are_those_of_its_default(tmp_path: Path) -> None:
    line = made.line(STUDY, LONG, 0)
    del line["settings"]["model"]["qk_norm"], line["settings"]["training"]["compile"]
    results = Results(made.write(tmp_path, STUDY, [line]) / "results.jsonl")
    assert results.missing(0, (LONG,)) == ()


def test_another_frame_is_refused(tmp_path: Path) -> None:
    results = Results(made.write(tmp_path, STUDY, [made.line(STUDY, LONG, 0)]) / "results.jsonl")
    results.check_frame(STUDY)
    results.check_frame(STUDY, made.STORE)
    with pytest.raises(ValueError, match="expected results of store another, got those of a store"):
        results.check_frame(STUDY, "another")
    for table, name, value, named in (("study", "split", "train", "split train"), ("probes", "pieces", 3, "questions")):
        tables = copy.deepcopy(TABLES)
        tables[table][name] = value
        with pytest.raises(ValueError, match=f"expected results of {named}"):
            results.check_frame(parse_study(tables))
    before = results.path.read_bytes()
    with pytest.raises(ValueError, match="expected a result on the same tokens"):
        results.add(made.frame(STUDY, pieces=made.PIECES + 1), made.line(STUDY, SHORT, 0))
    assert results.path.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "{}"),
        (1, '{"kind": "result"}'),
        (2, "{"),
        (2, '{"kind": "frame"}'),
        (2, "3"),
        (2, '{"kind": "result", "totals": {"nll": [1.0]}}'),
    ],
)
def test_a_line_that_is_none_is_named(number: int, text: str, tmp_path: Path) -> None:
    folder = made.write(tmp_path, STUDY, [])
    lines = (folder / "results.jsonl").read_text().splitlines()
    lines[number - 1 :] = [text]
    (folder / "results.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"results.jsonl: line {number}: expected a line of a study's results, got: "):
        Results(folder / "results.jsonl")


def test_totals_of_too_many_bins_are_named(tmp_path: Path) -> None:
    line = made.line(STUDY, LONG, 0)
    line["totals"]["nll"].append(1.0)
    folder = made.write(tmp_path, STUDY, [json.loads(json.dumps(line))])
    with pytest.raises(ValueError, match="line 2: expected a line of a study's results"):
        Results(folder / "results.jsonl")
