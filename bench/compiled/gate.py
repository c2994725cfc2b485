"""Compile the Triton kernels for GPUs that need not be there, and say what would run badly:
`python -m bench.compiled.gate`.

`compiling_for(architecture)` turns every launch inside it into a compilation with the very arguments of the launch, so
what is examined is what would run: the same constants, the same knowledge of alignment. The gate: `Compiled.problems`.
`python -m bench.compiled.gate sm_90 gfx942` prints what the table's entries for these architectures compile to, without
arguments all (hours); with `--record` it can be interrupted, and what it found is kept: see `bench.compiled.record`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench.compiled import record as gate_record
from bench.compiled.record import Entry, Record, Row
from dsmr_kernels import MemoryStack, Retention
from dsmr_kernels.backends import Call
from dsmr_kernels.backends import triton as backend
from dsmr_kernels.backends.triton import decode
from dsmr_kernels.backends.triton.configs import DIMS, TABLE, Config, Kernel, Kind
from dsmr_kernels.backends.triton.launch import Launch
from dsmr_kernels.storage import Storage


@dataclass(frozen=True)
class Architecture:
    """What a GPU architecture offers: `shared` is the most bytes of shared memory that one block may use."""

    target: GPUTarget
    shared: int
    products: str  # the instruction of large matrix products in 16-bit types
    copies: str  # the instruction of asynchronous copies into shared memory


def _cuda(number: int, shared_kb: int, products: str, copies: str) -> Architecture:
    return Architecture(GPUTarget("cuda", number, 32), shared_kb * 1024, products, copies)


# Shared memory: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability" (opt-in maximum per
# block); AMD CDNA 3 instruction set guide (LDS).
ARCHITECTURES = {
    "sm_80": _cuda(80, 163, "mma.sync", "cp.async.cg"),
    "sm_86": _cuda(86, 99, "mma.sync", "cp.async.cg"),
    "sm_89": _cuda(89, 99, "mma.sync", "cp.async.cg"),
    "sm_90": _cuda(90, 227, "wgmma", "cp.async.bulk.tensor"),
    "sm_100": _cuda(100, 227, "tcgen05.mma", "cp.async.bulk.tensor"),
    "sm_120": _cuda(120, 99, "mma.sync", "cp.async.cg"),  # has bulk copies, which make its mma.sync kernels spill
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 * 1024, "v_mfma", "buffer_load"),
}
PRODUCTS = ("forward_kernel", "dq_kernel", "dkdv_kernel", "decode_kernel")  # the kernels whose time is matrix products
INSTRUCTIONS = {  # name to what its mnemonics begin with; cp.async.cg is the 16-byte kind, .ca the smaller ones
    "wgmma": "wgmma.mma_async",
    "tcgen05.mma": "tcgen05.mma",
    "mma.sync": "mma.sync",
    "v_mfma": "v_mfma",
    "cp.async.bulk.tensor": "cp.async.bulk.tensor",
    "cp.async.cg": "cp.async.cg",
    "cp.async.ca": "cp.async.ca",
    "buffer_load": "buffer_load",
}


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel and what it costs a thread (`registers`, `spills`) or a block (`shared`, in bytes).

    `spills`: bytes of spill stores and loads on NVIDIA, spilled registers and scratch bytes on AMD. `serialised`: ptxas
    could not keep asynchronous matrix products in flight. `instructions`: how often the named ones are in the code.
    """

    name: str
    architecture: str
    constants: dict[str, Any]
    warps: int
    stages: int
    bulk: bool
    registers: int
    spills: int
    shared: int
    serialised: bool
    instructions: dict[str, int] = field(compare=False)

    def problems(self, required: Sequence[Sequence[str]] = ()) -> list[str]:
        """Why this kernel must not be shipped, in words. Of each group in `required` it must contain an instruction."""
        limit = ARCHITECTURES[self.architecture].shared
        found = [f"no {' or '.join(names)}" for names in required if not self.instructions.keys() & set(names)]
        if self.spills:
            found.append(f"spills {self.spills}")
        if self.serialised:
            found.append("matrix products are serialised")
        if self.shared > limit:
            found.append(f"shared memory {self.shared} bytes, at most {limit}")
        return found


