"""What the Triton back end does before it launches anything; needs neither GPU nor interpreter."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsmr_kernels import MemoryStack, Retention
from dsmr_kernels.backends import Call, triton
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.launch import Launch, aligned
from tests.interpreter import INTERPRETED


def call(tokens: int = 24, dim: int = 16, dtype: torch.dtype = torch.float32, **stack_options) -> Call:
    stack = MemoryStack([8], 2, 2, dim, tokens, dtype, **stack_options)
    q, k, v = (torch.zeros(2, tokens, heads, dim, dtype=dtype) for heads in (4, 2, 2))
    start, length = torch.zeros(2, tokens, dtype=torch.int64), torch.full((2,), tokens)
    return Call(q, k, v, stack[0], "segment", start, length, torch.rand(4), 0.25, 0.0, True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What would have been launched, on a machine that has a GPU."""
    launches: list[Launch] = []
    monkeypatch.setattr(Launch, "run", lambda launch: launches.append(launch))
    monkeypatch.setattr(triton, "lookup", lambda *_: Config(64, 64, 4, 2))
    return launches


class NoSync(TorchDispatchMode):
    """Refuses every operation that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert func is not torch.ops.aten._local_scalar_dense.default
        assert func is not torch.ops.aten.nonzero.default
        return result


@pytest.mark.parametrize("tokens", [1, 24], ids=["decode", "forward"])
@pytest.mark.parametrize("options", [{}, {"storage": "int8"}, {"retention": Retention(3, "random")}], ids=str)
def test_forward_and_backward_never_look_at_values(launched: list[Launch], tokens: int, options: dict) -> None:
    """Then a captured graph holds at every clock: what it launches cannot depend on one."""
    this = call(tokens, **options)
    with NoSync():
        o, lse = triton.forward(this)
        triton.backward(this, o, lse, torch.ones_like(o), torch.zeros_like(lse), (True, True))
    mending = [launch for launch in launched if launch.kernel.__name__.startswith("mend")]
    assert len(mending) == (0 if tokens == 1 else 3)
    assert len(launched) - len(mending) in (4, 5)


@pytest.mark.parametrize(
    ("needs", "kernels"),
    [
        ((True, False), {"delta_kernel", "dq_kernel", "mend_dq_kernel"}),
        ((False, True), {"delta_kernel", "dkdv_kernel", "mend_dkdv_kernel"}),
    ],
    ids=["dq", "dkdv"],
)
def test_only_wanted_gradients_are_launched(launched: list[Launch], needs: tuple, kernels: set[str]) -> None:
    this = call()
    o, lse = torch.zeros_like(this.q), torch.zeros(2, 4, 24)
    grads = triton.backward(this, o, lse, o, lse, needs)
    assert {launch.kernel.__name__ for launch in launched} == kernels
    assert [bool(x.numel()) for x in grads] == [needs[0], needs[1], needs[1]]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors of the CPU")
def test_tensors_of_the_cpu_are_refused() -> None:
    assert "Triton needs a GPU" in triton.unsupported(call())


@pytest.mark.parametrize("way", ["allow_tf32 = True", "fp32_precision = 'tf32'"])
def test_tf32_is_known_by_whichever_setting(way: str) -> None:
    """In a process of its own: PyTorch refuses to have both ways of setting it used."""
    code = f"""
import torch
matmul = torch.backends.cuda.matmul
from dsmr_kernels.backends.triton.launch import _precision
assert _precision(torch.float32) == "ieee"
matmul.{way}
assert _precision(torch.float32) == "tf32"
assert _precision(torch.bfloat16) == "ieee"
assert matmul.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_expanded_tensors_are_no_source_of_descriptors() -> None:
    """A stride of 0 fits every unit, but no descriptor."""
    x = torch.zeros(2, 24, 1, 16)
    assert aligned(x) is x
    for size in ((2, 24, 3, 16), (2, 24, 1, 16)):
        expanded = x[:1, :, :1].expand(size)
        assert aligned(expanded).is_contiguous()
    assert aligned(x[:, :1].expand(2, 24, 1, 16)).is_contiguous()


@pytest.mark.skipif(not INTERPRETED, reason="without the interpreter every call of the CPU is refused")
def test_more_lanes_than_a_grid_has_are_refused() -> None:
    stack = MemoryStack([0], 65536, 1, 16, 1)
    q = torch.zeros(65536, 1, 1, 16)
    too_many = Call(q, q, q, stack[0], "segment", None, None, None, 1.0, 0.0, True)
    assert triton.unsupported(too_many) == "65536 lanes: expected at most 65535"


@pytest.mark.skipif(not INTERPRETED, reason="without the interpreter every call of the CPU is refused")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"dim": 288}, "head dimension 288: expected at most 256"),
        ({"dim": 20, "dtype": torch.bfloat16}, "rows of 20 x 2 bytes: expected a multiple of 16 bytes"),
    ],
    ids=["float64", "dim", "rows"],
)
def test_reasons_are_given(changes: dict, reason: str) -> None:
    assert reason in triton.unsupported(call(**changes))
    assert triton.unsupported(call()) is None


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, dsmr_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_kernel_takes_more_than_twenty_arguments() -> None:
    """Nouns carry them."""
    names = (f"{triton.__name__}.{module.name}" for module in pkgutil.iter_modules(triton.__path__))
    members = (x for name in names for x in vars(importlib.import_module(name)).values())
    functions = {x.__name__: x for x in members if hasattr(x, "arg_names")}
    assert {"forward_kernel", "dq_kernel", "dkdv_kernel", "decode_kernel"} <= functions.keys()
    assert not [name for name, function in functions.items() if len(function.arg_names) > 20]
