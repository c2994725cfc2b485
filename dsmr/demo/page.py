"""Page of the demonstration: every number with a sentence on what it means, in words that need no glossary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from dsmr.demo.html import Number, Picture, Row, drawn, figure, numbers, section, table, text
from dsmr.demo.outcome import Outcome
from dsmr.evaluation.figures import draw_krcu, draw_recall, draw_returns
from dsmr.evaluation.probes.bins import Bin
from dsmr.evaluation.probes.recall import Recall
from dsmr.music.analysis.comparison import Compared, Group
from dsmr.music.analysis.panels import histogram_panels, repetition_rows
from dsmr.music.analysis.repetition import FEWEST_KEYS, LONG_BEFORE, PASSAGE, Repetition
from dsmr.music.analysis.statistics import Comparison
from dsmr.music.player.page import Playable, write_page
from dsmr.plots import Curve, nll_by_position, training_curve
from dsmr.version import __version__

SENTENCES = {
    "notes_per_second": "How many notes begin in a second, on average.",
    "busiest": "Notes a second in the five seconds where they are most.",
    "pitch_range": "Semitones from the lowest to the highest note; a piano has 87.",
    "silence": "The share of time in which nothing sounds.",
    "polyphony": "Notes that sound at once, on average. A model that forgets to release keys has too many.",
    "velocity_mean": "How hard the keys are struck, of 127.",
    "velocity_deviation": "How much that varies.",
    "note_seconds_median": "How long a note lasts, in seconds: half of them last longer.",
}
ORDER_SENTENCES = {
    "out_of_key": "The share of notes outside the scale that fits best, every sixteen notes.",
    "figures": "How many different figures of three notes there are; 1 is as many as the same notes make in any order.",
    "rhythms": "How many different rhythms of four chords there are; 1 is as many as the same times make in any order.",
}
FEATURE_SENTENCES = {
    "pitch_classes": "Which of the twelve notes are played: 0 bits is just as in the corpus, 1 bit nothing like it.",
    "intervals": "Steps and leaps from each note to the next.",
    "inter_onset": "The time from each note to the next.",
    "velocity": "Which strengths are struck how often.",
    "polyphony": "How often how many notes sound at once.",
    "density": "How often the music is how dense.",
}
EQUAL = {
    "pitches": "The same intervals in the same order, in any rhythm and any key.",
    "rhythm": "The same intervals in about the same rhythm, in any key.",
    "tokens": "The very same tokens, dynamics and hundredths of a second included, in any key.",
}


def write_demo_page(path: Path, outcome: Outcome, takes: Sequence[Playable], losses: Sequence[Curve]) -> None:
    """Tell what came of a demonstration.

    Args:
        path: the HTML file to write.
        outcome: its numbers.
        takes: the music, in the order of the page.
        losses: of training, as for `dsmr.plots.training_curve`.
    """
    corpus, group = outcome.corpus, outcome.group
    pieces, hours = sum(corpus.pieces.values()), corpus.seconds / 3600
    minutes = sum(outcome.seconds.values()) / 60
    kept = group.music[0]
    lead = (
        f"A program composed {pieces} piano pieces, {hours:.1f} hours of music. A small Transformer that reads whole "
        f"pieces, with a memory of its own in every layer, learned from them for {outcome.seconds['train']:.0f} "
        f"seconds. Then it played, from nothing. All of it took {minutes:.1f} minutes on one computer."
    )
    shown = outcome.by.count(outcome.by[0])
    first = f"Each model made {outcome.tries} takes; the {shown} most like the corpus are here, the best first."
    others = [by for by in dict.fromkeys(outcome.by) if by != outcome.by[0]]
    beside = f" Beside it plays {' and '.join(others)}." if others else ""
    sections = [
        *_memory(outcome),
        _returns(outcome),
        section("numbers", "The model, in numbers", numbers(list(_numbers(outcome)))),
        section("figures", "What it learned", *map(figure, _figures(outcome, kept, losses))),
        section("music", "Take 1, beside the corpus", text(_usual(group)), table(list(_rows(outcome, group, kept)))),
    ]
    write_page(
        path,
        takes,
        title="Piano music by a model that has just learned to play",
        lead=[lead, first + beside],
        warnings=[
            *(f"This demonstration did not come out as it should: {each}." for each in outcome.failures),
            *(f"The best take is not like the corpus: {each.replace('_', ' ')}." for each in outcome.remarks),
        ],
        sections="\n".join(sections),
        style=files("dsmr.demo").joinpath("page.css").read_text(encoding="utf-8"),
        footer=list(_footer(outcome)),
    )


def _memory(outcome: Outcome) -> Iterator[str]:
    """What memory gains, by distance; nothing if the corpus has no returns that tell."""
    found, gain = outcome.probed.recall, outcome.probed.returns
    if found is None:
        return
    seconds = outcome.corpus.seconds / max(sum(outcome.corpus.tokens.values()), 1)
    parts = [
        text(
            "The composer noted where themes come back. The model reads each such return twice: with all that it has "
            "heard, and with the theme and everything before it forgotten, but nothing since. The difference of the "
            "losses is what remembering the theme is worth, in nats per token. At 0.69 nats, what really comes is "
            "twice as likely to the model; at 0 the memory is of no use."
        ),
        numbers([_gain(each, seconds) for each in found.distance_bins("exact")]),
        figure(
            Picture(
                "What remembering a theme is worth",
                "By how long ago the theme was heard, with 95 % intervals over pieces; where one leaves zero, the gain "
                "is no chance. A memory that reaches back so far (dotted: that of a layer; dashed: of all together) "
                "can copy. Themes that come back in another key, on the right, must be moved as well.",
                f"Recall by distance, with intervals. Exact returns: {_in_words(found)}.",
                drawn(lambda path: draw_recall([outcome.probed], path, "")),
            )
        ),
    ]
    if gain is not None:
        exact = gain.to_dict()["kinds"]["exact"]
        mean = "nothing: there are none" if exact["gain"] is None else f"{exact['gain']:.3f} nats per token on average"
        parts.append(
            figure(
                Picture(
                    "How much better a theme is foreseen when it returns",
                    "The loss where a theme was first heard, minus the loss where it returns. All returns are in this, "
                    "while the numbers above rest on a sample; but it also counts what a model gains by knowing the "
                    "piece's keys and textures by then, so that it need not be zero where memory ends.",
                    f"Return gain by distance, with intervals. {exact['returns']} exact returns gain {mean}.",
                    drawn(lambda path: draw_returns([outcome.probed], path, "")),
                )
            )
        )
    yield section("memory", "What its memory is worth", *parts)


def _gain(each: Bin, seconds: float) -> Number:
    """The recall of exact returns from one distance; `seconds` is how long a token lasts."""
    if each.stop is None:
        away, last = f"{each.start:,} tokens ago or more", f"{each.start * seconds:.0f} s or more"
    else:
        away = f"{each.start:,} to {each.stop:,} tokens ago"
        last = f"{each.start * seconds:.0f} to {each.stop * seconds:.0f} s"
    if each.interval is None:
        sure = "There are too few pieces to tell chance from gain."
    elif each.interval[0] > 0:
        sure = f"What comes is {math.exp(each.mean):.2f} times as likely with the theme in memory; this is no chance."
    elif each.interval[1] < 0:
        sure = "The whole interval is below zero: the model does better without the theme."
    else:
        sure = "The interval holds zero: no gain is shown."
    return Number(
        f"A theme of {away}",
        _signed(each.mean),
        f"{sure} About {last} before; {each.tokens:,} tokens of {each.pieces:,} pieces.",
        "" if each.interval is None else f"{' to '.join(map(_signed, each.interval))} (95 %)",
    )


def _in_words(found: Recall) -> str:
    return ", ".join(f"{_signed(each.mean)} at {each.name} tokens" for each in found.distance_bins("exact"))


def _signed(nats: float) -> str:
    """What rounds to 0 is no less than 0."""
    return f"{round(nats, 3) + 0.0:+.3f}"


def percent(share: float) -> str:
    """A share in whole hundredths."""
    return f"{100 * share:.0f} %"


def _returns(outcome: Outcome) -> str:
    """What the takes play again, beside the corpus and its shuffled snippets."""
    by: dict[str, list[Repetition]] = {}
    for name, each in zip(outcome.by, outcome.repetition, strict=True):
        by.setdefault(name, []).append(each)
    said = [
        f"{each.name} {percent(each.share)} (the corpus {percent(np.median(each.corpus))}, shuffled "
        f"{percent(np.median(each.shuffled))})"
        for each in outcome.repetition
        if len(each.corpus) and len(each.shuffled)
    ]
    return section(
        "returns",
        "What its music remembers",
        text(
            f"Music that remembers comes back to what it has played. Counted are notes in passages of {PASSAGE}, on "
            f"{FEWEST_KEYS} keys or more, whose intervals were played {LONG_BEFORE:,} tokens before or earlier, in "
            "whatever key and tempo; in the piano roll above they have a line below them. Each take stands beside "
            "excerpts of the corpus that are as long, and beside snippets of the corpus, each from another piece, one "
            "after the other: what comes back there comes back by chance. A model that goes in circles repeats itself "
            "more than the corpus does."
        ),
        figure(
            Picture(
                "How much is played again",
                "A row a take. The line in each bar is its median.",
                f"Shares of notes that are played again, at the median: {'; '.join(said)}."
                if said
                else "The takes are too short to play anything again.",
                drawn(lambda path: repetition_rows(by, path)),
            )
        ),
    )


def _usual(group: Group) -> str:
    return (
        f"Beside {group.reference.profile.excerpts:,} excerpts of the training pieces that are as long. What 98 of 100 "
        "of them keep within is usual, or all of them where there are fewer; of distances, what 95 of 100 stay below. "
        "Where there are too few to tell, nothing is said."
    )


def _numbers(outcome: Outcome) -> Iterator[Number]:
    scores, run = outcome.assessment, outcome.run
    whole = scores.whole
    yield Number(
        "Perplexity, whole pieces",
        f"{whole.ppl:.1f}",
        f"Between how many equally likely next events the model hesitates, on {whole.tokens:,} tokens of "
        f"{len(whole.pieces)} pieces that it never trained on. Lower is better.",
        _interval(whole.ppl_interval()),
    )
    if scores.reset is not None:
        yield Number(
            "Perplexity, context cleared",
            f"{scores.reset.ppl:.1f}",
            f"The same model on the same tokens, made to forget everything every {scores.reset.reset_every:,} tokens, "
            "as models that read short crops do. The difference is what longer memory is worth to it.",
            _interval(scores.reset.ppl_interval()),
        )
    assert scores.bigram is not None
    yield Number(
        "Perplexity of a bigram",
        f"{scores.bigram.ppl:.1f}",
        "What can be known by counting which event follows which. A model above this has learned nothing else.",
        _interval(scores.bigram.ppl_interval()),
    )
    yield Number(
        "Tokens learned from",
        f"{run.tokens / 1e6:.2f} M",
        f"In {run.step:,} steps. A token is one event: a key pressed or released, a pause, a change of strength.",
        f"{run.tokens_per_second:,.0f} a second",
    )
    span = outcome.probed.span
    yield Number(
        "Memory of a layer",
        f"{max(span.horizons):,}",
        f"What the layers that remember longest can look up; others keep {min(span.horizons):,}. Through all layers, "
        f"what is played can depend on {span.reach:,} tokens. It is the same however long the music gets.",
        "tokens",
    )
    yield Number(
        "Time in all",
        f"{sum(outcome.seconds.values()):,.0f} s",
        "To " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items()) + ".",
    )


def _figures(outcome: Outcome, kept: Compared, losses: Sequence[Curve]) -> Iterator[Picture]:
    validation = np.asarray(losses[-1].y)
    yield Picture(
        "Learning",
        "The loss while the model trained: lower means that it was less surprised by the next event. The scale on the "
        "right says the same as a perplexity. Validation pieces are never trained on.",
        f"Loss over tokens seen. On validation pieces it goes from {validation[0]:.2f} to {validation[-1]:.2f} nats.",
        drawn(lambda path: training_curve(losses, path)),
    )
    by_position = outcome.assessment.whole.by_position()
    yield Picture(
        "What it gains from having heard more",
        "The loss by position in the piece, with 95 % intervals over pieces. If memory helps, the line of whole pieces "
        "lies below that of the model whose context is cleared, from where that happens first.",
        f"Loss by position. Whole pieces: {by_position[0].nll:.2f} nats per token over the first 1,024 tokens, "
        f"{by_position[-1].nll:.2f} over the last.",
        drawn(lambda path: nll_by_position(outcome.assessment.curves(), path)),
    )
    if (krcu := outcome.probed.krcu) is not None:
        reset, end = krcu.resets.at[0], krcu.resets.end
        yield Picture(
            "What the memory is used for",
            f"The loss from token {reset:,} of a piece on if the memory is cleared there, minus the loss if it is not. "
            "Right after the clearing the last few bars are missing, so every model loses something; what it still "
            "loses later is what it made of things heard long ago. Past the dashed line nothing can be left. Intervals "
            "that cross zero have shown nothing.",
            f"KRCU: loss with the memory cleared minus loss, by position from {reset:,} to {end:,} tokens: "
            f"{krcu.bins[0].mean:.3f} nats per token in the first {krcu.resets.width} tokens, {krcu.auc:.4f} in all.",
            drawn(lambda path: draw_krcu([outcome.probed], path, "")),
        )
    corpus = outcome.group.reference.profile.counts
    yield Picture(
        "What it plays",
        f"Histograms of {kept.name}, as a line, over those of the corpus, in grey. Where the line leaves the grey, "
        "the model plays what the corpus does not.",
        "Six histograms: pitch class, interval, time to the next note, velocity, notes at once, notes per second.",
        drawn(lambda path: histogram_panels(corpus, {kept.name: kept.histograms}, path)),
    )


def _rows(outcome: Outcome, group: Group, kept: Compared) -> Iterator[Row]:
    for each in kept.numbers:
        yield Row(_name(each.name), f"{each.value:.3g}", _range(each), each.within, SENTENCES[each.name])
    yield from _order_rows(outcome, kept)
    for far in kept.distances:
        if math.isfinite(far.value):
            name, usual = f"{_name(far.feature)}, distance", f"up to {far.high:.2f}"
            within = None if far.far is None else not far.far
            yield Row(name, f"{far.value:.2f} bits", usual, within, FEATURE_SENTENCES[far.feature])
    for own, (harmony, recurrence) in zip(kept.self_similarity, kept.similar, strict=True):
        if math.isfinite(own.harmony) and math.isfinite(harmony.low):
            sentence = "How alike the notes in use are to those so long before: 1 is the same key."
            name = f"Harmony, {own.distance:,} tokens apart"
            yield Row(name, f"{own.harmony:.2f}", _range(harmony), harmony.within, sentence)
        if math.isfinite(own.recurrence) and math.isfinite(recurrence.low):
            sentence = "The share of notes in passages of eight whose intervals were heard so long before: returns."
            name = f"Recurrence, {own.distance:,} tokens apart"
            yield Row(name, f"{own.recurrence:.2f}", _range(recurrence), recurrence.within, sentence)
    for found in kept.quotations:
        unit = "tokens" if found.equality == "tokens" else "notes"
        usual, within = "", group.reference.quotes_as_usual(found)
        if group.reference.quoted:
            median, most = group.reference.quoted[found.equality]
            usual = f"{median:.0f}, at most {most}"
        where = f" This one is in “{found.title}”, too." if found.title else ""
        sentence = f"{EQUAL[found.equality]}{where} Beside it, what held-out pieces share with those trained on."
        yield Row(f"Longest quotation, {found.equality}", f"{found.length} {unit}", usual, within, sentence)


def _order_rows(outcome: Outcome, kept: Compared) -> Iterator[Row]:
    verdict, controls = kept.order, outcome.controls
    for each in verdict.numbers:
        if math.isfinite(each.value):
            within = None if verdict.ordered is None else each.value <= each.limit
            usual = f"up to {each.limit:.2f}" if math.isfinite(each.limit) else ""
            yield Row(_name(each.name), f"{each.value:.2f}", usual, within, ORDER_SENTENCES[each.name])
    if verdict.ordered is not None:
        sentence = (
            "How much of the corpus is in no more order than this, key and figures taken together: noise has less "
            f"than 5 %. Called noise are {controls.bigram:.0%} of music by a bigram, {controls.shuffled:.0%} of "
            f"held-out pieces with their notes shuffled, and {controls.held_out:.0%} of these pieces as they are."
        )
        yield Row("Music or noise", f"{verdict.p:.0%}", "over 5 %", verdict.ordered, sentence)


def _footer(outcome: Outcome) -> Iterator[str]:
    machine = outcome.to_dict()["machine"]
    yield (
        f"Made by dsmr {__version__} with PyTorch {machine['torch']} and Python {machine['python']} on "
        f"{machine['system']}, {machine['threads']} threads. The page needs no network and nothing beside it. In its "
        f"folder are all numbers (metrics.json), take 1 (music.mid, music.wav) and all the takes "
        "(takes)."
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "too few pieces for an interval" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f} (95 %)"


def _range(each: Comparison) -> str:
    return f"{each.low:.2g} to {each.high:.2g}"


def _name(name: str) -> str:
    return name.replace("_", " ").capitalize()
