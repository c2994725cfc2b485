"""The parts of `bench.compiled.tune` that need no GPU: candidates, the sieve, the choice and the text of the table."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from bench.attention.shapes import Shape
from bench.compiled import gate, tune
from bench.compiled.tune import Measurement
from dsmr_kernels.backends import eager
from dsmr_kernels.backends.triton import configs
from dsmr_kernels.backends.triton.configs import Config, Kernel


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("architecture", gate.ARCHITECTURES)
def test_candidates_are_many_and_differ(architecture: str, kernel: Kernel) -> None:
    for dim in (64, 128):
        found = tune.candidates(architecture, kernel, "half", dim)
        assert len(found) >= 4
        assert len(set(found)) == len(found)
        assert any(config.descriptors for config in found) == (
            kernel in ("forward", "dq") and architecture in ("sm_90", "sm_100")
        )


def test_the_sieve_keeps_what_passes_the_gate() -> None:
    good, bad = Config(64, 64, 4, 2, True), Config(128, 64, 4, 3, True)  # the second spills
    assert tune.sieve([bad, good], "sm_90", "forward", "half", 128, processes=1) == [good]


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_only_what_is_right_is_timed(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    """With PyTorch in place of the kernels; one of two configurations gives wrong results."""
    right, wrong = Config(64, 64, 4, 2), Config(32, 32, 4, 2)

    class Backend:
        def off(self) -> float:
            return 1e-3 * (configs.TABLE["sm_90"][kernel]["float32"][0] == wrong)

        def forward(self, call):
            o, lse = eager.forward(call)
            return o + self.off(), lse

        def backward(self, *arguments):
            return tuple(gradient + self.off() for gradient in eager.backward(*arguments))

    monkeypatch.setattr(tune, "backend", Backend())
    shape = Shape(1 if kernel == "decode" else 16, 64, "fp32", 2, 4, 32)
    measured = {
        m.config: m for m in tune.measure("sm_90", kernel, "float32", shape, [right, wrong], torch.device("cpu"))
    }
    assert not measured[wrong].seconds
    assert "off by" in measured[wrong].reason
    assert len(measured[right].seconds) == 3
    assert tune.fastest(list(measured.values())) == right


def test_the_fastest_is_right_and_timed_on_every_shape() -> None:
    def times(config: Config, *medians: float) -> list[Measurement]:
        return [
            Measurement("forward", "half", str(i), config, [m, m, m] if m else [], "" if m else "o: off by 1")
            for i, m in enumerate(medians)
        ]

    even, uneven, wrong = Config(64, 64, 4, 2), Config(128, 64, 8, 3), Config(64, 32, 4, 2)
    own = [*times(even, 2.0, 2.0), *times(uneven, 1.0, 5.0), *times(wrong, 0.1, 0.0)]
    assert tune.fastest(own) == even
    assert tune.fastest(times(wrong, 0.0, 0.0)) is None


def test_lines_are_those_of_the_table() -> None:
    text = Path(configs.__file__).read_text()
    for architecture, kernels in configs.TABLE.items():
        for kinds in kernels.values():
            for kind, entries in kinds.items():
                assert tune.line(kind, entries) in text, (architecture, kind)
