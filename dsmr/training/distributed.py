"""Distributed training: one model in several processes, a process a GPU, as `torchrun` starts them.

Lanes never look at each other, so it is lanes that the processes share out: each streams lanes of its own, with their
memories, and none of that is ever sent while training. What is sent is gradients (DDP), or parameters and gradients
(FSDP2): both are PyTorch's. All processes have equally many lanes and endless streams have only full segments, so the
mean over processes of their mean losses is the mean over all tokens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dsmr.model.transformer import Transformer

GLOO_REST = 0.2
"""Seconds in which gloo's threads free what the last exchange held."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another that neither answers nor breaks its connection (one that has ended breaks it at
once). More than the first takes to write a checkpoint, or any to evaluate a piece, while the others have nothing to do.
"""


class WorldError(ValueError):
    """Something that these processes cannot do together."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or answers no more."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them; by default it is alone.

    `rank` counts from 0 to `size - 1`; `device` is where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, lanes: int) -> int:
        """How many of all lanes are this process's; WorldError if they cannot be shared out evenly."""
        if lanes % self.size:
            raise WorldError(f"lanes: expected a multiple of the {self.size} processes, which share them, got {lanes}")
        return lanes // self.size

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, the same float64 on all of them. All must call it."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """The largest of each value over all processes. All must call it."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(reduced, operation)
        return reduced.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, a plain Python value, in the order of ranks. All must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def join_lanes(self, tensor: Tensor) -> Tensor | None:
        """On the first process all lanes of a tensor `[B, ...]` that has a part on every process; None on the others.

        On the CPU, unless the process is alone. All must call it.
        """
        if self.size == 1:
            return tensor
        own = tensor.cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.first else None
        dist.gather(own, parts)
        return torch.cat(parts) if parts is not None else None


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that `torchrun` has started, or be alone; leaves them at the end.

    Args:
        device: "cpu", or "cuda", of which each process takes the one of its number on the machine.

    Raises:
        WorldError: a GPU that the machine does not have, or one and the same for several processes, or an environment
            that lacks what `torchrun` sets.
        LostProcessError: another process has ended or does not answer, at the beginning or while this is entered.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    own = {"RANK": os.environ.get("RANK"), "LOCAL_RANK": os.environ.get("LOCAL_RANK")}
    if missing := [name for name, value in own.items() if value is None]:
        raise WorldError(
            f"WORLD_SIZE={size}: expected RANK and LOCAL_RANK too, as torchrun sets them, got no {missing[0]}"
        )
    rank, local = (int(value) for value in own.values() if value is not None)
    if device.type == "cuda":
        if device.index:  # PyTorch makes cuda:0 of cuda
            raise WorldError(f"device: expected cuda, of which every process takes its own, got {device}")
        if local >= torch.cuda.device_count():
            raise WorldError(f"device: expected a GPU for each process of a machine, got {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    try:
        # Gloo beside NCCL: what lies in main memory need not go through a GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        yield World(rank, size, device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo has no class of its own for errors
            reason = str(error).splitlines()[0]
            raise LostProcessError(f"another process of the run has ended or answers no more: {reason}") from error
        raise
    # Only here: to leave in order one needs the others, and after an error they may be gone.
    dist.destroy_process_group()
    # Caches of PyTorch's keep gloo's threads alive. One that frees its last tensors only while Python ends, on a loaded
    # machine, would wait for an interpreter that is gone, and abort the process.
    time.sleep(GLOO_REST)


def parallelise(model: Transformer, world: World, *, shard: bool = False) -> nn.Module:
    """What to call instead of `model`, so that its gradients become the mean over all processes.

    The model of the first process becomes that of all. Without `shard` that is DDP: every process keeps a whole model.
    With it, it is FSDP2, and `model` itself: each block's and then the other parameters are spread over the processes
    of a machine (over all, if machines have one each or unequally many), and so is whatever is made from them
    afterwards, such as an optimiser; machines hold copies of each other.

    Args:
        model: on the world's device; its parameters are replaced if they are sharded.
        world: where all call this.
        shard: ignored by a process that is alone.
    """
    if world.size == 1:
        return model
    if not shard:
        # No buffers to send; the memory is an argument, of a class that DDP does not look into. Not `static_graph`: it
        # cannot begin with a backward pass that keeps its gradients.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), src=0)
    mesh = _mesh(world)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
    return model


def _mesh(world: World) -> DeviceMesh:
    """Copies by machine, shards by process; one dimension where that makes no difference."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if local in (1, world.size) or world.size % local:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (world.size // local, local), mesh_dim_names=("replicate", "shard"))


@contextmanager
def joining_gradients(net: nn.Module, last: bool) -> Iterator[None]:
    """Forward and backward passes belong in here; gradients are joined for good by the `last` before a step.

    With FSDP2 every backward pass spreads its gradient, so that no process ever keeps a whole one; between machines it
    waits for the last.
    """
    if isinstance(net, DistributedDataParallel) and not last:
        with net.no_sync():
            yield
        return
    if isinstance(net, FSDPModule):
        net.set_requires_all_reduce(last)
    yield


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale all gradients so that their norm is at most `largest`; returns what it was. All processes must call it."""
    return float(whole(nn.utils.clip_grad_norm_(model.parameters(), largest)))


@contextmanager
def gathered(model: Transformer) -> Iterator[None]:
    """Within, every process has all parameters of a sharded model and calls it without the others. All must enter."""
    if not isinstance(model, FSDPModule):
        yield
        return
    blocks: list[FSDPModule] = [block for block in model.blocks if isinstance(block, FSDPModule)]
    model.set_reshard_after_forward(False)
    modules: list[FSDPModule] = [*blocks, model]
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
        for block in blocks:  # the other parameters are the first that the backward pass needs: it finds them there
            block.set_reshard_after_forward(True)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all processes must call; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unsharded(model: Transformer, world: World) -> Transformer:
    """The model itself if it is not sharded; else a whole copy on the CPU of the first process.

    All processes must call it; on the others the copy of a sharded model has no values.
    """
    if not isinstance(model, FSDPModule):
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    for name, tensor in model.state_dict().items():
        full = whole(tensor)  # one at a time: only the first process needs room for all of them
        if world.first:
            copy.load_state_dict({name: full.cpu()}, strict=False, assign=True)
    return copy


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all of them have, as `like` is sharded; or just on its device."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
