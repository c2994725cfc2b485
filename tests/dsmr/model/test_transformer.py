"""The model: any way of feeding a piece gives the same, and its state is the memory alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmr.model.config import ModelConfig
from dsmr.model.schedules import Schedule, make_schedule
from dsmr.model.transformer import HeadNorm, Transformer
from dsmr.music.tokens import VOCAB_SIZE
from dsmr_kernels import Retention

SEGMENT = 16
POSITIONS = ["sinusoidal", "rotary"]
RECALL = {"key_shift": (0, 3), "rotary_share": (1.0, 0.3), "qk_norm": True}
"""All that helps a model to find again what it heard."""
shifted_or_not = pytest.mark.parametrize("key_shift", [None, (0, 3)], ids=["plain", "shifted"])


def make(
    window: str = "segment", position: str = "rotary", retention: Retention | None = None, **changes
) -> Transformer:
    """A small float64 model with strongly unequal horizons: what differs is not rounding."""
    torch.manual_seed(0)
    schedule = Schedule("explicit", (40, 8, 3), retention)
    config = ModelConfig(32, 4, 2, schedule, SEGMENT, window, position, **changes)
    model = Transformer(config).double().eval()
    for parameter in model.parameters():  # larger than at initialisation, so that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def piece(lanes: int = 2, tokens: int = 70) -> Tensor:
    return torch.randint(VOCAB_SIZE, (lanes, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(model: Transformer, tokens: Tensor, sizes: list[int], segment_size: int | None = None) -> Tensor:
    """Logits of a piece fed in calls of the given sizes."""
    state = model.new_state(len(tokens), max_segment=max(*sizes, SEGMENT))
    return torch.cat([model(part, state, segment_size=segment_size) for part in tokens.split(sizes, 1)], 1)


def in_segments(total: int, step: int) -> list[int]:
    """Calls of at most `step` tokens, none across the end of a segment."""
    whole = [SEGMENT] * (total // SEGMENT) + ([total % SEGMENT] if total % SEGMENT else [])
    return [min(step, size - done) for size in whole for done in range(0, size, step)]


@settings(max_examples=20)
@given(
    cuts=st.lists(st.integers(1, SEGMENT), min_size=1, max_size=20),
    position=st.sampled_from(POSITIONS),
    key_shift=st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_any_segmentation_equals_one_shot_under_the_token_window(
    cuts: list[int], position: str, key_shift: tuple[int, ...] | None
) -> None:
    model, tokens = make("token", position, key_shift=key_shift), piece(tokens=sum(cuts))
    torch.testing.assert_close(read(model, tokens, cuts), read(model, tokens, [sum(cuts)]))


@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize(
    ("position", "changes"),
    [
        ("sinusoidal", {}),
        ("sinusoidal", {"key_shift": (0, 3), "qk_norm": True}),
        ("rotary", {}),
        ("rotary", {"key_shift": (0, 3)}),
        ("rotary", RECALL),
    ],
)
@pytest.mark.parametrize(
    ("window", "retention"),
    [("segment", None), ("token", None), ("segment", Retention(3)), ("segment", Retention(4, "random"))],
    ids=["segment", "token", "segment-stride3", "segment-random4"],
)
def test_generation_equals_training(
    window: str, position: str, retention: Retention | None, step: int, changes: dict[str, Any]
) -> None:
    model, tokens = make(window, position, retention, **changes), piece()
    training = read(model, tokens, in_segments(70, SEGMENT))
    torch.testing.assert_close(read(model, tokens, in_segments(70, step), segment_size=SEGMENT), training)


@pytest.mark.parametrize("layers", [2, 8])
def test_what_writes_into_the_residual_stream_begins_smaller_the_deeper_the_model(layers: int) -> None:
    torch.manual_seed(0)
    schedule = make_schedule("uniform", layers, budget_tokens=layers)
    net = Transformer(ModelConfig(64, 2, 2, schedule, segment=SEGMENT))
    for name, parameter in net.named_parameters():
        if parameter.dim() == 2:
            residual = name.endswith(("out.weight", "down.weight"))
            expected = 0.02 / math.sqrt(2 * layers) if residual else 0.02
            # The deviation of n draws is known to 1 / sqrt(2 n): five of those.
            assert float(parameter.detach().std()) == pytest.approx(
                expected, rel=5 / math.sqrt(2 * parameter.numel())
            ), name
        elif name.endswith("bias"):
            assert not parameter.any()


@pytest.mark.parametrize("branch", ["out", "down"])
def test_dropout_acts_on_both_residual_branches_and_on_the_embedding(branch: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(32, 2, 1, make_schedule("explicit", 1, horizons=[8]), segment=SEGMENT, dropout=1 - 1e-9)
    net = Transformer(config)
    (block,) = net.blocks
    for name in {"out", "down"} - {branch}:  # only one branch writes anything
        torch.nn.init.zeros_(getattr(block, name).weight)
    x, position = torch.randn(1, SEGMENT, 32), net._position(piece(1, SEGMENT), net.new_state(1), None)
    with torch.no_grad():
        for training in (True, False):
            net.train(training)
            written = block(x, position, net.new_state(1)[0], None, None) - x
            assert bool(written.any()) is not training
        embedded = net.train().dropout(net.embedding(piece(1, SEGMENT)))
        assert not embedded.any()


def test_a_key_is_that_of_an_earlier_token_at_the_position_of_its_own() -> None:
    """The ring of a lower layer holds what a plain model's holds for the tokens before, but for the rotation."""
    tokens = piece(lanes=1, tokens=SEGMENT)
    plain, shifted = make(), make(key_shift=(0, 3))
    states = [model.new_state(1) for model in (plain, shifted)]
    with torch.no_grad():
        plain(tokens.roll(3, 1), states[0])
        shifted(tokens, states[1])
    (earlier, _, _), (k, v, _) = (state[0].export(0) for state in states)
    torch.testing.assert_close(k[1, 3:], earlier[1, 3:])  # the plain model read the earlier tokens at these positions
    assert not k[1, :3].any()
    with torch.no_grad():
        state = plain.new_state(1)
        plain(tokens, state)
    torch.testing.assert_close((k[0], v), (state[0].export(0)[0][0], state[0].export(0)[1]))


