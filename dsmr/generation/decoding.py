"""Decoding, tokens to logits of what comes next: prompts in whole segments, then token by token, natively if possible.

Prompts are always read by the PyTorch model. Single tokens are thousands of small operations, so on CPUs they go
through `dsmr.model.native`, which makes a step in one call and may keep weights in fewer bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsmr.model import native
from dsmr.model.native.weights import DTYPES, Weights
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, PAD, VOCAB_SIZE, Ids
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import QUANTISED

Engine = Literal["auto", "native", "python"]
"""What makes single steps: the native step, the PyTorch model, or the native step where it can serve the model."""

Memory = Literal["bf16", "int8", "float8_e4m3"]
"""What rings hold instead of the model's own type; bf16 needs the native step."""


class EngineChoice(NamedTuple):
    """What makes single steps, and why, for people to read."""

    engine: Literal["native", "python"]
    reason: str


@dataclass(frozen=True)
class Decoding:
    """How steps are computed, and in how many bits.

    Args:
        engine: see `Engine`.
        weights: how the native step stores matrices: "float32", "bf16" or "int8".
        memory: how rings store keys and values, see `Memory`; None: in the model's own type.

    Raises:
        ValueError: an unknown name, or fewer bits than the PyTorch model can have with engine="python".
    """

    engine: Engine = "auto"
    weights: Weights = "float32"
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "native", "python"):
            raise ValueError(f"engine: expected 'auto', 'native' or 'python', got {self.engine!r}")
        if self.weights not in DTYPES:
            raise ValueError(f"weights: expected one of {', '.join(DTYPES)}, got {self.weights!r}")
        if self.memory not in (None, "bf16", *QUANTISED):
            raise ValueError(f"memory: expected None, bf16 or one of {', '.join(QUANTISED)}, got {self.memory!r}")
        if self.engine == "python" and self._needs_native:
            raise ValueError(f"engine: 'python' cannot have {self._needs_native}")

    def choose(self, model: Transformer) -> EngineChoice:
        """What will make this model's steps; ValueError if the native step must and cannot."""
        if self.engine == "python":
            return EngineChoice("python", "as asked for")
        reason = native.unsupported(model)
        if reason is None:
            return EngineChoice("native", f"{native.description()}, weights in {self.weights}")
        if self.engine == "native" or self._needs_native:
            raise ValueError(f"engine: {self._needs_native or 'the native step'} cannot be had: {reason}")
        return EngineChoice("python", reason)

    @property
    def _needs_native(self) -> str:
        """What only the native step can do, of what was asked for; empty if there is nothing."""
        if self.weights != "float32":
            return f"weights in {self.weights}"
        return "memory in bf16" if self.memory == "bf16" else ""


class Decoder:
    """A model's recurrent state and what moves it, one lane for each prompt."""

    def __init__(self, model: Transformer, decoding: Decoding) -> None:
        self._model, self._memory = model, decoding.memory
        use_native = decoding.choose(model).engine == "native"
        self._native = native.NativeStep(model, decoding.weights) if use_native else None

    @torch.inference_mode()
    def read(self, prompts: Sequence[Ids]) -> NDArray[np.float32]:
        """Begin anew with these prompts; the logits `[B, V]` that follow each one's last token."""
        model = self._model
        segment, device = model.config.segment, model.embedding.weight.device
        # The PyTorch model reads prompts into memory of its own type or quantised; bf16 comes after.
        self._state = new_state(model, len(prompts), None if self._memory == "bf16" else self._memory)
        after = torch.empty(len(prompts), VOCAB_SIZE, device="cpu")
        for start in range(0, max(map(len, prompts)), segment):
            parts = [prompt[start : start + segment] for prompt in prompts]
            lengths = torch.tensor([len(part) for part in parts], device="cpu")
            tokens = np.full((len(prompts), int(lengths.max())), PAD, dtype=np.int64)
            for i, part in enumerate(parts):
                tokens[i, : len(part)] = part
            fed = torch.from_numpy(tokens).to(device)
            logits = model(fed, self._state, segment_len=lengths.to(device), segment_size=segment)
            reading = lengths > 0
            last = (lengths - 1).clamp_min(0)
            newest = logits[torch.arange(len(prompts), device=device), last.to(device)].float().cpu()
            after[reading] = newest[reading]
        if self._memory == "bf16":
            self._state = _rounded(model, self._state)
        return after.numpy()

    @torch.inference_mode()
    def step(self, sampled: NDArray[np.int64], running: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Feed what was sampled; the logits `[B, V]` of what comes next. Lanes that do not run stand still.

        After END a lane begins a new piece: its memory is emptied, and BEGIN is what is fed.
        """
        fed = np.where(running, sampled, PAD)
        ended = fed == END
        if ended.any():
            self._state.reset(torch.from_numpy(ended))
            fed[ended] = BEGIN
        lengths = None if running.all() else torch.from_numpy(running.astype(np.int64))
        return self._logits(torch.from_numpy(fed), lengths).numpy()

    def _logits(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        if self._native is not None:
            return self._native.step(tokens, self._state, lengths)
        device = self._model.embedding.weight.device
        lengths = None if lengths is None else lengths.to(device)
        segment = self._model.config.segment
        logits: Tensor = self._model(tokens[:, None].to(device), self._state, segment_len=lengths, segment_size=segment)
        return logits[:, 0].float().cpu()


def new_state(model: Transformer, lanes: int, memory: Memory | None) -> MemoryStack:
    """An empty state whose rings hold `memory`, or the model's own type."""
    if memory == "bf16":
        return model.new_state(lanes, dtype=torch.bfloat16)
    return model.new_state(lanes, storage=memory)


def _rounded(model: Transformer, state: MemoryStack) -> MemoryStack:
    """A copy of the state whose rings hold bfloat16."""
    rounded = new_state(model, state.lanes, "bf16")
    own = rounded.state_dict()
    rounded.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.state_dict().items()})
    return rounded