class _StubDriver:
    """As much of a driver as the compiler asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(architecture: str) -> Iterator[list[Compiled]]:
    """Inside, launches of Triton kernels (with CPU tensors) compile for `architecture` and run nothing.

    Yields the list that every newly compiled kernel joins. Outputs of the launched kernels are never written.
    """
    target = ARCHITECTURES[architecture].target
    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self not in functions:  # what it has compiled so far is for another device, and what it compiles now is not
            functions.append(self)
            stack.enter_context(mock.patch.object(self, "device_caches", defaultdict(self.create_binder)))
        log = io.StringIO()
        with contextlib.redirect_stdout(log):  # where Triton prints the log of ptxas
            binary = run(self, *args, grid=grid, warmup=True, **options)
        if binary not in seen:
            seen.append(binary)
            found.append(_examine(self, binary, log.getvalue(), architecture))
        return binary

    functions: list[JITFunction] = []
    seen: list[Any] = []
    driver = triton.runtime.driver
    before = driver._active  # reading `active` would look for a GPU
    with contextlib.ExitStack() as stack:
        stack.enter_context(triton.knobs.cache.scope())
        triton.knobs.cache.dir = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(triton.knobs.compilation.scope())
        stack.enter_context(triton.knobs.nvidia.scope())
        stack.callback(driver.set_active, before)
        driver.set_active(_StubDriver(target))
        triton.knobs.compilation.always_compile = True  # a kernel from the cache on disk has no log
        triton.knobs.nvidia.dump_ptxas_log = True
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        yield found


def _examine(function: JITFunction, binary: Any, log: str, architecture: str) -> Compiled:
    names = function.arg_names
    constants = {names[path[0]]: value for path, value in binary.src.constants.items() if len(path) == 1}
    code = binary.asm["amdgcn" if architecture.startswith("gfx") else "ptx"]
    if architecture.startswith("gfx"):
        registers, spilled, scratch = (
            int(re.search(rf"\.{name}:\s+(\d+)", code)[1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        )
        spills = spilled + scratch
    else:
        registers = int(re.search(r"Used (\d+) registers", log)[1])
        spills = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups()))
    return Compiled(
        name=function.__name__,
        architecture=architecture,
        constants=constants,
        warps=binary.metadata.num_warps,
        stages=binary.metadata.num_stages,
        bulk="tensordesc" in str(binary.src.signature),
        registers=registers,
        spills=spills,
        shared=binary.metadata.shared,
        serialised="serialized" in log,
        instructions={name: code.count(text) for name, text in INSTRUCTIONS.items() if text in code},
    )


DECODED = (1, 16)  # tokens of the smallest and the largest tile of queries; one lane and head: most programs share it
PROCESSORS = 160  # as many as any of these GPUs has, about


class Variant(NamedTuple):
    """A call that belongs to a kind: what is compiled into its kernels."""

    dtype: torch.dtype = torch.bfloat16
    storage: Storage | None = None
    bounded: bool = False  # window="token", segment_start and segment_len
    special: bool = False  # softcap, ALiBi and retention
    tf32: bool = False

    def call(self, dim: int, tokens: int) -> Call:
        """A call with sizes that are multiples of nothing helpful, on the CPU; its contents do not matter."""
        lanes, heads, kv_heads, horizon = (1, 4, 1, 70001) if tokens in DECODED else (2, 6, 3, 1001)
        retention = Retention(4, "random") if self.special else None
        stack = MemoryStack([horizon], lanes, kv_heads, dim, 333, self.dtype, storage=self.storage, retention=retention)
        q, k, v = (torch.zeros(lanes, tokens, n, dim, dtype=self.dtype) for n in (heads, kv_heads, kv_heads))
        return Call(
            *(q, k, v, stack[0], "token" if self.bounded else "segment"),
            segment_start=torch.zeros(lanes, tokens, dtype=torch.int64) if self.bounded else None,
            segment_len=torch.full((lanes,), tokens) if self.bounded else None,
            alibi_slopes=torch.ones(heads) if self.special else None,
            scale=dim**-0.5,
            softcap=30.0 if self.special else 0.0,
            append=True,
        )


# The first of each kind takes the most registers, as a rule.
VARIANTS: dict[Kind, tuple[Variant, ...]] = {
    "half": (Variant(bounded=True), Variant(torch.float16)),
    "quantised": (
        Variant(storage="int8", bounded=True),
        Variant(storage="float8_e4m3", bounded=True),
        Variant(torch.float16, "float8_e4m3"),
    ),
    "special": tuple(Variant(storage=s, bounded=True, special=True) for s in ("int8", "float8_e4m3", None)),
    "float32": tuple(Variant(torch.float32, bounded=True, tf32=tf32) for tf32 in (False, True)),
    "float32 special": tuple(
        Variant(torch.float32, storage, True, True, tf32)
        for storage in ("int8", "float8_e4m3", None)
        for tf32 in (False, True)
    ),
}


@contextlib.contextmanager
def using(architecture: str, kernel: Kernel, config: Config) -> Iterator[None]:
    """Inside, every call finds `config` in the table of `architecture`."""
    table = TABLE[architecture][kernel]
    with mock.patch.dict(table, {kind: (config,) * len(DIMS) for kind in table}):
        yield


def compiled(architecture: str, variant: Variant, dim: int, kernels: Sequence[Kernel]) -> list[Compiled]:
    """What these kernels compile to for such calls; with the backward kernels comes the small one that they share."""
    with compiling_for(architecture) as found:
        _launch(variant, dim, kernels)
    return found


def source(entry: Entry) -> str:
    """A digest of what an entry is compiled from; compiles nothing. Equal entries of several architectures share it."""
    same = entry.config, entry.dim, entry.kind, entry.kernel
    if same not in _sources:
        launches: list[Launch] = []
        collect = mock.patch.object(Launch, "run", lambda launch: launches.append(launch))
        with compiling_for(entry.architecture), collect:
            for variant in distinct(entry.kind, entry.kernel):
                _launch(variant, entry.dim, [entry.kernel])
        _sources[same] = gate_record.digest(launches)
    return _sources[same]


_sources: dict[tuple[Config, int, Kind, Kernel], str] = {}


def _launch(variant: Variant, dim: int, kernels: Sequence[Kernel]) -> None:
    """Launch these kernels for such calls, without those of `mend`, which have no entries."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if variant.tf32 else "ieee"
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(decode, "processors", return_value=PROCESSORS))
            for name in ("mend_forward", "mend_dq", "mend_dkdv"):
                stack.enter_context(mock.patch.object(backend, name))
            for kernel in kernels:
                if kernel == "decode":
                    for call in (variant.call(dim, tokens) for tokens in DECODED):
                        if decode.suits(call):
                            backend.forward(call)
                    continue
                call = variant.call(dim, 200)
                if kernel == "forward":
                    backend.forward(call)
                    continue
                o, lse = torch.zeros_like(call.q), call.q.new_zeros(*call.q.shape[:3], dtype=torch.float32)
                lse = lse.transpose(1, 2).contiguous()
                backend.backward(call, o, lse, o.clone(), lse.clone(), (kernel == "dq", kernel == "dkdv"))
    finally:
        matmul.fp32_precision = before


