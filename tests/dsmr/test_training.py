"""Training: it learns, it repeats itself exactly, pieces keep apart, and a run leaves behind what it says."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsmr.checkpoint import load_checkpoint, read_info
from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.corpus.stream import Batch, LaneStream
from dsmr.evaluation import Evaluation
from dsmr.model import ModelConfig, Transformer
from dsmr.schedules import make_schedule
from dsmr.tokens import BEGIN, END, NOTE_OFF, TIME_SHIFT, VOCAB_SIZE
from dsmr.training import DivergedError, Run, TrainingConfig, accumulate_gradients, loop, make_optimizer, train, trainer
from dsmr.training.divergence import LossWatch
from dsmr.training.optimisation import compiled_token_nll, eager_token_nll

SEGMENT = 16
EXACT = torch.autocast("cpu", torch.bfloat16, enabled=False)


def model(*, horizons: tuple[int, ...] = (32, 16), dropout: float = 0.0, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    schedule = make_schedule("explicit", len(horizons), horizons=horizons)
    sizes = {"width": 32, "heads": 2, "kv_heads": 1, "segment": SEGMENT, **changes}
    return Transformer(ModelConfig(schedule=schedule, dropout=dropout, **sizes))


def write_store(path: Path, train_pieces: list[np.ndarray], validation: list[np.ndarray]) -> TokenStore:
    with StoreWriter(path) as store:
        for split, pieces in (("train", train_pieces), ("validation", validation)):
            for number, events in enumerate(pieces):
                store.add(np.concatenate([[BEGIN], events, [END]]), split=split, title=f"{split} {number}")
    return TokenStore.open(path)


def cycles(notes: list[int], count: int) -> np.ndarray:
    """The same few notes over and over: after a note-on always the same shift, note-off and note-on."""
    once = [token for note in notes for token in (note, TIME_SHIFT + note, NOTE_OFF + note)]
    return np.array(once * count)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("corpus") / "cycles.tokens"
    pieces = [cycles([60, 64, 67], 11), cycles([60, 64, 67], 7), cycles([60, 64, 67], 9)]
    return write_store(path, pieces, [cycles([60, 64, 67], 10)])


def config(**changes: Any) -> TrainingConfig:
    plain = {"steps": 6, "lanes": 2, "semitones": 0, "tempo": 0.0, "validations": 2, "log_every": 1}
    return TrainingConfig(**{**plain, **changes})


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("tokens_per_second", "seconds")} for row in rows(out)]


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


# Gradient accumulation


def gradients(net: Transformer) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad()
    return {name: grad.clone() for name, grad in found.items()}


def assert_equal_to_rounding(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums of the same float32 terms in another order: 1e-5 of the largest is some 80 roundings."""
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-5 * float(grad.abs().max()), msg=name)


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


# Pieces and the memory


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


# Learning rate, budget, optimiser


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.55), (1.0, 0.1), (0.2 + 0.8 / 3, 0.1 + 0.9 * 0.75)],
    ids=["start", "half-warm", "warm", "half-way", "end", "a-third"],
)
def test_learning_rate(progress: float, expected: float) -> None:
    schedule = TrainingConfig(steps=1, learning_rate=1.0, min_learning_rate=0.1, warmup=0.2)
    assert schedule.learning_rate_at(progress) == pytest.approx(expected)


def test_learning_rate_without_warmup_begins_at_its_highest() -> None:
    assert TrainingConfig(steps=1, learning_rate=0.25, warmup=0.0).learning_rate_at(0.0) == 0.25


@pytest.mark.parametrize(
    ("budget", "step", "seconds", "reserve", "expected"),
    [
        ({"steps": 8}, 2, 1e9, 0.0, 0.25),
        ({"steps": 8}, 9, 0.0, 0.0, 1.0),
        ({"minutes": 2.0}, 10_000, 30.0, 0.0, 0.25),
        ({"minutes": 2.0}, 1, 30.0, 20.0, 0.3),
        ({"minutes": 2.0}, 1, 30.0, 500.0, 1.0),
        ({"minutes": 2.0, "steps": 8}, 2, 60.0, 0.0, 0.5),
        ({"minutes": 2.0, "steps": 8}, 6, 60.0, 0.0, 0.75),
    ],
    ids=["steps", "steps-over", "clock", "clock-reserve", "no-time-left", "clock-first", "steps-first"],
)
def test_progress(budget: dict[str, Any], step: int, seconds: float, reserve: float, expected: float) -> None:
    assert TrainingConfig(**budget).progress(step, seconds, reserve) == pytest.approx(expected)


