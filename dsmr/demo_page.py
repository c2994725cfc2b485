"""What the demonstration's page says: every number with a sentence on what it means, in words that need no glossary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dsmr.comparison import Compared, Group
from dsmr.corpus.store import TokenStore
from dsmr.page import Figure, Number, Page, Row, drawn
from dsmr.plots import Curve, histograms, nll_by_position, training_curve
from dsmr.statistics import Comparison
from dsmr.tokens import Performance
from dsmr.version import __version__

if TYPE_CHECKING:
    from dsmr.demo import Outcome

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


def demo_page(outcome: Outcome, store: TokenStore, music: Performance, seconds: float, losses: Sequence[Curve]) -> Page:
    """Tell what came of a demonstration.

    Args:
        outcome: its numbers.
        store: its corpus.
        music, seconds: the take that was kept, and its length.
        losses: of training, as for `dsmr.plots.training_curve`.
    """
    corpus, run = outcome.corpus, outcome.run
    pieces, hours = sum(corpus.pieces.values()), corpus.seconds / 3600
    minutes = sum(outcome.seconds.values()) / 60
    lead = (
        f"A program composed {pieces} piano pieces, {hours:.1f} hours of music. A small Transformer that reads whole "
        f"pieces, with a memory of its own in every layer, learned from them for {outcome.seconds['train']:.0f} seconds. "
        f"Then it played this, from nothing. All of it took {minutes:.1f} minutes on one computer's processor."
    )
    kept = outcome.group.music[outcome.chosen]
    return Page(
        title="Piano music by a model that has just learned to play",
        lead=[lead],
        warnings=[f"This demonstration did not come out as it should: {each}." for each in outcome.failures],
        music=music,
        seconds=seconds,
        music_caption=(
            f"Take {outcome.chosen + 1} of {len(outcome.takes)}, {seconds:.0f} seconds: the one most like the corpus. "
            "Click the notes to hear them from there; the space bar plays and pauses, the arrow keys go five seconds "
            "back and forth."
        ),
        numbers=list(_numbers(outcome)),
        figures=list(_figures(outcome, store, kept, losses)),
        rows=list(_rows(outcome.group, kept, store)),
        rows_caption=(
            f"Beside {outcome.group.reference.profile.excerpts:,} excerpts of the training pieces that are as long. "
            "What 98 of 100 of them keep within is usual; of distances, what 95 of 100 stay below."
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
            f"The same model on the same tokens, made to forget everything every {scores.reset.reset_every:,} tokens, as "
            "models that read short crops do. The difference is what longer memory is worth.",
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
        f"In {run.step:,} steps. A token is one event: a key pressed or released, a pause, a change of strength. "
        "Models of record see thousands of times as many.",
        f"{run.tokens_per_second:,.0f} a second",
    )
    yield Number(
        "Time in all",
        f"{sum(outcome.seconds.values()):,.0f} s",
        "To " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items()) + ".",
    )


def _figures(outcome: Outcome, store: TokenStore, kept: Compared, losses: Sequence[Curve]) -> Iterator[Figure]:
    first, last = (float(losses[-1].y[i]) for i in (0, -1))  # type: ignore[index]
    yield Figure(
        "Learning",
        "The loss while the model trained: lower means that it was less surprised by the next event. The right-hand scale "
        "is the same as a perplexity. The validation pieces are never trained on.",
        f"Loss over tokens seen. On validation pieces it goes from {first:.2f} to {last:.2f} nats per token.",
        drawn(lambda path: training_curve(losses, path)),
    )
    by_position = outcome.assessment.whole.by_position()
    yield Figure(
        "What it gains from having heard more",
        "The loss by position in the piece. If memory helps, the line of whole pieces lies below that of the model whose "
        "context is cleared, from where the first clearing happens.",
        f"Loss by position. Whole pieces: {by_position[0].nll:.2f} nats per token over the first 1,024 tokens, "
        f"{by_position[-1].nll:.2f} over the last.",
        drawn(lambda path: nll_by_position(outcome.assessment.curves(), path)),
    )
    corpus = outcome.group.reference.profile.counts
    yield Figure(
        "What it plays",
        "Histograms of the music above, as a line, over those of the corpus, in grey. Where the line leaves the grey, the "
        "model plays what the corpus does not.",
        "Six histograms: pitch class, interval, time to the next note, velocity, notes at once, notes per second.",
        drawn(lambda path: histograms(corpus, {"this music": kept.histograms}, path)),
    )


def _rows(group: Group, kept: Compared, store: TokenStore) -> Iterator[Row]:
    for each in kept.numbers:
        yield Row(_name(each.name), f"{each.value:.3g}", _range(each), each.within, SENTENCES[each.name])
    for each in kept.distances:
        if math.isfinite(each.value):
            name = f"{_name(each.feature)}, distance"
            usual = f"up to {each.high:.2f}"
            yield Row(name, f"{each.value:.2f} bits", usual, each.value <= each.high, FEATURE_SENTENCES[each.feature])
    for own, (harmony, recurrence) in zip(kept.self_similarity, kept.similar, strict=True):
        if math.isfinite(own.harmony) and math.isfinite(harmony.low):
            sentence = "How alike the notes in use are to those so long before: 1 is the same key."
            name = f"Harmony, {own.distance:,} tokens apart"
            yield Row(name, f"{own.harmony:.2f}", _range(harmony), harmony.within, sentence)
        if math.isfinite(own.recurrence) and math.isfinite(recurrence.low):
            sentence = "The share of notes in passages of eight whose intervals were heard so long before: returns."
            name = f"Recurrence, {own.distance:,} tokens apart"
            yield Row(name, f"{own.recurrence:.2f}", _range(recurrence), recurrence.within, sentence)
    for each in kept.quotations:
        unit = "tokens" if each.equality == "tokens" else "notes"
        usual, within = "", None
        if group.reference.quoted:
            median, most = group.reference.quoted[each.equality]
            usual, within = f"{median:.0f}, at most {most}", each.length <= most
        where = "" if each.piece is None else f" It is in “{store.pieces[each.piece].title}”, too."
        sentence = f"{EQUAL[each.equality]}{where} Beside it: what pieces that were held out share with the training pieces."
        yield Row(f"Longest quotation, {each.equality}", f"{each.length} {unit}", usual, within, sentence)


def _footer(outcome: Outcome) -> Iterator[str]:
    machine = outcome.to_dict()["machine"]
    yield (
        f"Made by dsmr {__version__} with PyTorch {machine['torch']} and Python {machine['python']} on {machine['system']}, "
        f"{machine['threads']} threads, without a network. All numbers are in metrics.json beside this page, the music is "
        "in music.mid and music.wav, the other takes are in takes/."
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.1f} – {interval[1]:.1f}, 95 % of resampled pieces"


def _range(each: Comparison) -> str:
    return f"{each.low:.2g} – {each.high:.2g}"


def _name(name: str) -> str:
    return name.replace("_", " ").capitalize()
