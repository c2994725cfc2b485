"""The command that made a model: `dsmr train` understands it, and takes from it the settings that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsmr.cli import app
from dsmr.corpus.prepare import prepare_pianist
from dsmr.model import ModelConfig
from dsmr.model.schedules import Schedule
from dsmr.sharing import train_command
from dsmr.training import TrainingConfig
from dsmr_kernels import Retention


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "pianist.tokens"
    prepare_pianist(path, seed=3, tokens=8_000, shortest=1_000, longest=1_500, validation=0.3, test=0.1, workers=0)
    return path


horizons = st.lists(st.integers(0, 5000), min_size=1, max_size=4).map(tuple)
rates = st.floats(1e-6, 1.0)
models = st.builds(
    lambda heads, shift, share, position, **values: ModelConfig(
        width=heads * 8,
        heads=heads,
        kv_heads=heads,
        key_shift=None if shift is None else tuple(shift[:heads]),
        rotary_share=tuple(share[:heads]) if position == "rotary" else None,
        position=position,
        window="segment",
        **values,
    ),
    heads=st.integers(1, 4),
    shift=st.none() | st.lists(st.integers(0, 3), min_size=4, max_size=4),
    share=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    qk_norm=st.booleans(),
    schedule=st.builds(
        Schedule,
        st.sampled_from(["uniform", "two_scale", "selective", "explicit"]),
        horizons,
        st.none() | st.builds(Retention, st.integers(2, 8), st.sampled_from(["last", "random"])),
    ),
    segment=st.integers(1, 512),
    position=st.sampled_from(["rotary", "sinusoidal"]),
    position_base=st.floats(2.0, 1e6),
    feed_forward=st.integers(1, 4),
    dropout=st.floats(0.0, 0.9),
)
trainings = st.builds(
    lambda budget, learning_rate, least, **values: TrainingConfig(
        steps=budget[0],
        minutes=budget[1],
        learning_rate=learning_rate,
        min_learning_rate=least * learning_rate,
        **values,
    ),
    budget=st.tuples(st.integers(1, 10**6), st.none() | rates) | st.tuples(st.none(), rates),
    lanes=st.integers(1, 64),
    accumulate=st.integers(1, 8),
    optimizer=st.sampled_from(["adamw", "muon"]),
    learning_rate=rates,
    least=st.floats(0.0, 1.0),
    warmup=st.floats(0.0, 0.99),
    weight_decay=st.floats(0.0, 1.0),
    betas=st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.999)),
    clip=rates,
    semitones=st.integers(0, 6),
    tempo=st.floats(0.0, 0.1),
    validations=st.integers(1, 20),
    validation_tokens=st.none() | st.integers(1, 10**6),
    log_every=st.integers(1, 100),
    autocast=st.sampled_from([True, False, "auto"]),
    compile=st.booleans(),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models, training=trainings)
def test_train_reads_from_it_what_it_was_written_from(
    model: ModelConfig, training: TrainingConfig, store: Path, tmp_path: Path
) -> None:
    found: list[Any] = []

    def record(net: Any, _: Any, config: TrainingConfig, *__: Any, **___: Any) -> None:
        found.append((net.config, config))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsmr.training.train", record)
        arguments = ["train", "--data", str(store), "--out", str(tmp_path / "run"), *train_command(training, model)]
        assert app.run(arguments) == 130, arguments
    ((made, settings),) = found
    assert settings == training
    schedule = Schedule("explicit", model.schedule.horizons, model.schedule.retention)
    assert made.to_dict() == {**model.to_dict(), "schedule": schedule.to_dict()}
