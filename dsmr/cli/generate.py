"""Command `dsmr generate`: new music from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dsmr.audience import Audience
from dsmr.cli.models import WHERE, load
from dsmr.cli.terminal import (
    BadInput,
    CommandError,
    DeviceOption,
    ForceOption,
    JsonOption,
    SeedOption,
    check_file,
    choose_device,
    print_json,
    reading_input,
    stderr,
    stdout,
    writing,
)

if TYPE_CHECKING:
    from dsmr.generation.takes import Pace, Take
    from dsmr.music.tempo import TempoMap

MUSIC, SAMPLING, SPEED = "Music", "Sampling", "Speed"


def generate(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.mid",
            help="MIDI file to write; several takes become FILE-1.mid, FILE-2.mid ...",
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="CHECKPOINT", help=WHERE, show_default="the model that ships"),
    ] = None,
    wav: Annotated[bool, typer.Option("--wav", help="Write FILE.wav, too.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Draw a piano roll into FILE.png, too.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write FILE.html, too: a page that shows and plays all takes, by itself.")
    ] = False,
    soundfont: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.sf2",
            help="Write FILE.wav, played with this SoundFont, or with the one of dsmr\\[soundfont]: piano.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.01,
            help="Length of the new music.",
            show_default="60, unless there is --tokens",
            rich_help_panel=MUSIC,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Length of the new music in tokens, about 42 per second.",
            rich_help_panel=MUSIC,
        ),
    ] = None,
    at_end: Annotated[
        Literal["forbid", "stop", "restart"],
        typer.Option(
            help="What to do where the model would end the piece: play on, stop, or begin another one.",
            rich_help_panel=MUSIC,
        ),
    ] = "forbid",
    prompt: Annotated[
        Path | None, typer.Option(metavar="FILE.mid", help="Music to continue.", rich_help_panel=MUSIC)
    ] = None,
    include_prompt: Annotated[
        bool,
        typer.Option(
            "--include-prompt/--only-new",
            help="Write the prompt, too, as it is, with its pedal and tempo.",
            rich_help_panel=MUSIC,
        ),
    ] = False,
    takes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Takes to make, side by side.", rich_help_panel=MUSIC)
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Sampling temperature: below 1 safer, above 1 wilder; 0: always the likeliest token.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="Nucleus sampling: keep the likeliest tokens that have this probability together.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="Drop tokens whose probability is below this fraction of the likeliest one's.",
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0,
    seed: SeedOption = 0,
    engine: Annotated[
        Literal["auto", "native", "python"],
        typer.Option(
            help="**native** (C++, for CPUs) or **python** (PyTorch); **auto**: native where possible.",
            rich_help_panel=SPEED,
        ),
    ] = "auto",
    weights: Annotated[
        Literal["float32", "bf16", "int8"],
        typer.Option(help="Type of the native engine's weights; fewer bits are faster.", rich_help_panel=SPEED),
    ] = "float32",
    storage: Annotated[
        Literal["bf16", "int8", "float8_e4m3"] | None,
        typer.Option(
            help="Type of the memory's entries; bf16 needs the native engine.",
            show_default="the model's type",
            rich_help_panel=SPEED,
        ),
    ] = None,
) -> None:
    """Make new piano music: a MIDI file, with sound and a picture if you like.

    Without CHECKPOINT, the model that ships with dsmr plays; nothing has to be trained or downloaded.

    Memory stays constant, however long the music is. The seed and the number of a take decide what is played, however
    many takes there are. A warning tells if the model has learned too little to make more than noise.
    """
    from dsmr.generation.decoding import Decoding
    from dsmr.generation.sampling import Sampling
    from dsmr.generation.takes import generate as make_takes
    from dsmr.model.verdict import expect_noise
    from dsmr.music.midi import read_midi_with_tempo
    from dsmr.music.soundfont import find_soundfont
    from dsmr.process import torch_threads

    if out.suffix.lower() not in (".mid", ".midi"):
        raise BadInput(f"--out: expected a name that ends in .mid, got {out}")
    if soundfont is not None:
        try:
            find_soundfont(soundfont)
        except FileNotFoundError as error:
            raise BadInput(f"--{error}") from error
        except ImportError as error:
            raise CommandError(f"--{error}") from error
    if include_prompt and prompt is None:
        raise BadInput("--include-prompt: expected it together with --prompt, got it alone")
    names = [out] if takes == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(takes)]
    wanted = [".wav"] * (wav or soundfont is not None) + [".png"] * png
    for name in names:
        for path in (name, *(name.with_suffix(suffix) for suffix in wanted)):
            check_file(path, force)
    page = out.with_suffix(".html") if html else None
    if page is not None:
        check_file(page, force)
    where = choose_device(device)
    with reading_input():
        sampling, decoding = Sampling(temperature, min_p, top_p), Decoding(engine, weights, storage)
        played, tempo = (None, None) if prompt is None else read_midi_with_tempo(prompt)
    model, info = load(checkpoint, where)
    if (warning := expect_noise(info.training)) is not None:
        stderr.print(f"warning: {warning}", style="yellow", highlight=False)
    with reading_input():
        choice = decoding.choose(model)
    stderr.print(f"steps by the {choice.engine} engine: {choice.reason}")
    if seconds is None and tokens is None:
        seconds = 60.0
    with ExitStack() as within:
        if where.type == "cpu" and choice.engine == "python":
            within.enter_context(torch_threads(1))  # a token's products are too small to share: waiting costs more
        audience = within.enter_context(Audience(stderr, "generating"))

        def show(progress: Pace) -> None:
            done, total = (progress.tokens, tokens) if tokens else (progress.music_seconds, seconds)
            audience.show(
                done,
                (total or 0) * takes,
                f"{progress.tokens:,} tokens",
                f"{progress.tokens_per_second:,.0f} tok/s",
                f"{progress.real_time_factor:.1f} x real time",
            )

        made = make_takes(
            model,
            [played] * takes,
            seconds=seconds,
            tokens=tokens,
            at_end=at_end,
            sampling=sampling,
            decoding=decoding,
            seed=seed,
            include_prompt=include_prompt,
            progress=show,
        )
    _write(dict(zip(names, made, strict=True)), page, wanted, soundfont, tempo if include_prompt else None)
    if as_json:
        takes_made = [_to_dict(name, take) for name, take in zip(names, made, strict=True)]
        print_json(
            {"engine": choice.engine, "engine_reason": choice.reason, "model_warning": warning, "takes": takes_made}
        )
        return
    for name, take in zip(names, made, strict=True):
        stdout.print(
            f"{name}: {take.seconds:.1f} s of music in {take.tokens:,} tokens, made in {take.wall_seconds:.1f} s: "
            f"{take.tokens_per_second:,.0f} tokens/s, {take.real_time_factor:.1f} x real time"
        )


def _write(
    takes: Mapping[Path, Take], page: Path | None, others: list[str], soundfont: str | None, tempo: TempoMap | None
) -> None:
    """Write the MIDI files, at the prompt's tempo if they hold the prompt, then their page, then the other kinds."""
    from dsmr.music.midi import write_midi
    from dsmr.music.roll import piano_roll
    from dsmr.music.sound import write_wav
    from dsmr.music.tokens import STEP_SECONDS

    for name, take in takes.items():  # all of them, before the disk is filled with sound
        fine = None if tempo is None else tempo.fine_from(take.prompt_seconds, STEP_SECONDS / 4)
        with writing(name) as file:
            write_midi(take.performance, file, fine)
    if page is not None:
        _write_page(takes, page)
    for name, take in takes.items():
        if ".wav" in others:
            with writing(name.with_suffix(".wav")) as file:
                try:
                    write_wav(take.performance, file, soundfont)
                except ValueError as error:  # too long, or no soundfont
                    raise CommandError(str(error)) from error
        if ".png" in others:
            with writing(name.with_suffix(".png")) as file:
                piano_roll(take.performance, file, name.stem)


def _write_page(takes: Mapping[Path, Take], page: Path) -> None:
    """Write the page of all takes, whose MIDI files are there."""
    from dsmr.music.player.page import Playable, write_page

    shown = [
        Playable(
            name=name.stem,
            performance=take.performance,
            seconds=take.prompt_seconds + take.seconds,
            midi=name.read_bytes(),
            file=name.name,
            prompt_seconds=take.prompt_seconds,
            about=f"the first {take.prompt_seconds:.0f} s are the prompt" if take.prompt_seconds else "",
        )
        for name, take in takes.items()
    ]
    with writing(page) as file:
        write_page(file, shown, title=page.stem)


def _to_dict(name: Path, take: Take) -> dict[str, Any]:
    return {
        "file": str(name),
        "seconds": take.seconds,
        "tokens": take.tokens,
        "prompt_tokens": take.prompt_tokens,
        "wall_seconds": take.wall_seconds,
        "tokens_per_second": take.tokens_per_second,
        "real_time_factor": take.real_time_factor,
        "stopped": take.stopped,
    }
