"""Findings and their page, from results whose differences the test chose."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.study.config import Study, parse_study
from dsmr.study.findings import KRCU, NLL, Findings
from dsmr.study.page import PAGE, page_text, write_page
from dsmr.study.results import Results
from tests.dsmr.study import made
from tests.dsmr.study.small import TABLES

NOISE = 0.01
"""Of a piece's mean. With 24 pieces and 2 seeds, differences have standard errors of about 0.002."""


def a_study(**changes: Any) -> Study:
    tables = copy.deepcopy(TABLES)
    tables["probes"] |= {"returns": True, "recall": 3}
    tables["study"] |= changes
    return parse_study(tables)


STUDY = a_study()


def lines(study: Study, nll: dict[str, float], seeds: tuple[int, ...] = (0, 1), **options: Any) -> list[dict[str, Any]]:
    return [
        made.line(study, variant, seed, nll=nll[variant.name], noise=NOISE, **options)
        for seed in seeds
        for variant in study.variants
        if variant.name in nll
    ]


def findings(folder: Path, study: Study, written: list[dict[str, Any]]) -> Findings:
    return Findings(study, Results(made.write(folder, study, written) / "results.jsonl"))


def page(folder: Path, study: Study, written: list[dict[str, Any]]) -> str:
    return page_text(findings(folder, study, written), ["pareto.png"])


def row(text: str, heading: str, name: str) -> list[str]:
    """The cells of a variant's row in the first table after a heading."""
    (after,) = re.findall(rf"^## {heading}\n(.*?)(?:^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return next(line for line in after.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")


def test_a_page_of_everything(tmp_path: Path) -> None:
    written = lines(STUDY, {"long": 2.0, "short": 2.5, "short, int8": 2.5})
    text = write_page(findings(tmp_path, STUDY, written), tmp_path).read_text(encoding="utf-8")
    assert "missing" not in text
    assert text.startswith("# small\n\n3 variants with 2 seeds each, probed on 24 whole pieces of the test split")
    assert "4 trainings read 16,000,000 tokens in 2.0 hours of processes." in text
    assert "With 2 seeds, at least 87 % of such intervals hold the truth." in text
    cells = row(text, "Results", "long")
    assert cells[1:4] == ["2", f"{math.exp(2):.2f}", "5.90"]
    assert re.fullmatch(r"7\.\d\d ± 0\.\d\d", cells[4])
    assert cells[6] == "0.0200"
    assert row(text, "Results", "short, int8")[2:4] == ["", ""]  # it was not trained, nor published
    for name in ("recall", "krcu", "pareto"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("krcu.png", PAGE, "pareto.png", "recall.png", "results.jsonl")
    ]
    columns = [len(line.split(" | ")) for line in text.splitlines() if line.startswith("| ")]
    assert len(columns) > 15
    assert "last 16, at 32-64" in text
    assert "nan" not in text


def test_the_same_results_make_the_same_page(tmp_path: Path) -> None:
    written = lines(STUDY, {"long": 2.0, "short": 2.5})
    assert page(tmp_path / "a", STUDY, written) == page(tmp_path / "b", STUDY, [*reversed(written)])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    written = [*lines(STUDY, {"long": 2.0}), *lines(STUDY, {"short": 2.5}, seeds=(1,))]
    text = page(tmp_path, STUDY, written)
    assert "**Results are missing:**\n\n- short: seed 0\n- short, int8: seeds 0, 1\n" in text
    assert "**With one seed, intervals are over pieces only: short.**" in text
    assert row(text, "Differences from long", "short")[1].startswith("+0.50")


def test_one_seed_is_said_not_to_tell_of_others(tmp_path: Path) -> None:
    text = page(tmp_path, STUDY, lines(STUDY, {"long": 2.0, "short": 2.5}, seeds=(0,)))
    assert (
        "**With one seed, the intervals are over pieces only: they do not say what another seed would change.**" in text
    )
    assert "hold the truth" not in text


def test_a_missing_baseline_is_waited_for(tmp_path: Path) -> None:
    text = page(tmp_path, STUDY, lines(STUDY, {"short": 2.5}))
    assert "Differences from long wait for its results." in text
    assert "## Differences" not in text


def test_variants_without_common_seeds_are_not_compared(tmp_path: Path) -> None:
    written = [*lines(STUDY, {"long": 2.0}, seeds=(0,)), *lines(STUDY, {"short": 2.5}, seeds=(1,))]
    found = findings(tmp_path, STUDY, written)
    assert (found.tests(), found.orderings("ppl")) == ([], [])
    assert "## Differences" not in page_text(found, [])


def test_too_few_pieces_have_no_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "PIECES", 5)
    monkeypatch.setattr(made.frame, "__defaults__", (5,))
    text = page(tmp_path, STUDY, lines(STUDY, {"long": 2.0, "short": 2.5}))
    assert "**5 pieces are too few for intervals; at least 6 are needed.**" in text
    assert not re.search(r"\d ± \d", text)
    assert "0 hold here, 0 are reversed, and in 1 the difference is below the noise" in text


def test_no_results_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected results of the study 'small', got none"):
        findings(tmp_path, STUDY, [])


