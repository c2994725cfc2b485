"""`dsmr train`: a model from a token store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dsmr.cli.models import WHERE, load
from dsmr.cli.schedule import (
    SCHEDULE,
    SHAPING,
    BudgetOption,
    HorizonsOption,
    LongestOption,
    LongLayersOption,
    RatioOption,
    StrideKeepOption,
    StrideOption,
    parse_numbers,
    shaped,
)
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
    import torch

    from dsmr.model.checkpoint import CheckpointInfo
    from dsmr.model.config import ModelConfig
    from dsmr.model.transformer import Transformer
    from dsmr.training import Run, TrainingConfig

BUDGET = "Length of the run: one of the two is needed"
MODEL = "Model: the preset's values, unless told otherwise"
OPTIMISATION, AUGMENTATION, KEEPING = "Optimisation", "Augmentation", "Validation, checkpoints and measurements"

MODEL_SHAPE = ("schedule", "layers", *SHAPING)
SIZES = (
    "segment",
    "width",
    "heads",
    "kv_heads",
    "feed_forward",
    "window",
    "position",
    "position_base",
    "dropout",
    "key_shift",
    "rotary_share",
    "qk_norm",
)
SETTINGS = (
    "steps",
    "minutes",
    "lanes",
    "accumulate",
    "optimizer",
    "learning_rate",
    "min_learning_rate",
    "warmup",
    "weight_decay",
    "betas",
    "clip",
    "autocast",
    "compile",
    "semitones",
    "tempo",
    "validations",
    "validation_tokens",
    "log_every",
    "seed",
)
"""Names of the options that shape the schedule, that are fields of `ModelConfig`, and of `TrainingConfig`."""


def _tokens_or_all(text: str | int | None) -> int | None:
    if text is None or text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise BadInput(f"--validation-tokens: expected a number of tokens, or all, got {text!r}") from error


def _switch(text: str) -> bool | str:
    if text not in ("auto", "on", "off"):
        raise BadInput(f"--autocast: expected auto, on or off, got {text!r}")
    return text if text == "auto" else text == "on"


def train(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", metavar="STORE", help="Token store to learn from.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder for checkpoints and measurements.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in RUN from its newest checkpoint.")
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help=f"Start from the model and the weights of this checkpoint. {WHERE}"),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in RUN, and nothing else there.")] = False,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Optimiser steps.", rich_help_panel=BUDGET)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Minutes of training, without validation and saving. With both, whichever ends first.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="**tiny** (1 M parameters), **small** (5 M), **base** (25 M) or **large** (85 M).",
            rich_help_panel=MODEL,
        ),
    ] = "tiny",
    segment: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Length of a segment.", rich_help_panel=MODEL)
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="N", help="Size of the residual stream.", rich_help_panel=MODEL)
    ] = None,
    heads: Annotated[int | None, typer.Option(metavar="N", help="Query heads.", rich_help_panel=MODEL)] = None,
    kv_heads: Annotated[
        int | None, typer.Option(metavar="N", help="KV heads; they must divide the query heads.", rich_help_panel=MODEL)
    ] = None,
    feed_forward: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Hidden size of the feed-forward network, in multiples of --width.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    window: Annotated[
        Literal["segment", "token"] | None,
        typer.Option(
            help="Where a horizon is counted from: the beginning of the segment, or each token.", rich_help_panel=MODEL
        ),
    ] = None,
    position: Annotated[
        Literal["sinusoidal", "rotary"] | None, typer.Option(help="Position encoding.", rich_help_panel=MODEL)
    ] = None,
    position_base: Annotated[
        float | None,
        typer.Option(metavar="X", help="Base of the position encoding's wavelengths.", rich_help_panel=MODEL),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(metavar="P", help="Dropout probability.", rich_help_panel=MODEL)
    ] = None,
    key_shift: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Tokens by which each KV head's keys are shifted, such as **0,0,1,1**: makes recall easy to learn.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    rotary_share: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,...",
            help="Share of each KV head's dimensions that rotary positions turn, such as **1,1,0.25,0.25**: what stays "
            "is found at any distance.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    qk_norm: Annotated[
        bool | None,
        typer.Option("--qk-norm/--no-qk-norm", help="Normalise queries and keys.", rich_help_panel=MODEL),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Horizon schedule, which **dsmr schedule NAME** draws. The options below need it.",
            show_default="the preset's",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Layers.", show_default="the preset's", rich_help_panel=SCHEDULE),
    ] = None,
    budget: BudgetOption = None,
    horizons: HorizonsOption = None,
    long_layers: LongLayersOption = None,
    ratio: RatioOption = 16.0,
    longest: LongestOption = 32_768,
    stride: StrideOption = None,
    stride_keep: StrideKeepOption = None,
    lanes: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Batch size: pieces read side by side, over all processes.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 8,
    accumulate: Annotated[
        int,
        typer.Option(
            metavar="N", help="Gradient accumulation: segments per lane and step.", rich_help_panel=OPTIMISATION
        ),
    ] = 1,
    optimizer: Annotated[
        Literal["adamw", "muon"],
        typer.Option(
            help="**muon** learns far more per token than **adamw**, which shards (--fsdp).",
            rich_help_panel=OPTIMISATION,
        ),
    ] = "muon",
    learning_rate: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Peak learning rate; the default was chosen for **muon** and **tiny**.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 1e-2,
    min_learning_rate: Annotated[
        float,
        typer.Option(metavar="X", help="Learning rate at the end of the cosine decay.", rich_help_panel=OPTIMISATION),
    ] = 0.0,
    warmup: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Warm-up: fraction of the run in which the learning rate rises from 0.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = 0.02,
    weight_decay: Annotated[
        float,
        typer.Option(
            metavar="X", help="Weight decay of matrices; the embedding is exempt.", rich_help_panel=OPTIMISATION
        ),
    ] = 0.1,
    betas: Annotated[
        tuple[float, float], typer.Option(metavar="X X", help="Betas of AdamW.", rich_help_panel=OPTIMISATION)
    ] = (0.9, 0.95),
    clip: Annotated[
        float,
        typer.Option(
            metavar="X", help="Gradient clipping: largest norm of the gradient.", rich_help_panel=OPTIMISATION
        ),
    ] = 1.0,
    autocast: Annotated[
        Any,
        typer.Option(
            parser=_switch,
            metavar="auto|on|off",
            help="Mixed precision (bfloat16); **auto**: on GPUs that have it.",
            rich_help_panel=OPTIMISATION,
        ),
    ] = "auto",
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the step: takes minutes, then GPUs are faster.", rich_help_panel=OPTIMISATION
        ),
    ] = False,
    fsdp: Annotated[
        bool,
        typer.Option("--fsdp", help="Shard the parameters over the processes.", rich_help_panel=OPTIMISATION),
    ] = False,
    semitones: Annotated[
        int, typer.Option(metavar="N", help="Transpose pieces by up to N semitones.", rich_help_panel=AUGMENTATION)
    ] = 3,
    tempo: Annotated[
        float,
        typer.Option(metavar="X", help="Change tempi by up to this fraction.", rich_help_panel=AUGMENTATION),
    ] = 0.05,
    validations: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Validations, spread evenly over the run. With --minutes there are fewer "
            "where they would take over a tenth of the time.",
            rich_help_panel=KEEPING,
        ),
    ] = 10,
    validation_tokens: Annotated[
        Any,
        typer.Option(
            parser=_tokens_or_all,
            metavar="TOKENS|all",
            help="Tokens scored by a validation: beginnings of as many pieces as possible, always the same.",
            rich_help_panel=KEEPING,
        ),
    ] = 32_768,
    keep: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Newest checkpoints to keep, besides the best.", rich_help_panel=KEEPING),
    ] = 2,
    save_minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            help="Longest time between two checkpoints. There is one after every validation anyway.",
            rich_help_panel=KEEPING,
        ),
    ] = 10.0,
    log_every: Annotated[
        int, typer.Option(metavar="STEPS", help="Steps per row of RUN/metrics.jsonl.", rich_help_panel=KEEPING)
    ] = 10,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write RUN/tensorboard, too.", rich_help_panel=KEEPING),
    ] = False,
) -> None:
    """Train a model on whole pieces.

    RUN/best and RUN/last are its checkpoints, and RUN/metrics.jsonl holds the measurements. RUN must be empty or a
    run's, and one process at a time writes there. The exit code is 1 if training diverged or RUN could not be written.

    Ctrl-C, SIGTERM and a closed terminal save the run and end it. **--resume** continues it, or one that was killed, as
    if nothing had happened: give --out and --data; options that the run was begun with may be given again, but not
    changed. Only --steps or --minutes may be new, which lengthens the run.

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
            model = _model(context.params, given, began, _storage(config, where))
    try:
        with joined(where) as world:
            world.share(config.lanes)  # before anything is removed
            if fsdp and world.size == 1:
                raise BadInput("--fsdp: expected several processes, as torchrun starts them (docs/scaling.md), got one")
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
    from dsmr.model.verdict import expect_noise
    from dsmr.training import BEST, LAST

    audience = Audience(stdout)  # the terminal may be gone, and the exit code is still to tell why the run ended
    if run.best_ppl is not None:
        audience.print(f"{out / BEST}: validation PPL {run.best_ppl:.2f} at step {run.best_step:,}")
    audience.print(f"{out / LAST}: {run.step:,} steps, {run.tokens:,} tokens")
    if (warning := expect_noise(run.counters())) is not None:
        audience.print(f"{out / LAST}: {warning}")


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


