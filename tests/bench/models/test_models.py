"""Whole models: peers are the model, broken ones are refused, and what is counted is what there is."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import runner
from bench.harness import results
from bench.harness.measure import Limits
from bench.models import check, fill, memory, peers, prepare, step, train
from bench.models.peers import Attention, Concatenation
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import Schedule
from dsmr.model.transformer import Transformer
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

    reason = check.wrong(CONFIG, Attention("forgets dV", "", forgets, ours=True), CPU)
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
    given = fill.pasts(CONFIG.schedule.horizons, 2, CONFIG.kv_heads, CONFIG.head_dim, CPU, 0)
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
    none = Attention("none", "", lambda q, k, v, memory, **_: q + k + v)
    with none.context(), FlopCounterMode(display=False) as counter:
        model(batch.tokens, state, batch.segment_start).sum().backward()
    pairs = CONFIG.segment * sum(CONFIG.schedule.horizons), 3 * 16 * 17 // 2
    attention = 2 * 2 * CONFIG.heads * CONFIG.head_dim * (5 * pairs[0] + 7 * pairs[1])
    assert step.flops(CONFIG, 2) - attention == counter.get_total_flops()


def test_peak_memory_counts_what_is_held_at_once():
    def work():
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second + 1

    assert 8 * 2**20 <= memory.peak_bytes(work, CPU) < 8.1 * 2**20


def test_a_quick_run_of_train_compares_schedules(bench, tmp_path):
    done = bench("train", "--quick", "--out", str(tmp_path), bare=True)
    assert done.returncode == 0, done.stderr
    rows = results.load(tmp_path / "train-cpu-1.jsonl")[0].rows
    timed = [row for row in rows if row.status == "timed"]
    assert {row.fields["schedule"] for row in timed} == {"full", "two_scale", "full, 1 of 2 KV heads"}
    assert all(row.extra["tokens_per_second"][1] > 0 and row.peak_bytes > row.extra["state_bytes"] > 0 for row in timed)
    two_scale = [row for row in timed if row.fields["schedule"] == "two_scale"]
    assert all(row.extra["against_full"]["state_bytes"] < 0.5 for row in two_scale)
    assert "no backward pass on CPUs" in done.stdout
    assert "arXiv 2602.19816" in done.stdout


def test_a_broken_peer_fails_the_run_and_has_no_time(bench, tmp_path):
    done = bench("train", "--quick", "--contenders", "broken", "--out", str(tmp_path))
    assert done.returncode == 1, done.stderr
    rows = results.load(tmp_path / "train-cpu-1.jsonl")[0].rows
    assert rows
    assert all(row.status == "wrong" and not row.seconds and row.peak_bytes is None for row in rows)


@pytest.mark.parametrize("case", prepare.cases(quick=True), ids=lambda case: case.what)
def test_preparation_that_loses_a_piece_is_wrong(case):
    way = prepare.Way(1)
    if reason := way.unavailable(case, CPU):
        pytest.skip(reason)
    assert case.wrong(way, CPU) is None
    losing = replace(case, work=lambda music, processes: case.work(music, processes)[1:])
    all_of_them = case.fields["pieces"]
    assert losing.wrong(way, CPU) == f"{all_of_them - 1} of {all_of_them} pieces came out right"


def test_a_quick_run_of_prepare_counts_pieces_and_tokens(bench, tmp_path):
    done = bench("prepare", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {(row.case, row.contender): row for row in results.load(tmp_path / "prepare-cpu-1.jsonl")[0].rows}
    stored = rows["MIDI files to a token store", "1 process"]
    assert stored.fields["pieces"] == len(prepare.TRANSPOSITIONS)
    assert stored.extra["tokens_per_second"][1] > stored.extra["pieces_per_second"][1] > 0
    assert rows["MIDI files to a token store", "2 processes"].status == "unavailable"


def test_results_make_a_plot_and_the_same_results_the_same_plot(bench, tmp_path):
    pytest.importorskip("matplotlib")
    from bench.report import model_plots as plots

    done = bench("train", "--quick", "--contenders", "SDPA", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (run,) = results.load(tmp_path / "train-cpu-1.jsonl")
    for name in ("first", "again"):
        (figure,) = plots.figures([run]).values()
        figure.savefig(tmp_path / f"{name}.png", metadata={"Software": None})
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert plots.figures([replace(run, rows=[])]) == {}


def test_without_time_to_make_ready_everything_is_skipped():
    settings = runner.Settings(CPU, quick=True, seconds=0.0)
    ((_, measured),) = train.parts(settings)
    assert {row.status for row in measured()} == {"skipped"}


def test_those_that_take_turns_have_as_much_time_as_each_would_have_alone():
    alone = Limits(seconds=2.0, patience=5.0, slow_factor=3.0)
    together = alone.for_all(4)
    assert (together.seconds, together.patience, together.least) == (8.0, 20.0, alone.least)
    assert together.slow_factor == float("inf")
