"""The native step is the PyTorch model's: for every configuration, memory, instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from dsmr.model import native
from dsmr.model.config import ModelConfig
from dsmr.model.native import NativeStep, structs, unsupported
from dsmr.model.native.weights import Weights
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from dsmr_kernels.storage import quantise

pytestmark = pytest.mark.skipif(native.absence() is not None, reason=str(native.absence()))

SEGMENT, LANES = 16, 3
INSTRUCTIONS = [] if native.absence() else list(structs.library().available)


def make_model(
    retention: Retention | None = None, horizons: tuple[int, ...] = (24, 8), **changes: object
) -> Transformer:
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


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def in_float64(model: Transformer) -> Transformer:
    exact = Transformer(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    return exact


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
    """Error at most twice that of the PyTorch model in float32, plus rounding of the result."""
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
    "shifted keys": {"heads": 4, "kv_heads": 4, "key_shift": (0, 1, 3, 20)},
    "shifted keys, sinusoidal": {"heads": 4, "kv_heads": 2, "key_shift": (2, 0), "position": "sinusoidal"},
    "normalised q and k": {"heads": 4, "kv_heads": 2, "qk_norm": True},
    "partial rotation": {"heads": 4, "kv_heads": 2, "rotary_share": (0.5, 0.0)},
    "recall": {
        "heads": 8,
        "kv_heads": 4,
        "key_shift": (0, 0, 1, 2),
        "rotary_share": (1.0, 1.0, 0.25, 0.6),
        "qk_norm": True,
        "window": "token",
    },
    "several chunks": {"horizons": (700, 8), "segment": 600},
}


def filled(state: MemoryStack) -> MemoryStack:
    """Every ring holds as many past tokens as it can, all lanes in mid-piece and at different places."""
    generator = torch.Generator().manual_seed(2)
    lanes = torch.arange(state.lanes)
    for ring in state:
        for x in (ring.k, ring.v) if ring.tail is None else (ring.k, ring.v, ring.tail):
            x.copy_(torch.randn(x.shape, generator=generator))
        ring.written.copy_(5000 + lanes)
    state.clock.state.copy_(torch.stack([5000 + lanes, 4000 + lanes, lanes]))
    return state


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_float32_is_the_model_up_to_rounding(name: str, instructions: str) -> None:
    """Over wraps of rings, new pieces and lanes that stand still; the memory it leaves is the model's, too."""
    model = make_model(**CONFIGURATIONS[name])
    exact = in_float64(model)
    script = Script.random(60)
    ours, peers, exacts = (filled(each.new_state(LANES)) for each in (model, model, exact))
    logits = play(NativeStep(model).step, ours, script)
    peer, expected = play(of_model(model), peers, script), play(of_model(exact), exacts, script)
    assert_rounding(logits, expected, peer)
    assert torch.equal(ours.clock.state, peers.clock.state)
    for ring, other, want in zip(ours, peers, exacts, strict=True):
        assert torch.equal(ring.written, other.written)
        assert_rounding(ring.k, want.k, other.k)
        assert_rounding(ring.v, want.v, other.v)
        if ring.tail is not None:
            assert torch.equal(ring.tail_written, other.tail_written)
            assert_rounding(ring.tail, want.tail, other.tail)


def test_long_generation_does_not_drift() -> None:
    model = make_model()
    script = Script.random(400, lanes=1)
    ours, peers, exacts = (each.new_state(1) for each in (model, model, in_float64(model)))
    logits = play(NativeStep(model).step, ours, script)
    assert_rounding(logits, play(of_model(in_float64(model)), exacts, script), play(of_model(model), peers, script))


STORAGES = {
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"storage": "int8"},
    "float8_e4m3": {"storage": "float8_e4m3"},
}
# What rounding to nearest may change: half a unit in the last place, and as much again where a number was already off
# by rounding and fell to the other side. Relative to the number, but for int8, whose unit is the row's scale.
UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float8_e4m3": 2.0**-3}


