"""Tensors are made where the model and its memory are, not on PyTorch's default device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.evaluation.score import Stretch, score
from dsmr.generation.decoding import Decoder, Decoding
from dsmr.model import native
from dsmr.model.checkpoint import load_checkpoint, save_checkpoint
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, PAD


@pytest.fixture
def model() -> Transformer:
    """Two layers on the CPU."""
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[24, 8])
    return Transformer(ModelConfig(width=32, heads=2, kv_heads=1, segment=16, schedule=schedule)).eval()


@pytest.fixture
def other_default_device(model: Transformer) -> Iterator[None]:
    """A default device that is not the model's: "meta" stands for a GPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("other_default_device")
@pytest.mark.parametrize("engine", ["python", "native"])
def test_decoding(model: Transformer, engine: str) -> None:
    if engine == "native" and (reason := native.absence()):
        pytest.skip(reason)
    decoder = Decoder(model, Decoding(engine=engine))
    assert np.isfinite(decoder.read([np.array([BEGIN, 5, 6]), np.array([BEGIN])])).all()
    after = decoder.step(np.array([7, END]), np.array([True, True]))
    assert np.isfinite(after).all()
    assert np.isfinite(decoder.step(np.array([7, 8]), np.array([True, False]))[0]).all()


@pytest.mark.usefixtures("other_default_device")
def test_training_and_its_gradients(model: Transformer) -> None:
    state = model.new_state(2)
    assert state.device.type == "cpu"
    tokens = torch.ones(2, 16, dtype=torch.int64, device="cpu")
    start = torch.zeros(2, 16, dtype=torch.int64, device="cpu")
    length = torch.full((2,), 15, device="cpu")
    for _ in range(2):
        model(tokens, state, segment_start=start, segment_len=length).sum().backward()
    assert all(parameter.grad.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.usefixtures("other_default_device")
def test_evaluation(model: Transformer, tmp_path: Path) -> None:
    ids = np.concatenate([[BEGIN], np.random.default_rng(0).integers(0, PAD, 40), [END]])
    with StoreWriter(tmp_path / "corpus.dsmr") as writer:
        writer.add(ids, split="test", title="one")
    store = TokenStore.open(tmp_path / "corpus.dsmr")
    for index in (0, 4):
        (nll,) = score(model, store, [Stretch(0, 0, 0, len(ids) - 1, index)], lanes=1)
        assert np.isfinite(nll).all()


@pytest.mark.usefixtures("other_default_device")
def test_checkpoints(model: Transformer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, model)
    loaded, _ = load_checkpoint(tmp_path)
    for (name, saved), tensor in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert tensor.device.type == "cpu", name
        assert torch.equal(tensor, saved), name
