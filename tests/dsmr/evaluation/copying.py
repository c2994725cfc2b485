"""A model whose every prediction is known: it copies from what it remembers, and guesses evenly where it cannot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsmr.corpus.store import Return, StoreWriter, TokenStore
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.music.tokens import BEGIN, END, NOTE_OFF, TIME_SHIFT, VOCAB_SIZE

CONTEXT = 3
"""Tokens that must be the same for it to recognise a place."""
SURE = 20.0
COPIED = math.log(math.exp(SURE) + VOCAB_SIZE - 1) - SURE
"""The NLL of a token that was copied: its logit is `SURE`, all others are 0."""
GUESSED = math.log(VOCAB_SIZE)
"""The NLL of a token about which nothing is known."""
FLOAT32 = 2**-22
"""Half the spacing of float32 below 8 nats."""


class Copier(nn.Module):
    """Remembers the last `memory` tokens, the newest included; looks for the newest `CONTEXT` of them further back.

    It takes the nearest place and predicts what followed there. What the memory holds belongs to the lane's piece: a
    reset empties it. `fed` is how many tokens the model was given in all.
    """

    def __init__(self, memory: int, segment: int = 16) -> None:
        super().__init__()
        self.memory = memory
        self.config = ModelConfig(2, 1, 1, make_schedule("explicit", 1, horizons=[memory]), segment=segment)
        self.embedding = nn.Embedding(1, 1)
        self.fed = 0

    def new_state(self, lanes: int, *, max_segment: int | None = None, storage: None = None) -> Lanes:
        assert storage is None  # it has no memory to quantise
        return Lanes(lanes)

    def forward(self, tokens: Tensor, state: Lanes, segment_len: Tensor, origin: Tensor | None = None) -> Tensor:
        logits = torch.zeros(*tokens.shape, VOCAB_SIZE, dtype=torch.float64)
        for lane, row in enumerate(tokens.tolist()):
            for i, token in enumerate(row[: int(segment_len[lane])]):
                state.heard[lane].append(token)
                self.fed += 1
                if (guess := self._guess(state.heard[lane][-self.memory :] if self.memory else [])) is not None:
                    logits[lane, i, guess] = SURE
        return logits

    def _guess(self, heard: list[int]) -> int | None:
        for end in range(len(heard) - 1, CONTEXT - 1, -1):
            if heard[end - CONTEXT : end] == heard[-CONTEXT:]:
                return heard[end]
        return None


class Lanes:
    """The state: what each lane has heard of its piece."""

    def __init__(self, lanes: int) -> None:
        self.heard: list[list[int]] = [[] for _ in range(lanes)]

    def reset(self, lanes: Tensor) -> None:
        for lane in torch.nonzero(lanes)[:, 0].tolist():
            self.heard[lane] = []


class Writer:
    """Writes pieces of random tokens, in which no three tokens in a row come twice, but for what is planted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rng = np.random.default_rng(0)
        self.pieces: list[tuple[np.ndarray, list[Return]]] = []

    def piece(self, events: int, *plants: tuple[int, int, int, int]) -> None:
        """`plants` are start, source start, length and semitones; tokens are of notes, so that all can be moved."""
        events_drawn = self.rng.integers(20, 100, events) + NOTE_OFF * self.rng.integers(0, 2, events)
        ids = np.concatenate([[BEGIN], events_drawn, [END]])
        returns = []
        for start, source, length, semitones in plants:
            ids[start : start + length] = ids[source : source + length] + semitones
            kind = "transposed" if semitones else "exact"
            returns.append(Return(kind, semitones, start, start + length, source, source + length))
            if start + length < len(ids) - 1:
                ids[start + length] = TIME_SHIFT + len(returns)  # what follows is new
        self.pieces.append((ids, returns))

    def store(self) -> TokenStore:
        with StoreWriter(self.path) as writer:
            for number, (ids, returns) in enumerate(self.pieces):
                writer.add(ids, split="test", title=str(number), returns=returns)
        return TokenStore.open(self.path)


def three_that_return(folder: Path, plant: tuple[int, int, int, int]) -> TokenStore:
    """Three pieces of unequal length with the same return in each, and a short one without."""
    writer = Writer(folder / "corpus.tokens")
    for events in (450, 470, 430):
        writer.piece(events, plant)
    writer.piece(90)
    return writer.store()