def test_run_by_the_clock_ends_in_time_and_completes_its_schedule(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow(_: Any, __: Any, logits: Tensor) -> None:
        now[0] += 1.0  # every segment, of training or validation, takes a second

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    net = model()
    net.register_forward_hook(slow)
    run = train(net, store, config(steps=None, minutes=1.0, validations=3, warmup=0.1), tmp_path)
    assert 59 <= run.seconds <= 61  # at most one step late
    assert run.training_seconds == run.step < 60
    assert rows(tmp_path)[-1]["learning_rate"] == 0.0
    assert [row["val_loss"] is not None for row in rows(tmp_path)].count(True) == 3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_nothing_else_does(name: str) -> None:
    net = model()
    optimizer = make_optimizer(net, config(weight_decay=0.3, optimizer=name))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | exempt == set(names.values())
    assert all(name.startswith("blocks") and name.endswith("weight") and "norm" not in name for name in decayed)
    assert all("norm" in name or name.endswith("bias") or name == "embedding.weight" for name in exempt)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    muon, adamw = make_optimizer(model(), config(optimizer="muon")).parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert all(parameter.dim() == 2 for group in muon.param_groups for parameter in group["params"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": None}, "steps, minutes: expected a budget"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"minutes": 0.0}, "minutes: expected a finite number above 0, got 0"),
        ({"lanes": 0}, "lanes: expected at least 1, got 0"),
        ({"accumulate": 0}, "accumulate"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number above 0, got nan"),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' or 'muon', got 'sgd'"),
        ({"min_learning_rate": 0.1}, "min_learning_rate: expected 0 to learning_rate=0.001, got 0.1"),
        ({"warmup": 1.0}, "warmup: expected a fraction of the budget below 1, got 1.0"),
        ({"validation_tokens": 0}, "validation_tokens"),
        ({"autocast": "bf16"}, "autocast: expected True, False or 'auto', got 'bf16'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)


# What a run leaves behind


def test_metrics(store: TokenStore, tmp_path: Path) -> None:
    run = train(model(), store, config(steps=7, accumulate=3, log_every=3, validations=2), tmp_path)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [3, 4, 6, 7]  # every third step, and those with a validation
    assert [row["tokens"] for row in found] == [step * 3 * 2 * SEGMENT for step in (3, 4, 6, 7)]
    assert [row["val_loss"] is not None for row in found] == [False, True, False, True]
    schedule = config(steps=7)
    for row in found:
        assert list(row) == [
            "step",
            "tokens",
            "train_loss",
            "val_loss",
            "learning_rate",
            "tokens_per_second",
            "seconds",
        ]
        assert row["learning_rate"] == schedule.learning_rate_at(row["step"] / 7)
        assert row["tokens_per_second"] > 0
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)
    assert (run.step, run.tokens) == (7, found[-1]["tokens"])
    assert run.last_ppl == math.exp(found[-1]["val_loss"])
    assert 0 < run.training_seconds < run.seconds
    assert not run.interrupted


def test_train_loss_in_a_row_is_the_mean_since_the_last_row(store: TokenStore, tmp_path: Path) -> None:
    for name, every in (("each", 1), ("third", 3)):
        train(model(), store, config(log_every=every, validations=1), tmp_path / name)
    each = [row["train_loss"] for row in rows(tmp_path / "each")]
    third = [row["train_loss"] for row in rows(tmp_path / "third")]
    assert third == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])


def test_best_and_last_checkpoints(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nll = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(
        trainer, "evaluate_pieces", lambda *_, **__: Evaluation((0,), (np.array([next(nll)], np.float32),))
    )
    net = model()
    run = train(net, store, config(validations=3), tmp_path)
    best, last = read_info(tmp_path / "best").training, read_info(tmp_path / "last").training
    assert (run.best_step, run.best_ppl, run.last_ppl) == (4, math.exp(2.0), math.exp(2.5))
    assert (best["step"], best["best_ppl"], best["last_ppl"]) == (4, math.exp(2.0), math.exp(2.0))
    assert (last["step"], last["best_ppl"], last["last_ppl"]) == (6, math.exp(2.0), math.exp(2.5))
    assert last["tokens"] == 6 * 2 * SEGMENT
    assert last["store"] == store.digest
    assert last["config"]["lanes"] == 2
    loaded = load_checkpoint(tmp_path / "last")[0]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))


def test_another_run_is_not_written_over(store: TokenStore, tmp_path: Path) -> None:
    train(model(), store, config(steps=1), tmp_path)
    with pytest.raises(FileExistsError, match=r"expected a folder without a run, got one with metrics\.jsonl"):
        train(model(), store, config(steps=1), tmp_path)


