"""Demonstration run: from nothing to a model that has read whole pieces, a report of what it learned, and new music.

The built-in pianist composes a corpus, a small model is trained on it for some minutes, scored beside its baselines,
and plays; other models may play beside it. The demonstration checks itself: the model must predict better than a
bigram, and it says whether what it plays is as dense, as wide, as silent and as ordered as the corpus is. Nothing is
downloaded.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.text import Text

from dsmr.audience import Audience
from dsmr.claim import claimed, is_dropping, is_file, is_folder
from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.reference import corpus_of
from dsmr.corpus.store import Return, TokenStore
from dsmr.demo.controls import control
from dsmr.demo.outcome import Outcome
from dsmr.demo.page import percent, write_demo_page
from dsmr.evaluation import figures
from dsmr.evaluation import models as probes
from dsmr.evaluation.models import Probed
from dsmr.evaluation.probes.krcu import Resets
from dsmr.evaluation.probes.recall import CONTEXT
from dsmr.evaluation.probes.returns import SKIP
from dsmr.files import IN_USE, PARTIAL, filled, replaced
from dsmr.generation.sampling import Sampling
from dsmr.generation.takes import Pace, Take, generate
from dsmr.model.checkpoint import load_checkpoint
from dsmr.model.config import preset
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.model.verdict import expect_noise
from dsmr.music.analysis.comparison import compare_music
from dsmr.music.analysis.order import UsualOrder, measure_order, usual_order
from dsmr.music.analysis.panels import histogram_panels
from dsmr.music.analysis.repetition import Repetition, compare_repetition
from dsmr.music.analysis.statistics import ESSENTIAL, Range, Statistics, compare_statistics, measure, usual
from dsmr.music.midi import write_midi
from dsmr.music.player.page import Playable
from dsmr.music.roll import piano_roll
from dsmr.music.sound import write_wav
from dsmr.music.tokens import encode
from dsmr.plots import Curve, training_curve
from dsmr.process import own_random_numbers
from dsmr.training import BEST, METRICS_FILE, RunFolder, TrainingConfig, train

if TYPE_CHECKING:
    from rich.console import Console

CORPUS, RUN, METRICS = "corpus.tokens", "run", "metrics.json"
MUSIC_FILE, SOUND, ROLL = "music.mid", "music.wav", "music.png"
CURVE, HISTOGRAMS, PROBES_FOLDER, TAKES_FOLDER, PAGE = "training.png", "histograms.png", "probes", "takes", "index.html"
DEMO_MARK = "dsmr-demo.lock"
"""By which its folder is known; locked while a demonstration writes there."""
FILES = (DEMO_MARK, CORPUS, RUN, METRICS, MUSIC_FILE, SOUND, ROLL, CURVE, HISTOGRAMS, PROBES_FOLDER, TAKES_FOLDER, PAGE)
"""All that a demonstration leaves in its folder."""
_TAKE = re.compile(r"take-\d+\.mid")


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        corpus_tokens, shortest, longest: of the corpus, and of its shortest and longest pieces, about.
        training: of the model, `DEMO_MODEL`: by steps, so that it learns from as much on a slow or busy machine; the
            minutes are a bound for one that would take far too long.
        resets: where the memory is cleared inside pieces to see what it is worth: for KRCU, whose published place is
            beyond these pieces.
        recall: how many returns of each kind and distance to read again with their sources forgotten.
        tries, takes, seconds: how many pieces of music each model is to make, how many of them are kept, and how long
            each is. Small models lose themselves in some: those are kept that are most like the corpus.
        learns: whether there is time enough to ask the model for a better prediction than a bigram's.
    """

    corpus_tokens: int
    shortest: int
    longest: int
    training: TrainingConfig
    resets: Resets
    recall: int
    tries: int
    takes: int
    seconds: float
    learns: bool


DEMO_MODEL = preset("tiny", schedule=make_schedule("full", 4, longest=4096))
"""Four layers that all remember as much: after so few tokens they recalled more than the preset's five."""
OWN = "the model just trained"

