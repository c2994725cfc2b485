"""What ran the measurement (never a host name or a path), and what it can do at best: its own measured peaks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.harness import roof
from bench.harness.units import DTYPES

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
    gpu, cache = None, _cpu_cache_bytes()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, cache = properties.name, properties.L2_cache_size
    return Machine(_cpu_model(), torch.backends.cpu.get_cpu_capability(), os.cpu_count() or 1, cache, gpu)


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


@dataclass(frozen=True)
class Peaks:
    """The best this machine was seen to do with these threads: roofs for every other number."""

    flops: dict[str, float]  # FLOP/s by type
    read: float  # bytes/s from memory, more of it than the cache holds

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def measure_peaks(device: torch.device, cache_bytes: int, seconds: float) -> Peaks:
    """On CPUs the rates of `bench.harness.roof`, seen within `seconds`; on GPUs the best matrix product and copy."""
    if device.type == "cpu":
        rates = roof.measure(torch.get_num_threads(), seconds, cache_bytes)
        return Peaks({name: rates[name] for name in ("fp32", "bf16")}, rates["read"])
    flops = {}
    for name, dtype in DTYPES.items():
        rates = []
        for size in (2048, 4096, 8192):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            rates.append(2 * size**3 / _best(lambda a=a, b=b: a @ b, device))
        flops[name] = max(rates)
    x = torch.ones(8 * max(cache_bytes, 2**22) // 4, device=device)
    y = torch.empty_like(x)
    return Peaks(flops, max(x.nbytes / _best(x.sum, device), 2 * x.nbytes / _best(lambda: y.copy_(x), device)))


def _best(step: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls after a warm-up."""
    best = float("inf")
    for _ in range(repeats + 1):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


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
