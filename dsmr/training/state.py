"""Training state: what a checkpoint's folder holds beside the model, so that training can go on.

`training.safetensors` holds tensors and, in its metadata, one JSON document and a SHA-256 over both. **Nothing in it
belongs to a process**: what differs between lanes is stored by global lane, and `dsmr.corpus.stream` promises that 2
ranks of 2 lanes read what 1 rank of 4 lanes reads; so a run may be resumed by any number of processes that share out
its lanes. The document:

- `run`: the counters, `Run.counters()`; the same on all ranks.
- `config`: `TrainingConfig`, whose `lanes` are those of all ranks; `store`: the digest of the token store.
- `initial_weights`: the digest of the weights before the first step; null: an older version did not tell.
- `stream`: `LaneStream.state_dict()`: its `lanes` are a list in the order of global lanes.
- `ground`: what its bits depend on beside all this, see `describe_ground`; a resume compares it with its own.
- `losses`: of the last steps, for `LossWatch`; `report`: where the measurements stand, see `Report.state_dict`.
- `weights`: the digest of the model that it belongs to.

The tensors:

- `optimizer.NAME.KEY`: the state `KEY` of the parameter `NAME`: `step`, `exp_avg` and `exp_avg_sq` where AdamW moves
  it, `momentum_buffer` where Muon does.
- `memory.horizons`, `memory.geometry`: what the memory is; no lanes.
- `memory.lanes.*`: its contents, **lanes first in every one of them**: `clock [B, 3]`, `layers.0.k [B, Hkv, C, D]`,
  ...: ranks' parts are put together, and shared out, along dimension 0.

There are no random generators in it: the order of pieces and their augmentation are functions of the seed, the epoch
and the piece, dropout of the seed and the step (`seed_step`), and nothing else in training is random.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsmr.files import write_durably
from dsmr.model.checkpoint import CheckpointError, digest_tensors, open_tensors, parse_document
from dsmr.model.transformer import Transformer
from dsmr.training.distributed import World, spread_like, whole
from dsmr.training.optimisation import Optimizers
from dsmr_kernels import MemoryStack

STATE_FILE = "training.safetensors"
STATE_VERSION = 1

_DOCUMENT, _DIGEST = "dsmr_training", "sha256"
_MEMORY, _LANES, _OPTIMIZER = "memory.", "memory.lanes.", "optimizer."


@dataclass(frozen=True)
class TrainingState:
    """What the module's docstring describes: a document of plain JSON values, and tensors by name."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]


def save_state(folder: Path, state: TrainingState) -> None:
    """Write `training.safetensors` into a checkpoint's folder, durably; OSError if that cannot be done."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    document = json.dumps({"format_version": STATE_VERSION, **state.document}, ensure_ascii=False, allow_nan=False)
    content = save(tensors, {"format": "pt", _DOCUMENT: document, _DIGEST: _digest(document, tensors)})
    write_durably(folder / STATE_FILE, content)


def load_state(folder: Path) -> TrainingState:
    """Read it again, every byte verified.

    Raises:
        CheckpointError: the file is missing, of another version or damaged.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: expected {STATE_FILE}, the state of a training to resume; there is none")
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # it is no dict
    document = metadata.get(_DOCUMENT, "")
    if (expected := metadata.get(_DIGEST)) != (got := _digest(document, tensors)):
        raise CheckpointError(
            f"{file}: expected contents of SHA-256 {str(expected)[:64]}, got {got}: the file is damaged"
        )
    values = parse_document(file, document, STATE_VERSION, "a training's state")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{file}: expected finite numbers in {name!r}, got others")
    return TrainingState(values, tensors)


