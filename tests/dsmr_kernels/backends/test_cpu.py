"""What only the native CPU back end promises: every instruction set, any threads, any strides, exact bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmr_kernels import MemoryStack, Retention, RingMemory, recurrent_attention
from dsmr_kernels.backends import Call, cpu
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.backends.remembered import Remembered
from dsmr_kernels.storage import QUANTISED, quantise

pytestmark = pytest.mark.skipif(library.absence() is not None, reason=str(library.absence()))
ISAS = ["scalar", "neon", "avx2", "avx512", "avx512bf16"]
HALVES = (torch.bfloat16, torch.float16)
EVERY_TOKEN = Retention()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn, then again the one that was in use."""
    native = library.load()
    if request.param not in native.available:
        pytest.skip(f"this build and processor have {native.available}")
    before = native.isa
    native.use(request.param)
    yield request.param
    native.use(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads may be changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def default_type() -> Iterator[None]:
    """The default type may be changed."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@dataclass(frozen=True)
class Case:
    """A call in the middle of a stream."""

    tokens: int = 5
    horizon: int = 9
    heads: tuple[int, int] = (4, 2)
    dim: int = 16
    dtype: torch.dtype = torch.float32
    storage: str | None = None
    window: str = "segment"
    retention: Retention = EVERY_TOKEN
    position: int = 40
    length: int = 30
    ragged: bool = False
    alibi: bool = False
    softcap: float = 0.0
    scale: float | None = None
    packed: bool = False  # q, k and v are slices of one tensor, at odd offsets
    lanes: int = 2

    def stack(self, dtype: torch.dtype, storage: str | None) -> MemoryStack:
        stack = MemoryStack(
            [self.horizon],
            self.lanes,
            self.heads[1],
            self.dim,
            self.tokens,
            dtype,
            storage=storage,
            retention=self.retention,
        )
        lane = torch.arange(self.lanes)
        stack.clock.state.copy_(
            torch.stack([self.position + 3 * lane, (self.length - 7 * lane).clamp_min(0), 0 * lane])
        )
        return stack


def rings(case: Case, generator: torch.Generator) -> tuple[MemoryStack, MemoryStack]:
    """The case's memory, and the same numbers in float64."""
    stack, exact = case.stack(case.dtype, case.storage), case.stack(torch.float64, None)
    for name in ("k", "v"):
        ring, scale = getattr(stack[0], name), getattr(stack[0], f"{name}_scale")
        x = torch.randn(ring.shape, generator=generator)
        if scale is None:
            ring.copy_(x)
            getattr(exact[0], name).copy_(ring)
        else:
            values, scales = quantise(x, ring.dtype)
            ring.copy_(values), scale.copy_(scales)
            getattr(exact[0], name).copy_(values.double() * scales.double()[..., None])
    return stack, exact


def inputs(case: Case, generator: torch.Generator) -> list[Tensor]:
    """q, k, v and the cotangent of o."""
    heads, kv_heads = case.heads
    counts = (heads, kv_heads, kv_heads, heads)
    if not case.packed:
        return [torch.randn(case.lanes, case.tokens, n, case.dim, generator=generator).to(case.dtype) for n in counts]
    flat = torch.randn(case.lanes, case.tokens, sum(counts) * case.dim + 1, generator=generator).to(case.dtype)
    parts = flat[..., 1:].split([n * case.dim for n in counts], -1)
    return [x.unflatten(-1, (n, case.dim)) for x, n in zip(parts, counts, strict=True)]


def options(case: Case) -> dict:
    chosen: dict = {"window": case.window, "softcap": case.softcap, "scale": case.scale}
    if case.alibi:
        chosen["alibi_slopes"] = torch.linspace(0, 0.5, case.heads[0])
    if case.ragged:
        border = torch.tensor([case.tokens // 2, case.tokens])[: case.lanes]
        token = torch.arange(case.tokens)
        chosen["segment_start"] = torch.where(token >= border[:, None], border[:, None], 0)
        chosen["segment_len"] = torch.tensor([case.tokens, case.tokens - 1])[: case.lanes]
    return chosen


def results(case: Case, stack: MemoryStack, tensors: list[Tensor], impl: str) -> list[Tensor]:
    """o, lse, dq, dk and dv."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    o, lse = recurrent_attention(q, k, v, stack[0], return_lse=True, impl=impl, **options(case))
    finite = lse.masked_fill(lse.isinf(), 0)
    grads = torch.autograd.grad([o, finite], (q, k, v), [tensors[3], torch.ones_like(finite)])
    return [x.detach() for x in (o, lse, *grads)]


def check(case: Case, seed: int = 0) -> None:
    """Error against float64 at most twice the PyTorch back end's, plus rounding.

    Rounding: a part in 1 / eps of the largest value that each result could have if nothing cancelled. eps is float32's,
    times the logits' size, since folding constants rounds them; bf16 kernels round weights to bf16, too.
    """
    generator = torch.Generator().manual_seed(seed)
    stack, exact_stack = rings(case, generator)
    tensors = inputs(case, generator)
    exact = results(case, exact_stack, [x.double() for x in tensors], "eager")
    peer = results(case, rings(case, torch.Generator().manual_seed(seed))[0], tensors, "eager")
    got = results(case, stack, tensors, "cpu")
    q, k, v, do = (float(x.double().abs().max()) for x in tensors)
    k, v = max(k, float(exact_stack[0].k.abs().max())), max(v, float(exact_stack[0].v.abs().max()))
    scale, group = abs(case.scale or case.dim**-0.5), case.heads[0] // case.heads[1]
    change = 2 * case.dim * do * v + 1  # |do . v| + |do . o| + |dlse|
    rows = case.tokens * group
    bounds = [v, case.dim * q * k * scale, scale * change * k, scale * change * q * rows, do * rows]
    logit = float(exact[1][~exact[1].isinf()].abs().max())
    eps = torch.finfo(case.dtype if case.dtype == torch.bfloat16 else torch.float32).eps * (1 + logit)
    for name, ours, want, other, bound in zip(("o", "lse", "dq", "dk", "dv"), got, exact, peer, bounds, strict=True):
        assert torch.equal(ours.isinf(), want.isinf()), name
        ours, want, other = (x.double().masked_fill(x.isinf(), 0) for x in (ours, want, other))
        error, allowed = float((ours - want).abs().max()), 2 * float((other - want).abs().max())
        rounding = eps * bound + torch.finfo(case.dtype).eps * float(want.abs().max())
        assert error <= allowed + rounding, f"{name}: error {error:.2e}, allowed {allowed:.2e} + {rounding:.2e}"


CASES = {
    "plain": Case(),
    "many-tiles": Case(tokens=150, horizon=500, position=900, length=700),
    "decode": Case(tokens=1, horizon=300, position=900, length=700),
    "decode-parts": Case(tokens=1, horizon=3000, position=4100, length=4000, heads=(4, 1), lanes=1),
    "decode-groups": Case(tokens=1, heads=(14, 2), dim=96, dtype=torch.bfloat16, horizon=200, position=900, length=700),
    "decode-5-rows": Case(tokens=1, heads=(5, 1), dim=33, horizon=130, storage="int8", position=900, length=700),
    "decode-8-rows": Case(tokens=2, heads=(4, 1), horizon=70, window="token", length=100),
    "bf16": Case(tokens=70, horizon=210, position=500, length=400, dtype=torch.bfloat16),
    "bf16-odd": Case(tokens=35, dim=19, dtype=torch.bfloat16, packed=True, horizon=60),
    "fp16": Case(tokens=35, dtype=torch.float16, packed=True),
    "int8": Case(tokens=70, horizon=210, storage="int8", position=500, length=400),
    "int8-bf16": Case(tokens=33, storage="int8", dtype=torch.bfloat16, dim=20),
    "fp8-decode": Case(tokens=1, storage="float8_e4m3", horizon=100, position=500, length=400),
    "fp8-bf16": Case(tokens=33, storage="float8_e4m3", dtype=torch.bfloat16),
    "large-dim": Case(dim=256, tokens=20),
    "dim-1": Case(dim=1, tokens=20),
    "dim-17": Case(dim=17, tokens=3),
    "token-window": Case(tokens=70, horizon=33, window="token", position=200, length=150),
    "ragged": Case(tokens=70, horizon=33, ragged=True, position=200, length=150),
    "alibi": Case(alibi=True, retention=Retention(3, "random"), tokens=20, position=200, length=150),
    "alibi-decode": Case(alibi=True, softcap=3.0, tokens=1, retention=Retention(3), position=200, length=150),
    "softcap": Case(softcap=2.0, tokens=40, horizon=50, storage="int8"),
    "negative-scale": Case(scale=-0.3, tokens=40),
    "no-memory": Case(horizon=0, tokens=40),
}


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_computes_the_definition(isa: str, name: str) -> None:
    check(CASES[name])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    window = draw(st.sampled_from(["segment", "token"]))
    kv_heads = draw(st.integers(1, 3))
    return Case(
        tokens=draw(st.integers(1, 80)),
        horizon=draw(st.integers(1, 400)),
        heads=(kv_heads * draw(st.integers(1, 5)), kv_heads),
        dim=draw(st.integers(1, 70)),
        dtype=draw(st.sampled_from([torch.float32, *HALVES])),
        storage=draw(st.sampled_from([None, *QUANTISED])),
        window=window,
        retention=draw(st.sampled_from([Retention(), Retention(3), Retention(4, "random")]))
        if window == "segment"
        else Retention(),
        position=draw(st.integers(500, 2000)),
        length=draw(st.integers(0, 500)),
        ragged=draw(st.booleans()),
        alibi=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 0.0, 5.0])),
        packed=draw(st.booleans()),
    )


@settings(max_examples=100)
@given(case=cases(), seed=st.integers(0, 1000))
def test_any_call_computes_the_definition(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.parametrize("name", ["many-tiles", "bf16", "decode-parts", "int8", "decode", "ragged"])
def test_results_do_not_depend_on_the_number_of_threads(threads: None, name: str) -> None:
    case = CASES[name]
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        generator = torch.Generator().manual_seed(1)
        stack = rings(case, generator)[0]
        runs.append([*results(case, stack, inputs(case, generator), "cpu"), *stack[0].tensors().values()])
    for other in runs[1:]:
        for x, y in zip(runs[0], other, strict=True):
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def awkward_rows(dim: int, dtype: torch.dtype) -> Tensor:
    """Zeros, tiny and huge numbers, exact ties and ordinary rows, `[1, 64, 2, dim]`."""
    x = torch.randn(1, 64, 2, dim, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    x[0, 1] *= 1e-42
    x[0, 2] *= 1e4
    x[0, 3] = (torch.arange(2 * dim).view(2, dim) - dim) / 2
    x[0, 3, :, 0] = 127
    x[0, 4] = -448
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("storage", QUANTISED)
@pytest.mark.parametrize("dim", [13, 64])
def test_appended_bytes_are_those_of_quantise(isa: str, storage: str, dtype: torch.dtype, dim: int) -> None:
    k = awkward_rows(dim, dtype)
    stack = MemoryStack([10], 1, 2, dim, 64, dtype, storage=storage)
    stack.clock.state[0] = 30  # the segment wraps
    recurrent_attention(torch.zeros_like(k), k, k.flip(3), stack[0], impl="cpu")
    slots = (30 + torch.arange(64)) % stack[0].geometry.archive
    for ring, scale, x in ((stack[0].k, stack[0].k_scale, k), (stack[0].v, stack[0].v_scale, k.flip(3))):
        values, scales = quantise(x[0].transpose(0, 1), ring.dtype)
        assert torch.equal(ring[0][:, slots].view(torch.uint8), values.view(torch.uint8))
        assert torch.equal(scale[0][:, slots], scales)


@pytest.mark.parametrize("retention", [Retention(), Retention(3, "random")], ids=["every", "stride3"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_the_ring_ends_up_as_the_pytorch_back_end_leaves_it(tokens: int, retention: Retention) -> None:
    case = Case(tokens=tokens, retention=retention, ragged=tokens > 1)
    stacks = [case.stack(torch.float32, None) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    chosen = options(case)
    for _ in range(5):
        q, k, v, _ = inputs(case, generator)
        for stack, impl in zip(stacks, ("cpu", "eager"), strict=True):
            recurrent_attention(q, k, v, stack[0], impl=impl, **chosen)
            stack.advance(tokens, chosen.get("segment_start"), chosen.get("segment_len"))
    ours, theirs = (stack.state_dict() for stack in stacks)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def plain_call(**changes) -> Call:
    stack = MemoryStack([6], 2, 2, 8, 5)
    q, k, v = (torch.randn(2, 5, heads, 8) for heads in (4, 2, 2))
    return Call(q, k, v, stack[0], "segment", None, None, None, 1.0, 0.0, True)._replace(**changes)


def odd_ring() -> RingMemory:
    """A ring whose keys have their elements at every second place."""
    ring = MemoryStack([6], 2, 2, 8, 5)[0]
    return replace(ring, k=torch.zeros(*ring.k.shape[:3], 16)[..., ::2])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"q": torch.zeros(2, 5, 4, 8, dtype=torch.float64)},
            "expected q of float32, .* got torch.float64",
        ),
        ({"q": torch.zeros(2, 5, 4, 257)}, "head dimension of at most 256, got 257"),
        ({"q": torch.zeros(2, 5, 4, 8, device="meta")}, "expected tensors on the CPU, got meta"),
        ({"memory": odd_ring()}, "expected a ring with a contiguous last dimension"),
    ],
    ids=["float64", "dim", "device", "ring"],
)
def test_what_it_cannot_serve_it_refuses_with_the_reason(changes: dict, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(cpu.unsupported(plain_call(**changes)))
    assert cpu.unsupported(plain_call()) is None


@pytest.mark.parametrize("length", [[5, 6], [-1, 5]])
def test_a_segment_len_out_of_range_is_an_error_and_writes_nothing(length: list[int]) -> None:
    call = plain_call(segment_len=torch.tensor(length))
    with pytest.raises(ValueError, match=r"segment_len: expected values from 0 to T, got (6|-1) for lane [01]"):
        cpu.forward(call)
    assert not call.memory.k.any()


def test_a_segment_beyond_its_end_is_an_error() -> None:
    call = plain_call()
    call.memory.clock.state[:] = 3
    with pytest.raises(ValueError, match="lane 0 is at token 3 of its open segment: expected at most 2 more, got 5"):
        cpu.forward(call)


def test_gradients_of_a_sum_come_as_an_expanded_scalar() -> None:
    case = Case(tokens=20)
    generator = torch.Generator().manual_seed(0)
    q, k, v, _ = (x.requires_grad_() for x in inputs(case, generator))
    grads = []
    for cotangent in (torch.ones(()).expand(q.shape), torch.ones(q.shape)):
        out = recurrent_attention(q, k, v, case.stack(torch.float32, None)[0], impl="cpu")
        grads.append(torch.autograd.grad(out, (q, k, v), cotangent))
    assert all(map(torch.equal, *grads))


def test_default_types_and_devices_are_not_for_the_results(default_type: None) -> None:
    call = plain_call()
    torch.set_default_dtype(torch.float64)
    with torch.device("meta"):
        o, lse = cpu.forward(call)
        grads = cpu.backward(call, o, lse, o, lse, (True, True))
    assert all(x.is_cpu and x.dtype == torch.float32 for x in (o, lse, *grads))


@pytest.mark.parametrize("tokens", [1, 5])  # rows and tiles
def test_results_are_the_same_whether_or_not_somebody_wants_the_lse(tokens: int) -> None:
    call = plain_call(segment_len=torch.tensor([tokens, tokens // 2]))
    call = call._replace(q=call.q[:, :tokens], k=call.k[:, :tokens], v=call.v[:, :tokens])
    o, _ = cpu.forward(call)
    assert torch.equal(cpu.forward(call._replace(wants_lse=False))[0], o)


def test_what_a_ring_remembers_of_its_last_call_is_not_for_others() -> None:
    """Shapes, strides, options and addresses change, and change back: always as on a ring that knows nothing."""
    generator = torch.Generator().manual_seed(4)
    stack = MemoryStack([6], 2, 2, 8, 5)
    for tokens, scale, softcap, transposed, moved in product(
        (5, 3), (None, 0.5), (0.0, 4.0), (False, True), (False, True)
    ):
        sizes = [(2, heads, tokens, 8) if transposed else (2, tokens, heads, 8) for heads in (4, 2, 2)]
        q, k, v = (torch.randn(size, generator=generator) for size in sizes)
        if transposed:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if moved:
            stack[0].written.set_(stack[0].written.clone())
        unknowing = copy.deepcopy(stack)
        Remembered.of(unknowing[0]).examined(None)
        options = {"scale": scale, "softcap": softcap, "return_lse": True, "impl": "cpu"}
        got, want = (recurrent_attention(q, k, v, s[0], **options) for s in (stack, unknowing))
        assert all(map(torch.equal, got, want))
        for s in (stack, unknowing):
            s.advance(tokens)
        assert all(map(torch.equal, stack.state_dict().values(), unknowing.state_dict().values()))


def test_threads_of_python_do_not_disturb_each_other() -> None:
    cases = [Case(tokens=tokens, horizon=2000, position=4000, length=3000) for tokens in (1, 2, 3, 4)]
    stacks = [rings(case, torch.Generator().manual_seed(2))[0] for case in cases]
    given = [inputs(case, torch.Generator().manual_seed(3)) for case in cases]
    calls = [
        Call(q, k, v, stack[0], "segment", None, None, None, 1.0, 0.0, False)
        for stack, (q, k, v, _) in zip(stacks, given, strict=True)
    ]
    alone = [cpu.forward(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(cpu.forward, call) for call in calls * 25]
    for want, got in zip(alone * 25, together, strict=True):
        assert all(map(torch.equal, want, got.result()))
