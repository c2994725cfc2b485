"""Model card: what a model is, learned from, can do and may be used for, in Markdown as model hubs show it."""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsmr.model.checkpoint import CheckpointInfo, digest_tensors
from dsmr.model.transformer import Transformer
from dsmr.process import own_random_numbers
from dsmr.sharing.command import train_command
from dsmr.sharing.measured import read_evaluation
from dsmr.text import escaped
from dsmr.training.config import TrainingConfig
from dsmr.units import format_horizons, format_span

TAGS = ["dsmr", "midi", "music", "music-generation", "piano"]
_PROBES = {
    "recall": ("Recall: what a passage that comes back gains from its source", "source forgotten - source remembered"),
    "returns": ("Return gain: first statement against return", "first statement - return"),
}


@dataclass(frozen=True)
class About:
    """What a checkpoint does not say of itself.

    Args:
        name: what commands call the model: the id of its repository, or its folder.
        license: as the Hugging Face Hub spells it, such as "apache-2.0"; None: not stated.
        data: what the model learned from, Markdown; None: not stated.
        evaluation: the file that `dsmr evaluate --json` printed, of the model alone or of several; None: the card holds
            only what training measured.
    """

    name: str
    license: str | None = None
    data: str | None = None
    evaluation: str | os.PathLike[str] | None = None


def model_card(model: Transformer, info: CheckpointInfo, about: About, unrounded: str | None = None) -> str:
    """The text of `README.md`.

    Args:
        model: its weights of the type in which they are stored.
        info: of these weights.
        about: what the checkpoint does not say.
        unrounded: the digest of the weights before they were rounded to that type; their evaluation will do, too.

    Raises:
        OSError: the evaluation cannot be read.
        ValueError: it is of other weights or lacks a number, or this version does not know the training's settings.
    """
    from huggingface_hub import ModelCardData

    digests = [info.digest] if unrounded is None else [info.digest, unrounded]
    measured = None if about.evaluation is None else read_evaluation(about.evaluation, *digests)
    header = ModelCardData(license=about.license, library_name="dsmr", tags=TAGS).to_yaml()
    try:
        sections = "\n\n".join(_sections(model, info, about, measured))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected the training of `dsmr train` and an evaluation of `dsmr evaluate --json`, got {error!r:.200}"
        ) from error
    return f"---\n{header}\n---\n\n{sections}\n"


def _sections(
    model: Transformer, info: CheckpointInfo, about: About, measured: Mapping[str, Any] | None
) -> Iterator[str]:
    trained, config, name = info.training, info.config, escaped(about.name)
    yield f"# {name}"
    yield "A Transformer that plays piano music of any length. Each of its layers has a memory of its own length."
    play = ["dsmr", "generate", name, "--seconds", "60", "--out", "new.mid"]
    yield _code("sh", shlex.join(play))
    load = f"from dsmr.model import load_checkpoint\n\nmodel, info = load_checkpoint({json.dumps(name)})"
    yield _code("python", load)
    yield "## Model"
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    shape = f"{config.layers} layers of width {config.width}, {config.heads} heads, {config.kv_heads} KV heads"
    shifts = "none" if config.key_shift is None else ", ".join(map(str, config.key_shift))
    yield _table(
        ("", ""),
        [
            ("parameters", f"{model.parameters_count:,}, stored in {dtype}"),
            ("shape", shape),
            ("horizons, lowest layer first", f"{format_horizons(config.schedule.horizons)} tokens"),
            ("segment", f"{config.segment:,} tokens"),
            ("tokens by which keys are shifted, by KV head", shifts),
            ("vocabulary", f"{info.codec}, {info.vocab_size} ids"),
            ("SHA-256 of the weights", f"`{info.digest}`"),
        ],
    )
    yield "## Data"
    yield about.data or "Not stated."
    if "tokens" in trained and "store" in trained:
        yield f"It read {trained['tokens']:,} tokens of the token store of SHA-256 `{trained['store']}`."
    yield "## Measured"
    yield from _measured_in_training(trained) if measured is None else _measured(measured, info)
    if "config" in trained:
        yield "## How it was made"
        yield from _how(info)
    yield "## Licence"
    yield about.license or "Not stated."