def _digest(document: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{document}\n{digest_tensors(tensors)}".encode()).hexdigest()


def memory_tensors(memory: MemoryStack) -> dict[str, Tensor]:
    """`memory.*`: the lanes of one memory, lanes first; not copied."""
    state = memory.state_dict()
    whole = {f"{_MEMORY}{name}": state.pop(name) for name in ("horizons", "geometry")}
    state["clock"] = state["clock"].T
    return whole | {f"{_LANES}{name}": tensor for name, tensor in state.items()}


def join_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """A state's tensors with the lanes of all processes, nothing of them sharded; empty but on the first process."""
    joined = {}
    for name, tensor in tensors.items():
        full = world.join_lanes(tensor) if name.startswith(_LANES) else whole(tensor)
        if full is not None and world.first:
            joined[name] = full if world.size == 1 else full.cpu()
    return joined


def load_memory(memory: MemoryStack, tensors: Mapping[str, Tensor], first_lane: int = 0) -> None:
    """Fill `memory` from the `memory.*` of all lanes; its own first lane is number `first_lane` among them.

    Raises:
        ValueError: a memory of another shape, type or geometry; `memory` is then as it was.
    """
    lanes = slice(first_lane, first_lane + memory.lanes)
    state = {name.removeprefix(_LANES): t[lanes] for name, t in tensors.items() if name.startswith(_LANES)}
    if "clock" in state:
        state["clock"] = state["clock"].T
    for name in ("horizons", "geometry"):
        if (tensor := tensors.get(f"{_MEMORY}{name}")) is not None:
            state[name] = tensor
    memory.load_state_dict(state)


def optimizer_tensors(model: Transformer, optimizer: Optimizers) -> dict[str, Tensor]:
    """`optimizer.*`; nothing before the first step."""
    return {
        f"{_OPTIMIZER}{name}.{key}": tensor
        for name, parameter in model.named_parameters()
        for part in optimizer.parts
        for key, tensor in part.state.get(parameter, {}).items()
    }


def load_optimizer(model: Transformer, optimizer: Optimizers, tensors: Mapping[str, Tensor], steps: int) -> None:
    """Give the optimisers the `optimizer.*` of `model`'s parameters, as they are after `steps` steps.

    Raises:
        ValueError: a parameter without them (unless no step was made), or of another shape or type, or another number
            of steps; the optimisers are then as they were.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(_OPTIMIZER)}
    if not own and not steps:
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    loaded: list[tuple[torch.optim.Optimizer, nn.Parameter, dict[str, Tensor]]] = []
    for part in optimizer.parts:
        keys = ("momentum_buffer",) if isinstance(part, torch.optim.Muon) else ("step", "exp_avg", "exp_avg_sq")
        for parameter in (parameter for group in part.param_groups for parameter in group["params"]):
            state = {}
            for key in keys:
                shape = [] if key == "step" else list(parameter.shape)
                dtype = torch.float32 if key == "step" else parameter.dtype
                tensor = own.pop(f"{_OPTIMIZER}{names[parameter]}.{key}", None)
                what = f"{key} of {names[parameter]!r}"
                if tensor is None or list(tensor.shape) != shape:
                    got = "none" if tensor is None else list(tensor.shape)
                    raise ValueError(f"optimizer state: expected {what} of shape {shape}, got {got}")
                if tensor.dtype != dtype:
                    raise ValueError(f"optimizer state: expected {what} of type {dtype}, got {tensor.dtype}")
                if key == "step" and float(tensor) != min(steps, 2**24):  # where adding 1 to a float32 has no effect
                    raise ValueError(f"optimizer state: expected {what} to be {steps}, got {float(tensor)}")
                if key == "exp_avg_sq" and tensor.min() < 0:
                    raise ValueError(f"optimizer state: expected {what} of at least 0, got {float(tensor.min())}")
                copied = tensor.to(parameter.device, copy=True)  # an optimiser writes into its state
                state[key] = copied if key == "step" else spread_like(copied, parameter)
            loaded.append((part, parameter, state))
    if own:
        raise ValueError(f"optimizer state: expected nothing but the model's parameters, got {next(iter(own))!r} too")
    for part, parameter, state in loaded:
        part.state[parameter] = state
