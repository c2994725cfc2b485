"""The gate's record: what every table entry compiled to, in a file that a changed kernel or entry makes out of date.

A file a version of Triton, `bench/compiled/triton-<version>.md`: a table to read, with a row for each entry, and a
digest of the kernels' sources. `python -m bench.gate --record` fills it and passes over what it holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, get_args

from dsmr_kernels.backends.triton import configs
from dsmr_kernels.backends.triton.configs import DIMS, TABLE, Config, Kernel, Kind

FOLDER = Path(__file__).parent / "compiled"
COLUMNS = (
    *("architecture", "D", "kind", "kernel", "tile", "warps", "stages", "loads"),
    *("variants", "registers", "spills", "shared", "instructions", "problems"),
)
HEAD = """# What the Triton kernels compile to

Written by `python -m bench.gate --record` with Triton {version}, from sources `{sources}`. A row for each entry of
`dsmr_kernels/backends/triton/configs.py`, with the most that any of its variants takes: registers a thread, spilled
bytes a thread, bytes of shared memory a block, and how often an instruction stands in the code.
"""


class Entry(NamedTuple):
    """A place in the table."""

    architecture: str
    dim: int
    kind: Kind
    kernel: Kernel

    @property
    def config(self) -> Config:
        """What stands there now."""
        return TABLE[self.architecture][self.kernel][self.kind][DIMS.index(self.dim)]


class Row(NamedTuple):
    """What an entry compiled to: the most over `variants` kinds of calls, and what is wrong with any of them."""

    config: Config
    variants: int
    registers: int
    spills: int
    shared: int
    instructions: dict[str, int]
    problems: list[str]


def entries(
    architectures: Sequence[str] = tuple(TABLE), dims: Sequence[int] = DIMS, kinds: Sequence[Kind] = get_args(Kind)
) -> Iterator[Entry]:
    """All places of these parts of the table, in the order of a record."""
    for architecture in architectures:
        for dim in dims:
            for kind in kinds:
                kernels = (kernel for kernel in get_args(Kernel) if kind in TABLE[architecture][kernel])
                yield from (Entry(architecture, dim, kind, kernel) for kernel in kernels)


def sources() -> str:
    """A digest of the kernels and their launchers; the table, comments and blank lines do not count."""
    digest = hashlib.sha256()
    for path in sorted(Path(configs.__file__).parent.glob("*.py")):
        if path.name != Path(configs.__file__).name:
            lines = (re.sub(r"\s*(#.*)?$", "", line) for line in path.read_text(encoding="utf-8").splitlines())
            digest.update("\n".join([path.name, *filter(None, lines), ""]).encode())
    return digest.hexdigest()[:16]


@dataclass
class Record:
    """The rows that were compiled with a version of Triton from sources of a digest."""

    version: str
    sources: str
    rows: dict[Entry, Row] = field(default_factory=dict)

    @staticmethod
    def path(version: str) -> Path:
        """Where the record of a version lies."""
        return FOLDER / f"triton-{version}.md"

    @classmethod
    def read(cls, version: str) -> Record:
        """The record of a version as it was written, by whatever sources."""
        text = cls.path(version).read_text(encoding="utf-8")
        record = cls(version, re.search(r"sources `(\w+)`", text)[1])
        table = [line for line in text.splitlines() if line.startswith("|")]
        record.rows.update(map(_parse, table[2:]))
        return record

    @classmethod
    def current(cls, version: str) -> Record:
        """The record of a version to go on with: an empty one if there is none or the sources have changed since."""
        present = sources()
        record = cls.read(version) if cls.path(version).exists() else cls(version, present)
        return record if record.sources == present else cls(version, present)

    def holds(self, entry: Entry, variants: int) -> bool:
        """Whether what stands in the table now was compiled for so many variants."""
        row = self.rows.get(entry)
        return row is not None and row.config == entry.config and row.variants >= variants

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        path = self.path(self.version)
        lines = [line(entry, self.rows[entry]) for entry in entries() if entry in self.rows]
        head = HEAD.format(version=self.version, sources=self.sources)
        written = path.with_suffix(".part")
        written.write_text("\n".join([head, *header(), *lines, ""]), encoding="utf-8")
        written.replace(path)


def header() -> tuple[str, str]:
    """The two lines above the rows of a table."""
    return f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"


def line(entry: Entry, row: Row) -> str:
    """A row as a line of a Markdown table."""
    m, n, warps, stages, descriptors = row.config
    cells = (
        *(*entry, f"{m}x{n}", warps, stages, "bulk" if descriptors else "pointers"),
        *(row.variants, row.registers, row.spills, row.shared),
        *(", ".join(f"{name} {count}" for name, count in row.instructions.items()), "; ".join(row.problems)),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _parse(line: str) -> tuple[Entry, Row]:
    cells = dict(zip(COLUMNS, (cell.strip() for cell in line[1:-1].split("|")), strict=True))
    counts = (count.rsplit(" ", 1) for count in cells["instructions"].split(", ") if count)
    entry = Entry(cells["architecture"], int(cells["D"]), cells["kind"], cells["kernel"])
    m, n = map(int, cells["tile"].split("x"))
    return entry, Row(
        Config(m, n, int(cells["warps"]), int(cells["stages"]), cells["loads"] == "bulk"),
        *(int(cells[name]) for name in ("variants", "registers", "spills", "shared")),
        {name: int(count) for name, count in counts},
        [problem for problem in cells["problems"].split("; ") if problem],
    )
