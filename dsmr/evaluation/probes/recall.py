"""Recall: what a return gains from its source alone, within one model.

Each return is read again with a memory that begins right after its source ends: forgotten are the source and all that
came before it, and kept is everything between source and return, so key, tempo and the last chords stay known.

    recall = NLL(source forgotten) - NLL        in nats, on the tokens of the return; positive: the source helps

Unlike the return gain (`dsmr.evaluation.probes.returns`) it compares a token with itself at the same place in the
piece, so lateness in the piece explains nothing; beside the source it is only what lay before it that counts, which is
far away by then. A model that cannot reach the source from the return has a recall of 0. Returns that follow their
source within `CONTEXT` tokens are left out: forgetting the source would leave them without any context.

Positions go on counting and segments end where they did, as in `dsmr.evaluation.probes.krcu`. A far return costs as
many tokens as its distance, so of each kind and distance a sample is read: random, but the same in each call and for
each model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmr.corpus.store import Return, ReturnKind, TokenStore
from dsmr.evaluation.bootstrap import PieceSums
from dsmr.evaluation.pieces import Evaluation
from dsmr.evaluation.probes.bins import Bin, bins_with_tokens
from dsmr.evaluation.probes.returns import KINDS, RETURN_DISTANCES, SKIP
from dsmr.evaluation.score import Stretch, score
from dsmr.model.transformer import Transformer
from dsmr.progress import Progress
from dsmr_kernels.storage import Storage

CONTEXT = 64
"""Tokens that must lie between a source and its return: about 15 notes."""


@dataclass(frozen=True, eq=False)
class Recall:
    """The recall of sampled returns.

    Args:
        distances, skip: as in `dsmr.evaluation.probes.returns`.
        returns: how many returns of each kind were read.
        sums: for each kind the recall by distance, a row for each piece.
        read: tokens that were read again.
    """

    distances: tuple[int, ...]
    skip: int
    returns: dict[ReturnKind, int]
    sums: dict[ReturnKind, PieceSums]
    read: int

    def distance_bins(self, kind: ReturnKind) -> list[Bin]:
        """The recall by distance; bins without tokens are left out."""
        return bins_with_tokens(self.sums[kind], self.distances, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "unit": "nats per token; recall = NLL with the source and all before it forgotten - NLL",
            "skip": self.skip,
            "context": CONTEXT,
            "kinds": {
                kind: {
                    "returns": self.returns[kind],
                    "by_distance": [each.to_dict("gain") for each in self.distance_bins(kind)],
                }
                for kind in KINDS
            },
        }


def recall(
    model: Transformer,
    store: TokenStore,
    scores: Evaluation,
    *,
    sample: int = 32,
    distances: Sequence[int] = RETURN_DISTANCES,
    skip: int = SKIP,
    farthest: int | None = None,
    seed: int = 0,
    lanes: int = 4,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> Recall:
    """Read returns again with their sources forgotten and compare with an unbroken reading.

    Args:
        model: on its own device.
        store: has the labels.
        scores: of the same model, of whole pieces.
        sample: how many returns of each kind are read for each bin of distances, at most.
        distances: where bins begin, increasing from 0.
        skip: tokens at the beginning of each return that are left out.
        farthest: returns whose sources begin more tokens before are left out, for time's sake: they cost the most, and
            beyond a model's reach their recall is 0. None: none are.
        seed: equal seeds choose equal returns.
        lanes: readings side by side.
        storage: of the memory, the same as in `scores`; see `dsmr.evaluation.score.score`.
        progress: called with the tokens read so far and in all.

    Raises:
        ValueError: no return is far enough from its source, the evaluation cleared the context, or a bad number.
    """
    if sample < 1:
        raise ValueError(f"sample: expected at least 1, got {sample}")
    scores.check_whole()
    found: defaultdict[tuple[str, int], list[tuple[int, Return]]] = defaultdict(list)
    for row, (piece, nll) in enumerate(zip(scores.pieces, scores.token_nll, strict=True)):
        for each in store.pieces[piece].returns:
            near = farthest is None or each.start - each.source_start <= farthest
            if near and each.start - each.source_stop >= CONTEXT and each.start + skip < each.stop <= len(nll) + 1:
                at = int(np.digitize(each.start - each.source_start, distances)) - 1
                found[each.kind, at].append((row, each))
    if not found:
        within = "" if farthest is None else f", and no more than {farthest:,} after these begin"
        raise ValueError(
            f"store: expected labelled returns {CONTEXT} tokens or more after their sources{within}, got none"
        )
    rng = np.random.default_rng(seed)
    chosen = []
    for (_, at), there in sorted(found.items()):
        chosen += [(at, *there[number]) for number in rng.permutation(len(there))[:sample].tolist()]
    stretches = [  # token n is predicted by reading token n - 1
        Stretch(scores.pieces[row], each.source_stop, each.start + skip - 1, each.stop - 1, each.source_stop)
        for _, row, each in chosen
    ]
    forgotten = score(model, store, stretches, lanes=lanes, storage=storage, progress=progress)
    shape = (len(scores.pieces), len(distances))
    total = {kind: np.zeros(shape) for kind in KINDS}
    count = {kind: np.zeros(shape, dtype=np.int64) for kind in KINDS}
    for (at, row, each), stretch, nll in zip(chosen, stretches, forgotten, strict=True):
        known = scores.token_nll[row][stretch.start : stretch.stop]
        total[each.kind][row, at] += (nll.astype(np.float64) - known).sum()
        count[each.kind][row, at] += len(nll)
    return Recall(
        tuple(distances),
        skip,
        {kind: sum(each.kind == kind for _, _, each in chosen) for kind in KINDS},
        {kind: PieceSums(total[kind], count[kind]) for kind in KINDS},
        sum(stretch.stop - stretch.begin for stretch in stretches),
    )