def test_results_of_variants_that_the_study_has_no_more_do_not_count(tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["probes"] |= {"returns": True, "recall": 3}
    del tables["variant"][2]
    written = lines(STUDY, {"long": 2.0, "short": 2.5, "short, int8": 2.5})
    assert "int8" not in page(tmp_path, parse_study(tables), written)


def test_differences_are_by_piece_and_seed_and_corrected_for_all(tmp_path: Path) -> None:
    found = findings(tmp_path, STUDY, lines(STUDY, {"long": 2.0, "short": 2.5, "short, int8": 2.5}))
    tests = {(each.first, each.quantity): each for each in found.tests()}
    assert len(tests) == 2 * len(found.quantities)
    test = tests["short", NLL]
    assert test.second == "long"
    tokens = found.sums["nll"].count[:, 0]
    by_hand = [
        (found.rows[1].results[seed].sums["nll"].total - found.rows[0].results[seed].sums["nll"].total).sum()
        for seed in (0, 1)
    ]
    assert test.difference.value == pytest.approx(sum(by_hand) / 2 / tokens.sum())
    assert all(each.p_holm is not None and each.difference.p is not None for each in tests.values())
    assert all(each.p_holm >= each.difference.p for each in tests.values())
    assert tests["short", KRCU].difference.value == pytest.approx(-0.5, abs=0.01)
    assert tests["short", "recall, exact, 512-1k"].difference.value == pytest.approx(-0.5, abs=0.01)


def test_the_baseline_may_be_another(tmp_path: Path) -> None:
    study = a_study(baseline="short")
    found = findings(tmp_path, study, lines(study, {"long": 2.0, "short": 2.5}))
    assert {(each.first, each.second) for each in found.tests()} == {("long", "short")}


@pytest.mark.parametrize(
    ("short", "by_ppl", "by_krcu"),
    [(2.5, "holds", "holds"), (1.5, "reversed", "reversed"), (2.0, "below the noise", "below the noise")],
)
def test_orderings_hold_are_reversed_or_below_the_noise(
    short: float, by_ppl: str, by_krcu: str, tmp_path: Path
) -> None:
    written = lines(STUDY, {"long": 2.0, "short": short})
    found = findings(tmp_path, STUDY, written)
    (by_perplexity,), (by_reset,) = found.orderings("ppl"), found.orderings("krcu")
    for each, verdict in ((by_perplexity, by_ppl), (by_reset, by_krcu)):
        assert (each.better, each.worse, each.verdict) == ("long", "short", verdict)
    assert by_perplexity.published == pytest.approx(math.log(6.5 / 5.9))
    assert by_reset.published == pytest.approx(0.01)
    assert ("Reversed: long over short." in page(tmp_path, STUDY, written)) == (by_ppl == "reversed")


def test_equal_published_numbers_order_nothing(tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["variant"][1]["paper"] = {"ppl": 5.9}
    study = parse_study(tables)
    found = findings(tmp_path, study, lines(study, {"long": 2.0, "short": 2.5}))
    assert (found.orderings("ppl"), found.orderings("krcu")) == ([], [])


def test_a_tenth_of_the_memory_is_compared_in_words(tmp_path: Path) -> None:
    written = [
        *lines(STUDY, {"long": 2.0}, memory=1000),
        *lines(STUDY, {"short": 2.0}, memory=101),
        *lines(STUDY, {"short, int8": 2.5}, memory=100),
    ]
    text = page(tmp_path, STUDY, written)
    (said,) = re.findall(r"^- short, int8: perplexity is (.*)$", text, re.MULTILINE)
    assert re.fullmatch(
        r"higher \(\+0\.\S+ ± \S+\); exact recall is lower \(-\S+ ± \S+\); transposed recall is lower \(.*\)\.", said
    )
    assert "- short: perplexity" not in text
    assert "10.1 %" in row(text, "Results", "short") or "| short | 101 | 10.1 %" in text


def test_no_small_memory_is_said(tmp_path: Path) -> None:
    text = page(tmp_path, STUDY, lines(STUDY, {"long": 2.0, "short": 2.5}))
    assert "No variant has a tenth of the bytes of long or less." in text


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=3, max_size=3))
def test_the_front_is_what_nothing_else_beats(points: list[tuple[int, int]]) -> None:
    class Given(Findings):
        def __init__(self) -> None:
            self.rows = [GivenRow(*point) for point in points]

    best = {(each.memory, each.nll) for each in Given().front(NLL)}
    for memory, nll in points:
        beaten = any(m <= memory and n <= nll and (m, n) != (memory, nll) for m, n in points)
        assert ((memory, nll) in best) == (not beaten)


class GivenRow:
    """A row as `Findings.front` sees it."""

    def __init__(self, memory: int, nll: int) -> None:
        self.memory, self.nll, self.value = memory, nll, nll

    def fact(self, _: str) -> int:
        return self.memory

    def estimate(self, _: str) -> GivenRow:
        return self


def test_names_are_text(tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["variant"][0]["name"] = "a|b *c* <d> [e](f) \x1b"
    study = parse_study(tables)
    text = page(tmp_path, study, lines(study, {tables["variant"][0]["name"]: 2.0, "short": 2.5}))
    assert r"| a\|b \*c\* \<d\> \[e\](f) \\x1b | 2 |" in text


def test_no_probe_but_whole_pieces_is_enough(tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["probes"] = {}
    study = parse_study(tables)
    found = findings(tmp_path, study, lines(study, {"long": 2.0, "short": 2.5}))
    text = write_page(found, tmp_path).read_text(encoding="utf-8")
    assert "KRCU-AUC |" not in text
    assert "(pareto.png)" in text
    assert "(krcu.png)" not in text
