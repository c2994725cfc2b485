"""The native step is the PyTorch model's step: for every configuration, memory, instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dsmr import native
from dsmr.model import ModelConfig, Transformer
from dsmr.native import NativeStep, structs, unsupported
from dsmr.schedules import make_schedule
from dsmr_kernels import MemoryStack, Retention, recurrent_attention

pytestmark = pytest.mark.skipif(structs.absence() is not None, reason=str(structs.absence()))

SEGMENT, LANES = 16, 3
INSTRUCTIONS = [] if structs.absence() else list(structs.library().available)


def make_model(retention: Retention | None = None, horizons: tuple[int, ...] = (24, 8), **changes: object) -> Transformer:
    """Weights that make logits with a deviation of about 1, and every LayerNorm and bias matter."""
    torch.manual_seed(0)
    schedule = make_schedule("explicit", len(horizons), horizons=list(horizons))
    if retention:
        schedule = replace(schedule, retention=retention)
    sizes = {"width": 32, "heads": 2, "kv_heads": 1, "segment": SEGMENT, "schedule": schedule}
    model = Transformer(ModelConfig(**{**sizes, **changes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    library = structs.library()
    before = library.isa
    library.use(request.param)
    yield request.param
    library.use(before)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Script:
    """What lanes are fed, step by step: tokens, lanes that begin a piece before, lanes that read (None: all do)."""

    tokens: Tensor  # [steps, B]
    reset: Tensor  # [steps, B]
    segment_len: list[Tensor | None]

    @classmethod
    def random(cls, steps: int, lanes: int = LANES) -> Script:
        """Pieces of 40 tokens on average, one lane in five stands still in every third step."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(391, (steps, lanes), generator=generator)
        reset = torch.rand(steps, lanes, generator=generator) < 1 / 40
        reads = (torch.rand(steps, lanes, generator=generator) < 0.8).long()
        return cls(tokens, reset, [reads[i] if i % 3 == 0 else None for i in range(steps)])


Step = Callable[[Tensor, MemoryStack, Tensor | None], Tensor]


def of_model(model: Transformer) -> Step:
    def step(tokens: Tensor, state: MemoryStack, segment_len: Tensor | None) -> Tensor:
        segment = model.config.segment
        return model(tokens[:, None], state, segment_len=segment_len, segment_size=segment)[:, 0]

    return step


@torch.inference_mode()
def play(step: Step, state: MemoryStack, script: Script) -> Tensor:
    """Logits `[steps, B, V]`, zero where a lane stands still."""
    found = []
    for tokens, reset, segment_len in zip(script.tokens, script.reset, script.segment_len, strict=True):
        state.reset(reset)
        logits = step(tokens, state, segment_len)
        found.append(logits if segment_len is None else logits * segment_len[:, None])
    return torch.stack(found)


def assert_rounding(actual: Tensor, exact: Tensor, peer: Tensor) -> None:
    """Error at most twice that of the PyTorch model in float32 (on other data each may be the luckier), plus rounding."""
    error, allowed = ((x.double() - exact).abs().max() for x in (actual, peer))
    rounding = torch.finfo(torch.float32).eps * exact.abs().max()
    assert error <= 2 * allowed + rounding, f"error {error:.2e}, the model's own {allowed:.2e}"


CONFIGURATIONS = {
    "segment window": {},
    "token window": {"window": "token"},
    "sinusoidal": {"position": "sinusoidal"},
    "odd sizes": {"width": 72, "heads": 6, "kv_heads": 3, "feed_forward": 3},
    "4 queries a KV head": {"width": 128, "heads": 4, "kv_heads": 1},
    "wide heads": {"width": 160, "heads": 1},
    "no memory in a layer": {"horizons": (0, 5)},
    "token window of nothing": {"horizons": (0, 1), "window": "token"},
    "every third token": {"retention": Retention(3)},
    "one of four at random": {"retention": Retention(4, "random")},
    "several chunks": {"horizons": (700, 8), "segment": 600},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_float32_is_the_model_up_to_rounding(name: str, instructions: str) -> None:
    """Over wraps of every ring, new pieces and lanes that stand still; the memory it leaves is the model's, too."""
    model = make_model(**CONFIGURATIONS[name])
    exact = Transformer(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    script = Script.random(1500 if name == "several chunks" else 150)
    ours, peers, exacts = model.new_state(LANES), model.new_state(LANES), exact.new_state(LANES)
    logits = play(NativeStep(model).step, ours, script)
    peer, expected = play(of_model(model), peers, script), play(of_model(exact), exacts, script)
    assert_rounding(logits, expected, peer)
    assert torch.equal(ours.clock.state, peers.clock.state)
    for ring, other, want in zip(ours, peers, exacts, strict=True):
        assert torch.equal(ring.written, other.written)
        assert_rounding(ring.k, want.k, other.k)
        assert_rounding(ring.v, want.v, other.v)
