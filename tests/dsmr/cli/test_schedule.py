"""`dsmr schedule`: shapes, budgets and pictures of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.dsmr.cli.commands import fails, succeeds


def test_prints_layers_bytes_and_reach() -> None:
    text = succeeds("schedule", "two_scale", "--layers", 4, "--budget", 4096, "--segment", 512)
    assert "two_scale: 4,096 entries in 4 layers" in text
    assert len(re.findall(r"^│ +\d ", text, re.MULTILINE)) == 4
    assert "receptive field" in text


@pytest.mark.parametrize(
    ("budget", "entry", "total"),
    [("24576", 4096, 24576), ("64MB", 4096, 15625), ("1.5MiB", 4096, 384), ("0.5GB", 4096, 122070)],
)
def test_takes_budgets_in_tokens_and_bytes(budget: str, entry: int, total: int) -> None:
    found = json.loads(succeeds("schedule", "uniform", "--budget", budget, "--json"))
    assert found["total"] == sum(found["horizons"]) == total
    assert sum(found["horizon_bytes"]) == total * entry  # K and V of 8 heads of 64 numbers of 4 bytes


def test_says_in_which_model_fewer_kv_heads_are_no_fewer() -> None:
    text = " ".join(succeeds("schedule", "full", "--kv-heads", 2).split())
    assert "in a model of 2 heads this is full as it is; in one of more, heads share KV heads" in text


def test_takes_every_shape() -> None:
    explicit = json.loads(succeeds("schedule", "explicit", "--layers", 3, "--horizons", "512,64,8", "--json"))
    assert explicit["horizons"] == [512, 64, 8]
    kept = json.loads(succeeds("schedule", "selective", "--stride", 4, "--stride-keep", "random", "--json"))
    assert kept["retention"] == {"stride": 4, "keep": "random"}


def test_counts_the_last_keys_of_shifted_heads() -> None:
    options = ["--layers", 2, "--segment", 100, "--kv-heads", 2, "--head-dim", 16, "--storage", "bf16", "--json"]
    plain, shifted = (
        json.loads(succeeds("schedule", "uniform", *options, *shift)) for shift in ([], ["--key-shift", "0,3"])
    )
    assert shifted["horizon_bytes"] == plain["horizon_bytes"]
    assert shifted["ring_bytes"] == [each + (3 + 100) * 16 * 2 for each in plain["ring_bytes"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sawtooth"], "unknown schedule 'sawtooth'; the schedules are full, uniform"),
        (["uniform", "--budget", "much"], "--budget: expected a number of tokens, or of bytes with one of"),
        (["uniform", "--budget", "12parsecs"], "got '12parsecs'"),
        (["uniform", "--budget", "1KB"], "budget_bytes: expected at least one entry of 4096 bytes, got 1000"),
        (["full", "--budget", 1000], "full: 8 layers of 32,768"),
        (["uniform", "--layers", 0], "layers: expected at least 1, got 0"),
        (["uniform", "--segment", 0], "segment: expected at least 1"),
        (["explicit", "--horizons", "1,2,x"], "--horizons: expected whole numbers separated by commas"),
        (["explicit", "--horizons", "1,2"], "horizons: expected one for each of 8 layers, got 2"),
        (["uniform", "--storage", "int3"], "storage: expected one of fp32"),
        (["uniform", "--key-shift", "0,1"], "key_shift: expected a number of tokens from 0 to 1,024 for each of 8 KV"),
        (["uniform", "--longest", 0], "Invalid value for '--longest'"),
        (["selective", "--stride", 0], "stride: expected an integer of at least 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_explains_what_is_impossible(arguments: list[object], message: str) -> None:
    assert message in fails("schedule", *arguments)


def test_draws_a_picture_once(tmp_path: Path) -> None:
    picture = tmp_path / "schedule.png"
    succeeds("schedule", "progressive_up", "--png", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{picture}: exists already; --force replaces it" in fails("schedule", "uniform", "--png", picture)
