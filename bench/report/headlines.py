"""Headlines: four cases of a machine and its smallest margins, told in words for README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.harness import units
from bench.harness.results import Row, Run
from bench.report.duels import Duel, duel, duels, grouped, own_duel, worst
from bench.report.table import markdown, rate

CASES = (  # on a CPU or on a GPU
    "decode (B1-T1-H8-Hkv8-D64-M4096-fp32|B8-T1-H16-Hkv16-D128-M4096-bf16-graph)",
    "training (B1-T512-H8-Hkv8-D64-M4096-fp32|B8-T1024-H16-Hkv16-D64-M4096-bf16)",
    r"train (small-B1|base-B16)-T\d+-two_scale",
    "generate small-B1",
)
TASKS = {"decode": "decode one token", "forward": "attention forward", "training": "attention forward and backward"}


def block(runs: Sequence[Run]) -> list[str]:
    """The table of one machine, with as many threads as it has, and the sentence about all its cases."""
    most = [run for run in runs if run.threads == max(each.threads for each in runs)]
    header = (f"{most[0].place}, torch {most[0].versions['torch']}", "ours", "best peer", "times faster")
    cells = [
        (words(one.ours), _value(one.ours), f"{_value(one.peer)}, {_who(one.peer)}", units.spread(one.lead, digits=2))
        for one in filter(None, (_headline(most, case) for case in CASES))
    ]
    found = duels(runs)
    return [*(markdown(header, cells) if cells else []), "", *([margins(found), ""] if found else [])]


def margins(found: Sequence[Duel]) -> str:
    """How many cases are won, and which are lost most clearly or won most narrowly, in a sentence."""
    lost = sum(one.lead[1] < 1 for one in found)
    won = f"{len(found) - lost} of {len(found)}" if lost else f"all {len(found)}"
    told = ", ".join(f"{one.lead[1]:.2f}x ({words(one.ours)}, {one.run.place})" for one in worst(found))
    return f"Fastest in {won} like-for-like cases; {'largest losses' if lost else 'smallest margins'}: {told}."


def words(row: Row) -> str:
    """A case of attention, training or generation in plain English."""
    size: dict[str, Any] = row.fields
    if row.task == "generate":
        return f"generation with `{size['size']}`, {units.counted(size['lanes'], 'listener')}"
    if row.task == "train":
        batch = f"{size['segment']:,} tokens" + (f" in {size['lanes']} lanes" if size["lanes"] > 1 else "")
        return f"training step of `{size['size']}`, {size['schedule'].replace('_', '-')}, {batch}"
    what = {"decode": "decode one token", "forward": "attention forward", "training": "attention forward and backward"}[
        row.task
    ]
    kv_heads = f" ({units.counted(size['kv_heads'], 'KV head')})" if size["kv_heads"] != size["heads"] else ""
    marks = {
        f"{size['lanes']} lanes": size["lanes"] > 1,
        "sliding window": size["window"] == "token",
        "inputs in the cache": size["hot"],
        "as a CUDA graph": size["graph"],
    }
    told = (
        what + (f" of {size['tokens']} tokens" if row.task != "decode" else ""),
        f"{size['horizon']:,} memory entries",
        f"{units.counted(size['heads'], 'head')} of {size['head_dim']}{kv_heads}",
        size["dtype"],
        *(mark for mark, holds in marks.items() if holds),
    )
    return ", ".join(told)


def _headline(runs: Sequence[Run], pattern: str) -> Duel | None:
    for run in runs:
        for (task, case), rows in grouped(run.rows).items():
            if re.fullmatch(pattern, f"{task} {case}"):
                return duel(run, rows) or own_duel(run, rows)
    return None


def _value(row: Row) -> str:
    return rate(row) if "tokens_per_second" in row.extra else units.seconds(row.seconds[1])


def _who(peer: Row) -> str:
    return f"our own {peer.contender} (no peer was measured)" if peer.ours else peer.contender
