"""Page of a study: its findings in Markdown, with figures, made from the study and its results alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dsmr.files import filled
from dsmr.study.estimates import FEWEST_PIECES, LEAST_HELD, Estimate
from dsmr.study.figures import KRCU_FIGURE, PARETO_FIGURE, RECALL_FIGURE, draw
from dsmr.study.findings import KRCU, NLL, Findings, Ordering, Row, Test, recall_from
from dsmr.text import escaped
from dsmr.units import format_bytes, format_span, format_tokens

PAGE = "page.md"
WHOLE = "PPL, whole pieces"
TENTH = 0.1
"""Memories of at most this share of the baseline's are compared with it in words."""
CAPTIONS = {
    RECALL_FIGURE: "Recall by distance",
    KRCU_FIGURE: "KRCU after the reset",
    PARETO_FIGURE: "Perplexity and recall against the bytes of memory; the line joins what nothing else beats",
}


def write_page(findings: Findings, folder: Path) -> Path:
    """Write the page and its figures into a folder; returns the page's path.

    Raises:
        OSError: they cannot be written; the error names the folder.
    """
    with filled(folder) as partial:
        figures = draw(findings, partial)
        (partial / PAGE).write_text(page_text(findings, figures), encoding="utf-8")
    return folder / PAGE


def page_text(findings: Findings, figures: Sequence[str]) -> str:
    """The page that shows figures of these files."""
    return "\n".join(_lines(findings, figures))


def _lines(findings: Findings, figures: Sequence[str]) -> Iterator[str]:
    yield f"# {_text(findings.study.name)}\n"
    yield from _setting(findings)
    yield "## Results\n"
    yield from _results(findings)
    yield from _costs(findings)
    yield "## What memory buys\n"
    yield from _fronts(findings)
    for name in figures:
        yield f"![{CAPTIONS[name]}]({name})\n"
    yield from _differences(findings)
    yield from _orderings(findings)
    yield from _truncation(findings)


def _setting(findings: Findings) -> Iterator[str]:
    study, nll = findings.study, findings.sums["nll"]
    yield (
        f"{len(study.variants)} variants with {_count(len(study.seeds), 'seed')} each, probed on {len(nll.total):,} "
        f"whole pieces of the {study.split} split, {int(nll.tokens.sum()):,} tokens."
    )
    trained = [
        result.facts["run"] for row in findings.rows if row.variant.evaluates is None for result in row.results.values()
    ]
    tokens, hours = sum(run["tokens"] for run in trained), sum(run["seconds"] for run in trained) / 3600
    yield f"{_count(len(trained), 'training')} read {tokens:,} tokens in {hours:.1f} hours of processes.\n"
    if findings.missing:
        yield "**Results are missing:**\n"
        for name, seeds in findings.missing.items():
            yield f"- {_text(name)}: {_seeds(seeds)}"
        yield ""
    yield (
        "Numbers are means over seeds. ± is half of a 95 % interval over pieces and seeds, both taken for samples "
        "(crossed random effects, Satterthwaite's degrees of freedom; `dsmr/study/estimates.py` has the formula). "
        "Variants are compared on the same pieces, seed by seed."
    )
    several = [count for row in findings.rows if (count := len(row.results)) > 1]
    if several:
        held = max(held for seeds, held in LEAST_HELD.items() if seeds <= min(several))
        yield f"With {min(several)} seeds, at least {held * 100:.0f} % of such intervals hold the truth."
    single = [row.name for row in findings.rows if len(row.results) == 1]
    if len(single) == len(findings.rows):
        yield "**With one seed, the intervals are over pieces only: they do not say what another seed would change.**"
    elif single:
        yield f"**With one seed, intervals are over pieces only: {_texts(single)}.**"
    if len(nll.total) < FEWEST_PIECES:
        yield f"**{_count(len(nll.total), 'piece')} are too few for intervals; at least {FEWEST_PIECES} are needed.**"
    yield ""