def _measured_in_training(trained: Mapping[str, Any]) -> Iterator[str]:
    ppl, bigram = trained.get("last_ppl"), trained.get("bigram_ppl")
    if ppl is None:
        yield "Nothing yet."
    else:
        beside = "" if bigram is None else f"; a bigram model's on the same tokens is {bigram:.2f}"
        yield f"Perplexity on validation pieces, by the last validation of training: {ppl:.2f}{beside}."


def _measured(found: Mapping[str, Any], info: CheckpointInfo) -> Iterator[str]:
    whole = found["whole"]
    rounded = "" if found["weights"] == info.digest else ", before the weights were rounded"
    pieces = f"{len(whole['pieces']):,} {found['split']} pieces, {whole['tokens']:,} tokens{rounded}"
    yield f"On {pieces}, of the token store of SHA-256 `{found['store']}`. Intervals are of 95 %, over pieces."
    scores = [("whole pieces", whole)]
    if found["reset"] is not None:
        scores.append((f"context cleared every {found['reset']['reset_every']:,} tokens", found["reset"]))
    if found["bigram"] is not None:
        scores.append(("a bigram model", found["bigram"]))
    rows = [(name, f"{each['ppl']:.2f}", _between(each["ppl_interval_95"], "{:.2f}")) for name, each in scores]
    yield _table(("", "perplexity", "interval"), rows)
    for probe, (title, difference) in _PROBES.items():
        if probe in found:
            yield f"{title} (nats per token, {difference}; positive: memory helps)."
            yield _table(
                ("return", "distance in tokens", "nats", "interval", "tokens", "pieces"),
                [_row(kind, part) for kind, each in found[probe]["kinds"].items() for part in each["by_distance"]],
            )


def _row(kind: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    span, interval = format_span(part["start"], part["stop"]), _between(part["interval"], "{:+.3f}")
    return kind, span, f"{part['gain']:+.3f}", interval, f"{part['tokens']:,}", f"{part['pieces']:,}"


def _how(info: CheckpointInfo) -> Iterator[str]:
    config = TrainingConfig.from_dict(info.training["config"])
    begun_with = info.training.get("initial_weights")
    new = begun_with in (None, _new_weights(info, config.seed))
    begin = ["dsmr", "train", "--data", "STORE", "--out", "RUN", *([] if new else ["--init-from", "CHECKPOINT"])]
    command = shlex.join([*begin, *train_command(config, info.config if new else None)])
    yield _code("sh", " \\\n    ".join(textwrap.wrap(command, 100, break_on_hyphens=False, break_long_words=False)))
    if begun_with is None:
        yield "The checkpoint does not tell what weights it began with; new ones are assumed."
    elif not new:
        yield f"CHECKPOINT is that of the weights of SHA-256 `{begun_with}`, with which it began."
    step, seconds = info.training["step"], info.training["training_seconds"]
    yield f"The model is that of step {step:,}, after {seconds:,.0f} s of training."
    if config.minutes is None:
        yield (
            "On a CPU of the same kind, with as many threads, the command makes the same weights again, unless the run "
            "was lengthened."
        )
    else:
        yield "How many steps the minutes hold depends on the machine."


def _new_weights(info: CheckpointInfo, seed: int) -> str:
    """The digest of the weights that `dsmr train` begins with."""
    with own_random_numbers():
        torch.manual_seed(seed)
        return digest_tensors(Transformer(info.config).state_dict())


def _between(interval: Sequence[float] | None, form: str) -> str:
    return "too few pieces" if interval is None else " to ".join(form.format(end) for end in interval)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
