"""Shapes, and inputs of a shape."""

from __future__ import annotations

import pytest
import torch

from bench.attention.shapes import Inputs, Shape

CPU = torch.device("cpu")


@pytest.mark.parametrize("text", ["B1-T256-H8-Hkv8-D64-M1024-fp32", "B3-T1-H6-Hkv2-D96-M0-bf16-token"])
def test_a_shape_reads_what_it_writes(text):
    assert str(Shape.parse(text)) == text


def test_a_shape_may_be_short():
    assert Shape.parse("T256-M1024-bf16") == Shape(256, 1024, "bf16")
    assert Shape.parse("T1-H4-M8-fp32").kv_heads == 4


@pytest.mark.parametrize("text", ["T256", "T256-M1024-int8", "T1-H8-Hkv3-M8-fp32", "T256-M1024-fp32-tokens"])
def test_a_bad_shape_is_named(text):
    with pytest.raises(ValueError, match=text):
        Shape.parse(text)


@pytest.mark.parametrize("window", ["segment", "token"])
@pytest.mark.parametrize(("tokens", "horizon"), [(1, 7), (5, 3), (4, 16), (9, 1)])
def test_pairs_count_what_the_mask_shows(tokens, horizon, window):
    shape = Shape(tokens, horizon, window=window)
    visible = shape.visible(CPU)
    assert shape.pairs() == (int(visible[:, :horizon].sum()), int(visible[:, horizon:].sum()))


def test_inputs_are_the_same_each_time_and_differ_by_seed():
    shape = Shape(3, 5, "bf16", 2, 4, 8)
    one, again, other = (Inputs.random(shape, CPU, seed, False) for seed in (0, 0, 1))
    assert torch.equal(one.past_k, again.past_k)
    assert not torch.equal(one.past_k, other.past_k)
    assert one.q.shape == (1, 3, 4, 8)
    assert one.past_v.shape == (1, 2, 5, 8)
