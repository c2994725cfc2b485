"""Lane stream: whole pieces, left to right, in segments, as a recurrent model is fed.

`LaneStream` keeps B lanes busy. Each lane streams one stored piece after another in segments of T tokens; where a
piece ends inside a segment the next one begins at the very next position, so nothing is cropped and nothing is padded.

Which lane gets which piece is settled by stored lengths alone: pieces are dealt in the epoch's order, each to the lane
(of all lanes of all ranks) that has been dealt the fewest positions so far. Without a transformation that is a shared
queue from which whichever lane is free takes the next piece. With one, lengths may change, but the deal does not: so a
rank follows the deal of every other rank without ever reading or transforming a piece that is not its own. A lane whose
pieces were stretched is merely a little behind its peers.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.fields import is_integer, shown
from dsmr.music.tokens import PAD

Transform = Callable[[NDArray[np.uint16], int, int], NDArray[np.uint16]]
"""`(ids, piece, epoch) -> ids`: a piece's ids (BEGIN and END included) made anew for an epoch. It must be deterministic
(a function of its arguments), or a resumed stream would not continue the one that was saved."""


@dataclass(frozen=True)
class Batch:
    """One segment of every lane; all tensors int64 unless said otherwise.

    - `tokens [B, T]`, `targets [B, T]`: ids to read and ids to predict; PAD where there is no token.
    - `segment_start [B, T]`: index in the segment of the first token of this token's own piece; 0 also when that piece
      continues from memory.
    - `segment_len [B]`: number of real tokens; less than T only at the end of a one-pass stream.
    - `reset [B]` bool: the lane begins a new piece exactly at index 0: its memory is to be forgotten before this
      segment. A piece that begins at a later index is announced by `segment_start` alone.
    - `piece [B, T]`: store index of each token's piece, -1 where there is no token.
    """

    tokens: Tensor
    targets: Tensor
    segment_start: Tensor
    segment_len: Tensor
    reset: Tensor
    piece: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


PLACE = ("begun", "epoch", "piece", "offset", "tokens", "positions")
"""What is saved of a lane."""


class LaneStream(Iterator[Batch]):
    """Iterates `Batch`es in which every lane streams whole pieces of a token store.

    A stored piece of n ids `[BEGIN, events..., END]` takes n - 1 positions: inputs `piece[:-1]`, targets `piece[1:]`.
    No prediction crosses a border between pieces, and every token but BEGIN is predicted exactly once an epoch over all
    ranks together.

    Args:
        store: where the pieces are.
        pieces: store indices of the pieces to stream, e.g. `store.indices("train")`.
        lanes: B, the lanes of this rank.
        segment: T, tokens a lane advances with each batch.
        epochs: `None` streams for ever, in a new order each epoch; `1` gives each piece once, longest first so that
            all lanes end close together, and then stops. Ranks may then stop after different numbers of batches.
        seed: decides the order of every epoch.
        rank, world_size: this process streams lanes `rank * lanes ... (rank + 1) * lanes - 1` of `world_size * lanes`.
            The whole stream depends on that product alone: 2 ranks of 2 lanes see what 1 rank of 4 lanes sees.
        transform: applied to a piece when its lane begins it, for augmentation; the length may change.

    Raises:
        ValueError: an argument out of its range; when a piece begins, a transformation that returned fewer than 2 ids.
    """

    def __init__(
        self,
        store: TokenStore,
        pieces: Sequence[int],
        *,
        lanes: int,
        segment: int,
        epochs: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        transform: Transform | None = None,
    ) -> None:
        for name, value, least in (
            ("lanes", lanes, 1),
            ("segment", segment, 1),
            ("world_size", world_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1} (world_size {world_size}), got {rank}")
        if epochs not in (None, 1):
            raise ValueError(f"epochs must be None (endless, reshuffled) or 1 (each piece once), got {epochs!r}")
        if len(pieces) == 0:
            raise ValueError("pieces must name at least one piece of the store, got none")
        for index in pieces:
            if not 0 <= index < len(store.pieces):
                raise ValueError(f"pieces must be indices below {len(store.pieces)}, got {index}")
        self.lanes, self.segment = lanes, segment
        self._store, self._transform = store, transform
        self._deal = _Deal(
            pieces=list(pieces),
            positions=[store.pieces[i].length - 1 for i in pieces],
            lanes=world_size * lanes,
            endless=epochs is None,
            seed=seed,
        )
        self._lanes = [_Lane() for _ in range(lanes)]
        self._first_lane = rank * lanes
        self._identity = {
            "store": store.digest,
            "pieces": zlib.crc32(np.asarray(pieces, dtype=np.int64).tobytes()),
            "lanes": world_size * lanes,
            "epochs": epochs,
            "seed": seed,
        }

    @property
    def epoch_positions(self) -> int:
        """Positions (predicted tokens) of one epoch over all ranks, before any transformation."""
        return sum(self._deal.positions)

    @property
    def waste(self) -> float:
        """Measured: the fraction of all positions of this rank given out so far that held no real token."""
        positions = sum(lane.positions for lane in self._lanes)
        return 1.0 - sum(lane.tokens for lane in self._lanes) / positions if positions else 0.0

    def describe(self) -> str:
        """One line for a log: what streams how, and the waste measured so far."""
        positions = sum(lane.positions for lane in self._lanes)
        return (
            f"{len(self._deal.pieces):,} whole pieces, {self.epoch_positions:,} tokens per epoch, "
            f"{self.lanes} lanes x {self.segment} tokens; "
            f"{positions:,} positions so far, {self.waste:.2%} of them without a token"
        )

    def __next__(self) -> Batch:
        shape = (self.lanes, self.segment)
        tokens, targets, piece = (np.full(shape, empty, dtype=np.int64) for empty in (PAD, PAD, -1))
        segment_start = np.zeros(shape, dtype=np.int64)
        segment_len = np.zeros(self.lanes, dtype=np.int64)
        reset = np.zeros(self.lanes, dtype=np.bool_)
        for b, lane in enumerate(self._lanes):
            filled = 0
            while filled < self.segment and (lane.ids is not None or self._begin_piece(b)):
                assert lane.ids is not None
                reset[b] |= lane.offset == filled == 0
                count = min(self.segment - filled, len(lane.ids) - 1 - lane.offset)
                here, there = slice(filled, filled + count), slice(lane.offset, lane.offset + count + 1)
                tokens[b, here] = lane.ids[there][:-1]
                targets[b, here] = lane.ids[there][1:]
                piece[b, here] = lane.piece
                # A piece that goes on from the last segment can only be the first of this one, where `filled` is 0.
                segment_start[b, filled:] = filled
                lane.advance(count)
                filled += count
            segment_len[b] = filled
        if not segment_len.any():
            raise StopIteration
        for lane, tokens_read in zip(self._lanes, segment_len.tolist(), strict=True):
            lane.tokens += tokens_read
            lane.positions += self.segment
        return Batch(*(torch.from_numpy(a) for a in (tokens, targets, segment_start, segment_len, reset, piece)))

    def state_dict(self) -> dict[str, Any]:
        """Where every lane of this rank stands, as plain JSON values.

        `lanes` is a list of one entry a lane, and nothing else depends on the rank: the lists of all ranks, one after
        the other in the order of ranks, are the state of the whole stream, whatever the number of ranks.
        """
        return {
            "stream": dict(self._identity),
            "lanes": [{name: getattr(lane, name) for name in PLACE} for lane in self._lanes],
        }

    def load_state_dict(self, state: Any, positions: int | None = None) -> None:
        """Continue exactly where the stream that gave `state` stood.

        Args:
            state: of the whole stream, see `state_dict`. It may come from any number of ranks; only `segment` and how
                the lanes are shared out among ranks may differ from that stream's.
            positions: how many each lane must have given out by then; None: any number.

        Raises:
            ValueError: if `state` is not what `state_dict` gives, or of another stream (store, pieces, lanes of all
                ranks, epochs or seed), or if `transform` is not the one it was saved under and this can be seen by a
                piece's length. The stream then stands where it stood.
        """
        if not isinstance(state, dict) or not isinstance(identity := state.get("stream"), dict):
            raise ValueError(f"the saved stream must say what it streams, got {shown(state)}")
        for key, mine in self._identity.items():
            if (theirs := identity.get(key)) != mine:
                raise ValueError(f"the saved stream is another one: its {key} is {shown(theirs)}, here {mine!r}")
        if not isinstance(places := state.get("lanes"), list) or len(places) != self._identity["lanes"]:
            got = len(places) if isinstance(places, list) else shown(places)
            raise ValueError(
                f"the saved stream must tell of all {self._identity['lanes']} lanes of all ranks, got {got}"
            )
        for place in places:
            _check_place(place, positions)
        deal, lanes = self._deal.anew(), [_Lane() for _ in self._lanes]
        for b, lane in enumerate(lanes):
            saved = state["lanes"][self._first_lane + b]
            hand = None
            for _ in range(saved["begun"]):  # the deal is a function of the identity: dealt again, it is the same
                hand = self._next_piece(deal, lanes, b)
            lane.begun, lane.tokens, lane.positions = saved["begun"], saved["tokens"], saved["positions"]
            lane.epoch = saved["epoch"]
            if saved["piece"] >= 0:
                if hand != (saved["epoch"], saved["piece"]):
                    raise ValueError(
                        f"the saved stream reads piece {saved['piece']} of epoch {saved['epoch']} in lane "
                        f"{self._first_lane + b}, here it would read (epoch, piece) {hand}"
                    )
                self._resume_piece(lane, saved)
        self._deal, self._lanes = deal, lanes

    def _resume_piece(self, lane: _Lane, saved: dict[str, Any]) -> None:
        lane.piece, lane.offset = saved["piece"], saved["offset"]
        lane.ids = self._read(lane.epoch, lane.piece)
        if not 0 <= lane.offset < len(lane.ids) - 1:
            raise ValueError(
                f"the saved stream stands at token {lane.offset} of piece {lane.piece}, "
                f"which has {len(lane.ids)} ids here: was it saved under another transform?"
            )

    def _begin_piece(self, b: int) -> bool:
        """Lane b begins the next piece dealt to it; False when the one pass is over for it."""
        hand = self._next_piece(self._deal, self._lanes, b)
        if hand is None:
            return False
        self._lanes[b].begin(*hand, self._read(*hand))
        return True

    def _next_piece(self, deal: _Deal, lanes: list[_Lane], b: int) -> tuple[int, int] | None:
        """`(epoch, piece)` that lane b is to read next: dealing on until there is one for it; None after the pass."""
        while not lanes[b].waiting:
            hand = deal.next()
            if hand is None:
                return None
            owner, epoch, piece = hand
            if 0 <= owner - self._first_lane < self.lanes:
                lanes[owner - self._first_lane].waiting.append((epoch, piece))
        return lanes[b].waiting.popleft()

    def _read(self, epoch: int, piece: int) -> NDArray[np.uint16]:
        ids = self._store.piece(piece)
        if self._transform is not None:
            ids = self._transform(ids, piece, epoch)
            if len(ids) < 2:
                raise ValueError(f"transform must return at least BEGIN and END, got {len(ids)} ids for piece {piece}")
        return ids


def _check_place(place: Any, positions: int | None) -> None:
    """ValueError unless a value from a file is where a lane can stand, before anything is counted up to it."""
    if not isinstance(place, dict) or place.keys() != set(PLACE):
        raise ValueError(f"the saved stream must give the numbers {', '.join(PLACE)} of a lane, got {shown(place)}")
    for name, value in place.items():
        if not is_integer(value) or value < (-1 if name == "piece" else 0):
            raise ValueError(f"the saved stream must give a count for {name} of a lane, got {shown(value)}")
    if positions is not None and place["positions"] != positions:
        raise ValueError(f"the saved stream must have given {positions} positions a lane, got {place['positions']}")
    for name in ("begun", "tokens"):
        if place[name] > place["positions"]:  # each piece and each token takes a position at least
            raise ValueError(
                f"the saved stream must give at most positions={place['positions']} for {name} of a lane, "
                f"got {place[name]}"
            )


@dataclass
class _Lane:
    """One lane's place: the piece it is in (`ids` is None between pieces) and the pieces dealt to it that wait.

    `begun` counts the pieces it has begun, `positions` what it has given out, `tokens` those of them with a token.
    """

    begun: int = 0
    epoch: int = 0
    piece: int = -1
    offset: int = 0
    tokens: int = 0
    positions: int = 0
    ids: NDArray[np.uint16] | None = None
    waiting: deque[tuple[int, int]] = field(default_factory=deque)

    def begin(self, epoch: int, piece: int, ids: NDArray[np.uint16]) -> None:
        self.begun += 1
        self.epoch, self.piece, self.offset, self.ids = epoch, piece, 0, ids

    def advance(self, count: int) -> None:
        assert self.ids is not None
        self.offset += count
        if self.offset == len(self.ids) - 1:
            self.piece, self.offset, self.ids = -1, 0, None


class _Deal:
    """Deals pieces to all lanes of all ranks: the next one goes to the lane dealt the fewest positions so far."""

    def __init__(self, *, pieces: list[int], positions: list[int], lanes: int, endless: bool, seed: int) -> None:
        self.pieces, self.positions, self.endless, self.seed = pieces, positions, endless, seed
        self.epoch = self.cursor = 0
        self._heap = [(0, lane) for lane in range(lanes)]  # positions dealt to each lane so far; a heap as it is
        self._order = self._order_of(0)

    def anew(self) -> _Deal:
        """The same deal from its beginning."""
        return _Deal(
            pieces=self.pieces, positions=self.positions, lanes=len(self._heap), endless=self.endless, seed=self.seed
        )

    def next(self) -> tuple[int, int, int] | None:
        """`(lane, epoch, piece)`, or None after the only pass."""
        if self.cursor == len(self._order):
            if not self.endless:
                return None
            self.epoch, self.cursor = self.epoch + 1, 0
            self._order = self._order_of(self.epoch)
        chosen = self._order[self.cursor]
        self.cursor += 1
        positions, lane = self._heap[0]  # equal counts: the lowest lane
        heapq.heapreplace(self._heap, (positions + self.positions[chosen], lane))
        return lane, self.epoch, self.pieces[chosen]

    def _order_of(self, epoch: int) -> list[int]:
        if self.endless:
            shuffled: list[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.pieces)).tolist()
            return shuffled
        # Longest first: the short pieces come last and level the lanes out, so that few positions are empty at the end.
        return sorted(range(len(self.pieces)), key=lambda i: -self.positions[i])