def _results(findings: Findings) -> Iterator[str]:
    published = [each for each in ("ppl", "krcu") if any(_published(row, each) for row in findings.rows)]
    headings = ["variant", "seeds", "best val PPL", *(["in the paper"] if "ppl" in published else []), WHOLE]
    for name in findings.quantities:
        headings += [] if name == NLL else [name]
        headings += ["in the paper"] if name == KRCU and "krcu" in published else []
    rows = []
    for row in findings.rows:
        cells = [_text(row.name), f"{len(row.results)}", f"{row.best_ppl:.2f}" if row.variant.evaluates is None else ""]
        cells += [_published(row, "ppl")] if "ppl" in published else []
        for name in findings.quantities:
            cells += [_perplexity(row.estimate(NLL)) if name == NLL else _nats(row.estimate(name), name)]
            cells += [_published(row, "krcu")] if name == KRCU and "krcu" in published else []
        rows.append(cells)
    yield from _table(headings, rows)
    yield "PPL: lower is better. KRCU-AUC and recall, in nats per token: more is more use of the memory.\n"


def _costs(findings: Findings) -> Iterator[str]:
    base = findings.baseline
    rows = []
    for row in findings.rows:
        memory, trained = row.fact("horizon_bytes"), row.variant.evaluates is None
        peak = row.peak_memory
        rows.append(
            [
                _text(row.name),
                f"{memory:,.0f}",
                f"{memory / base.fact('horizon_bytes'):.1%}".replace("%", " %") if base else "",
                f"{row.fact('parameters'):,.0f}",
                format_bytes(peak) if trained and peak is not None else "",
                f"{row.fact('tokens_per_second'):,.0f}" if trained else "",
            ]
        )
    yield from _table(
        ["variant", "state bytes a lane", "of the baseline's", "parameters", "peak memory, training", "tokens/s"], rows
    )
    yield "State bytes are those of the entries that layers may see, as the variant was probed.\n"


def _fronts(findings: Findings) -> Iterator[str]:
    for title, quantity in (("perplexity", NLL), ("recall", recall_from("exact"))):
        if quantity in findings.quantities:
            best = _texts([row.name for row in findings.front(quantity)])
            yield f"- Nothing has better {title} at as few bytes as: {best}."
    yield ""
    base = findings.baseline
    if base is None:
        return
    most = TENTH * base.fact("horizon_bytes")
    small = [row.name for row in findings.rows if row.fact("horizon_bytes") <= most]
    if not small:
        yield f"No variant has a tenth of the bytes of {_text(base.name)} or less.\n"
        return
    tests = {(each.first, each.quantity): each for each in findings.tests()}
    yield f"With a tenth of the bytes of {_text(base.name)} or less, compared with it:\n"
    for name in small:
        parts = [
            f"{title} {_compared(tests[name, quantity])}"
            for title, quantity in (
                ("perplexity is", NLL),
                ("exact recall is", recall_from("exact")),
                ("transposed recall is", recall_from("transposed")),
            )
            if (name, quantity) in tests
        ]
        yield f"- {_text(name)}: {'; '.join(parts)}."
    yield ""


def _differences(findings: Findings) -> Iterator[str]:
    tests = findings.tests()
    if not tests:
        if findings.baseline is None:
            yield f"Differences from {_text(findings.study.baseline)} wait for its results.\n"
        return
    yield f"## Differences from {_text(findings.study.baseline)}\n"
    cells = {(each.first, each.quantity): each for each in tests}
    names = list(dict.fromkeys(each.first for each in tests))
    yield from _table(
        ["variant", *findings.quantities],
        [[_text(name), *(_difference(cells[name, quantity]) for quantity in findings.quantities)] for name in names],
    )
    yield (
        "Variant minus baseline, in nats per token: ± half of the 95 % interval, and the p-value corrected for all "
        f"{len(tests)} tests of this table (Holm's method). A difference of 0.01 in NLL is 1 % of perplexity.\n"
    )


