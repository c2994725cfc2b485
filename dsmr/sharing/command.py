"""Command that made a model, by the settings in its checkpoint: every one of them, since defaults change."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from dsmr.model.config import ModelConfig
from dsmr.training.config import TrainingConfig

_NO_OPTION = ("schedule", "vocab_size")


def train_command(training: TrainingConfig, model: ModelConfig | None) -> list[str]:
    """The arguments of `dsmr train`, but for the data and the folder.

    Args:
        training: its settings.
        model: what is trained, from new weights; None: what `--init-from` names.
    """
    arguments = [] if model is None else _model_options(model)
    for field in fields(training):
        value = getattr(training, field.name)
        if field.name == "validation_tokens" and value is None:
            value = "all"
        if field.name == "autocast" and isinstance(value, bool):
            value = "on" if value else "off"
        arguments += _option(field.name, value, " ")
    return arguments


def _model_options(config: ModelConfig) -> list[str]:
    """Its options; any schedule is an explicit one."""
    horizons, retention = config.schedule.horizons, config.schedule.retention
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values["key_shift"] = config.key_shift or (0,) * config.kv_heads  # zeros are no shift, whatever the preset has
    if config.position == "rotary":
        values["rotary_share"] = config.rotary_share or (1.0,) * config.kv_heads
    arguments = [each for name, value in values.items() if name not in _NO_OPTION for each in _option(name, value, ",")]
    if not config.qk_norm:
        arguments.append("--no-qk-norm")
    arguments += ["--schedule", "explicit", "--horizons", ",".join(map(str, horizons))]
    if retention is not None:
        arguments += ["--stride", str(retention.stride), "--stride-keep", retention.keep]
    return arguments


def _option(name: str, value: Any, between: str) -> list[str]:
    """A field as an option of the same name; nothing for None and False, which options that are left out mean."""
    if value is None or value is False:
        return []
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    return [option, *(between.join(map(str, value)) if isinstance(value, tuple) else str(value)).split(" ")]