def required(kernel: Compiled, kind: Kind) -> list[tuple[str, ...]]:
    """Instructions without which a kernel would crawl: groups, of each of which it must contain one."""
    if kernel.name not in PRODUCTS:
        return []
    chip, shape = ARCHITECTURES[kernel.architecture], kernel.constants["shape"]
    groups = []
    if shape.UNIT == 8 or shape.PRECISION.value == "tf32":
        # Tiles of less than 64 rows, which large heads, rare calls and decoding get, are no work for wgmma and tcgen05.
        small = kind != "half" or shape.BD == 256 or kernel.name == "decode_kernel"
        groups.append((chip.products, "mma.sync") if small else (chip.products,))
    if chip.target.backend == "cuda" and kernel.stages > 1 and shape.UNIT == 8:
        # 16 bytes a thread and copy, where the streamed tile has as many; fewer than that is no sign of misalignment.
        streamed = (shape.BM if kernel.name == "dkdv_kernel" else shape.BN) * shape.BD * 2
        narrow = ("cp.async.cg", "cp.async.ca") if streamed < 16 * 32 * kernel.warps else ("cp.async.cg",)
        groups.append((chip.copies,) if kernel.bulk else narrow)
    return groups


class Examined(NamedTuple):
    """One kernel of one kind of call, and what is wrong with it."""

    kernel: Compiled
    kind: Kind
    dim: int
    problems: list[str]

    def __str__(self) -> str:
        kernel = self.kernel
        return f"{kernel.architecture}, D={self.dim}, {self.kind}, {kernel.name}: {'; '.join(self.problems) or 'good'}"


