"""What the processes of `test_distributed.py` do; what they find goes into one JSON file a process.

RANK=... LOCAL_RANK=... WORLD_SIZE=... LOCAL_WORLD_SIZE=... python tests/dsmr/training/ranks.py FOLDER TASK...
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsmr.corpus.store import TokenStore
from dsmr.corpus.stream import LaneStream
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.training import RunFolder, TrainingConfig, accumulate_gradients, train
from dsmr.training.distributed import World, joined, parallelise, whole

STORE = "corpus.tokens"
LANES, SEGMENTS, HALF = 4, 3, 3
CONFIG = TrainingConfig(
    steps=2 * HALF,
    lanes=LANES,
    accumulate=2,
    optimizer="adamw",  # which alone shards
    learning_rate=3e-3,
    semitones=0,
    tempo=0.0,
    validations=2,
    log_every=1,
)
EXACT = torch.autocast("cpu", torch.bfloat16, enabled=False)
BOTH = {"ddp": False, "fsdp": True}


def make_model(dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[32, 16])
    sizes = {"width": 32, "heads": 2, "kv_heads": 1, "segment": 16, "key_shift": (2,), "qk_norm": True}
    return Transformer(ModelConfig(dropout=0.0, schedule=schedule, **sizes)).to(dtype)


def gradients(
    store: TokenStore, dtype: torch.dtype, world: World | None = None, *, shard: bool = False
) -> dict[str, Tensor]:
    """Of three segments in a row, the second and third read with the memory of those before."""
    world, model = world or World(), make_model(dtype)
    lanes = world.share(LANES)
    pieces = store.indices("train")
    stream = LaneStream(store, pieces, lanes=lanes, segment=16, rank=world.rank, world_size=world.size)
    state, net = model.new_state(lanes), parallelise(model, world, shard=shard)
    accumulate_gradients(net, state, [next(stream) for _ in range(SEGMENTS)], EXACT)
    return {name: whole(p.grad).double() for name, p in model.named_parameters() if p.grad is not None}


class EnoughError(Exception):
    """Ends a training in the middle."""


def interfere(model: Transformer, step: int, action: Callable[[Tensor], Tensor]) -> None:
    """Let `action` change the output, or raise, from a step of the training on."""
    calls = 0

    def hook(net: nn.Module, _: Any, logits: Tensor) -> Tensor:
        nonlocal calls
        calls += net.training
        return action(logits) if net.training and calls > CONFIG.accumulate * (step - 1) else logits

    model.register_forward_hook(hook)


def enough(_: Tensor) -> Tensor:
    raise EnoughError


def begin(store: TokenStore, run: Path, world: World | None = None, *, shard: bool = False) -> None:
    """The first half of a training, saved after its last step."""
    model = make_model()
    interfere(model, HALF + 1, enough)
    try:
        train(model, store, CONFIG, run, save_minutes=1e-9, keep=10, world=world, shard=shard)
    except EnoughError:
        if (world or World()).first:
            assert RunFolder(run).steps()[-1] == HALF


def check_gradients(store: TokenStore, folder: Path, world: World) -> dict[str, Any]:
    """The largest error of each parameter's gradient against float64, by one process and by these."""
    exact, alone = gradients(store, torch.float64), gradients(store, torch.float32)
    errors: dict[str, Any] = {"alone": {}, "ddp": {}, "fsdp": {}, "largest": {}}
    for name, expected in exact.items():
        errors["largest"][name] = float(expected.abs().max())
        errors["alone"][name] = float((alone[name] - expected).abs().max())
    for how, shard in BOTH.items():
        found = gradients(store, torch.float32, world, shard=shard)
        assert found.keys() == exact.keys()
        for name, expected in exact.items():
            errors[how][name] = float((found[name] - expected).abs().max())
    return errors


def check_halves(store: TokenStore, folder: Path, world: World) -> dict[str, Any]:
    """Begin runs that one process is to end, and end those that one process has begun."""
    for how, shard in BOTH.items():
        begin(store, folder / f"begun-{how}", world, shard=shard)
        train(make_model(), store, CONFIG, folder / f"ended-{how}", resume=True, keep=10, world=world, shard=shard)
    return {}


def check_nan(store: TokenStore, folder: Path, world: World) -> dict[str, Any]:
    """The last process gets no number in step 2."""
    model = make_model()
    if world.rank == world.size - 1:
        interfere(model, 2, lambda logits: logits * math.nan)
    try:
        train(model, store, CONFIG, folder / "nan", world=world)
    except RuntimeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {}


TASKS = {"gradients": check_gradients, "halves": check_halves, "nan": check_nan}


def main(folder: Path, *tasks: str) -> None:
    torch.set_num_threads(1)
    store = TokenStore.open(folder / STORE)
    with joined(torch.device("cpu")) as world:
        found = {task: TASKS[task](store, folder, world) for task in tasks}
        (folder / f"rank-{world.rank}-of-{world.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
