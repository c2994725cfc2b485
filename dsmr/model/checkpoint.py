"""Checkpoint: a model's weights and all that is needed to use them, in one folder.

`model.safetensors` is authoritative and complete: the weights, and in its metadata one JSON document (format version,
dsmr version, vocabulary, model configuration, a summary of the training, a digest of the weights). `config.json` is the
same document for people and model hubs; loading never reads it. Both files appear whole or not at all. Nothing here
ever unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsmr.claim import is_dropping
from dsmr.fields import check_types, is_integer, shown
from dsmr.files import HALF_WRITTEN, write_durably
from dsmr.model.config import ModelConfig
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import CODEC, VOCAB_SIZE
from dsmr.pretrained import NAMES, shipped
from dsmr.version import __version__

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

LONGEST_DOCUMENT = 1 << 20
"""Characters of a document; ours have some thousands."""
DEEPEST_DOCUMENT = 16
"""Levels of a document; ours have five."""

_METADATA_KEY = "dsmr"
_BLOCK = "blocks.0."
_DTYPES = {"F32": "float32", "F64": "float64", "BF16": "bfloat16", "F16": "float16"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one that this version can read, or a damaged one."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Args:
        config: the model's configuration, its schedule included.
        training: plain JSON values: how it was trained and how far, as `dsmr.training` writes it; may be empty.
        codec, vocab_size: the vocabulary that the model reads and writes.
        dsmr_version: the version that saved it.
        digest: SHA-256 of the weights: damage is noticed by it and models are told apart.
    """

    config: ModelConfig
    training: dict[str, Any] = field(default_factory=dict)
    codec: str = CODEC
    vocab_size: int = VOCAB_SIZE
    dsmr_version: str = __version__
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The document that is stored: plain values for JSON."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "config": self.config.to_dict()}


def save_checkpoint(
    path: str | os.PathLike[str], model: Transformer, training: Mapping[str, Any] | None = None
) -> CheckpointInfo:
    """Write a model into the folder `path`, made if missing; an older checkpoint there is replaced.

    Whatever else lies in that checkpoint's folder stays. A folder that is neither empty nor a checkpoint's is somebody
    else's: its `config.json` may be anything.

    A crash at any moment leaves the old weights or the new ones, each with its own document.

    Args:
        path: the folder.
        model: on any device; tied weights are stored once.
        training: plain JSON values to keep with it.

    Raises:
        ValueError: a model of another vocabulary than this version's codec, or training values that JSON cannot hold.
        FileExistsError: the folder holds files, and no checkpoint that could be replaced.
        OSError: the folder cannot be written; an older checkpoint in it is as it was.
    """
    from safetensors.torch import save

    if model.config.vocab_size != VOCAB_SIZE:
        raise ValueError(f"model: expected the {VOCAB_SIZE} ids of {CODEC!r}, got vocab_size={model.config.vocab_size}")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    info = CheckpointInfo(model.config, dict(training or {}), digest=digest_tensors(weights))
    document = json.dumps(info.to_dict(), ensure_ascii=False, allow_nan=False, indent=2)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _check_own(folder)
    write_durably(folder / WEIGHTS_FILE, save(weights, {"format": "pt", _METADATA_KEY: document}))
    write_durably(folder / CONFIG_FILE, f"{document}\n".encode())
    return info


def _check_own(folder: Path) -> None:
    """FileExistsError unless a folder is empty, but for what a crash or a desktop left, or holds our checkpoint."""
    there = sorted(
        path.name for path in folder.iterdir() if not (HALF_WRITTEN.fullmatch(path.name) or is_dropping(path))
    )
    if not there:
        return
    try:
        with open_tensors(folder / WEIGHTS_FILE) as opened:
            own = _METADATA_KEY in (opened.metadata() or {})
    except CheckpointError:
        own = False
    if not own:
        raise FileExistsError(f"{folder}: expected an empty folder or that of a checkpoint, got one with {there[0]}")


