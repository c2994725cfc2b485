from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from dsmr.model.config import PRESETS, ModelConfig, preset
from dsmr.model.schedules import Schedule
from dsmr.model.transformer import Transformer
from dsmr_kernels import Retention


def test_presets_have_about_the_parameters_they_promise() -> None:
    for name, millions in {"tiny": 1, "small": 5, "base": 25, "large": 85}.items():
        with torch.device("meta"):
            count = Transformer(preset(name)).parameters_count
        assert abs(count / 1e6 - millions) < 0.1 * millions
    assert preset("base").schedule.horizons == (8192, 8192, *[512] * 6)
    assert (preset("base").heads, preset("base").head_dim) == (8, 64)


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name: str) -> None:
    config = replace(PRESETS[name], schedule=Schedule("selective", (4, 4), Retention(2, "random")))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_shifts_of_zero_and_shares_of_one_are_none() -> None:
    config = preset("tiny", key_shift=(0,) * 4, rotary_share=(1,) * 4)
    assert (config.key_shift, config.rotary_share) == (None, None)
    assert replace(config, rotary_share=(1, 1, 1, 0)).rotary_share == (1.0, 1.0, 1.0, 0.0)


def test_presets_share_out_what_heads_look_for_to_any_number_of_kv_heads() -> None:
    tiny = preset("tiny")
    assert (tiny.key_shift, tiny.rotary_share) == ((0, 1, 1, 2), (1.0, 1.0, 0.25, 0.125))
    assert preset("tiny", kv_heads=2).rotary_share == (1.0, 0.25)
    assert preset("tiny", kv_heads=2).key_shift == (0, 1)
    assert preset("tiny", heads=6, width=96, kv_heads=3).rotary_share == (1.0, 1.0, 0.25)
    assert preset("base").key_shift == (0, 0, 1, 1, 1, 1, 2, 2)
    assert preset("tiny", kv_heads=1).key_shift is None
    sinusoidal = preset("tiny", position="sinusoidal")
    assert (sinusoidal.key_shift, sinusoidal.rotary_share) == ((0, 1, 1, 2), None)
    assert preset("tiny", kv_heads=2, key_shift=(1, 3)).key_shift == (1, 3)
    with pytest.raises(ValueError, match="kv_heads: expected at least 1, got -2"):
        preset("tiny", kv_heads=-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"heads": 0}, "heads: expected at least 1, got 0"),
        ({"kv_heads": -2}, "kv_heads: expected at least 1, got -2"),
        ({"feed_forward": 0}, "feed_forward: expected at least 1, got 0"),
        ({"heads": 5}, "heads: expected a divisor of width=32"),
        ({"kv_heads": 3}, "kv_heads: expected a divisor of heads=4, got 3"),
        ({"position": "learned"}, "position: expected 'sinusoidal' or 'rotary', got 'learned'"),
        ({"window": "page"}, "window: expected 'segment' or 'token', got 'page'"),
        ({"segment": 0}, "segment: expected at least 1 token, got 0"),
        ({"key_shift": (0, 1)}, "key_shift: expected a number of tokens from 0 to 1,024 for each of 4 KV heads"),
        ({"key_shift": (0, 0, 1, -1)}, "key_shift: expected a number of tokens from 0 to 1,024"),
        ({"key_shift": [0, 0, 1, 1]}, "key_shift: expected a tuple of values, each an integer of 64 bits or None"),
        ({"rotary_share": (1.0, 0.5)}, "rotary_share: expected a number from 0 to 1 for each of 4 KV heads"),
        ({"rotary_share": (1.0, 1.0, 0.5, -0.5)}, "rotary_share: expected a number from 0 to 1"),
        ({"rotary_share": (1.0, 1.0, 0.5, math.nan)}, "rotary_share: expected a number from 0 to 1"),
        ({"rotary_share": (0.5,) * 4, "position": "sinusoidal"}, "rotary_share: expected None with position='sinus"),
        ({"qk_norm": 1}, "qk_norm: expected True, False, got 1"),
        ({"dropout": 1.0}, "dropout: expected a probability below 1, got 1.0"),
    ],
    ids=lambda x: x.split(":")[0] if isinstance(x, str) else "",
)
def test_bad_configurations_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ModelConfig(32, 4, 4, Schedule("uniform", (8, 8))), **changes)


def test_unknown_presets_and_fields_are_named() -> None:
    with pytest.raises(ValueError, match="preset: expected one of tiny, small, base, large, got 'huge'"):
        preset("huge")
    values = preset("tiny").to_dict()
    values["colour"] = values.pop("width")
    with pytest.raises(ValueError, match="config: expected the fields"):
        ModelConfig.from_dict(values)