@pytest.mark.parametrize(
    "changes",
    [{}, {"retention": Retention(3)}, {"kv_heads": 2, "key_shift": (0, 2)}],
    ids=["every token", "every third", "shifted keys"],
)
@pytest.mark.parametrize("name", STORAGES)
def test_every_kind_of_ring(name: str, changes: dict, instructions: str) -> None:
    """A step at a time from equal memories: a last bit that rounds differently must not reach the next step."""
    model = make_model(**changes)
    exact = in_float64(model)
    quantised = STORAGES[name] if "storage" in STORAGES[name] else {}
    ours = model.new_state(LANES, **STORAGES[name])
    peers, exacts = model.new_state(LANES, **quantised), exact.new_state(LANES, **quantised)
    step = NativeStep(model).step
    script = Script.random(30)
    for i in range(len(script.tokens)):
        one = Script(script.tokens[i : i + 1], script.reset[i : i + 1], script.segment_len[i : i + 1])
        for state in (peers, exacts):
            copy_memory(ours, state)
        logits = play(step, ours, one)
        assert_rounding(logits, play(of_model(exact), exacts, one), play(of_model(model), peers, one))
        assert torch.equal(ours.clock.state, exacts.clock.state)
    for ring, want in zip(ours, exacts, strict=True):  # the last step's new slots are the only ones that differ
        for x, scale, y, y_scale in (
            (ring.k, ring.k_scale, want.k, want.k_scale),
            (ring.v, ring.v_scale, want.v, want.v_scale),
        ):
            x, y = x.double(), y.double()
            if scale is not None and y_scale is not None:
                torch.testing.assert_close(scale, y_scale, rtol=1e-5, atol=0)
                x, y = x * scale[..., None], y * y_scale[..., None]
            unit = y_scale[..., None] if name == "int8" else UNITS[name] * y.abs().clamp_min(2.0**-9 * y.abs().max())
            assert ((x - y).abs() <= 1.01 * unit).all()
        if ring.tail is not None and want.tail is not None:  # never quantised
            unit = 2.0**-20 if quantised else UNITS[name]
            assert (ring.tail - want.tail).abs().max() <= 1.01 * unit * want.tail.abs().max()


@torch.no_grad()
def copy_memory(source: MemoryStack, target: MemoryStack) -> None:
    for ring, other in zip(source, target, strict=True):
        for name, tensor in ring.tensors().items():
            other.tensors()[name].copy_(tensor)
    target.clock.state.copy_(source.clock.state)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_the_number_of_threads_changes_no_bit(weights: Weights, instructions: str) -> None:
    model = make_model(width=128, heads=4, kv_heads=2, horizons=(1300, 8), segment=600, key_shift=(0, 2))
    script = Script.random(40)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            found.append(play(NativeStep(model, weights).step, filled(model.new_state(LANES)), script))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_lane_does_not_notice_the_others(weights: Weights, instructions: str) -> None:
    model = make_model()
    script = Script.random(60, lanes=7)
    together = play(NativeStep(model, weights).step, model.new_state(7), script)
    for lane in range(7):
        only = [None if x is None else x[[lane]] for x in script.segment_len]
        alone = Script(script.tokens[:, [lane]], script.reset[:, [lane]], only)
        assert torch.equal(play(NativeStep(model, weights).step, model.new_state(1), alone)[:, 0], together[:, lane])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", ["float32", "bf16", "int8"])
def test_what_is_no_number_stays_none_and_in_its_lane(weights: Weights, bad: float, instructions: str) -> None:
    """Bytes hold finite numbers alone."""
    model = make_model()
    script = Script(torch.tensor([[5, 6, 7]] * 3), torch.zeros(3, 3, dtype=torch.bool), [None] * 3)
    want = play(NativeStep(model, weights).step, model.new_state(3), script)
    model.embedding.weight.data[6, 0] = bad
    got = play(NativeStep(model, weights).step, model.new_state(3), script)
    assert got[:, 1].isnan().all()
    assert torch.equal(got[:, ::2, 7:], want[:, ::2, 7:])  # the embedding's row 6 makes the logit of token 6, too