def _orderings(findings: Findings) -> Iterator[str]:
    for title, published, quantity in (
        ("perplexity", "ppl", "NLL, worse - better"),
        ("KRCU", "krcu", "KRCU-AUC, better - worse"),
    ):
        found = findings.orderings(published)  # type: ignore[arg-type]
        if not found:
            continue
        verdicts = Counter(each.verdict for each in found)
        yield f"## The paper's orderings by {title}\n"
        yield (
            f"Of {_count(len(found), 'pair')} that the paper orders, {verdicts['holds']} hold here, "
            f"{verdicts['reversed']} are reversed, and in {verdicts['below the noise']} the difference is below the "
            f"noise. After Holm's correction for all of them, {_certain(found, 'holds')} still hold and "
            f"{_certain(found, 'reversed')} are still reversed.\n"
        )
        if turned := [f"{each.better} over {each.worse}" for each in found if each.verdict == "reversed"]:
            yield f"Reversed: {_texts(turned)}.\n"
        yield "<details><summary>All pairs, those first that are furthest apart in the paper</summary>\n"
        yield from _table(
            ["better in the paper", "worse", "apart in the paper", quantity, "p", "p, Holm", "here"],
            [
                [
                    _text(each.better),
                    _text(each.worse),
                    f"{each.published:.4f}",
                    _signed(each.test),
                    _p(each.test.difference.p),
                    _p(each.test.p_holm),
                    each.verdict,
                ]
                for each in found
            ],
        )
        yield "</details>\n"
    if any(row.variant.paper for row in findings.rows):
        yield (
            "An ordering holds or is reversed if the 95 % interval of the difference leaves 0. The paper's numbers are "
            "of another model, corpus and length; its perplexity is the best while training, ours that of whole pieces."
            "\n"
        )


def _truncation(findings: Findings) -> Iterator[str]:
    cuts = findings.study.questions.cuts
    if cuts is None:
        return
    ends = list(zip(cuts.buckets, cuts.buckets[1:], strict=False))
    columns = [
        (keep, number)
        for keep in cuts.keeps
        for number, (_, stop) in enumerate(ends)
        if keep < stop and findings.sums[f"keep {keep}"].count[:, number].any()
    ]
    yield "## With the history cut\n"
    rows = []
    for row in findings.rows:
        cells = {keep: row.bins(f"keep {keep}") for keep in cuts.keeps}
        rows.append([_text(row.name), *(_nats(cells[keep][number], "keep") for keep, number in columns)])
    headings = [f"last {format_tokens(keep)}, at {format_span(*ends[number])}" for keep, number in columns]
    yield from _table(["variant", *headings], rows)
    yield "NLL with only the last tokens known, minus NLL, in nats per token, by position in the piece.\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _compared(test: Test) -> str:
    """A difference from the baseline in words."""
    found = test.difference
    interval = found.interval
    if interval is None or interval[0] <= 0 <= interval[1]:
        return f"not different by more than the noise ({_signed(test)})"
    return f"{'higher' if found.value > 0 else 'lower'} ({_signed(test)})"


def _certain(found: Sequence[Ordering], verdict: str) -> int:
    return sum(each.verdict == verdict and each.test.p_holm is not None and each.test.p_holm < 0.05 for each in found)


def _difference(test: Test) -> str:
    return f"{_signed(test)}, p {_p(test.p_holm)}" if test.p_holm is not None else _signed(test)


def _perplexity(nll: Estimate) -> str:
    if (interval := nll.interval) is None:
        return f"{math.exp(nll.value):.2f}"
    return f"{math.exp(nll.value):.2f} ± {(math.exp(interval[1]) - math.exp(interval[0])) / 2:.2f}"


def _nats(estimate: Estimate, quantity: str, sign: str = "") -> str:
    """A mean or a difference with its uncertainty; recall is large enough to be told with a digit less."""
    if math.isnan(estimate.value):
        return ""
    digits = 3 if quantity.startswith("recall") else 4
    value = f"{estimate.value:{sign}.{digits}f}"
    return value if estimate.half_width is None else f"{value} ± {estimate.half_width:.{digits}f}"


def _signed(test: Test) -> str:
    return _nats(test.difference, test.quantity, "+")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _published(row: Row, name: str) -> str:
    paper = row.variant.paper or {}
    return f"{paper[name]:.{2 if name == 'ppl' else 4}f}" if name in paper else ""


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _texts(names: Iterable[str]) -> str:
    return "; ".join(map(_text, names))


def _text(name: str) -> str:
    """A name as text: without what Markdown takes for its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", escaped(name))