FULL = Plan(
    corpus_tokens=1_500_000,
    shortest=1_000,
    longest=6_000,
    training=TrainingConfig(steps=750, minutes=15.0),
    resets=Resets(at=(1024,), width=512, end=4608),
    recall=64,
    tries=12,
    takes=4,
    seconds=60.0,
    learns=True,
)
QUICK = Plan(
    corpus_tokens=200_000,
    shortest=2_000,
    longest=6_000,
    training=TrainingConfig(steps=65, minutes=15.0, validations=2),
    resets=Resets(at=(1024,), width=512, end=4608),
    recall=16,
    tries=4,
    takes=4,
    seconds=20.0,
    learns=False,
)
TAKE_SAMPLING = Sampling(temperature=1.0, min_p=0.02)


def run_demo(
    out: str | os.PathLike[str],
    plan: Plan = FULL,
    *,
    seed: int = 0,
    force: bool = False,
    console: Console | None = None,
    guests: Mapping[str, Path] | None = None,
) -> Outcome:
    """Run the demonstration; `FILES` says what is in the folder then.

    Args:
        out: the folder, made if missing.
        plan: how much of everything.
        seed: another seed: another corpus, model and music.
        force: replace an older demonstration in the folder; a folder that holds anything else is never touched.
        console: where to say what is going on; None: nowhere.
        guests: checkpoints of other models that are to play as well, by the names that the page gives them.

    Raises:
        FileExistsError: the folder holds an older demonstration, without `force`, or other files, or another process
            is writing there.
        KeyboardInterrupt: Ctrl-C, also while training.
        ValueError: a guest is called as the demonstration's own model is, or its checkpoint is none.
    """
    if OWN in (guests or {}):
        raise ValueError(f"guests: expected names other than {OWN!r}")
    folder = Path(out)
    if others := _strangers(folder):
        raise FileExistsError(f"{folder}: expected a folder for the demonstration alone, got one with {others[0]}")
    with claimed(folder, DEMO_MARK, "a demonstration"):
        _make_room(folder, force)
        return _demonstrate(folder, plan, seed, console, guests or {})


def _demonstrate(folder: Path, plan: Plan, seed: int, console: Console | None, guests: Mapping[str, Path]) -> Outcome:
    """All stages, in a folder that is free."""
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, what: str, doing: str = "", unit: str = "") -> Iterator[Callable[..., None]]:
        if console is not None:
            console.print(Text.assemble((name, "bold"), f": {what}"), highlight=False)
        begun = time.monotonic()
        with Audience(console, doing, unit) as audience:
            yield audience.show
        seconds[name] = time.monotonic() - begun

    others = {name: load_checkpoint(checkpoint)[0] for name, checkpoint in guests.items()}  # or fail before the work
    about = f"the pianist composes about {plan.corpus_tokens:,} tokens"
    with stage("prepare", about, "composing", "pieces") as show:
        corpus = prepare_pianist(
            folder / CORPUS,
            seed=seed,
            tokens=plan.corpus_tokens,
            shortest=plan.shortest,
            longest=plan.longest,
            progress=show,
        )
        store = TokenStore.open(folder / CORPUS)
    training = plan.training
    tokens = (training.steps or 0) * training.lanes * training.accumulate * DEMO_MODEL.segment
    bound = f", or {training.minutes:.0f} minutes" if training.minutes else ""
    with stage("train", f"a small model, from {tokens:,} tokens{bound}"), own_random_numbers():
        torch.manual_seed(seed)
        run = train(Transformer(DEMO_MODEL), store, training, folder / RUN, console=console)
        if run.interrupted:
            raise KeyboardInterrupt
        losses = _losses(folder / RUN / METRICS_FILE)
        with replaced(folder / CURVE) as file:
            training_curve(losses, file, "A small model on the built-in pianist")
    about = "whole validation pieces, the context reset, a bigram; what memory is worth"
    with stage("evaluate", about, "scoring", "tokens") as show:
        model, info = load_checkpoint(folder / RUN / BEST)
        probed = _probed(model, info.digest, store, plan, show)
        with filled(folder / PROBES_FOLDER) as partial:
            figures.draw([probed], partial, "A small model on the built-in pianist")
    if console is not None and (warning := expect_noise(info.training)) is not None:
        console.print(Text(f"warning: {warning}", "yellow"))
    players = {OWN: model, **others}
    about = f"{plan.tries} takes of {plan.seconds:.0f} s each, from nothing, by {', '.join(players)}"
    with stage("generate", about, "generating") as show:
        tried = _played(list(players.values()), plan, seed, show)
    with stage("choose", f"the {plan.takes} of each that are most like {plan.seconds:.0f} s of the corpus"):
        learned = [store.piece(index) for index in store.indices("train")]
        ranges, order = usual(learned, plan.seconds), usual_order(learned, plan.seconds)
        made = _best(tried, plan, ranges, order)
        takes = tuple(measure(take.performance, plan.seconds) for take in made)
        by = tuple(name for name in players for _ in range(plan.takes))
        _write_music(folder, made)
    with stage("compare", "the takes beside the corpus: histograms, what is played again, quotations"):
        named = {f"take {number + 1}": take.performance for number, take in enumerate(made)}
        (group,) = compare_music(named, corpus_of(store, "train"), seconds=plan.seconds)
        repetition = compare_repetition({name: encode(each) for name, each in named.items()}, learned, seed)
        drawn = {each.name: each.histograms for each in group.music[: plan.takes]}
        with replaced(folder / HISTOGRAMS) as file:
            histogram_panels(group.reference.profile.counts, drawn, file)
        controls = control(order, store, plan.seconds, seed)
    outcome = Outcome(
        corpus,
        run,
        probed,
        plan.tries,
        takes,
        by,
        tuple(repetition),
        tuple(tuple(compare_statistics(take, ranges)) for take in takes),
        group,
        plan.learns,
        controls,
        seconds,
    )
    text = json.dumps(outcome.to_dict(), ensure_ascii=False, allow_nan=False, indent=2)
    with replaced(folder / METRICS) as file:
        file.write_text(f"{text}\n", encoding="utf-8")
    with replaced(folder / PAGE) as file:
        write_demo_page(file, outcome, _playables(folder, made, plan.seconds, outcome), losses)
    return outcome