def load_checkpoint(
    source: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[Transformer, CheckpointInfo]:
    """Read a model, in evaluation mode, and what its checkpoint says of it.

    Weights of 16 bits become float32, in which the model computes and can be trained on; that changes no value, and
    `model.bfloat16()` gives those of a bfloat16 file back. Others keep their type.

    Args:
        source: a checkpoint's folder, or a name; see `find_checkpoint`.
        device: where the model is to live.

    Raises:
        FileNotFoundError: no such checkpoint, here or on the hub.
        CheckpointError: not a checkpoint, one of another format or vocabulary, or a damaged one.
    """
    file = _find(source)
    with open_tensors(file) as opened:
        info = _info(file, opened)
        _check_weights(file, opened, info.config)
        # Cloned, or the tensors would be windows on a file that somebody may truncate under them.
        weights = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # it is no dict
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: expected finite weights, got others in {name!r}")
    if (digest := digest_tensors(weights)) != info.digest:
        raise CheckpointError(
            f"{file}: expected weights of SHA-256 {info.digest[:64]}, got {digest}: the file is damaged"
        )
    with torch.device("meta"):  # no time spent on initial weights, no random numbers drawn
        model = Transformer(info.config)
    model.load_state_dict(weights, assign=True)
    if model.embedding.weight.dtype.itemsize < torch.float32.itemsize:
        model = model.float()
    return model.to(device).eval(), info


def read_info(source: str | os.PathLike[str]) -> CheckpointInfo:
    """What the checkpoint at `source` says of itself, without reading its weights; raises as `load_checkpoint`."""
    file = _find(source)
    with open_tensors(file) as opened:
        info = _info(file, opened)
        _check_weights(file, opened, info.config)
    return info


def _find(source: str | os.PathLike[str]) -> Path:
    """The weights' file of a checkpoint."""
    folder = find_checkpoint(source)
    if not (file := folder / WEIGHTS_FILE).is_file():
        also = f"; the model of this name that ships is in {shipped(name)}" if (name := str(folder)) in NAMES else ""
        raise FileNotFoundError(f"{folder}: expected a checkpoint, a folder with {WEIGHTS_FILE}; there is none{also}")
    return file


def stored_dtype(source: str | os.PathLike[str]) -> torch.dtype:
    """The type of the weights in a checkpoint's file; raises as `load_checkpoint`."""
    file = _find(source)
    with open_tensors(file) as opened:
        _check_weights(file, opened, _info(file, opened).config)
        dtype: torch.dtype = getattr(torch, _DTYPES[opened.get_slice("embedding.weight").get_dtype()])
    return dtype


def find_checkpoint(source: str | os.PathLike[str]) -> Path:
    """The folder that `load_checkpoint` reads for `source`: the first of these that there is.

    1. What exists on disk under that path.
    2. If `source` is a text in `dsmr.pretrained.NAMES`: the model of that name that ships. (`./pianist` is none.)
    3. If it is a text "owner/name": the repository of that id on the Hugging Face Hub, brought here if it is not here
       yet; but not `runs/best` where there is a folder `runs`.
    4. The path, where there is nothing.

    Raises:
        FileNotFoundError: the hub has no such repository, or cannot be asked.
    """
    folder = Path(source)
    if folder.exists() or not isinstance(source, str):
        return folder
    if source in NAMES:
        return shipped(source)
    if _HUB_ID.fullmatch(source) and not folder.parent.is_dir():
        return _from_hub(source)
    return folder


def _from_hub(repository: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except hub_errors() as error:
        raise FileNotFoundError(
            f"{repository}: no such folder here, and no repository that the Hugging Face Hub would give: {error}"
        ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where something is wrong with the hub or the way there: OSError, and all errors of
    the HTTP library that it uses, which is another one in every version.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """An open safetensors file; within, what is wrong with it is a `CheckpointError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(file, "rb") as held, safe_open(_utf8_name(file, held.fileno()), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: expected a whole safetensors file, got: {error}") from error


def _utf8_name(file: Path, descriptor: int) -> str:
    """A name for an open file that is UTF-8, all that safetensors takes; on POSIX systems its own may be any bytes."""
    try:
        os.fspath(file).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{descriptor}"
    return os.fspath(file)


def parse_document(file: Path, document: str, version: int, what: str) -> dict[str, Any]:
    """The JSON object in a file's metadata, without its `format_version`.

    Raises:
        CheckpointError: it is too long, too deeply nested, not JSON, or of another version of `what`.
    """
    try:
        if len(document) > LONGEST_DOCUMENT:
            raise ValueError(f"{len(document):,} characters, more than {LONGEST_DOCUMENT:,}")
        values = json.loads(
            document, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repetition
        )
        _check_depth(values)
        got = values.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        reason = "one that is nested too deeply" if isinstance(error, RecursionError) else repr(error)
        raise CheckpointError(f"{file}: expected a JSON document with a format version, got {reason}") from error
    if not is_integer(got) or got != version:
        raise CheckpointError(f"{file}: expected version {version} of {what}, got {shown(got)}")
    return dict(values)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"the number {text}, which JSON does not have")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {shown(text)}, which no float can hold")
    return number


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; whoever states one twice leaves it to the reader which of them counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {shown(twice)} twice")
    return values


def _check_depth(value: Any, depth: int = 0) -> None:
    """RecursionError for values that are nested more deeply than any of ours."""
    if depth > DEEPEST_DOCUMENT:
        raise RecursionError
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, depth + 1)


def _info(file: Path, opened: Any) -> CheckpointInfo:
    document = (opened.metadata() or {}).get(_METADATA_KEY)
    if document is None:
        raise CheckpointError(f"{file}: expected the metadata of a dsmr checkpoint, got a file without it")
    values = parse_document(file, document, FORMAT_VERSION, "the checkpoint format")
    if (vocabulary := (values.get("codec"), values.get("vocab_size"))) != (CODEC, VOCAB_SIZE):
        raise CheckpointError(
            f"{file}: expected the codec {CODEC!r} of {VOCAB_SIZE} ids, got {shown(vocabulary[0])} of "
            f"{shown(vocabulary[1])}"
        )
    if values.keys() != (fields := set(CheckpointInfo.__dataclass_fields__)):
        raise CheckpointError(f"{file}: expected a document of {sorted(fields)}, got {shown(sorted(values))}")
    try:
        info = CheckpointInfo(**{**values, "config": ModelConfig.from_dict(values["config"])})
        check_types(info)
    except ValueError as error:
        raise CheckpointError(f"{file}: expected a model configuration, got {error}") from error
    if info.config.vocab_size != VOCAB_SIZE:
        raise CheckpointError(f"{file}: expected a model of {VOCAB_SIZE} ids, got {info.config.vocab_size}")
    return info


def _check_weights(file: Path, opened: Any, config: ModelConfig) -> None:
    """CheckpointError unless an open file holds the tensors of such a model, each of its shape and all of one type.

    Only the file's table of contents is read and only one block is built: a configuration is believed no further than
    the file bears it out.
    """
    held = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    got = {name: list(tensor.get_shape()) for name, tensor in held.items()}
    # The sizes of one block follow from these two; they bound what is built.
    _check_shape(file, got, "embedding.weight", [config.vocab_size, config.width])
    _check_shape(file, got, "blocks.0.up.weight", [config.feed_forward * config.width, config.width])
    schedule = replace(config.schedule, horizons=config.schedule.horizons[:1])
    with torch.device("meta"):
        one = Transformer(replace(config, schedule=schedule)).state_dict()
    block = {name.removeprefix(_BLOCK): list(t.shape) for name, t in one.items() if name.startswith(_BLOCK)}
    expected = {name: list(tensor.shape) for name, tensor in one.items() if not name.startswith(_BLOCK)}
    layers = min(config.layers, len(held))  # more cannot be there: the first one that is not will be named
    expected |= {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    if missing := [name for name in expected if name not in held]:
        count = len(missing) + (config.layers - layers) * len(block)
        raise CheckpointError(f"{file}: expected the tensor {missing[0]!r} ({count} are missing), got none")
    if unknown := sorted(held.keys() - expected.keys()):
        raise CheckpointError(
            f"{file}: expected no tensor {shown(unknown[0])} in this model, got {len(unknown)} unknown ones"
        )
    for name, shape in expected.items():
        _check_shape(file, got, name, shape)
    types = {tensor.get_dtype() for tensor in held.values()}
    if len(types) != 1 or not types <= set(_DTYPES):
        named = sorted(_DTYPES.get(name, name.lower().replace("i", "int")) for name in types)
        raise CheckpointError(f"{file}: expected weights of one floating-point type, got {', '.join(named)}")


def _check_shape(file: Path, got: Mapping[str, list[int]], name: str, expected: list[int]) -> None:
    if name not in got:
        raise CheckpointError(f"{file}: expected the tensor {name!r} of shape {expected}, got none")
    if got[name] != expected:
        raise CheckpointError(f"{file}: expected {name!r} of shape {expected}, got {shown(got[name])}")


def digest_tensors(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
