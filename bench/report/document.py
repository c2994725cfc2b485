"""`python -m bench report`: README's table and plot, docs/benchmarks.md and plots, from committed results alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import models
from bench.harness import results, units
from bench.harness.results import Row, Run
from bench.report import duels as summary
from bench.report import table
from bench.report.duels import Duel, Roofs
from bench.report.models import lines as model_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
# README shows four cases of each machine, with as many threads as it has: these.
HEADLINES = re.compile(
    r"training B\d+-T(512|1024)-H(8-Hkv8|16-Hkv16)-D64-M4096-(fp32|bf16)"
    r"|decode B[18]-T1-H(8-Hkv8-D64|16-Hkv16-D128)-M4096-(fp32|bf16)(-graph)?"
)


def write(root: Path, folder: Path) -> list[Path]:
    """Write everything under `root` from the machines' folders in `folder`; the paths written."""
    machines = {path.name: results.load_machine(path.glob("*.jsonl")) for path in sorted(folder.iterdir())}
    machines = {name: runs for name, runs in machines.items() if runs}
    quick = [f"{name}/{run.file}" for name, runs in machines.items() for run in runs if run.quick]
    if quick:
        raise ValueError(f"results: expected none made with --quick, which only shows that the suite runs, got {quick}")
    if not machines:
        raise ValueError(f"results: expected folders of .jsonl files in {folder}, got none")
    written = []
    for name, runs in machines.items():
        for what, figure in figures(runs).items():
            written.append(root / "docs" / "images" / f"bench-{name}-{what}.png")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(written[-1], dpi=110, metadata={"Software": None})  # the same results make the same bytes
    docs = root / "docs" / "benchmarks.md"
    docs.write_text(_document(folder, machines))
    readme = root / "README.md"
    readme.write_text(between_markers(readme.read_text(), _readme_block(machines)))
    return [*written, docs, readme]


def between_markers(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced. ValueError if they are not there exactly once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected one {BEGIN} and one {END} after it")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + block + text[text.index(END) :]


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Every figure of one machine's results, by the end of its file's name."""
    from bench.report import model_plots, plots

    return {**plots.figures(runs), **model_plots.figures(runs)}


def _document(folder: Path, machines: dict[str, list[Run]]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m bench report` from `bench/data/`. How it was measured: "
        "[METHOD.md](../bench/METHOD.md). Each machine stands for itself: times of different machines are never "
        "compared. `lead` is the best peer's time over ours, the median over rounds of the ratio within a round "
        "(20 % - 80 %); below 1 we lose.",
        "",
    ]
    for name, runs in machines.items():
        comments = folder / name / "comments.md"
        lines += section(runs, comments.read_text() if comments.exists() else "", name)
    return "\n".join(lines)


def section(runs: Sequence[Run], comments: str, name: str | None) -> list[str]:
    """Everything about one machine; `name`: that of its plots, None if there are none."""
    lines = [f"## {_machine_title(runs[0])}", "", *_conditions(runs), ""]
    found, machine = summary.duels(runs), summary.roofs(runs)
    lines += [*_losses(found), *([comments.rstrip(), ""] if comments else [])]
    if name:
        lines += [f"![{what}](images/bench-{name}-{what}.png)\n" for what in figures(runs)]
    for run in runs:
        if run.rows:
            lines += [f"### {run.title[0].upper()}{run.title[1:]}", "", *_run_tables(run, machine)]
    return lines


def _machine_title(run: Run) -> str:
    machine = run.machine
    if machine["gpu"]:
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instructions']}"


def _conditions(runs: Sequence[Run]) -> list[str]:
    """Versions, commits and roofs."""
    versions = ", ".join(f"{name} {version}" for name, version in runs[0].versions.items())
    commits = ", ".join(dict.fromkeys(run.commit for run in runs))
    lines = [
        f"{versions}; commit {commits}.",
        "",
        "| roof, the best seen | GFLOP/s | read |",
        "|---|---|---|",
    ]
    for (device, threads), roof in summary.roofs(runs).items():
        flops = ", ".join(f"{dtype} {value / 1e9:,.0f}" for dtype, value in roof.flops.items())
        what = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
        lines.append(f"| {what} | {flops} | {roof.read / 1e9:,.1f} GB/s |")
    return lines


def _losses(found: Sequence[Duel]) -> list[str]:
    if not found:
        return []
    lost = sum(one.lead[1] < 1 for one in found)
    if lost:
        lines = [f"Slower than the best peer in {lost} of {len(found)} like-for-like cases. The largest losses:", ""]
    else:
        lines = [f"Fastest in all {len(found)} like-for-like cases. The smallest margins:", ""]
    for one in summary.worst(found):
        lines.append(f"- {one.name}: {one.ours.contender} against {one.peer.contender}, {_interval(one.lead)}.")
    return [*lines, ""]


def _interval(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.2f}x ({low:.2f} - {high:.2f})"


def _run_tables(run: Run, machine: Roofs) -> list[str]:
    """The duels of a run in one table, then every row of it, folded."""
    lines = [*model_lines(run), ""] if run.command in models.COMMANDS else []
    if run.others is not None and run.steal is not None:
        lines += [f"Other processes took {run.others:.1%} of the cores' time, other machines {run.steal:.1%}.", ""]
    found = summary.duels([run])
    if found:
        lines += ["| case | ours | median | % of roof | best peer | median | lead |", "|---|---|---|---|---|---|---|"]
        lines += [_duel_line(one, f"{one.ours.task} {one.ours.case}", machine) for one in found]
        lines.append("")
    lines += ["<details><summary>Every contender</summary>", ""]
    for (task, case), rows in summary.grouped(run.rows).items():
        base = summary.base_of(rows)
        header = table.HEADER
        lines += [f"**{task} {case}**", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        shown = [row for row in rows if row.status != "unavailable"]
        name = base.contender if base else None
        lines += [f"| {' | '.join(table.cells(run, row, name, machine))} |" for row in shown]
        lines.append("")
    return [*lines, *_unavailable(run.rows), "", "</details>", ""]


def _unavailable(rows: Sequence[Row]) -> list[str]:
    return [f"- Unavailable ({reason}): {', '.join(names)}." for reason, names in table.unavailable(rows).items()]


def _duel_line(one: Duel, name: str, machine: Roofs) -> str:
    roof = table.percent(summary.share(one.run, one.ours, machine))
    ours, peer = one.ours, one.peer
    own, other = (units.seconds(row.seconds[1]) for row in (ours, peer))
    return f"| {name} | {ours.contender} | {own} | {roof} | {peer.contender} | {other} | {_interval(one.lead)} |"


def _readme_block(machines: dict[str, list[Run]]) -> str:
    lines = []
    for name, runs in machines.items():
        found, machine = summary.duels(runs), summary.roofs(runs)
        lines += ["", f"{_machine_title(runs[0])}, torch {runs[0].versions['torch']}:", ""]
        lines += ["| case | ours | median | % of roof | best peer | median | lead |", "|---|---|---|---|---|---|---|"]
        most = max(run.threads for run in runs)
        shown = [one for one in found if HEADLINES.fullmatch(f"{one.ours.task} {one.ours.case}")]
        shown = [one for one in shown if one.run.threads == most]
        lines += [_duel_line(one, one.name, machine) for one in shown]
        lines += ["", *_losses(found), f"![Speed against memory](docs/images/bench-{name}-speed.png)"]
    return "\n".join([*lines, "", "All cases: [docs/benchmarks.md](docs/benchmarks.md).", ""])