def _probed(model: Transformer, digest: str, store: TokenStore, plan: Plan, show: Callable[..., None]) -> Probed:
    """The best checkpoint on the validation split; small corpora may hold no piece that a probe could tell of."""
    pieces = [store.pieces[index] for index in store.indices("validation")]
    farthest = max(model.config.schedule.horizons)
    recalled = any(_can_be_recalled(each, farthest) for piece in pieces for each in piece.returns)
    wanted = probes.Questions(
        returns=any(piece.returns for piece in pieces),
        resets=plan.resets if any(piece.length - 1 > plan.resets.at[0] for piece in pieces) else None,
        recall=plan.recall if recalled else 0,
        farthest=farthest,
    )
    checkpoint = f"{RUN}/{BEST}"
    return probes.probe(
        model, store, "validation", wanted, label="this model", checkpoint=checkpoint, digest=digest, progress=show
    )


def _played(players: list[Transformer], plan: Plan, seed: int, show: Callable[..., None]) -> list[Take]:
    """All takes of each model, one model after the other."""
    made: list[Take] = []
    for player in players:
        before = len(made) * plan.seconds

        def progress(now: Pace, before: float = before) -> None:
            show(before + now.music_seconds, len(players) * plan.tries * plan.seconds, f"{now.tokens:,} tokens")

        made += generate(
            player,
            [None] * plan.tries,
            seconds=plan.seconds,
            at_end="forbid",
            sampling=TAKE_SAMPLING,
            seed=seed,
            progress=progress,
        )
    return made


def _best(tried: list[Take], plan: Plan, ranges: dict[str, Range], order: UsualOrder) -> list[Take]:
    """Of each model's takes those that are most like the corpus, the best first; noise comes last."""

    def strangeness(take: Take) -> tuple[bool, int, float]:
        noise = order.judge(measure_order(take.performance.notes)).ordered is False
        return noise, *_strangeness(measure(take.performance, plan.seconds), ranges)

    best: list[Take] = []
    for first in range(0, len(tried), plan.tries):
        best += sorted(tried[first : first + plan.tries], key=strangeness)[: plan.takes]
    return best


