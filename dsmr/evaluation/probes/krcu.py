"""KRCU, KV-Reset Context Utilization: what a model loses when its memory is cleared in the middle of a piece.

Source: Depth-Structured Music Recurrence (arXiv 2602.19816). A piece is evaluated twice, once normally and once with
all recurrent KV state cleared at a position, the reset. At every position from there on

    dNLL = NLL(reset) - NLL(normal)        in nats; positive: the memory of what came before the reset helps

is averaged in bins; KRCU-AUC is the plain mean of the bins from the reset to the end, the first included. The defaults
are the published ones: a reset at 8k (8,192), bins of 1k, the end at 30k, so 22 bins.

Cleared is the memory only: positions go on counting. So the first passes agree up to the reset, and only what follows
has to be read again. With several resets a piece is read again for each, and bins count from the reset: bin 0 holds the
first tokens after any of them. All bins lie before `end`, a position in the piece, so later resets reach fewer of them.

How to read it: the first bin is large for every model with a memory, because right after the reset the last few bars
are missing; far memory shows in the bins after that. From a model's reach on, counted from the reset, dNLL is 0
whatever the model has learned, and a model without memory has 0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.bootstrap import Interval, PieceSums
from dsmr.evaluation.pieces import Evaluation
from dsmr.evaluation.probes.bins import Bin, bins_with_tokens
from dsmr.evaluation.score import Stretch, score
from dsmr.fields import check_types
from dsmr.model.transformer import Transformer
from dsmr.progress import Progress
from dsmr_kernels.storage import Storage


@dataclass(frozen=True)
class Resets:
    """Where memories are cleared, and how the tokens after it are grouped.

    Args:
        at: positions in the piece, increasing; each reset is for itself.
        width: tokens a bin.
        end: the position at which the last bin ends.

    Raises:
        ValueError: a value of another type, positions that do not increase from 1 to below `end`, or a width below 1.
    """

    at: tuple[int, ...] = (8192,)
    width: int = 1024
    end: int = 30 * 1024

    def __post_init__(self) -> None:
        check_types(self)
        if not self.at or self.at[0] < 1 or list(self.at) != sorted(set(self.at)) or self.at[-1] >= self.end:
            raise ValueError(
                f"resets: expected increasing positions from 1 to below the end, {self.end}, got {list(self.at)}"
            )
        if self.width < 1:
            raise ValueError(f"width: expected at least 1 token, got {self.width}")

    @property
    def bins(self) -> int:
        """How many bins there are from the first reset to the end."""
        return -(-(self.end - self.at[0]) // self.width)


@dataclass(frozen=True, eq=False)
class Krcu:
    """The dNLL after resets.

    Args:
        resets: where the memory was cleared.
        pieces: store indices of those that counted.
        short: how many pieces end before the first reset and so did not count.
        sums: dNLL by tokens since the reset, a row for each piece that counted.
        read: tokens that were read again.
    """

    resets: Resets
    pieces: tuple[int, ...]
    short: int
    sums: PieceSums
    read: int

    @property
    def auc(self) -> float:
        """KRCU-AUC: the plain mean over the bins that hold tokens."""
        return self.sums.without_rounding.mean_of_bins

    @property
    def auc_interval(self) -> Interval | None:
        """The 95 % interval of `auc` over pieces; None for fewer than six."""
        return self.sums.without_rounding.interval_of_bins()

    @property
    def bins(self) -> list[Bin]:
        """The curve, dNLL by tokens since the reset; bins that no piece reaches are left out."""
        longest = self.resets.end - self.resets.at[0]
        return bins_with_tokens(self.sums, range(0, longest, self.resets.width), longest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "unit": "nats per token; dNLL = NLL(memory cleared at the reset) - NLL(normal)",
            "resets": list(self.resets.at),
            "width": self.resets.width,
            "end": self.resets.end,
            "auc": self.auc,
            "auc_interval_95": self.auc_interval,
            "bins": self.resets.bins,
            "bins_with_tokens": len(self.bins),
            "pieces": len(self.pieces),
            "pieces_too_short": self.short,
            "curve": [each.to_dict("dnll") for each in self.bins],
        }


PUBLISHED_RESETS = Resets()
"""The resets, bins and end of the published figures."""


def krcu(
    model: Transformer,
    store: TokenStore,
    scores: Evaluation,
    resets: Resets = PUBLISHED_RESETS,
    *,
    lanes: int = 4,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> Krcu:
    """Read pieces again from each reset on and compare with the NLL of an unbroken reading.

    Args:
        model: on its own device.
        store: holds the pieces.
        scores: of the same model, of whole pieces: the normal reading.
        resets: where the memory is cleared; the published place by default.
        lanes: readings side by side.
        storage: of the memory, the same as in `scores`; see `dsmr.evaluation.score.score`.
        progress: called with the tokens read so far and in all.

    Raises:
        ValueError: no piece goes beyond the first reset, or the evaluation cleared the context.
    """
    scores.check_whole()
    first = resets.at[0]
    normal = {i: nll for i, nll in zip(scores.pieces, scores.token_nll, strict=True) if len(nll) > first}
    if not normal:
        longest = max((len(nll) for nll in scores.token_nll), default=0)
        raise ValueError(f"resets: expected a piece longer than {first} tokens, got none; the longest has {longest}")
    stretches = [
        Stretch(piece, reset, reset, min(len(nll), resets.end), index=reset)
        for piece, nll in normal.items()
        for reset in resets.at
        if reset < len(nll)
    ]
    cleared = score(model, store, stretches, lanes=lanes, storage=storage, progress=progress)
    total, count = (np.zeros((len(normal), resets.bins)) for _ in range(2))
    row = {piece: number for number, piece in enumerate(normal)}
    for each, nll in zip(stretches, cleared, strict=True):
        at = np.arange(len(nll)) // resets.width
        difference = nll.astype(np.float64) - normal[each.piece][each.start : each.stop]
        total[row[each.piece]] += np.bincount(at, weights=difference, minlength=resets.bins)
        count[row[each.piece]] += np.bincount(at, minlength=resets.bins)
    return Krcu(
        resets,
        tuple(normal),
        len(scores.pieces) - len(normal),
        PieceSums(total, count.astype(np.int64)),
        sum(each.stop - each.begin for each in stretches),
    )
