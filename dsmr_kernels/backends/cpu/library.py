"""The native libraries: finding them, loading them once, and the instruction set they use.

A native library is built by CMakeLists.txt and lies beside the Python module that uses it. Its functions begin with its
name; every one has `<name>_abi`, `_compiler`, `_available`, `_in_use` and `_use`, which this module talks to. None of
this needs PyTorch.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ABI = 5  # DSMR_KERNELS_ABI
ISA_VARIABLE = "DSMR_KERNELS_ISA"

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_ROOT = Path(__file__).resolve().parents[3]


class Unavailable(RuntimeError):
    """A native library was never built, or not for this version of the package; the message says what to do."""


class NativeLibrary:
    """A loaded library. `functions` is its C interface; `compiler` says what built it."""

    def __init__(self, folder: Path, name: str, abi: int) -> None:
        path = folder / f"lib{name}{_SUFFIX}"
        if not path.exists():
            raise Unavailable(f"{path.name} was never built: {_how_to_build()}")
        try:
            self.functions = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            raise Unavailable(f"{path.name} cannot be loaded ({error}): {_how_to_build()}") from error
        self.path, self._name = path, name
        found = self._function("abi", ctypes.c_int)()
        if found != abi:
            raise Unavailable(f"{path.name} has interface {found} and this version needs {abi}: {_how_to_build()}")
        self.compiler: str = self._function("compiler", ctypes.c_char_p)().decode()
        self.available: tuple[str, ...] = tuple(self._function("available", ctypes.c_char_p)().decode().split())
        self._in_use = self._function("in_use", ctypes.c_char_p)
        self._use = self._function("use", ctypes.c_int, ctypes.c_char_p)
        if forced := os.environ.get(ISA_VARIABLE):
            self.use(forced)

    @property
    def isa(self) -> str:
        """The instruction set in use: the best of `available` unless another was asked for."""
        return str(self._in_use().decode())

    def use(self, isa: str) -> None:
        """Use this instruction set from now on; ValueError if the build lacks it or the processor cannot run it."""
        if not self._use(isa.encode()):
            raise ValueError(f"{ISA_VARIABLE}: expected one of {list(self.available)}, got {isa!r}")

    def _function(self, name: str, result: type, *arguments: type) -> Callable[..., Any]:
        function: ctypes._NamedFuncPointer = getattr(self.functions, f"{self._name}_{name}")
        function.restype, function.argtypes = result, arguments
        return function


@cache
def load() -> NativeLibrary:
    """The attention kernels, loaded by the first call. `Unavailable`, or ValueError for a wrong DSMR_KERNELS_ISA."""
    return NativeLibrary(Path(__file__).parent, "dsmr_kernels", ABI)


@cache
def absence() -> str | None:
    """Why there are no native kernels, or None if there are."""
    try:
        load()
    except Unavailable as reason:
        return str(reason)
    return None


@cache
def announce_absence() -> None:
    """Warn, the first time, that CPUs have to do without the native kernels."""
    if reason := absence():
        warnings.warn(f"attention on CPUs goes without the native kernels: {reason}", RuntimeWarning, stacklevel=2)


def _how_to_build() -> str:
    if (_ROOT / "CMakeLists.txt").exists():
        return f"run `make build` in {_ROOT} (it needs a C++17 compiler, GCC or Clang)"
    return "install a C++17 compiler, GCC or Clang, then the package anew: pip install --force-reinstall --no-cache-dir"