def _can_be_recalled(each: Return, farthest: int) -> bool:
    """Whether a return can tell whether its source is recalled; see `dsmr.evaluation.probes.recall`."""
    near = each.start - each.source_start <= farthest
    return near and each.start - each.source_stop >= CONTEXT and each.stop - each.start > SKIP


def _playables(folder: Path, made: list[Take], seconds: float, outcome: Outcome) -> list[Playable]:
    """The takes as the page shows them."""
    return [
        Playable(
            name=f"Take {number + 1}",
            performance=take.performance,
            seconds=seconds,
            midi=(folder / TAKES_FOLDER / _take_file(number)).read_bytes(),
            file=_take_file(number),
            about=_about(repetition),
            by=by,
        )
        for number, (take, by, repetition) in enumerate(zip(made, outcome.by, outcome.repetition, strict=True))
    ]


def _about(take: Repetition) -> str:
    return "" if math.isnan(take.share) else f"{percent(take.share)} of its notes repeat what came long before"


def _take_file(number: int) -> str:
    """The name of a take's MIDI file; the first take is number 0."""
    return f"take-{number + 1}.mid"


def _strangers(folder: Path) -> list[str]:
    """Paths in the folder that no demonstration has written; the run sees to its own folder."""
    others = [
        *_others(folder, FILES.__contains__, folders=(RUN, TAKES_FOLDER, PROBES_FOLDER)),
        *_others(folder / TAKES_FOLDER, lambda name: _TAKE.fullmatch(name) is not None),
        *_others(folder / PROBES_FOLDER, figures.FIGURE_FILES.__contains__),
    ]
    return sorted(str(path.relative_to(folder)) for path in others)


def _others(folder: Path, known: Callable[[str], bool], folders: tuple[str, ...] = ()) -> Iterator[Path]:
    """What is not known by its name, or is not of its kind; what a killed demonstration or a desktop left is."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if PARTIAL.fullmatch(path.name) and is_folder(path):
            yield from _others(path, lambda name: known(name) or name == IN_USE)
        elif not is_dropping(path) and not (
            known(path.name) and (is_folder if path.name in folders else is_file)(path)
        ):
            yield path


def _make_room(folder: Path, force: bool) -> None:
    """Remove what an older demonstration left in the folder, in which there is nothing else."""
    there = [path for path in folder.iterdir() if path.name != DEMO_MARK and not is_dropping(path)]
    if there and not force:
        raise FileExistsError(f"{folder}: there is a demonstration already; --force replaces it")
    if (folder / RUN) in there:
        RunFolder(folder / RUN).remove()  # first, because it may be refused
    for path in there:
        if path.name in (TAKES_FOLDER, PROBES_FOLDER) or PARTIAL.fullmatch(path.name):
            shutil.rmtree(path)
        elif path.name != RUN:
            path.unlink()


def _losses(metrics: Path) -> list[Curve]:
    """The losses of training and validation over tokens, from a run's file of metrics."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [
        Curve(
            label,
            [row["tokens"] for row in rows if row[key] is not None],
            [row[key] for row in rows if row[key] is not None],
        )
        for label, key in (("training", "train_loss"), ("validation", "val_loss"))
    ]


def _strangeness(take: Statistics, ranges: dict[str, Range]) -> tuple[int, float]:
    """How far a take is from the middle of what is usual: first by what must be usual, then by all numbers.

    A number counts by its distance from the middle of the usual range, in halves of that range.
    """
    outside = sum(each.within is False for each in compare_statistics(take, ranges, ESSENTIAL))
    distances = [
        abs(each.value - (each.low + each.high) / 2) / ((each.high - each.low) / 2)
        for each in compare_statistics(take, ranges, tuple(ranges))
        if each.high > each.low
    ]
    return outside, float(np.nanmean(distances))


def _write_music(folder: Path, takes: list[Take]) -> None:
    """All takes as MIDI; the first one, which is the best, as sound and as a picture, too."""
    with filled(folder / TAKES_FOLDER) as partial:
        for number, take in enumerate(takes):
            write_midi(take.performance, partial / _take_file(number))
    kept = takes[0].performance
    with filled(folder) as partial:
        write_midi(kept, partial / MUSIC_FILE)
        write_wav(kept, partial / SOUND)
        piano_roll(kept, partial / ROLL, "Made by the model: take 1")
