"""When training has gone wrong for good: a loss that is not finite, or worse than knowing nothing for long."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.corpus.stream import Batch

LOSS_WINDOW = 100
"""Steps that `LossWatch` looks back on."""


class DivergedError(RuntimeError):
    """A loss or a gradient stopped being finite, or the loss exploded."""


class LossWatch:
    """Notices an exploded loss, and no healthy run.

    A model that knows nothing pays log(vocabulary) nats a token, and an untrained one hardly more. The loss has
    exploded when the last `LOSS_WINDOW` steps together cost more than a nat a step above that: e.g. every one of them
    more than a nat, or ten of them ten nats. Steps before the first count as knowing nothing, and better ones make up
    for worse ones: a run that has learned something is not ended by a spike, but by a loss that stays.
    """

    def __init__(self, vocab_size: int) -> None:
        self.ignorance = math.log(vocab_size)
        self.losses: deque[float] = deque(maxlen=LOSS_WINDOW)

    def add(self, loss: float) -> None:
        """Take note of a step's loss, nats per token."""
        self.losses.append(loss)

    @property
    def excess(self) -> float:
        """Nats a step above knowing nothing, over the last `LOSS_WINDOW` steps."""
        return sum(loss - self.ignorance for loss in self.losses) / LOSS_WINDOW

    @property
    def exploded(self) -> bool:
        """Whether to end the run."""
        return self.excess > 1

    @property
    def alarmed(self) -> bool:
        """Whether the last step alone was as bad as that: no moment to take for a good state."""
        return bool(self.losses) and self.losses[-1] > self.ignorance + 1


def describe_worst(nll: Tensor, batches: Sequence[Batch], store: TokenStore, first_lane: int = 0) -> str:
    """Where the loss was highest (or not a number): lane and piece, for people.

    Args:
        nll: `[segments, B]`, as `accumulate_gradients` returns it for `batches`.
        batches: the segments.
        store: knows the pieces' names.
        first_lane: the number of lane 0 among the lanes of all processes.
    """
    number, lane = divmod(int(nll.argmax()), nll.shape[1])  # not a number counts as the largest
    pieces = sorted(set(batches[number].piece[lane].tolist()) - {-1})
    names = ", ".join(f"{index} ({store.pieces[index].title!r})" for index in pieces)
    loss = float(nll[number, lane])
    return f"lane {first_lane + lane}, piece{'s' * (len(pieces) > 1)} {names} with a loss of {loss:.4g}"
