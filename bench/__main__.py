"""The command line, `python -m bench COMMAND`. It pins threads before anything imports torch."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from bench.models import COMMANDS as MODELS
from dsmr.process import own_random_numbers, torch_threads

GPU = ("decode", "attention", "train", "generate", "append", "memory", "overhead")  # the sections of bench.gpu
MEASURED = ("attention", "decode", "append", "memory", "overhead", "roof", *MODELS)

OUT = "default: the machine's own; with --quick: nowhere"


def main(argv: list[str] | None = None) -> int:
    """Parse, start one process a thread count where this one is not pinned so, and run."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "report":
        return _report(arguments.results)
    if reason := _no_device(arguments.device):
        print(f"bench: --device {arguments.device}: {reason}", file=sys.stderr)
        return 2
    if arguments.command == "gpu":
        return _gpu(arguments)
    if arguments.device == "cpu":
        environments = {n: _environment(arguments.command, n) for n in arguments.threads}
        if len(environments) > 1 or not all(_started_so(n, given) for n, given in environments.items()):
            rest = argv if argv is not None else sys.argv[1:]
            return max(_in_process(n, given, rest) for n, given in environments.items())
    return _measure(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this code and its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in MEASURED:
        command = commands.add_parser(name)
        command.add_argument("--shapes", nargs="+", default=[], metavar="SHAPE", help="B1-T256-H8-Hkv8-D64-M1024-fp32")
        command.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="parts of their names")
        command.add_argument("--device", default="cpu", help="cpu or cuda")
        command.add_argument("--threads", type=_counts, default=[1], metavar="1,2", help="CPU threads, pinned")
        command.add_argument("--quick", action="store_true", help="tiny shapes and three rounds: shows that it runs")
        command.add_argument("--seconds", type=float, default=3.0, help="measuring time a case")
        command.add_argument("--out", type=Path, help=f"folder of the results ({OUT})")
        command.add_argument("--force", action="store_true", help="replace results that are already there")
    gpu = commands.add_parser("gpu", help="everything a GPU can say in 8 minutes")
    gpu.add_argument("--device", default="cuda", help="cuda, or cpu to see it run")
    gpu.add_argument("--sections", nargs="+", choices=GPU, default=GPU, help="some of them, in this order")
    gpu.add_argument("--quick", action="store_true", help="tiny shapes and three rounds")
    gpu.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="parts of their names")
    gpu.add_argument("--out", type=Path, help="folder of gpu.jsonl and gpu.md (needed with --quick)")
    gpu.add_argument("--force", action="store_true", help="replace results that are already there")
    report = commands.add_parser("report", help="write README's table, docs/benchmarks.md and plots from results")
    report.add_argument("--results", type=Path, default=Path(__file__).parent / "data", help="a folder a machine")
    return parser


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if any(n < 1 or n > (os.cpu_count() or 1) for n in counts):
        raise argparse.ArgumentTypeError(f"expected counts from 1 to {os.cpu_count()}, got {text}")
    return counts


def _no_device(name: str) -> str | None:
    """Why nothing can be measured on a device, or None."""
    if name == "cpu":
        return None
    import torch

    if name.partition(":")[0] != "cuda":
        return "expected cpu or cuda"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = name.partition(":")[2] or "0"
    if wanted.isdecimal() and int(wanted) < found:
        return None
    return f"expected a GPU that PyTorch {torch.__version__} can use, found {found}; --device cpu goes the same way"


def _environment(command: str, threads: int) -> dict[str, str]:
    """What OpenMP and the C library read once, when a process starts."""
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if command == "memory" else {}
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **allocator}


def _started_so(threads: int, environment: dict[str, str]) -> bool:
    """Was this process started with that environment, on as many cores?"""
    pinned = not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) == threads
    return pinned and environment.items() <= os.environ.items()


def _in_process(threads: int, environment: dict[str, str], argv: list[str]) -> int:
    """The same command in a process of its own, pinned."""
    before = None
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        if len(before) < threads:
            print(f"bench: asked for {threads} threads and may use {len(before)} cores", file=sys.stderr)
            return 2
        os.sched_setaffinity(0, sorted(before)[:threads])  # the child inherits it
    try:
        command = [sys.executable, "-m", "bench", *argv, "--threads", str(threads)]
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _report(folder: Path) -> int:
    from bench.report import document

    try:
        written = document.write(Path(__file__).parent.parent, folder)
    except (ValueError, OSError) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"written: {path}")
    return 0


def _exist(*paths: Path) -> bool:
    """Whether one of these is there already, which is said."""
    for path in paths:
        if os.path.lexists(path):
            print(f"bench: {path}: exists already; --force replaces it", file=sys.stderr)
            return True
    return False


def _gpu(arguments: argparse.Namespace) -> int:
    import torch

    from bench import gpu
    from bench.harness import machine, measure, results
    from bench.harness.settings import Settings

    if arguments.quick and arguments.out is None:
        print("bench: gpu --quick: expected --out, a folder for what is not for the record", file=sys.stderr)
        return 2
    folder = arguments.out or results.FOLDER / machine.describe(torch.device(arguments.device)).name
    if not arguments.force and _exist(folder / "gpu.jsonl", folder / "gpu.md"):
        return 2

    limits = measure.QUICK if arguments.quick else measure.Limits()
    device, names = torch.device(arguments.device), tuple(arguments.contenders)
    settings = Settings(device, arguments.quick, (), names, limits)
    with own_random_numbers():
        return gpu.main(settings, arguments.sections, folder)


def _unknown(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the shapes or contenders that were asked for, or None."""
    import torch

    from bench.attention.contenders.registry import registry
    from bench.attention.shapes import Shape

    if arguments.command in MODELS:
        return f"--shapes: {arguments.command} has no shapes to choose" if arguments.shapes else None
    try:
        for text in arguments.shapes:
            Shape.parse(text)
    except ValueError as error:
        return f"--shapes: {error}"
    known = [contender.name for contender in registry(torch.device(arguments.device))]
    strangers = [part for part in arguments.contenders if not any(part in name for name in known)]
    return f"--contenders: expected parts of {'; '.join(known)}, got {', '.join(strangers)}" if strangers else None


def _measure(arguments: argparse.Namespace) -> int:
    import torch

    from bench import runner
    from bench.harness import machine, measure, results
    from bench.harness.settings import Settings
    from bench.report import models, table

    if reason := _unknown(arguments):
        print(f"bench {arguments.command}: {reason}", file=sys.stderr)
        return 2
    path = None
    if arguments.out is not None or not arguments.quick:  # quick results are for the record only where they are wanted
        name = results.file_name(arguments.command, torch.device(arguments.device).type, arguments.threads[0])
        path = (arguments.out or results.FOLDER / machine.describe(torch.device(arguments.device)).name) / name
        if not arguments.force and _exist(path):
            return 2
    settings = Settings(
        device=torch.device(arguments.device),
        quick=arguments.quick,
        shapes=tuple(arguments.shapes),
        contenders=tuple(arguments.contenders),
        limits=measure.QUICK if arguments.quick else measure.Limits(seconds=arguments.seconds),
    )
    threads = torch_threads(arguments.threads[0]) if arguments.device == "cpu" else nullcontext()
    with threads, own_random_numbers():
        made = runner.run(arguments.command, settings)
    table.show(made)
    if arguments.command in MODELS:
        print("\n" + "\n".join(models.lines(made)))
    print(f"\nwritten: {results.save([made], path)}" if path else "\nnot written: --quick without --out")
    return 1 if results.faults(made) else 0


if __name__ == "__main__":
    sys.exit(main())