def test_a_lane_that_stands_still_writes_nothing() -> None:
    model = make_model()
    state = filled(model.new_state(LANES))
    before = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    logits = NativeStep(model).step(torch.full((LANES,), -1), state, torch.zeros(LANES, dtype=torch.int64))
    assert logits.isfinite().all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.state_dict().items())


@pytest.mark.parametrize("key_shift", [None, (3,)])
def test_either_goes_on_where_the_other_has_stopped(key_shift: tuple[int, ...] | None) -> None:
    """A prompt in segments by the model, then steps in turn by both, on one memory."""
    model = make_model(key_shift=key_shift)
    tokens = torch.randint(391, (1, 100), generator=torch.Generator().manual_seed(3))
    exact = in_float64(model)
    with torch.inference_mode():
        ours, exacts, peers = (each.new_state(1) for each in (model, exact, model))
        for state, each in ((ours, model), (exacts, exact), (peers, model)):
            for part in tokens[:, :40].split(SEGMENT, 1):
                each(part, state, segment_size=SEGMENT)
        step, found = NativeStep(model).step, []
        for i in range(40, 100):
            way = step if i % 3 else of_model(model)
            found.append(way(tokens[:, i], ours, None))
        expected, peer = (
            torch.stack([of_model(each)(tokens[:, i], state, None) for i in range(40, 100)])
            for each, state in ((exact, exacts), (model, peers))
        )
    assert_rounding(torch.stack(found), expected, peer)


# Fewer bits


def rounded(model: Transformer, weights: str) -> Transformer:
    """The model with its matrices rounded, but for the embedding."""
    copy = Transformer(model.config).eval()
    copy.load_state_dict(model.state_dict())
    for name, parameter in copy.named_parameters():
        if parameter.dim() == 2 and not name.startswith("embedding"):
            parameter.data.copy_(round_matrix(parameter.data, weights))
    return copy


def round_matrix(matrix: Tensor, weights: str) -> Tensor:
    if weights == "bf16":
        return matrix.bfloat16().float()
    values, scale = quantise(matrix, torch.int8)
    return values * scale[:, None]


@pytest.mark.parametrize("key_shift", [None, (2,)])
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_fewer_bits_are_the_model_with_rounded_matrices(
    weights: str, key_shift: tuple[int, ...] | None, instructions: str
) -> None:
    """Also the one that makes logits, but tokens look up the exact embedding."""
    model = rounded(make_model(key_shift=key_shift), weights)
    exact = in_float64(model)
    script = Script.random(60)

    def step_of(each: Transformer) -> Step:
        last: list[Tensor] = []
        each.norm.register_forward_hook(lambda module, arguments, output: last.append(output[:, 0]))

        def step(tokens: Tensor, state: MemoryStack, segment_len: Tensor | None) -> Tensor:
            of_model(each)(tokens, state, segment_len)
            return last.pop() @ round_matrix(model.embedding.weight, weights).to(last_dtype(each)).T

        return step

    logits = play(NativeStep(model, weights).step, model.new_state(LANES), script)
    expected = play(step_of(exact), exact.new_state(LANES), script)
    assert_rounding(logits, expected, play(step_of(model), model.new_state(LANES), script))


def last_dtype(model: Transformer) -> torch.dtype:
    return model.norm.weight.dtype