def _storage(config: TrainingConfig, device: torch.device) -> str:
    """How memory is stored in training, which is what a budget in bytes is counted in."""
    import torch

    from dsmr.training.optimisation import make_precision

    with make_precision(config.autocast, device):
        return "bf16" if torch.is_autocast_enabled(device.type) else "fp32"


def _model(options: dict[str, Any], given: dict[str, Any], began: CheckpointInfo | None, storage: str) -> Transformer:
    """A new model, one to start from, or one with the configuration of the run that is resumed.

    If that run's options are given again they are taken at their word, so that `train` can compare.
    """
    import torch

    from dsmr.model.transformer import Transformer

    if options["init_from"] is not None:
        _refuse(given, ("preset", *MODEL_SHAPE, *SIZES), "the model is that of --init-from")
        return load(options["init_from"], torch.device("cpu"))[0]
    if began is not None and not given.keys() & {"preset", *MODEL_SHAPE, *SIZES}:
        return Transformer(began.config)
    if options["schedule"] is None:
        _refuse(given, MODEL_SHAPE, "it needs --schedule")
    torch.manual_seed(options["seed"])  # of the new model's weights
    return Transformer(_model_config(options, storage))


def _model_config(options: dict[str, Any], storage: str) -> ModelConfig:
    """The preset with what was told otherwise; a schedule in the place of its own keeps its layers and its budget."""
    from dsmr.model.config import preset as make_preset
    from dsmr.model.schedules import MemoryFormat

    sizes = {name: options[name] for name in SIZES if options[name] is not None}
    for name, option, number in (("key_shift", "--key-shift", int), ("rotary_share", "--rotary-share", float)):
        if (values := parse_numbers(option, options[name], number)) is not None:
            sizes[name] = tuple(values)
    config = make_preset(options["preset"], **sizes)
    if (name := options["schedule"]) is None:
        return config
    shaping = {each: options[each] for each in SHAPING}
    if shaping["budget"] is None and name not in ("full", "explicit"):
        shaping["budget"] = str(config.schedule.total)
    layers = options["layers"]
    if layers is None:
        layers = len(parse_numbers("--horizons", options["horizons"], int) or config.schedule.horizons)
    memory = MemoryFormat(config.kv_heads, config.head_dim, storage)
    return replace(config, schedule=shaped(name, layers, memory, **shaping))
