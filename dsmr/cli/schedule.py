"""Command `dsmr schedule`: what a horizon schedule remembers and costs, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsmr.cli.terminal import BadInput, ForceOption, JsonOption, check_file, print_json, reading_input, stdout, writing

if TYPE_CHECKING:
    from dsmr_kernels import Retention

SHAPE = "Shape"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

HorizonsOption = Annotated[
    str | None,
    typer.Option(
        metavar="M0,M1,...",
        help="Horizons of an **explicit** schedule, the lowest layer's first.",
        rich_help_panel=SHAPE,
    ),
]
LongLayersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Long layers of a two-scale schedule.", show_default="a quarter", rich_help_panel=SHAPE
    ),
]
RatioOption = Annotated[
    float,
    typer.Option(
        metavar="X", help="Longest horizon / shortest, of two-scale and progressive schedules.", rich_help_panel=SHAPE
    ),
]
LongestOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Tokens that **full** remembers.", rich_help_panel=SHAPE)
]
StrideOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Keep one in every so many tokens.", show_default="all", rich_help_panel=SHAPE),
]
KeepOption = Annotated[
    Literal["last", "random"], typer.Option("--stride-keep", help="Which one of them.", rich_help_panel=SHAPE)
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
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="N|SIZE",
            help="What all layers may remember together: tokens (**24576**), or bytes per lane (**64MB**, **1.5GiB**).",
            show_default="a quarter of the layers at 8192, the rest at 512",
        ),
    ] = None,
    kv_heads: Annotated[int, typer.Option(metavar="N", help="KV heads of a layer.")] = 8,
    head_dim: Annotated[int, typer.Option(metavar="N", help="Numbers in a head.")] = 64,
    storage: Annotated[str, typer.Option(metavar="NAME", help="fp32, bf16, fp16, int8 or float8_e4m3.")] = "fp32",
    segment: Annotated[int, typer.Option(metavar="N", help="Tokens of a segment.")] = 1024,
    horizons: HorizonsOption = None,
    long_layers: LongLayersOption = None,
    ratio: RatioOption = 16.0,
    longest: LongestOption = 32_768,
    stride: StrideOption = None,
    keep: KeepOption = "last",
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file as well.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print what each layer remembers: horizon, bytes per lane, and how far back its output can reach.

    Schedules of one budget can be compared; models that differ in nothing else, too.
    """
    from dsmr.cli.schedule_table import schedule_table
    from dsmr.model.schedules import MemoryFormat, make_schedule

    if png is not None:
        check_file(png, force)
    tokens, size = parse_budget(budget)
    with reading_input():
        memory = MemoryFormat(kv_heads, head_dim, storage)
        made = make_schedule(
            name,
            layers,
            budget_tokens=tokens,
            budget_bytes=size,
            memory=memory,
            horizons=parse_horizons(horizons),
            long_layers=long_layers,
            ratio=ratio,
            longest=longest,
            retention=make_retention(stride, keep),
        )
        reach = made.reach(segment)
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
            stdout.print(schedule_table(made, memory=memory, segment=segment, longest=longest))


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


def parse_horizons(text: str | None) -> list[int] | None:
    """One number per layer, separated by commas."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--horizons: expected whole numbers separated by commas, got {text!r}") from error


def make_retention(stride: int | None, keep: Literal["last", "random"]) -> Retention | None:
    """Which tokens become memory entries; None keeps all. ValueError for an impossible stride."""
    from dsmr_kernels import Retention

    return None if stride is None else Retention(stride, keep)