def test_weights_are_packed_once() -> None:
    model = make_model()
    step = NativeStep(model)
    script = Script.random(5)
    before = play(step.step, model.new_state(LANES), script)
    torch.nn.init.zeros_(model.embedding.weight)
    assert torch.equal(play(step.step, model.new_state(LANES), script), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    script = Script.random(40)
    in_float32 = Transformer(model.config).eval()
    in_float32.load_state_dict(model.state_dict())
    expected = play(NativeStep(in_float32).step, in_float32.new_state(LANES), script)
    assert torch.equal(play(NativeStep(model).step, model.new_state(LANES, dtype=torch.float32), script), expected)


# What cannot be served, and what is wrong


def test_what_it_cannot_serve_is_said() -> None:
    model = make_model()
    assert unsupported(model, model.new_state(1)) is None
    assert "float64" in str(unsupported(model.double()))
    assert "training mode" in str(unsupported(make_model(dropout=0.5).train()))
    assert unsupported(make_model(dropout=0.5)) is None
    model = make_model()
    assert "float64" in str(unsupported(model, model.new_state(1, dtype=torch.float64)))
    assert "segments of 8" in str(unsupported(model, model.new_state(1, max_segment=8)))
    assert "is not this model's" in str(unsupported(model, make_model(horizons=(4,)).new_state(1)))
    assert "keeps every token" in str(unsupported(make_model(window="token"), make_model(Retention(2)).new_state(1)))
    shifted = make_model(key_shift=(2,))
    assert "key_shift=(2,), the model of None" in str(unsupported(model, shifted.new_state(1)))
    in_bytes = shifted.new_state(1, dtype=torch.float64, storage="int8")
    assert "shifted keys in torch.float64" in str(unsupported(shifted, in_bytes))
    state = model.new_state(1)
    x = torch.ones(1, 1, 1, 16, requires_grad=True)
    recurrent_attention(x.expand(1, 1, 2, 16), x, x, state[0])
    assert "backward pass" in str(unsupported(model, state))
    with pytest.raises(ValueError, match="state: the native step cannot serve it: a backward pass"):
        NativeStep(model).step(torch.zeros(1, dtype=torch.int64), state)
    with pytest.raises(ValueError, match=r"model: the native step cannot serve it: .*float64"):
        NativeStep(make_model().double())


def test_a_library_that_was_never_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "absence", lambda: "libdsmr_native.so was never built")
    assert unsupported(make_model()) == "libdsmr_native.so was never built"
    with pytest.raises(ValueError, match="never built"):
        NativeStep(make_model())


TOKENS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "message", "tokens", "segment_len"),
    [
        (TypeError, "tokens: expected an int64 tensor, got torch.int32", TOKENS.int(), None),
        (TypeError, "tokens: expected an int64 tensor, got list", [0, 0], None),
        (ValueError, r"tokens: expected \[2\], contiguous, on a CPU, got \[3\]", torch.zeros(3).long(), None),
        (ValueError, "strides", torch.zeros(4, dtype=torch.int64)[::2], None),
        (ValueError, "expected ids below 391", TOKENS + 391, None),
        (ValueError, "expected ids below 391", TOKENS - 1, None),
        (TypeError, "segment_len: expected an int64 tensor", TOKENS, TOKENS.bool()),
        (ValueError, "segment_len", TOKENS, TOKENS + 2),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], message: str, tokens: object, segment_len: object) -> None:
    model = make_model()
    state = model.new_state(2)
    with pytest.raises(error, match=message):
        NativeStep(model).step(tokens, state, segment_len)
    assert not state.clock.state.any()


@pytest.mark.parametrize("retention", [None, Retention(3)], ids=["all", "stride3"])
@pytest.mark.parametrize("row", range(4), ids=["position", "length", "phase", "horizon"])
def test_numbers_that_lead_out_of_a_ring_are_refused(row: int, retention: Retention | None) -> None:
    """A saved clock may hold anything."""
    model = make_model(retention)
    for number in (2**63 - 1, -(2**63), -1, 2**62 + 1):
        state = model.new_state(2)
        (state[0].horizon if row == 3 else state.clock.state[row, 1]).fill_(number)
        with pytest.raises(ValueError, match="state: expected clocks that lead to slots of the rings, got"):
            NativeStep(model).step(TOKENS, state)
        assert not state[0].written.any()


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match="weights: expected one of float32, bf16, int8, got 'int4'"):
        NativeStep(make_model(), "int4")


def test_a_new_state_or_a_moved_clock_is_noticed() -> None:
    """The addresses of a state are kept from call to call: they must be those of the state that is given."""
    model = make_model()
    step = NativeStep(model)
    first, second = model.new_state(1), model.new_state(1)
    tokens = torch.tensor([7])
    for _ in range(3):
        assert torch.equal(step.step(tokens, first), step.step(tokens, second))
    first[0].clock.in_graph = True
    first.reset()  # replaces the clock
    second.reset()
    assert torch.equal(step.step(tokens, first), step.step(tokens, second))
    assert torch.equal(first.clock.state, second.clock.state)
