"""Results as files: one JSON object a line, first what ran, then a row for every case and contender."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import units
from bench.harness.measure import Quantiles, ratio

FOLDER = Path(__file__).parents[1] / "data"


@dataclass(kw_only=True)
class Row:
    """One contender in one case.

    `status`: timed or weighed; or wrong, failed, unavailable or skipped, and the `reason`. The row of a contender that
    was found right is `right` until it is timed or weighed.
    """

    task: str
    case: str
    fields: dict[str, Any]
    contender: str
    version: str
    ours: bool
    like_for_like: bool
    status: str
    reason: str = ""
    storage: str | None = None
    rounds: int = 0
    seconds: list[float] = field(default_factory=list)  # 20 %, median, 80 %
    beyond: list[float] = field(default_factory=list)  # the same of what it takes beyond another contender
    against: dict[str, list[float]] = field(default_factory=dict)  # the same of time / time of each of ours
    work: dict[str, float] = field(default_factory=dict)  # flops, bytes, tokens; empty if others' work is in the time
    peak_bytes: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def time(self, seconds: Sequence[float], work: dict[str, float], others: Mapping[str, Sequence[float]]) -> None:
        """Note a contender's seconds in each round, and how they compare with those of others, by name."""
        self.status, self.rounds, self.work = "timed", len(seconds), work
        self.seconds = Quantiles.of(seconds).rounded()
        self.against = {
            name: ratio(seconds, theirs).rounded() for name, theirs in others.items() if name != self.contender
        }


REQUIRED = ("task", "case", "fields", "contender", "version", "ours", "like_for_like", "status")


@dataclass(kw_only=True)
class Run:
    """What a file's rows have in common: they were measured in one process."""

    command: str
    device: str
    threads: int
    machine: dict[str, Any]
    machine_name: str
    versions: dict[str, str]
    commit: str
    roof: dict[str, Any]  # `bench.harness.roof.Roof`, as measured before the first case
    quick: bool
    others: float | None = None  # share of the cores' time that other processes took during the run
    steal: float | None = None  # share that other virtual machines took
    rows: list[Row] = field(default_factory=list)

    @property
    def file(self) -> str:
        """See `file_name`."""
        return file_name(self.command, self.device, self.threads)

    @property
    def place(self) -> str:
        """`2 threads`, or `cuda`."""
        return units.counted(self.threads, "thread") if self.device == "cpu" else self.device

    @property
    def title(self) -> str:
        """`decode, 2 threads`."""
        return f"{self.command}, {self.place}"


def file_name(command: str, device: str, threads: int) -> str:
    """`decode-cpu-2.jsonl`: runs that replace each other have the same."""
    return f"{command}-{device}" + (f"-{threads}" if device == "cpu" else "") + ".jsonl"


def faults(run: Run) -> list[Row]:
    """What must not be: a wrong contender, or one of ours that failed."""
    return [row for row in run.rows if row.status == "wrong" or (row.status == "failed" and row.ours)]


def save(runs: Sequence[Run], path: Path) -> Path:
    """Write runs to a `.jsonl` file, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for run in runs:
        lines.append(json.dumps({key: value for key, value in vars(run).items() if key != "rows"}))
        lines += [json.dumps(_telling(row)) for row in run.rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def _telling(row: Row) -> dict[str, Any]:
    """A row's values but those that say nothing."""
    return {name: value for name, value in vars(row).items() if value not in (None, "", [], {}) or name in REQUIRED}


def load(path: Path) -> list[Run]:
    """The inverse of `save`."""
    runs: list[Run] = []
    for line in path.read_text().splitlines():
        value = json.loads(line)
        if "contender" in value:
            runs[-1].rows.append(Row(**value))
        else:
            runs.append(Run(**value))
    return runs


def load_machine(paths: Iterable[Path]) -> list[Run]:
    """Runs of one machine, in order of their files' names. ValueError if they come from several."""
    runs = [run for path in sorted(paths) for run in load(path)]
    machines = {json.dumps(run.machine, sort_keys=True): run.machine_name for run in runs}
    if len(machines) > 1:
        raise ValueError(
            f"results: expected runs of one machine, got {sorted(machines.values())}; "
            "times of different machines are not compared"
        )
    return runs