def test_a_split_without_pieces(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [cycles([60], 3)], [])
    with pytest.raises(ValueError, match="expected pieces in the splits train and validation"):
        train(model(), store, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def from_training_call(number: int, action: Any) -> Any:
    """A forward hook that lets `action(logits)` replace the output from the `number`-th training segment on."""
    calls = [0]

    def hook(net: Transformer, _: Any, logits: Tensor) -> Tensor:
        calls[0] += net.training
        return action(logits) if net.training and calls[0] >= number else logits

    return hook


def test_non_finite_loss_stops_the_run_and_spares_the_checkpoints(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.register_forward_hook(from_training_call(5, lambda logits: logits * math.inf))
    named = r"step 5: expected a finite loss and gradient norm, got nan, nan; worst is lane 0, piece \d \('train \d'\)"
    with pytest.raises(DivergedError, match=named):
        train(net, store, config(validations=3), tmp_path)
    assert read_info(tmp_path / "best").training["step"] in (2, 4)
    assert read_info(tmp_path / "last").training["step"] == 4
    assert all(bool(parameter.isfinite().all()) for parameter in load_checkpoint(tmp_path / "last")[0].parameters())


def test_non_finite_gradient_stops_the_run(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.norm.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(DivergedError, match=r"step 1: expected a finite loss and gradient norm, got [0-9.]+, nan"):
        train(net, store, config(), tmp_path)
    assert read_info(tmp_path / "last").training["step"] == 0
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())


def test_non_finite_validation_loss_stops_the_run(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer, "evaluate_pieces", lambda *_, **__: Evaluation((0,), (np.array([np.nan], np.float32),))
    )
    with pytest.raises(DivergedError, match="step 3: expected a finite validation PPL, got"):
        train(model(), store, config(), tmp_path)
    assert not (tmp_path / "best").exists()


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """A background job of a shell ignores Ctrl-C, and so would a run in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_run_after_the_step_and_saves_it(store: TokenStore, tmp_path: Path, number: int) -> None:
    def interrupt(logits: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return logits

    before = signal.getsignal(number)
    net = model()
    net.register_forward_hook(from_training_call(6, interrupt))
    run = train(net, store, config(steps=100, validations=50), tmp_path)
    assert (run.interrupted, run.step) == (number, 6)
    assert read_info(tmp_path / "last").training["step"] == 6
    assert len(rows(tmp_path)) == 6
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("in_the_foreground")
def test_a_second_ctrl_c_ends_at_once(store: TokenStore, tmp_path: Path) -> None:
    def interrupt(logits: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return logits

    net = model()
    net.register_forward_hook(from_training_call(6, interrupt))
    with pytest.raises(KeyboardInterrupt):
        train(net, store, config(steps=100, validations=50), tmp_path)
    assert read_info(tmp_path / "last").training["step"] == 4


def test_console_says_what_the_run_costs(store: TokenStore, tmp_path: Path) -> None:
    from rich.console import Console

    net = model()
    console = Console(file=StringIO(), width=200)
    train(net, store, config(), tmp_path, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    # Rings of 32 + 16 and 16 + 16 slots for keys and for values, of one head of 16 float32 numbers.
    assert f"{net.parameters_count:,} parameters" in text
    assert "10.0 KiB per lane, 20.0 KiB in all; by layer: 32 tokens in 6.0 KiB, 16 tokens in 4.0 KiB" in text
    assert f"2 lanes x {SEGMENT} tokens x 1 segments = 32 tokens a step" in text
    assert "246 tokens an epoch" in text
    assert text.count("val PPL") >= 2
    assert "peak memory" in text


def test_tensorboard(store: TokenStore, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(model(), store, config(), tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, count in (("train_loss", 6), ("val_loss", 2), ("learning_rate", 6), ("tokens_per_second", 6)):
        assert [event.step for event in events.Scalars(name)] == [
            row["step"] for row in rows(tmp_path) if row[name] is not None
        ]
        assert len(events.Scalars(name)) == count


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


def test_imports_without_the_music_libraries() -> None:
    blocked = ("rich", "tensorboard", "symusic", "pretty_midi", "matplotlib", "typer", "safetensors", "huggingface_hub")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import dsmr.training"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_without_a_step_has_no_speed() -> None:
    assert Run().tokens_per_second == 0.0


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


# An exploding loss


def watch(*losses: float) -> LossWatch:
    made = LossWatch(VOCAB_SIZE)
    for loss in losses:
        made.add(loss)
    return made


def test_losses_that_end_a_run_and_losses_that_do_not() -> None:
    ignorance = math.log(VOCAB_SIZE)
    assert not watch().exploded
    assert not watch(*[ignorance + 0.9] * 500).exploded  # bad, and no worse than that
    assert not watch(*[ignorance + 1.1] * 90).exploded
    assert watch(*[ignorance + 1.1] * 91).exploded
    assert watch(*[ignorance + 11] * 10).exploded
    assert not watch(*[2.0] * 100, *[50.0] * 10).exploded  # a spike in a run that has learned
    assert watch(*[2.0] * 100, *[50.0] * 13).exploded
    assert not watch(*[1e9] * 100, *[2.0] * 100).exploded  # long ago


def test_an_exploding_loss_stops_the_run_and_is_not_saved(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.register_forward_hook(from_training_call(5, lambda logits: logits * 1e4))
    named = r"step \d+: expected the last 100 steps to cost less than a nat more .*; worst is lane \d, piece \d"
    with pytest.raises(DivergedError, match=named):
        train(net, store, config(steps=100, validations=1), tmp_path, save_minutes=1e-9, keep=100)
    assert read_info(tmp_path / "last").training["step"] == 4  # the last good one
