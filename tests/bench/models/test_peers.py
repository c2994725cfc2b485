"""Attention in whole models: peers are the model, broken ones are refused, memories are full, work is counted."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.models import check, fill, peers, step
from bench.models.peers import Attention, Concatenation
from dsmr.model import ModelConfig, Transformer
from dsmr.model.schedules import Schedule
from dsmr_kernels import recurrent_attention

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    width=32, heads=4, kv_heads=4, schedule=Schedule("explicit", (48, 9, 0)), segment=16, vocab_size=61, dropout=0.1
)
GROUPED = replace(CONFIG, kv_heads=2)
ON_CPU = [attention for attention in peers.attentions(CPU) if attention.unavailable(None, CPU) is None]
RIGHT = [attention for attention in ON_CPU if "broken" not in attention.name]


def named(part):
    (attention,) = (each for each in peers.attentions(CPU) if part in each.name)
    return attention


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["H4-Hkv4", "H4-Hkv2"])
@pytest.mark.parametrize("attention", RIGHT, ids=lambda attention: attention.name)
def test_the_model_is_the_same_with_any_attention(attention, config):
    assert check.wrong(config, attention, CPU) is None


def test_a_broken_peer_is_named_wrong():
    assert "logits of segment 0: off by" in check.wrong(CONFIG, named("broken"), CPU)


def test_an_error_in_one_gradient_is_found():
    def forgets(q, k, v, memory, **arguments):
        return recurrent_attention(q, k, v.detach(), memory, impl="eager", **arguments)

    reason = check.wrong(CONFIG, Attention(name="forgets dV", version="", attend=forgets, ours=True), CPU)
    assert reason.startswith("gradient of ")


def test_a_peer_fills_up_as_a_ring_does():
    model = Transformer(CONFIG).eval()
    exact = deepcopy(model).double()
    state, exact_state, peer = model.new_state(2), exact.new_state(2), Concatenation(CONFIG, 2, torch.float32, CPU)
    with torch.no_grad():
        for batch in step.batches(CONFIG, 2, 5, CPU):
            want, rough = (m(batch.tokens, s) for m, s in ((exact, exact_state), (model, state)))
            with named("SDPA").context():
                got = model(batch.tokens, peer)
            rounding = torch.finfo(torch.float32).eps * want.abs().max()
            assert (got - want).abs().max() <= 2 * (rough - want).abs().max() + rounding
    assert [past.k.shape[2] for past in peer] == [48, 9, 0]


def test_a_peer_refuses_what_is_not_its_best_case():
    state = Concatenation(CONFIG, 2, torch.float32, CPU)
    with pytest.raises(ValueError, match="lanes"):
        state.reset(torch.tensor([False, True]))
    with pytest.raises(ValueError, match="segment_start"):
        state.advance(2, torch.tensor([[0, 1], [0, 0]]), None, None)
    with pytest.raises(ValueError, match="segment_len"):
        state.advance(2, None, torch.tensor([1, 2]), None)


@pytest.mark.parametrize("storage", [None, "int8"])
def test_a_filled_memory_holds_what_it_was_given(storage):
    state = Transformer(CONFIG).new_state(2, storage=storage)
    fill.fill(state, CONFIG)
    given = fill.pasts(CONFIG, 2, CPU)
    for ring, (past_k, past_v) in zip(state, given, strict=True):
        for lane in range(2):
            k, v, positions = ring.export(lane)
            assert positions.tolist() == list(range(-past_k.shape[2], 0))
            for held, past in ((k, past_k[lane]), (v, past_v[lane])):
                step_size = past.abs().amax(-1, keepdim=True) / 127 if storage else torch.zeros(())
                assert bool(((held - past).abs() <= 0.5001 * step_size).all())


def test_flops_are_those_of_the_matrices():
    model = Transformer(CONFIG).train()
    state, (batch,) = model.new_state(2), step.batches(CONFIG, 2, 1, CPU)
    none = Attention(name="none", version="", attend=lambda q, k, v, memory, **_: q + k + v)
    with none.context(), FlopCounterMode(display=False) as counter:
        model(batch.tokens, state, batch.segment_start).sum().backward()
    pairs = CONFIG.segment * sum(CONFIG.schedule.horizons), 3 * 16 * 17 // 2
    attention = 2 * 2 * CONFIG.heads * CONFIG.head_dim * (5 * pairs[0] + 7 * pairs[1])
    assert step.flops(CONFIG, 2) - attention == counter.get_total_flops()
