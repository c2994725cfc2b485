"""Command `dsmr demo`: from nothing to a trained, evaluated, playing model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dsmr.cli.compare import what_is_usual
from dsmr.cli.scores import print_probed
from dsmr.cli.terminal import BadInput, CommandError, ForceOption, SeedOption, check_folder, explained, stderr, stdout

if TYPE_CHECKING:
    from dsmr.demo.outcome import Outcome


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for everything.")] = Path("demo"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Take about a minute, which is too short to beat a bigram model or to make music."
        ),
    ] = False,
    seed: SeedOption = 0,
    force: ForceOption = False,
) -> None:
    """Compose a corpus, train a model on it, score it and let it play: about six minutes on two CPU cores.

    FOLDER then holds a web page with the music and the curves (index.html), the files behind it (MIDI, WAV, pictures,
    numbers), the corpus and the checkpoints. The exit code is 1 if the model does not beat a bigram model, which is not
    asked with --quick. A warning says if the density, range or silence of the best take is unusual for the corpus, or
    if it is in no more order than noise.
    """
    from dsmr.demo.run import FULL, QUICK, run_demo
    from dsmr.pretrained import shipped

    guests = {"the model that ships with dsmr": shipped()}
    check_folder(out, force=True)  # what is in it is for `run_demo` to judge
    try:
        outcome = run_demo(out, QUICK if quick else FULL, seed=seed, force=force, console=stderr, guests=guests)
    except FileExistsError as error:
        raise BadInput(explained(error)) from error
    _print(outcome, out)
    for remark in outcome.remarks:
        stderr.print(Text(f"warning: the best take is not like the corpus: {remark}", "yellow"))
    if outcome.failures:
        raise CommandError("; ".join(outcome.failures))


def _print(outcome: Outcome, out: Path) -> None:
    from dsmr.demo.run import METRICS, MUSIC_FILE, PAGE, SOUND

    run, corpus = outcome.run, outcome.corpus
    stdout.print(
        f"corpus: {sum(corpus.pieces.values())} pieces, {sum(corpus.tokens.values()):,} tokens, "
        f"{corpus.seconds / 3600:.1f} hours of music"
    )
    stdout.print(
        f"training: {run.step:,} steps, {run.tokens:,} tokens, {run.tokens_per_second:,.0f} tokens/s, "
        f"best validation PPL {run.best_ppl:.2f} at step {run.best_step:,}"
    )
    print_probed([outcome.probed], [])

    usual = [f"{each.low:.3g} .. {each.high:.3g}" for each in outcome.music[0]]
    table = Table("", *(each.name.replace("_", " ") for each in outcome.music[0]), title="music by numbers")
    table.add_row(f"corpus, {what_is_usual(outcome.music[0])}", *usual)
    for number, compared in enumerate(outcome.music):
        numbers = [
            Text.assemble(f"{each.value:.3g}", (" (outside)" if each.within is False else "", "red"))
            for each in compared
        ]
        name = f"take {number + 1}" + " (kept)" * (number == 0)
        table.add_row(f"{name}, {outcome.by[number]}", *numbers)
    stdout.print(table)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    stdout.print(f"{sum(outcome.seconds.values()):.0f} s in all: {stages}")
    stdout.print(
        f"open {out / PAGE} in a browser; listen to {out / SOUND} or {out / MUSIC_FILE}; "
        f"all numbers are in {out / METRICS}"
    )
