"""Horizon table: a schedule for the terminal, a bar for each layer."""

from __future__ import annotations

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dsmr.model.schedules import LONGEST_PIECE, MemoryFormat, Schedule, make_schedule
from dsmr.units import format_bytes
from dsmr_kernels.geometry import Window


def schedule_table(
    schedule: Schedule,
    *,
    memory: MemoryFormat,
    segment: int,
    window: Window = "segment",
    longest: int = LONGEST_PIECE,
) -> Table:
    """A table for the terminal: each layer's horizon as a bar, its bytes and reach, and the total against `full`.

    Args:
        schedule: what to draw.
        memory: what an entry is made of.
        segment: T, the longest segment; rings are sized for one in flight.
        window: what reach is counted by, see `Schedule.reach`.
        longest: the horizon of the `full` schedule to compare with.
    """
    full = make_schedule("full", len(schedule.horizons), longest=longest)
    share = schedule.total / full.total
    reaches = schedule.reach(segment, window)
    lines = [
        f"{memory.kv_heads} KV heads of {memory.head_dim}, {memory.storage}, segments of {segment:,} tokens",
        f"in a model of {memory.kv_heads} heads this is {schedule.name} as it is; in one of more, heads share KV heads",
    ]
    if schedule.retention:
        which = {"last": "the last", "random": "a random one"}[schedule.retention.keep]
        lines.append(f"keeps {which} of every {schedule.retention.stride} tokens")
    lines += [
        f"receptive field: the last token of a segment can depend on {reaches[-1]:,} tokens",
        f"full would be {longest:,} tokens in every layer, {format_bytes(sum(full.horizon_bytes(memory)))} per lane",
        f"this is {share:.1%} of it" + (f": {1 - share:.1%} saved" if share <= 1 else ""),
    ]
    table = Table(
        title=f"{schedule.name}: {schedule.total:,} entries in {len(schedule.horizons)} layers",
        caption=Text("\n".join(lines), style="table.caption"),
        title_justify="left",
        caption_justify="left",
        show_footer=True,
    )
    seen, ring = schedule.horizon_bytes(memory), schedule.capacity_bytes(memory, segment)
    table.add_column("layer", Text("all"), justify="right", no_wrap=True)
    table.add_column("horizon", Text(f"{schedule.total:,}"), justify="right", no_wrap=True)
    table.add_column("", min_width=4, max_width=32)
    table.add_column("memory / lane", Text(format_bytes(sum(seen))), justify="right", no_wrap=True)
    table.add_column("ring / lane", Text(format_bytes(sum(ring))), justify="right", no_wrap=True)
    table.add_column("reach", Text(f"{reaches[-1]:,}"), justify="right", no_wrap=True)
    widest = max(schedule.horizons)
    for layer, (horizon, reach) in enumerate(zip(schedule.horizons, reaches, strict=True)):
        bar = ProgressBar(widest, horizon, complete_style="cyan", finished_style="cyan") if horizon else Text()
        table.add_row(
            str(layer), f"{horizon:,}", bar, format_bytes(seen[layer]), format_bytes(ring[layer]), f"{reach:,}"
        )
    return table
