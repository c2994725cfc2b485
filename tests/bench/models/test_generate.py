"""Generation: every engine's steps are the model's, a wrong one is refused, and a run says what was asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.harness import results
from bench.models import generate
from bench.models.generate import GenerateCase, Playing, engine
from bench.models.peers import Attention
from dsmr.generation.decoding import Decoding
from dsmr.model import preset
from dsmr_kernels import recurrent_attention

CPU = torch.device("cpu")
CASE = GenerateCase("tiny", preset("tiny"), 2)
ENGINES = generate.ENGINES["cpu"]


@pytest.mark.parametrize("one", ENGINES, ids=lambda one: one.name)
def test_every_engine_makes_the_models_steps(one):
    if reason := one.unavailable(CASE, CPU):
        pytest.skip(reason)
    assert CASE.wrong(one, CPU) is None


def test_an_engine_that_forgets_is_wrong():
    def forget(q, k, v, memory, **arguments):
        return recurrent_attention(q, k, v, impl="eager", segment_len=arguments["segment_len"])

    with Attention(name="forgets", version="", attend=forget).context():
        assert "logits: off by" in CASE.wrong(engine("forgets", Decoding("python")), CPU)


def test_playing_keeps_the_seconds_of_every_step():
    case = replace(CASE, config=generate.step.reduced(CASE.config, 16))
    playing = Playing(case, ENGINES[0], CPU)
    playing.play(5)
    assert len(playing.latencies) == 5
    assert min(playing.latencies) > 0
    rings = sum((horizon + 16) * 2 * 128 * 4 for horizon in case.config.schedule.horizons)
    tails = case.config.layers * 3 * (2 + 16) * 32 * 4  # the last keys of three heads, shifted by two tokens at most
    assert playing.state_bytes == 2 * (rings + tails)


def test_a_quick_run_gives_latencies_and_watches_memory(bench, tmp_path):
    done = bench("generate", "--quick", "--contenders", "Python", "--out", str(tmp_path), bare=True)
    assert done.returncode == 0, done.stderr
    full, empty = results.load(tmp_path / "generate-cpu-1.jsonl")[0].rows
    assert full.extra["latency"]["50"] <= full.extra["latency"]["95"]
    assert "99" not in full.extra["latency"]  # of 48 steps it would be the maximum
    assert full.extra["real_time_factor"] == pytest.approx(full.extra["tokens_per_second"][1] / 42, rel=1e-2)
    assert [tokens for tokens, _ in empty.extra["resident"]] == [0, 100, 200, 300]
    assert empty.extra["full_after"] < 300
    assert "Real time is 42 tokens/s" in done.stdout
