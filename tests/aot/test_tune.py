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
    text = configs.FILE.read_text(encoding="utf-8")
    for architecture, kernels in configs.TABLE.items():
        for kernel, kinds in kernels.items():
            for kind, entries in kinds.items():
                assert tune.with_line(text, architecture, kernel, kind, entries) == text, (architecture, kernel, kind)


@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "gfx942"])  # sm_89 has no section of its own
def test_a_new_line_takes_the_place_of_the_old_one(tmp_path: Path, architecture: str) -> None:
    new = tuple(Config(16, n, 4, 1, n > 32) for n in (16, 32, 64, 128, 256))
    text = configs.FILE.read_text(encoding="utf-8")
    file = tmp_path / "configs.toml"
    file.write_text(tune.with_line(text, architecture, "decode", "float32 special", new), encoding="utf-8")
    table = configs.read_table(file)
    changed = [
        (name, kernel, kind)
        for name, kernels in table.items()
        for kernel, kinds in kernels.items()
        for kind, entries in kinds.items()
        if entries != configs.TABLE[name][kernel][kind]
    ]
    assert {changed[1:] for changed in changed} == {("decode", "float32 special")}
    assert table[architecture]["decode"]["float32 special"] == new
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(text.splitlines())
