"""The gate's record: what every table entry compiled to, in a file that changed kernels or entries make out of date.

A file a version of Triton, `bench/compiled/triton-<version>.md`: a table to read, with a row for each entry. A row
knows by a digest what it was compiled from, which is the code of its kernels and what its launches tell the compiler:
a change makes those rows out of date that it touches. `python -m bench.compiled.gate --record` fills the table and
passes over what it holds.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from dsmr_kernels.backends.triton.configs import DIMS, TABLE, Config, Kernel, Kind
from dsmr_kernels.backends.triton.launch import ALIGNMENT, Launch

FOLDER = Path(__file__).parent
COLUMNS = (
    *("architecture", "D", "kind", "kernel", "tile", "warps", "stages", "loads"),
    *("source", "variants", "registers", "spills", "shared", "instructions", "problems"),
)
HEAD = """# What the Triton kernels compile to

Written by `python -m bench.compiled.gate --record` with Triton {version}. A row for each entry of
`dsmr_kernels/backends/triton/configs.toml`, with a digest of what it was compiled from and the most that any of its
variants takes: registers a thread, spilled bytes a thread, bytes of shared memory a block, and how often an instruction
stands in the code.
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
    """What an entry compiled to: the most over `variants` kinds of calls, and what is wrong with any of them.

    `source`: the digest of what it was compiled from, see `digest`.
    """

    config: Config
    source: str
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


def digest(launches: Iterable[Launch]) -> str:
    """A digest of what launches compile from: kernels with all that they call, and what the compiler is told.

    Comments, blank lines and the values of run-time arguments do not count.
    """
    told = hashlib.sha256()
    for launch in launches:
        at_run_time = {parameter.name for parameter in launch.kernel.params if not parameter.is_constexpr}
        arguments = sorted(
            (name, _told(x) if name in at_run_time else _constant(x)) for name, x in launch.arguments.items()
        )
        told.update(repr((kernel_source(launch.kernel), arguments)).encode())
    return told.hexdigest()[:12]


def _told(value: Any) -> object:
    """What the compiler is told of a run-time argument: its type, and if it is aligned or one; of a tuple, of each."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.data_ptr() % ALIGNMENT == 0
    if isinstance(value, TensorDescriptor):
        return str(value.base.dtype), tuple(value.block_shape)
    if isinstance(value, tuple):
        return type(value).__name__, [(name, _told(getattr(value, name))) for name in value._fields]
    return (value == 1, value % ALIGNMENT == 0) if isinstance(value, int) else type(value).__name__


def _constant(value: Any) -> object:
    """A compile-time argument or an option, with what stands in it unwrapped."""
    if isinstance(value, tl.constexpr):
        return value.value
    return type(value)(*map(_constant, value)) if isinstance(value, tuple) else value


@cache
def kernel_source(kernel: JITFunction) -> str:
    """The code of a kernel and of all that it uses by name, without comments.

    That is every function that it calls or hands on, the constants, and the fields of the tuples that they make.
    """
    found: dict[int, tuple[str, str]] = {}  # by identity: two modules may use a name for different things

    def visit(name: str, value: object) -> None:
        if id(value) in found:
            return
        if isinstance(value, tl.constexpr):
            found[id(value)] = name, repr(value.value)
        elif isinstance(value, type) and issubclass(value, tuple):
            found[id(value)] = name, repr(getattr(value, "_fields", ()))
        elif isinstance(value, JITFunction):
            lines = (re.sub(r"\s*(#.*)?$", "", line) for line in inspect.getsource(value.fn).splitlines())
            found[id(value)] = name, "\n".join(filter(None, lines))
            names = value.fn.__code__.co_names  # of globals and of attributes
            for used in names:
                seen = value.fn.__globals__.get(used)
                visit(used, seen)
                if isinstance(seen, ModuleType) and not seen.__name__.startswith("triton"):
                    for attribute in names:
                        visit(attribute, getattr(seen, attribute, None))

    visit(kernel.__name__, kernel)
    return repr(sorted(found.values()))


@dataclass
class Record:
    """The rows that were compiled with a version of Triton, by whatever sources: each says by which."""

    version: str
    rows: dict[Entry, Row] = field(default_factory=dict)

    @staticmethod
    def path(version: str) -> Path:
        """Where the record of a version lies."""
        return FOLDER / f"triton-{version}.md"

    @classmethod
    def read(cls, version: str) -> Record:
        """The record of a version; an empty one if there is none."""
        record, path = cls(version), cls.path(version)
        if path.exists():
            table = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
            record.rows.update(map(_parse, table[2:]))
        return record

    def holds(self, entry: Entry, variants: int, source: str) -> bool:
        """Whether what stands in the table now was compiled for so many variants, from what `source` is a digest of."""
        row = self.rows.get(entry)
        return row is not None and (row.config, row.source) == (entry.config, source) and row.variants >= variants

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        path = self.path(self.version)
        lines = [line(entry, self.rows[entry]) for entry in entries() if entry in self.rows]
        head = HEAD.format(version=self.version)
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
        *(row.source, row.variants, row.registers, row.spills, row.shared),
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
        cells["source"],
        *(int(cells[name]) for name in ("variants", "registers", "spills", "shared")),
        {name: int(count) for name, count in counts},
        [problem for problem in cells["problems"].split("; ") if problem],
    )
