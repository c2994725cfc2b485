"""`dsmr train`: a model from a token store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dsmr.cli.schedule import HorizonsOption, KeepOption, StrideOption, make_retention, parse_horizons
from dsmr.cli.terminal import (
    BadInput,
    CommandError,
    DeviceOption,
    SeedOption,
    choose_device,
    explained,
    open_store,
    reading_input,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from dsmr.model.checkpoint import CheckpointInfo
    from dsmr.model.schedules import Schedule
    from dsmr.model.transformer import ModelConfig, Transformer
    from dsmr.training import Run, TrainingConfig
    from dsmr_kernels import Retention

MODEL, OPTIMISATION = "Model: the preset's values, unless told otherwise", "Optimisation"

SCHEDULE = ("schedule", "budget", "horizons", "stride", "layers")
SIZES = ("segment", "width", "heads", "kv_heads", "window", "position", "dropout")
SETTINGS = (
    "steps",
    "minutes",
    "lanes",
    "accumulate",
    "optimizer",
    "learning_rate",
    "semitones",
    "tempo",
    "validations",
    "compile",
    "seed",
)
"""Names of the options that shape the schedule, that are fields of `ModelConfig`, and of `TrainingConfig`."""


def train(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="The token store to learn from.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="The folder for checkpoints and measurements.")
    ],
    steps: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many steps ...")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="... or minutes of training, validation apart; one of the two is needed."),
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Start from these weights; the model is theirs, too.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN, from its newest checkpoint.")
    ] = False,
    keep: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep so many of the newest checkpoints, besides the best.")
    ] = 2,
    save_minutes: Annotated[
        float, typer.Option(metavar="MINUTES", help="Save at least that often, not only after validations.")
    ] = 10.0,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the step: minutes at first, then faster on GPUs.")
    ] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there, and nothing else.")] = False,
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
    stride_keep: KeepOption = "last",
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
    fsdp: Annotated[
        bool,
        typer.Option("--fsdp", help="Spread the parameters over the processes.", rich_help_panel=OPTIMISATION),
    ] = False,
    lanes: Annotated[
        int,
        typer.Option(
            metavar="N", help="Pieces read side by side, by all processes together.", rich_help_panel=OPTIMISATION
        ),
    ] = 4,
    accumulate: Annotated[
        int, typer.Option(metavar="N", help="Segments of every lane in a step.", rich_help_panel=OPTIMISATION)
    ] = 1,
    optimizer: Annotated[
        Literal["adamw", "muon"],
        typer.Option(help="Muon learns more from a token, at about 5 times the rate.", rich_help_panel=OPTIMISATION),
    ] = "adamw",
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
        int,
        typer.Option(
            metavar="N",
            help="How often to validate and save; by --minutes less often if it would take over a tenth of them.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 10,
) -> None:
    """Train a model on whole pieces.

    RUN/best and RUN/last will be its checkpoints, RUN/metrics.jsonl the measurements. Ctrl-C saves and ends the run,
    SIGTERM and a closed terminal too; **--resume** goes on with it, or with one that was killed, as if nothing had
    happened: give --out, --data and nothing else that the run was begun with, or all of it. With another --steps or
    --minutes it goes on to that. RUN must be empty or a run's, and one process at a time writes there. The exit code is
    1 if training diverged or RUN could not be written.

    Several processes share the lanes: **torchrun --nproc-per-node N -m dsmr train ...**, see docs/scaling.md.
    """
    from dsmr.model.checkpoint import CheckpointError, read_info
    from dsmr.process import own_random_numbers
    from dsmr.training import DivergedError, RunFolder
    from dsmr.training import train as run_training
    from dsmr.training.distributed import LostProcessError, WorldError, joined
    from dsmr.training.optimisation import check_world

    given = {name: value for name, value in context.params.items() if _on_command_line(context, name)}
    if resume:
        _refuse(given, ("init_from", "force"), "a run that is resumed goes on as it is")
    where, folder = choose_device(device), RunFolder(out)
    with reading_input():
        store = open_store(data, "train", "validation")
        began = read_info(folder.newest()) if resume else None
        config = _training_config(context.params, given, began)
        with own_random_numbers():
            model = _model(context.params, given, began)
    try:
        with joined(where) as world:
            world.share(config.lanes)  # before anything is removed
            if fsdp and world.size == 1:
                raise BadInput("--fsdp: there is one process; several are started by torchrun, see docs/scaling.md")
            check_world(config, world, fsdp)
            run = run_training(
                model.to(world.device),
                store,
                config,
                out,
                resume=resume,
                force=force,
                keep=keep,
                save_minutes=save_minutes,
                world=world,
                shard=fsdp,
                console=stderr if world.first else None,
                tensorboard=tensorboard,
            )
    except FileExistsError as error:  # of all processes alike
        raise BadInput(explained(error)) if world.first else typer.Exit(BadInput.exit_code) from error
    except (CheckpointError, WorldError) as error:
        raise BadInput(str(error)) from error
    except DivergedError as error:  # of all processes alike
        raise CommandError(str(error)) if world.first else typer.Exit(CommandError.exit_code) from error
    except LostProcessError as error:
        raise CommandError(str(error)) from error
    if world.first:
        _print_result(run, out)
    if run.interrupted is not None:
        raise typer.Exit(128 + run.interrupted)


def _print_result(run: Run, out: Path) -> None:
    from dsmr.audience import Audience
    from dsmr.training import BEST, LAST

    audience = Audience(stdout)  # the terminal may be gone, and the exit code is still to tell why the run ended
    if run.best_ppl is not None:
        audience.print(f"{out / BEST}: validation PPL {run.best_ppl:.2f} at step {run.best_step:,}")
    audience.print(f"{out / LAST}: {run.step:,} steps, {run.tokens:,} tokens")


def _on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse(given: dict[str, Any], names: tuple[str, ...], reason: str) -> None:
    """End the command if one of these options was given."""
    for name in names:
        if name in given:
            raise BadInput(f"--{name.replace('_', '-')}: {reason}")


def _training_config(options: dict[str, Any], given: dict[str, Any], began: CheckpointInfo | None) -> TrainingConfig:
    """What the options say; where a run is resumed, its own settings but for options that were given."""
    from dsmr.training import TrainingConfig

    if began is None:
        return TrainingConfig(**{name: options[name] for name in SETTINGS})
    own = TrainingConfig.from_dict(began.training.get("config"))
    changes = {name: given[name] for name in SETTINGS if name in given}
    if given.keys() & {"steps", "minutes"}:  # the budget is one setting: both of them together
        changes = {"steps": None, "minutes": None, **changes}
    return replace(own, **changes)


def _model(options: dict[str, Any], given: dict[str, Any], began: CheckpointInfo | None) -> Transformer:
    """A new model, one to start from, or one with the configuration of the run that is resumed.

    If that run's options are given again they are taken at their word, so that `train` can compare.
    """
    import torch

    from dsmr.model.checkpoint import load_checkpoint
    from dsmr.model.transformer import Transformer

    if options["init_from"] is not None:
        _refuse(given, SCHEDULE + SIZES, "the model is that of --init-from")
        return load_checkpoint(options["init_from"])[0]
    if began is not None and not given.keys() & {"preset", "stride_keep", *SCHEDULE, *SIZES}:
        return Transformer(began.config)
    if options["schedule"] is None:
        _refuse(given, SCHEDULE, "it needs --schedule")
    torch.manual_seed(options["seed"])  # of the new model's weights
    return Transformer(_model_config(options))


def _model_config(options: dict[str, Any]) -> ModelConfig:
    from dsmr.model.transformer import preset as make_preset

    changes = {name: options[name] for name in SIZES if options[name] is not None}
    if options["schedule"] is not None:
        retention = make_retention(options["stride"], options["stride_keep"])
        horizons = parse_horizons(options["horizons"])
        changes["schedule"] = _schedule(
            options["preset"], options["schedule"], options["budget"], options["layers"], horizons, retention
        )
    return make_preset(options["preset"], **changes)


def _schedule(
    preset: str,
    name: str,
    budget: int | None,
    layers: int | None,
    horizons: list[int] | None,
    retention: Retention | None,
) -> Schedule:
    """A schedule in the place of the preset's, of as many layers and, where a budget shapes it, of the same budget."""
    from dsmr.model.schedules import make_schedule
    from dsmr.model.transformer import preset as make_preset

    own = make_preset(preset).schedule
    if layers is None:
        layers = len(horizons or own.horizons)
    if budget is None and name not in ("full", "explicit"):
        budget = own.total
    return make_schedule(name, layers, budget_tokens=budget, horizons=horizons, retention=retention)