def test_a_share_rotates_the_first_pairs_and_leaves_the_others() -> None:
    """A model reads the same piece later: what is rotated moves on, and what is not stays as it was."""
    model, tokens = make(rotary_share=(1.0, 0.5)), piece(lanes=1, tokens=SEGMENT)
    keys = []
    with torch.no_grad():
        for origin in (0, 1000):
            state = model.new_state(1)
            model(tokens, state, origin=torch.tensor([origin]))
            keys.append(state[0].export(0)[0].unflatten(-1, (2, -1)))  # [Hkv, slots, halves, D / 2]
    here, there = keys
    pairs = here.shape[-1]
    same = (here == there).all(1).all(1)  # [Hkv, D / 2]
    assert not same[0].any()
    assert same[1].tolist() == [False] * (pairs // 2) + [True] * (pairs - pairs // 2)
    torch.testing.assert_close(here.square().sum(2), there.square().sum(2))  # a rotation keeps lengths


def test_normalised_heads_have_the_size_that_was_learned() -> None:
    model, tokens = make(qk_norm=True), piece(lanes=1, tokens=SEGMENT)
    norm = model.blocks[0].query_key_norm
    state = model.new_state(1)
    with torch.no_grad():
        norm.size.copy_(torch.arange(1, 7))
        model(tokens, state)
    sizes = state[0].export(0)[0].square().mean(-1).sqrt()
    # HeadNorm.EPSILON takes away half of itself for mean squares of 1; these are larger than 0.1.
    expected = torch.tensor([5.0, 6.0]).double()[:, None].expand_as(sizes)
    torch.testing.assert_close(sizes, expected, rtol=HeadNorm.EPSILON / 2 / 0.1, atol=0)


def test_a_state_of_other_shifts_is_refused() -> None:
    for model, other in ((make(), make(key_shift=(0, 3))), (make(key_shift=(3, 0)), make(key_shift=(0, 3)))):
        with pytest.raises(ValueError, match="state: expected one with key_shift="):
            model(piece(tokens=4), other.new_state(2))


def test_the_memory_matters() -> None:
    model, tokens = make(), piece()
    sizes = in_segments(70, SEGMENT)
    with torch.no_grad():
        forgetful = torch.cat([model(part, model.new_state(2)) for part in tokens.split(sizes, 1)], 1)
    remembered = read(model, tokens, sizes)
    torch.testing.assert_close(forgetful[:, :SEGMENT], remembered[:, :SEGMENT])
    assert (forgetful[:, SEGMENT:] - remembered[:, SEGMENT:]).abs().max() > 0.1


@shifted_or_not
@pytest.mark.parametrize("position", POSITIONS)
def test_a_piece_that_begins_inside_a_segment_is_read_as_if_alone(
    position: str, key_shift: tuple[int, ...] | None
) -> None:
    model, tokens = make("token", position, key_shift=key_shift), piece(lanes=1, tokens=48)
    state = model.new_state(1)
    starts = torch.zeros(3, 1, SEGMENT, dtype=torch.int64)
    starts[1, 0, 5:] = 5
    with torch.no_grad():
        parts = [model(tokens[:, i * 16 : i * 16 + 16], state, starts[i]) for i in range(3)]
    alone = read(model, tokens[:, 21:], [11, 16])
    torch.testing.assert_close(torch.cat(parts, 1)[:, 21:], alone)
    assert state.clock.length.tolist() == [27]


@shifted_or_not
def test_a_reset_lane_reads_a_piece_as_a_fresh_model_does(key_shift: tuple[int, ...] | None) -> None:
    model, tokens = make(key_shift=key_shift), piece(lanes=2, tokens=SEGMENT)
    state = model.new_state(2)
    with torch.no_grad():
        model(piece(tokens=SEGMENT).flip(1), state)
        state.reset([1])
        logits = model(tokens, state)
    torch.testing.assert_close(logits[1], read(model, tokens, [SEGMENT])[1])
    assert (logits[0] - read(model, tokens, [SEGMENT])[0]).abs().max() > 0.1


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_enter_queries_and_keys_only(position: str) -> None:
    """Values in the ring do not depend on where in the piece a token stands; keys do."""
    model = make(position=position)
    state = model.new_state(1)
    with torch.no_grad():
        model(torch.full((1, SEGMENT), 60), state)
    k, v, _ = state[0].export(0)
    torch.testing.assert_close(v, v[:, :1].expand_as(v))
    assert (k[:, 1:] - k[:, :1]).abs().amin(dim=(0, 2)).max() > 0
    assert all((k[:, i] - k[:, 0]).abs().max() > 1e-3 for i in range(1, SEGMENT))


@shifted_or_not
def test_the_state_takes_the_type_that_keys_will_have(key_shift: tuple[int, ...] | None) -> None:
    model = Transformer(make(key_shift=key_shift).config)
    assert model.new_state(1).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        state = model.new_state(2)
        assert state.dtype == torch.bfloat16
        logits = model(piece(tokens=SEGMENT), state)
    assert logits.dtype == torch.bfloat16
    assert model.new_state(1, storage="int8").storage == "int8"


def test_half_precision_weights_still_tell_distant_positions_apart() -> None:
    model = Transformer(make().config).bfloat16()
    state = model.new_state(1)
    state.clock.length.fill_(30_000)
    position = model._position(torch.zeros(1, 8, dtype=torch.int64), state, None)
    assert position.dtype == torch.float32
    assert len({tuple(row) for row in position[0, 0, :, 0].tolist()}) == 8


@pytest.mark.parametrize("changes", [{}, RECALL], ids=["plain", "recall"])
def test_a_training_step_compiles_whole_and_does_not_recompile(changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(**changes)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled, eager = model.new_state(2), model.new_state(2)
    for part in piece(tokens=4 * SEGMENT).split(SEGMENT, 1):
        results = []
        for run, state in ((step, compiled), (model, eager)):
            model.zero_grad()
            logits = run(part, state)
            logits.square().mean().backward()
            results.append((logits, model.embedding.weight.grad.clone()))
        for x, y in zip(*results, strict=True):
            torch.testing.assert_close(x, y)
        compiled.reset([0])
        eager.reset([0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
