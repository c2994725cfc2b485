"""Command `dsmr schedule`: what a horizon schedule remembers and costs, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from dsmr.cli.terminal import BadInput, ForceOption, JsonOption, check_file, print_json, reading_input, stdout, writing

if TYPE_CHECKING:
    from dsmr.model.schedules import MemoryFormat, Schedule
    from dsmr_kernels import Retention

_Number = TypeVar("_Number", int, float)

SCHEDULE, MEMORY = "Schedule: how far back each layer remembers", "Memory: bytes per token"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

SHAPING = ("budget", "horizons", "long_layers", "ratio", "longest", "stride", "stride_keep")
"""Names of the options that shape a schedule, the same here and in `dsmr train`."""

BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS|SIZE",
        help="Memory of all layers together: tokens (**24576**), or bytes per lane (**64MB**, **1.5GiB**).",
        rich_help_panel=SCHEDULE,
    ),
]
HorizonsOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS,...",
        help="Horizons of an **explicit** schedule, the lowest layer's first.",
        rich_help_panel=SCHEDULE,
    ),
]
LongLayersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Long layers of a two-scale schedule.",
        show_default="a quarter",
        rich_help_panel=SCHEDULE,
    ),
]
RatioOption = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Longest horizon / shortest, of two-scale and progressive schedules.",
        rich_help_panel=SCHEDULE,
    ),
]
LongestOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="TOKENS", help="Longest piece: the horizon of every layer of **full**.", rich_help_panel=SCHEDULE
    ),
]
StrideOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Remember one of every N tokens.", show_default="every token", rich_help_panel=SCHEDULE
    ),
]
StrideKeepOption = Annotated[
    Literal["last", "random"] | None,
    typer.Option(help="Which of the N tokens of --stride.", show_default="last", rich_help_panel=SCHEDULE),
]


def schedule(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="full, uniform, two_scale, reverse_two_scale, progressive_up, progressive_down, perceiver_like, "
            "selective or explicit.",
        ),
    ],
    layers: Annotated[int, typer.Option(metavar="N", help="Layers of the model.")] = 8,
    segment: Annotated[int, typer.Option(metavar="TOKENS", help="Length of a segment.")] = 1024,
    window: Annotated[
        Literal["segment", "token"],
        typer.Option(help="Where a horizon is counted from: the beginning of the segment, or each token."),
    ] = "segment",
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the schedule into this file, too.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    budget: BudgetOption = None,
    horizons: HorizonsOption = None,
    long_layers: LongLayersOption = None,
    ratio: RatioOption = 16.0,
    longest: LongestOption = 32_768,
    stride: StrideOption = None,
    stride_keep: StrideKeepOption = None,
    kv_heads: Annotated[int, typer.Option(metavar="N", help="KV heads.", rich_help_panel=MEMORY)] = 8,
    head_dim: Annotated[int, typer.Option(metavar="N", help="Size of a head.", rich_help_panel=MEMORY)] = 64,
    storage: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="**fp32**, **bf16**, **fp16**, **int8** or **float8_e4m3**.",
            rich_help_panel=MEMORY,
        ),
    ] = "fp32",
    key_shift: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Tokens by which each KV head's keys are shifted; their last keys are kept beside the ring.",
            show_default="keys stay",
            rich_help_panel=MEMORY,
        ),
    ] = None,
) -> None:
    """Print what each layer remembers: horizon, bytes per lane, and how far back its output can reach.

    Without --budget it is sized as if a quarter of the layers remembered 8,192 tokens and the others 512. Compare
    schedules at equal budgets.
    """
    from dsmr.cli.schedule_table import schedule_table
    from dsmr.model.schedules import MemoryFormat

    if png is not None:
        check_file(png, force)
    with reading_input():
        shifts = parse_numbers("--key-shift", key_shift, int)
        memory = MemoryFormat(kv_heads, head_dim, storage, None if shifts is None else tuple(shifts))
        made = shaped(name, layers, memory, budget, horizons, long_layers, ratio, longest, stride, stride_keep)
        reach = made.reach(segment, window)
    try:
        if png is not None:
            from dsmr.model.schedule_bars import schedule_bars

            with writing(png) as file:
                schedule_bars([made], file)
    finally:  # neither a full disk nor a closed pipe may cost the other
        if as_json:
            print_json(
                {
                    **made.to_dict(),
                    "total": made.total,
                    "horizon_bytes": made.horizon_bytes(memory),
                    "ring_bytes": made.capacity_bytes(memory, segment),
                    "reach": reach,
                    "receptive_field": reach[-1],
                }
            )
        else:
            stdout.print(schedule_table(made, memory=memory, segment=segment, window=window, longest=longest))


def shaped(
    name: str,
    layers: int,
    memory: MemoryFormat,
    budget: str | None,
    horizons: str | None,
    long_layers: int | None,
    ratio: float,
    longest: int,
    stride: int | None,
    stride_keep: Literal["last", "random"] | None,
) -> Schedule:
    """The schedule that options describe; `memory` says what a budget in bytes is counted in. ValueError, BadInput."""
    from dsmr.model.schedules import make_schedule

    tokens, size = parse_budget(budget)
    return make_schedule(
        name,
        layers,
        budget_tokens=tokens,
        budget_bytes=size,
        memory=memory,
        horizons=parse_numbers("--horizons", horizons, int),
        long_layers=long_layers,
        ratio=ratio,
        longest=longest,
        retention=make_retention(stride, stride_keep),
    )


def parse_budget(text: str | None) -> tuple[int | None, int | None]:
    """A budget in tokens and a budget in bytes, one of which is None: `24576`, `64MB`, `1.5GiB`."""
    if text is None:
        return None, None
    unit = next((unit for unit in UNITS if text.endswith(unit)), None)
    try:
        return (int(text), None) if unit is None else (None, int(float(text.removesuffix(unit)) * UNITS[unit]))
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"--budget: expected a number of tokens, or of bytes with one of {', '.join(UNITS)}, got {text!r}"
        ) from error


def parse_numbers(option: str, text: str | None, number: type[_Number]) -> list[_Number] | None:
    """One number per layer or head, separated by commas."""
    if text is None:
        return None
    try:
        return [number(part) for part in text.split(",")]
    except ValueError as error:
        whole = "whole " if number is int else ""
        raise BadInput(f"{option}: expected {whole}numbers separated by commas, got {text!r}") from error


def make_retention(stride: int | None, keep: Literal["last", "random"] | None) -> Retention | None:
    """Which tokens become memory entries; None keeps all. ValueError for an impossible stride."""
    from dsmr_kernels import Retention

    if stride is None and keep is not None:
        raise BadInput(f"--stride-keep: expected it together with --stride, got {keep} alone")
    return None if stride is None else Retention(stride, keep or "last")
