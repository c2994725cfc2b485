"""The machine and the software that a time depends on (never a host name or a path), and what else was at work.

Read from the system, not by a library: `python -m bench gpu` runs where nothing but PyTorch is installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "numpy", "flash-attn", "xformers", "flashinfer-python")


@dataclass(frozen=True)
class Machine:
    """The hardware that a time depends on. Times of two machines are never compared."""

    cpu: str
    instructions: str  # what PyTorch's own kernels use
    cores: int
    cache_bytes: int  # last-level cache of the device measured
    gpu: str | None

    @property
    def name(self) -> str:
        """A folder's name: `amd-epyc-family-25-model-17-2-cores`, or the GPU's name."""
        text = self.gpu or f"{self.cpu} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def describe(device: torch.device) -> Machine:
    """The machine at hand, as seen from `device`."""
    gpu, cache_bytes = None, _cpu_cache_bytes()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, cache_bytes = properties.name, properties.L2_cache_size
    return Machine(_cpu_model(), torch.backends.cpu.get_cpu_capability(), os.cpu_count() or 1, cache_bytes, gpu)


def versions() -> dict[str, str]:
    """Versions of everything that has a part in a time, by name; what is not installed is left out."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    config = torch.__config__.show()
    for name, pattern in (("MKL", r"Math Kernel Library Version ([\d.]+)"), ("oneDNN", r"MKL-DNN v([\d.]+)")):
        if match := re.search(pattern, config):
            found[name] = match[1]
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


@cache  # asked for by every contender of ours
def commit() -> str:
    """The source tree's commit, `+` if it has changes; `unknown` outside a git checkout."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "dsmr_kernels", "dsmr", "bench/*.py"], check=False)
    return head.stdout.strip() + ("+" if changes.returncode else "")


@dataclass(frozen=True)
class Moment:
    """CPU seconds so far of all cores together: at work, at work for this process, stolen by other machines."""

    wall: float
    busy: float
    own: float
    steal: float

    @classmethod
    def now(cls) -> Moment | None:
        """None where the system does not tell (it does on Linux)."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])
        return cls(time.monotonic(), (user + nice + system + irq + softirq) / tick, own, steal / tick)

    def shares(self) -> tuple[float, float]:
        """Shares of all cores' time since then, taken by other processes and by other machines."""
        now = Moment.now()
        if now is None:
            raise RuntimeError("/proc/stat: expected it to stay, and it is gone")
        whole = max(now.wall - self.wall, 1e-9) * (os.cpu_count() or 1)
        others = (now.busy - self.busy) - (now.own - self.own)
        return tuple(round(min(max(x / whole, 0.0), 1.0), 4) for x in (others, now.steal - self.steal))


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", cpuinfo.read_text().split("\n\n")[0], re.MULTILINE))
    if "model name" not in fields:
        return platform.machine()
    model = re.sub(r"\(R\)|\(TM\)|CPU|@.*", "", fields["model name"]).strip()
    return f"{model} family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else model


def _cpu_cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    if not sizes:
        return 32 * 2**20
    number, unit = re.fullmatch(r"(\d+)([KM])", sizes[-1].read_text().strip()).groups()
    return int(number) * {"K": 2**10, "M": 2**20}[unit]
