"""Page of the demonstration: every number with a sentence on what it means, in words that need no glossary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dsmr.demo.html import Number, Page, Picture, Row, drawn
from dsmr.demo.outcome import Outcome
from dsmr.evaluation.figures import draw_krcu, draw_returns
from dsmr.music.analysis.comparison import Compared, Group
from dsmr.music.analysis.panels import histogram_panels
from dsmr.music.analysis.statistics import Comparison
from dsmr.music.tokens import Performance
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


def demo_page(outcome: Outcome, music: Performance, seconds: float, losses: Sequence[Curve]) -> Page:
    """Tell what came of a demonstration.

    Args:
        outcome: its numbers.
        music, seconds: the take that was kept, and its length.
        losses: of training, as for `dsmr.plots.training_curve`.
    """
    corpus = outcome.corpus
    pieces, hours = sum(corpus.pieces.values()), corpus.seconds / 3600
    minutes = sum(outcome.seconds.values()) / 60
    lead = (
        f"A program composed {pieces} piano pieces, {hours:.1f} hours of music. A small Transformer that reads whole "
        f"pieces, with a memory of its own in every layer, learned from them for {outcome.seconds['train']:.0f} "
        f"seconds. Then it played this, from nothing. All of it took {minutes:.1f} minutes on one computer."
    )
    kept = outcome.group.music[outcome.chosen]
    return Page(
        title="Piano music by a model that has just learned to play",
        lead=[lead],
        warnings=[
            f"This demonstration did not come out as it should: {each.replace('_', ' ')}." for each in outcome.failures
        ],
        music=music,
        seconds=seconds,
        music_caption=(
            f"Take {outcome.chosen + 1} of {len(outcome.takes)}, {seconds:.0f} seconds: the one most like the corpus. "
            "Click the notes to hear them from there; the space bar plays and pauses, the arrow keys go five seconds "
            "back and forth."
        ),
        numbers=list(_numbers(outcome)),
        figures=list(_figures(outcome, kept, losses)),
        rows=list(_rows(outcome, outcome.group, kept)),
        rows_caption=(
            f"Beside {outcome.group.reference.profile.excerpts:,} excerpts of the training pieces that are as long. "
            "What 98 of 100 of them keep within is usual, or all of them where there are fewer; of distances, what 95 "
            "of 100 stay below. Where there are too few to tell, nothing is said."
        ),
        footer=list(_footer(outcome)),
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
    if outcome.probed.returns is not None:
        exact = outcome.probed.returns.to_dict()["kinds"]["exact"]
        yield Picture(
            "What memory is worth when a theme comes back",
            "The composer labelled where themes return. The gain is how much better a theme is predicted when it "
            "returns than when it was first heard, by how long ago that was. A memory that reaches back so far "
            "(dotted: that of a layer; dashed: of all together) can copy; a shorter one cannot, and what it still "
            "gains comes from knowing the piece's keys and textures by then.",
            f"Return gain by distance, with intervals. {exact['returns']} exact returns gain "
            + (
                f"{exact['gain']:.3f} nats per token on average."
                if exact["gain"] is not None
                else "nothing: there are none."
            ),
            drawn(lambda path: draw_returns([outcome.probed], path, "")),
        )
    corpus = outcome.group.reference.profile.counts
    yield Picture(
        "What it plays",
        "Histograms of the music above, as a line, over those of the corpus, in grey. Where the line leaves the grey, "
        "the model plays what the corpus does not.",
        "Six histograms: pitch class, interval, time to the next note, velocity, notes at once, notes per second.",
        drawn(lambda path: histogram_panels(corpus, {"this music": kept.histograms}, path)),
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
        "folder are all numbers (metrics.json), the music (music.mid, music.wav) and the other takes (takes)."
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "too few pieces for an interval" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f} (95 %)"


def _range(each: Comparison) -> str:
    return f"{each.low:.2g} to {each.high:.2g}"


def _name(name: str) -> str:
    return name.replace("_", " ").capitalize()
