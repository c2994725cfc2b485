"""The documents of `python -m bench report`: README's table, docs/benchmarks.md and plots, from results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.harness import results, units
from bench.harness.results import Run
from bench.report import headlines, models, table
from bench.report.duels import Duel, duels
from bench.report.roofs import Roofs, roofs, share

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
INTRODUCTION = """# Benchmarks

Written by `python -m bench report` from `bench/data/`; [METHOD.md](../bench/METHOD.md) says how it was measured. \
Times of different machines are never compared. `lead` is the best peer's time divided by ours: the median of the \
ratios within rounds, and their 20 % and 80 % quantiles. Below 1 we lose.
"""


def write(root: Path, folder: Path) -> list[Path]:
    """Write everything under `root` from the machines' folders in `folder`; the paths written."""
    machines = {path.name: results.load_machine(path.glob("*.jsonl")) for path in sorted(folder.iterdir())}
    machines = {name: runs for name, runs in machines.items() if runs}
    quick = [f"{name}/{run.file}" for name, runs in machines.items() for run in runs if run.quick]
    if quick:
        raise ValueError(f"results: expected none made with --quick, which only shows that the suite runs, got {quick}")
    if not machines:
        raise ValueError(f"results: expected folders of .jsonl files in {folder}, got none")
    from bench.report import plots  # matplotlib is not there where only `section` is asked for

    written = []
    for name, runs in machines.items():
        for what, figure in plots.figures(runs).items():
            written.append(root / "docs" / "images" / f"bench-{name}-{what}.png")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(written[-1], dpi=110, metadata={"Software": None})  # the same results make the same bytes
    docs = root / "docs" / "benchmarks.md"
    docs.write_text(_document(folder, machines, written))
    readme = root / "README.md"
    readme.write_text(between_markers(readme.read_text(), _readme_block(machines)))
    return [*written, docs, readme]


def between_markers(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced. ValueError if they are not there exactly once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected one {BEGIN} and one {END} after it")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + block + text[text.index(END) :]


def _document(folder: Path, machines: dict[str, list[Run]], plotted: list[Path]) -> str:
    lines = [INTRODUCTION]
    for name, runs in machines.items():
        comments = folder / name / "comments.md"
        images = [path.name for path in plotted if path.name.startswith(f"bench-{name}-")]
        lines += section(runs, comments.read_text() if comments.exists() else "", images)
    return "\n".join(lines)


def section(runs: Sequence[Run], comments: str = "", images: Sequence[str] = ()) -> list[str]:
    """Everything about one machine, with the names of its plots."""
    machine, found = roofs(runs), duels(runs)
    lines = [f"## {_machine_title(runs[0])}", "", *_conditions(runs, machine), ""]
    lines += [headlines.margins(found), ""] if found else []
    lines += [comments.rstrip(), ""] if comments else []
    lines += [f"![{Path(image).stem.rpartition('-')[2]}](images/{image})\n" for image in images]
    for run in runs:
        if run.rows:
            lines += [f"### {run.title[0].upper()}{run.title[1:]}", "", *_run_tables(run, machine)]
    return lines


def _machine_title(run: Run) -> str:
    machine = run.machine
    if machine["gpu"]:
        return str(machine["gpu"])
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instructions']}"


def _conditions(runs: Sequence[Run], machine: Roofs) -> list[str]:
    """Versions, commits and roofs."""
    versions = ", ".join(f"{name} {version}" for name, version in runs[0].versions.items())
    commits = ", ".join(dict.fromkeys(run.commit for run in runs))
    places = {(run.device, run.threads): run.place for run in runs}
    cells = [
        (
            places[place],
            ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in roof.flops.items()),
            f"{roof.read / 1e9:,.1f} GB/s",
        )
        for place, roof in machine.items()
    ]
    return [
        f"{versions}; commit {commits}.",
        "",
        *table.markdown(("roof, the best seen", "GFLOP/s", "read"), cells),
    ]


def _run_tables(run: Run, machine: Roofs) -> list[str]:
    """What a run of whole models comes to; the duels of a run in one table; then every row of it, folded."""
    lines = [*models.lines(run), ""] if run.command in models.SUMMARIES else []
    if told := table.disturbance(run):
        lines += [*told, ""]
    if found := duels([run]):
        header = ("case", "ours", "median", "% of roof", "best peer", "median", "lead")
        lines += [*table.markdown(header, [_duel_cells(one, machine) for one in found]), ""]
    lines += ["<details><summary>Every contender</summary>", ""]
    for (task, case), cells in table.compared(run, machine).items():
        lines += [f"**{task} {case}**", "", *table.markdown(table.HEADER, cells), ""]
    lines += [f"- Unavailable ({why}): {', '.join(names)}." for why, names in table.unavailable(run.rows).items()]
    return [*lines, "", "</details>", ""]


def _duel_cells(one: Duel, machine: Roofs) -> tuple[str, ...]:
    own, other = (units.seconds(row.seconds[1]) for row in (one.ours, one.peer))
    roof = table.percent(share(one.run, one.ours, machine))
    lead = units.spread(one.lead, "x", 2)
    return (f"{one.ours.task} {one.ours.case}", one.ours.contender, own, roof, one.peer.contender, other, lead)


def _readme_block(machines: dict[str, list[Run]]) -> str:
    lines = []
    for name, runs in machines.items():
        lines += ["", f"{_machine_title(runs[0])}:", "", *headlines.block(runs)]
        lines.append(f"![Speed against memory](docs/images/bench-{name}-speed.png)")
    return "\n".join([*lines, "", "All cases: [docs/benchmarks.md](docs/benchmarks.md).", ""])
