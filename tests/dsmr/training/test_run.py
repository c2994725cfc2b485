"""A run: what it says, what it leaves behind, and how a signal ends it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.baselines import Bigram
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.model.checkpoint import digest_tensors, load_checkpoint, read_info
from dsmr.training import Run, train, trainer
from tests.dsmr.training.small import SEGMENT, config, cycles, from_training_call, model, rows, write_store


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
        assert row["learning_rate"] == pytest.approx(schedule.learning_rate_at((row["step"] - 0.5) / 7))
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


@pytest.mark.parametrize("limit", [30, None])
def test_the_bigram_beside_it_is_scored_on_the_same_tokens(
    store: TokenStore, tmp_path: Path, limit: int | None
) -> None:
    run = train(model(), store, config(validation_tokens=limit, validations=1), tmp_path)
    validation = store.indices("validation")
    scored = evaluate_pieces(model(), store, validation, max_tokens=limit)
    bigram = Bigram.fit(store, store.indices("train")).evaluate(store, validation, max_tokens=limit)
    assert bigram.pieces == scored.pieces
    assert bigram.piece_tokens.tolist() == scored.piece_tokens.tolist()
    assert run.bigram_ppl == bigram.ppl
    assert read_info(tmp_path / "best").training["bigram_ppl"] == bigram.ppl
    assert read_info(tmp_path / "best").training["initial_weights"] == digest_tensors(model().state_dict())


def test_another_run_is_not_written_over(store: TokenStore, tmp_path: Path) -> None:
    train(model(), store, config(steps=1), tmp_path)
    with pytest.raises(FileExistsError, match=r"expected a folder without a run, got one with metrics\.jsonl"):
        train(model(), store, config(steps=1), tmp_path)


def test_a_split_without_pieces(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [cycles([60], 3)], [])
    with pytest.raises(ValueError, match="expected pieces in the splits train and validation"):
        train(model(), store, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """A background job of a shell ignores Ctrl-C, one that `nohup` begins a hang-up, and so would a run in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "sigterm", "sighup"])
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
    text = console.file.getvalue()  # the StringIO from above
    # Rings of 32 + 16 and 16 + 16 slots for keys and for values, of one head of 16 float32 numbers.
    assert f"{net.parameters_count:,} parameters" in text
    assert "10.0 KiB per lane, 20.0 KiB in all; by layer: 32 tokens in 6.0 KiB, 16 tokens in 4.0 KiB" in text
    assert f"2 lanes x {SEGMENT} tokens x 1 segments = 32 tokens per step" in text
    assert "246 tokens per epoch" in text
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


def test_imports_without_the_music_libraries() -> None:
    blocked = ("rich", "tensorboard", "mido", "pretty_midi", "matplotlib", "typer", "safetensors", "huggingface_hub")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import dsmr.training"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_without_a_step_has_no_speed() -> None:
    assert Run().tokens_per_second == 0.0
