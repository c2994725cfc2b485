"""`dsmr train`: a model from a token store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dsmr.cli.schedule import HorizonsOption, KeepOption, StrideOption, make_retention, parse_horizons
from dsmr.cli.terminal import (
    INTERRUPTED,
    BadInput,
    CommandError,
    DeviceOption,
    SeedOption,
    check_free,
    choose_device,
    open_store,
    reading_input,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from dsmr.schedules import Schedule
    from dsmr_kernels import Retention

MODEL, OPTIMISATION = "Model: the preset's values, unless told otherwise", "Optimisation"


def train(
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="The token store to learn from.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="The folder for checkpoints and measurements.")
    ],
    steps: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many steps ...")] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="... or minutes; one of the two is needed.")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Start from these weights; the model is theirs, too.")
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is already there.")] = False,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tiny (1 M parameters), small (5 M), base (25 M) or large (85 M).",
            rich_help_panel=MODEL,
        ),
    ] = "tiny",
    schedule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Horizon schedule, see **dsmr schedule**.", rich_help_panel=MODEL),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="What all layers remember together, of --schedule.", rich_help_panel=MODEL),
    ] = None,
    horizons: HorizonsOption = None,
    stride: StrideOption = None,
    keep: KeepOption = "last",
    layers: Annotated[
        int | None, typer.Option(metavar="N", help="Layers, of --schedule.", rich_help_panel=MODEL)
    ] = None,
    segment: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a segment.", rich_help_panel=MODEL)
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="N", help="Size of the residual stream.", rich_help_panel=MODEL)
    ] = None,
    heads: Annotated[int | None, typer.Option(metavar="N", help="Query heads.", rich_help_panel=MODEL)] = None,
    kv_heads: Annotated[int | None, typer.Option(metavar="N", help="KV heads.", rich_help_panel=MODEL)] = None,
    window: Annotated[
        Literal["segment", "token"] | None,
        typer.Option(help="What a horizon is counted from.", rich_help_panel=MODEL),
    ] = None,
    position: Annotated[
        Literal["sinusoidal", "rotary"] | None, typer.Option(help="Position signal.", rich_help_panel=MODEL)
    ] = None,
    dropout: Annotated[float | None, typer.Option(metavar="X", help="Probability.", rich_help_panel=MODEL)] = None,
    lanes: Annotated[
        int, typer.Option(metavar="N", help="Pieces read side by side.", rich_help_panel=OPTIMISATION)
    ] = 4,
    accumulate: Annotated[
        int, typer.Option(metavar="N", help="Segments of every lane in a step.", rich_help_panel=OPTIMISATION)
    ] = 1,
    learning_rate: Annotated[
        float, typer.Option(metavar="X", help="The highest.", rich_help_panel=OPTIMISATION)
    ] = 1e-3,
    semitones: Annotated[
        int, typer.Option(metavar="N", help="Transpose pieces by up to so many.", rich_help_panel=OPTIMISATION)
    ] = 3,
    tempo: Annotated[
        float, typer.Option(metavar="X", help="Change tempi by up to this fraction.", rich_help_panel=OPTIMISATION)
    ] = 0.05,
    validations: Annotated[
        int, typer.Option(metavar="N", help="How often to validate and save.", rich_help_panel=OPTIMISATION)
    ] = 10,
) -> None:
    """Train a model on whole pieces.

    RUN/best and RUN/last will be its checkpoints, RUN/metrics.jsonl the measurements. Ctrl-C saves RUN/last and ends
    the run. The exit code is 1 if training diverged.
    """
    import torch

    from dsmr.checkpoint import load_checkpoint
    from dsmr.model import Transformer
    from dsmr.model import preset as make_preset
    from dsmr.training import BEST, LAST, DivergedError, TrainingConfig
    from dsmr.training import train as run_training

    shape: dict[str, Any] = {
        "schedule": schedule,
        "budget": budget,
        "horizons": horizons,
        "stride": stride,
        "layers": layers,
    }
    sizes: dict[str, Any] = {
        "segment": segment,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "window": window,
        "position": position,
        "dropout": dropout,
    }
    if init_from is not None:
        _refuse(shape | sizes, "the model is that of --init-from")
    elif schedule is None:
        _refuse(shape, "it needs --schedule")
    where = choose_device(device)
    with reading_input():
        store = open_store(data, "train", "validation")
        config = TrainingConfig(
            steps=steps,
            minutes=minutes,
            lanes=lanes,
            accumulate=accumulate,
            learning_rate=learning_rate,
            semitones=semitones,
            tempo=tempo,
            validations=validations,
            seed=seed,
        )
        torch.manual_seed(seed)  # of the new model's weights
        if init_from is not None:
            model = load_checkpoint(init_from)[0]
        else:
            changes = {name: value for name, value in sizes.items() if value is not None}
            if schedule is not None:
                retention = make_retention(stride, keep)
                changes["schedule"] = _schedule(preset, schedule, budget, layers, parse_horizons(horizons), retention)
            model = Transformer(make_preset(preset, **changes))
    _make_room(out, force)
    try:
        run = run_training(model.to(where), store, config, out, console=stderr, tensorboard=tensorboard)
    except (DivergedError, OSError) as error:
        raise CommandError(str(error)) from error
    if run.best_ppl is not None:
        stdout.print(f"{out / BEST}: validation PPL {run.best_ppl:.2f} at step {run.best_step:,}", markup=False)
    stdout.print(f"{out / LAST}: {run.step:,} steps, {run.tokens:,} tokens", markup=False)
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


def _refuse(options: dict[str, Any], reason: str) -> None:
    """End the command if one of these options was given."""
    for name, value in options.items():
        if value is not None:
            raise BadInput(f"--{name.replace('_', '-')}: {reason}")


def _schedule(
    preset: str,
    name: str,
    budget: int | None,
    layers: int | None,
    horizons: list[int] | None,
    retention: Retention | None,
) -> Schedule:
    """A schedule in the place of the preset's, of as many layers and, where a budget shapes it, of the same budget."""
    from dsmr.model import preset as make_preset
    from dsmr.schedules import make_schedule

    own = make_preset(preset).schedule
    layers = layers or len(horizons or own.horizons)
    if budget is None and name not in ("full", "explicit"):
        budget = own.total
    return make_schedule(name, layers, budget_tokens=budget, horizons=horizons, retention=retention)


def _make_room(run: Path, force: bool) -> None:
    """Remove an older run's files from the folder, if that is wanted; refuse the folder if it is not."""
    from dsmr.training import BEST, LAST, METRICS_FILE

    check_free(run / METRICS_FILE, force)
    for name in (METRICS_FILE, BEST, LAST, "tensorboard"):
        if (path := run / name).is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
