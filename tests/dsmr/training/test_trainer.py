"""Training: it learns, it repeats itself exactly, it accumulates, and pieces keep apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.corpus.stream import Batch, LaneStream
from dsmr.model.checkpoint import read_info
from dsmr.music.tokens import BEGIN, VOCAB_SIZE
from dsmr.training import accumulate_gradients, train, trainer
from dsmr.training.optimisation import compiled_token_nll, eager_token_nll
from tests.dsmr.training.small import (
    EXACT,
    SEGMENT,
    assert_equal_to_rounding,
    config,
    cycles,
    gradients,
    model,
    rows,
    untimed,
    write_store,
)


def test_learns_a_repetitive_corpus(store: TokenStore, tmp_path: Path) -> None:
    run = train(model(), store, config(steps=60, learning_rate=1e-2), tmp_path)
    losses = [row["train_loss"] for row in rows(tmp_path)]
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), rel=0.05)  # knows nothing
    assert losses[-1] < 0.3  # only where the piece ends is left to guess
    assert run.last_ppl is not None
    assert run.last_ppl < 1.5


def test_equal_seeds_make_equal_runs(store: TokenStore, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"semitones": 2, "tempo": 0.1}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(model(dropout=0.2), store, config(seed=seed, **changes), tmp_path / name)
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert untimed(tmp_path / "a") != untimed(tmp_path / "c")
    assert read_info(tmp_path / "a" / "last").digest == read_info(tmp_path / "b" / "last").digest


def test_validation_does_not_change_training(store: TokenStore, tmp_path: Path) -> None:
    for name, validations in (("once", 1), ("often", 6)):
        train(model(dropout=0.2), store, config(validations=validations), tmp_path / name)
    once, often = ([row["train_loss"] for row in rows(tmp_path / name)] for name in ("once", "often"))
    assert once == often


def test_accumulated_gradient_is_that_of_the_mean_loss_of_consecutive_segments(store: TokenStore) -> None:
    """All segments read with the same parameters, the memory carried through them and taken as constant."""
    stream = LaneStream(store, store.indices("train"), lanes=2, segment=SEGMENT)
    batches = [next(stream) for _ in range(5)]  # pieces begin inside of some
    net = model()
    loss = accumulate_gradients(net, net.new_state(2), batches, EXACT).mean()
    got = gradients(net)

    state, losses = net.new_state(2, segments_in_flight=len(batches)), []
    for batch in batches:
        state.reset(batch.reset)
        logits = net(batch.tokens, state, batch.segment_start)
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))
    mean = torch.stack(losses).mean()
    mean.backward()
    assert float(loss) == pytest.approx(mean.item(), rel=1e-6)
    assert_equal_to_rounding(got, gradients(net))


def fresh_batch(lanes: int, seed: int) -> Batch:
    """Every lane begins a piece of random notes."""
    ids = torch.randint(0, 128, (lanes, SEGMENT + 1), generator=torch.Generator().manual_seed(seed))
    full = torch.full((lanes,), SEGMENT)
    begins, piece = torch.ones(lanes, dtype=torch.bool), torch.zeros(lanes, SEGMENT, dtype=torch.int64)
    return Batch(ids[:, :-1], ids[:, 1:], torch.zeros(lanes, SEGMENT, dtype=torch.int64), full, begins, piece)


def test_accumulating_pieces_no_longer_than_a_segment_is_as_good_as_more_lanes() -> None:
    """Where no piece outlasts its segment the memory plays no part; with longer pieces the two differ, as they must."""
    first, second = fresh_batch(2, seed=1), fresh_batch(2, seed=2)
    side_by_side = Batch(*(torch.cat([getattr(b, name) for b in (first, second)]) for name in Batch.__annotations__))
    net = model()
    accumulated = accumulate_gradients(net, net.new_state(2), [first, second], EXACT)
    got = gradients(net)
    together = accumulate_gradients(net, net.new_state(4), [side_by_side], EXACT)
    torch.testing.assert_close(accumulated.flatten(), together.flatten(), rtol=1e-6, atol=0)
    assert_equal_to_rounding(got, gradients(net))


def test_one_step_of_two_segments_differs_from_two_steps(store: TokenStore, tmp_path: Path) -> None:
    joined = train(model(), store, config(steps=3, accumulate=2), tmp_path / "joined")
    single = train(model(), store, config(steps=6), tmp_path / "single")
    assert joined.tokens == single.tokens == 6 * 2 * SEGMENT
    assert joined.last_ppl != single.last_ppl


@pytest.mark.parametrize("notes", [10, 13], ids=["border-between-segments", "border-inside-a-segment"])
def test_a_piece_does_not_notice_the_one_before(tmp_path: Path, notes: int) -> None:
    second = cycles([50, 72, 43], 9)
    outputs: list[Tensor] = []
    for name, first in (("low", cycles([30], notes)), ("high", cycles([99], notes))):
        if notes == 10:
            first = np.append(first, 20)  # BEGIN and 31 events: exactly two segments to read
        store = write_store(tmp_path / name, [first, second], [second])
        stream = LaneStream(store, [0, 1], lanes=1, segment=SEGMENT, seed=1)
        batches = [next(stream) for _ in range(4)]
        assert batches[0].piece[0, 0] == 0  # the seed puts piece 0 first
        net, seen = model(), []
        net.register_forward_hook(lambda _, __, logits, seen=seen: seen.append(logits.detach()))
        accumulate_gradients(net, net.new_state(1), batches, EXACT)
        outputs.append(torch.cat(seen, 1)[0][torch.cat([batch.piece[0] == 1 for batch in batches])])
    low, high = outputs
    assert len(low) > 20
    assert torch.equal(low, high)

    state = (net := model()).new_state(1)  # and it is read as if it were alone
    ids = torch.from_numpy(np.concatenate([[BEGIN], second]))[None]
    with torch.no_grad():
        alone = torch.cat([net(part, state) for part in ids.split(SEGMENT, 1)], 1)[0, : len(low)]
    if notes == 10:
        torch.testing.assert_close(low, alone, rtol=0, atol=1e-5)
    else:  # segments begin elsewhere, which moves the window but for the first of them
        torch.testing.assert_close(low[:8], alone[:8], rtol=0, atol=1e-5)


def test_memory_is_carried_into_the_next_segment(store: TokenStore) -> None:
    stream = LaneStream(store, [0], lanes=1, segment=SEGMENT)
    first, second = next(stream), next(stream)
    net = model()
    state = net.new_state(1)
    accumulate_gradients(net, state, [first], EXACT)
    carried = accumulate_gradients(net, state, [second], EXACT)
    assert not torch.equal(carried, accumulate_gradients(net, net.new_state(1), [second], EXACT))


@pytest.mark.parametrize(("setting", "dtype"), [(True, "bfloat16"), (False, "float32"), ("auto", "float32")])
def test_autocast_decides_the_type_of_computation_and_memory(
    store: TokenStore, tmp_path: Path, setting: Any, dtype: str
) -> None:
    net, seen = model(), set()
    net.blocks[0].value.register_forward_hook(lambda _, __, v: seen.add(v.dtype))
    run = train(net, store, config(autocast=setting), tmp_path)
    assert seen == {getattr(torch, dtype)}
    assert net.embedding.weight.dtype == torch.float32
    assert run.last_ppl is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_segments_equal_eager_ones_and_are_compiled_once(store: TokenStore) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net, stream = model(horizons=(32,)), LaneStream(store, store.indices("train"), lanes=2, segment=SEGMENT)
    states, compiled = [net.new_state(2) for _ in range(2)], compiled_token_nll()
    begins = 0
    for _ in range(6):  # the clock moves on, memories fill up and wrap, pieces begin
        batches = [next(stream), next(stream)]
        begins += sum(int((batch.reset | (batch.segment_start > 0).any(1)).sum()) for batch in batches)
        nll = accumulate_gradients(net, states[0], batches, EXACT, compiled)
        got = gradients(net)
        torch.testing.assert_close(nll, accumulate_gradients(net, states[1], batches, EXACT))
        assert_equal_to_rounding(got, gradients(net))
    assert begins > 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_setting_decides_whether_the_step_is_compiled(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return eager_token_nll(*arguments)

    monkeypatch.setattr(trainer, "compiled_token_nll", lambda: counting)
    train(model(), store, config(), tmp_path / "eager")
    assert not calls
    train(model(), store, config(compile=True), tmp_path / "compiled")
    assert len(calls) == 6
    assert untimed(tmp_path / "eager") == untimed(tmp_path / "compiled")