def distinct(kind: Kind, kernel: Kernel) -> tuple[Variant, ...]:
    """The variants of a kind that a kernel tells apart: all, but dkdv never reads the memory."""
    kept: dict[Variant, Variant] = {}
    for variant in VARIANTS[kind]:
        kept.setdefault(variant._replace(storage=None) if kernel == "dkdv" else variant, variant)
    return tuple(kept.values())


def examine(
    architecture: str, kind: Kind, dim: int, variants: Sequence[Variant], kernels: Sequence[Kernel] = get_args(Kernel)
) -> list[Examined]:
    """Put kernels through the gate for these variants of a kind."""
    found = (kernel for variant in variants for kernel in compiled(architecture, variant, dim, kernels))
    return [Examined(kernel, kind, dim, kernel.problems(required(kernel, kind))) for kernel in found]


def examine_entry(entry: Entry, variants: Sequence[Variant]) -> Row:
    """Put an entry through the gate, alone or with the small kernel that comes with it."""
    examined = examine(entry.architecture, entry.kind, entry.dim, variants, [entry.kernel])
    kernels = [one.kernel for one in examined]
    counts = {name: max(kernel.instructions.get(name, 0) for kernel in kernels) for name in INSTRUCTIONS}
    return Row(
        entry.config,
        source(entry),
        len(variants),
        *(max(getattr(kernel, name) for kernel in kernels) for name in ("registers", "spills", "shared")),
        {name: count for name, count in counts.items() if count},
        sorted({f"{one.kernel.name}: {problem}" for one in examined for problem in one.problems}),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the gate's table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled.gate", description="What every table entry compiles to."
    )
    parser.add_argument("architectures", nargs="*", default=[], metavar="ARCHITECTURE", help=", ".join(ARCHITECTURES))
    parser.add_argument("--dims", nargs="+", type=int, default=DIMS, choices=DIMS, metavar="D")
    parser.add_argument("--kinds", nargs="+", default=get_args(Kind), choices=get_args(Kind))
    parser.add_argument("--first", action="store_true", help="of each kind only the variant that takes most registers")
    parser.add_argument(
        "--record", action="store_true", help="write what is found to bench/compiled, passing over what is there"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.architectures) - ARCHITECTURES.keys()
    if unknown:
        parser.error(f"architectures: expected some of {list(ARCHITECTURES)}, got {sorted(unknown)}")
    record = Record.read(triton.__version__) if options.record else Record(triton.__version__)
    print(f"Triton {triton.__version__}. Registers and spilled bytes a thread, bytes of shared memory a block.\n")
    print(*gate_record.header(), sep="\n")
    failed = False
    for entry in gate_record.entries(options.architectures or tuple(ARCHITECTURES), options.dims, options.kinds):
        variants = distinct(entry.kind, entry.kernel)[: 1 if options.first else None]
        if not record.holds(entry, len(variants), source(entry)):
            record.rows[entry] = examine_entry(entry, variants)
            if options.record:
                record.write()
        row = record.rows[entry]
        failed |= bool(row.problems)
        print(gate_record.line(entry, row), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
