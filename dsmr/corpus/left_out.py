"""Left-out files: a list beside the store of everything that did not go into it, and a summary that fits a screen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dsmr.corpus.sources import LeftOut
from dsmr.files import replaced
from dsmr.text import escaped

SAME_MUSIC = "the same music as"
"""How the reason begins for a file whose music is in the store already."""

LONGEST_SUMMARY = 10
"""Lines at most; so many files are named one by one."""


def left_out_path(store: Path) -> Path:
    """Where the files that a store lacks are listed."""
    return store.with_name(f"{store.name}.left-out.tsv")


def write_left_out(left_out: Sequence[LeftOut], path: Path) -> None:
    """Write a table of files and reasons, a line each, tabs between; where there is nothing to list, remove an old one.

    Raises:
        OSError: the file cannot be written.
    """
    if not left_out:
        path.unlink(missing_ok=True)
        return
    lines = ["file\treason", *(f"{escaped(each.source)}\t{escaped(each.reason)}" for each in left_out)]
    with replaced(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def summary(left_out: Sequence[LeftOut]) -> list[str]:
    """Lines that say what was left out: each file, or how many for which reasons if there are too many."""
    if len(left_out) <= LONGEST_SUMMARY:
        return [f"{each.source}: {each.reason}" for each in left_out]
    kinds = Counter(_kind(each.reason) for each in left_out)
    first = {_kind(each.reason): each.source for each in reversed(left_out)}
    common = kinds.most_common(LONGEST_SUMMARY if len(kinds) <= LONGEST_SUMMARY else LONGEST_SUMMARY - 1)
    lines = [f"{count:,} files, the first {first[kind]}: {kind}" for kind, count in common]
    if rest := len(left_out) - sum(count for _, count in common):
        lines.append(f"{rest:,} files for {len(kinds) - len(common):,} other reasons")
    return lines


def _kind(reason: str) -> str:
    """A reason without what is one file's alone: its row, what it got, which file it equals."""
    if reason.startswith(SAME_MUSIC):
        return f"{SAME_MUSIC} another file"
    return re.sub(r"^row \d+ of [^:]*: ", "", reason).partition(", got ")[0]
