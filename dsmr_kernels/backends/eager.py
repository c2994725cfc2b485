"""The PyTorch back end: any device, any floating type, no concatenation and no full score matrix.

Every lane's queries are cut into tiles, and every tile walks the blocks of keys that its intervals make visible: at
most four runs of the ring (read where they lie), then the segment. Slots that no query of a tile sees are never read,
and where only some see a key, a product leaves out the others (`_product`): what is hidden cannot matter. Logits are
kept in base 2 (`exp2` is the cheapest exponential) and in float32, or float64 for float64 inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.storage import quantise

LOG2E = math.log2(math.e)
# The best of a sweep of tiles of 64 to 512 queries and blocks of 2^17 to 2^20 logits on two Zen 4 cores.
TILE_TOKENS = 256  # queries of each head in a tile
BLOCK_LOGITS = 2**18  # of a tile and a block, all heads together: 1 MB in float32, the size of a core's L2 cache
MIN_KEYS = 256  # of a block


class Block(NamedTuple):
    """Some consecutive keys and values of one lane, `[Hkv, n, D]`, and their ascending relative positions."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    positions: Sequence[int]
    in_segment: bool

    def part(self, start: int, stop: int) -> Block:
        """The keys `start ... stop - 1`."""
        return Block(
            self.k[:, start:stop],
            self.v[:, start:stop],
            None if self.k_scale is None else self.k_scale[:, start:stop],
            None if self.v_scale is None else self.v_scale[:, start:stop],
            self.positions[start:stop],
            self.in_segment,
        )


class Logits(NamedTuple):
    """Of a tile's queries and a block's keys, `[Hkv, G * n, m]` each, or None if the same holds for all pairs."""

    base2: Tensor  # -inf for hidden pairs
    slope: Tensor | None  # in `q . k`; None: 1
    hidden: Tensor | None  # None: none is


class Lane(NamedTuple):
    """One lane of a call: its real tokens, its keys in age order and each query's interval `[lowest[i], i]`."""

    tokens: int
    keys: list[Block]
    lowest: Sequence[int] | None  # ascending; None: every query sees all keys up to itself


def unsupported(call: Call) -> str | None:
    """Nothing is: every validated call runs."""
    return None


@torch.no_grad()
def forward(call: Call) -> tuple[Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.forward`."""
    batch, tokens, heads = call.q.shape[:3]
    compute = _compute_dtype(call)
    kv_heads = call.k.shape[2]
    o = torch.zeros_like(call.q, memory_format=torch.contiguous_format)
    lse = call.q.new_full((batch, heads, tokens), -math.inf, dtype=compute)
    clock = call.memory.clock.state.tolist()
    with torch.autocast(call.q.device.type, enabled=False):
        for b in range(batch):
            lane = _lane(call, b, [row[b] for row in clock])
            for rows in _tiles(lane):
                q = _pack(call.q[b, rows], kv_heads, compute) * (call.scale * LOG2E)
                out, lse2 = _attend(call, q, lane, rows)
                o[b, rows] = _unpack(out, rows).to(o.dtype)
                lse[b, :, rows] = lse2.view(heads, -1) / LOG2E
    if call.append:
        _append(call, clock)
    return o, lse


@torch.no_grad()
def backward(
    call: Call, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `dsmr_kernels.backends.Backend.backward`. Recomputes every block (Dao et al. 2022, "FlashAttention")."""
    batch = call.q.shape[0]
    compute = _compute_dtype(call)
    kv_heads = call.k.shape[2]
    need_dq, need_dkv = needs
    dq = torch.zeros_like(call.q, memory_format=torch.contiguous_format) if need_dq else call.q.new_empty(0)
    dk, dv = (
        torch.zeros_like(x, memory_format=torch.contiguous_format) if need_dkv else x.new_empty(0)
        for x in (call.k, call.v)
    )
    clock = call.memory.clock.state.tolist()
    with torch.autocast(call.q.device.type, enabled=False):
        for b in range(batch):
            lane = _lane(call, b, [row[b] for row in clock])
            grads_kv = torch.zeros(2, kv_heads, lane.tokens, call.k.shape[3], dtype=compute, device=call.q.device)
            for rows in _tiles(lane):
                q = _pack(call.q[b, rows], kv_heads, compute) * (call.scale * LOG2E)
                grad_o = _pack(do[b, rows], kv_heads, compute)
                delta = (grad_o * _pack(o[b, rows], kv_heads, compute)).sum(-1)  # [Hkv, G * n]
                delta -= dlse[b, :, rows].reshape(delta.shape)
                lse2 = lse[b, :, rows].reshape(delta.shape) * LOG2E
                grad_q = _attend_backward(call, q, lane, rows, lse2, grad_o, delta, grads_kv, need_dkv)
                if need_dq:
                    dq[b, rows] = _unpack(grad_q * call.scale, rows).to(dq.dtype)
            if need_dkv:
                dk[b, : lane.tokens] = (grads_kv[0] / LOG2E).transpose(0, 1).to(dk.dtype)
                dv[b, : lane.tokens] = grads_kv[1].transpose(0, 1).to(dv.dtype)
    return dq, dk, dv


def _attend(call: Call, q: Tensor, lane: Lane, rows: slice) -> tuple[Tensor, Tensor]:
    """Online softmax of `q [Hkv, G * n, D]`, base-2 scale folded in, over its blocks: `out` of q's shape and `lse2`."""
    lowest = torch.finfo(q.dtype).min  # finite: a row that sees nothing must not meet inf - inf
    out, total = torch.zeros_like(q), q.new_zeros(())
    highest: Tensor | None = None
    for block in _blocks(lane, rows, q.shape[0] * q.shape[1]):
        logits, _, hidden = _logits(call, q, block, rows, lane)
        before, highest = highest, logits.amax(-1, keepdim=True).clamp_min_(lowest)
        if before is not None:
            highest = torch.maximum(before, highest)
        weights = torch.exp2(logits.sub_(highest), out=logits)
        block_total = weights.sum(-1, keepdim=True)
        block_out = _product(weights, block.v, block.v_scale, hidden)
        if before is None:
            out, total = block_out, block_total
        else:
            shrink = torch.exp2(before - highest)
            out, total = torch.addcmul(block_out, out, shrink), torch.addcmul(block_total, total, shrink)
    if highest is None:
        return out, q.new_full(q.shape[:2], -math.inf)
    return out / total.clamp_min(torch.finfo(q.dtype).tiny), (highest + total.log2())[..., 0]


def _attend_backward(
    call: Call,
    q: Tensor,
    lane: Lane,
    rows: slice,
    lse2: Tensor,
    grad_o: Tensor,
    delta: Tensor,
    grads_kv: Tensor,
    need_dkv: bool,
) -> Tensor:
    """Gradient of `q / scale`; adds to `grads_kv [2, Hkv, T, D]`. Three products a block of memory, five of segment."""
    lse2 = lse2.masked_fill(lse2 == -math.inf, math.inf)  # rows that see nothing get weights of zero
    grad_q = torch.zeros_like(q)
    for block in _blocks(lane, rows, q.shape[0] * q.shape[1]):
        logits, slope, hidden = _logits(call, q, block, rows, lane)
        weights = torch.exp2(logits.sub_(lse2[..., None]), out=logits)
        grad_weights = grad_o @ block.v.to(q.dtype).transpose(1, 2)
        if block.v_scale is not None:
            grad_weights *= block.v_scale[:, None]
        grad_logits = grad_weights.sub_(delta[..., None]).mul_(weights)
        if slope is not None:
            grad_logits *= slope
        if hidden is not None:  # the lse of a query, and what it met elsewhere, may be NaN
            weights.masked_fill_(hidden, 0)
            grad_logits.masked_fill_(hidden, 0)
        if need_dkv and block.in_segment:
            columns = slice(block.positions[0], block.positions[-1] + 1)
            hidden_queries = None if hidden is None else hidden.transpose(1, 2)
            grads_kv[0, :, columns] += _product(grad_logits.transpose(1, 2), q, None, hidden_queries)
            grads_kv[1, :, columns] += _product(weights.transpose(1, 2), grad_o, None, hidden_queries)
        grad_q += _product(grad_logits, block.k, block.k_scale, hidden)
    return grad_q


def _product(weights: Tensor, rows: Tensor, scale: Tensor | None, hidden: Tensor | None) -> Tensor:
    """`weights [Hkv, n, m] @ (rows * scale) [Hkv, m, D]`, to which hidden pairs add nothing; their weights are zero.

    A weight of zero does not hide what is not finite: such rows are added one by one, where they are seen.
    """
    rows = rows.to(weights.dtype)
    scaled = weights if scale is None else weights * scale[:, None]
    if hidden is None:
        return scaled @ rows
    odd = ~(rows if scale is None else rows * scale[..., None]).isfinite().all(-1)  # [Hkv, m]
    if not odd.any():
        return scaled @ rows
    sums = scaled.masked_fill(odd[:, None], 0) @ rows.masked_fill(odd[..., None], 0)
    for head, row in odd.nonzero().tolist():
        seen = ~hidden[head, :, row]
        sums[head, seen] += scaled[head, seen, row, None] * rows[head, row]
    return sums


def _logits(call: Call, q: Tensor, block: Block, rows: slice, lane: Lane) -> Logits:
    """The logits of a block."""
    logits = q @ block.k.to(q.dtype).transpose(1, 2)
    slope = None
    if block.k_scale is not None:
        logits *= block.k_scale[:, None]
    if call.softcap:
        cap = call.softcap * LOG2E
        saturation = torch.tanh(logits / cap)
        logits = saturation * cap
        slope = 1 - saturation * saturation
    first, last = block.positions[0], block.positions[-1]
    lowest = lane.lowest[rows.stop - 1] if lane.lowest is not None else first
    if call.alibi_slopes is None and first >= lowest and last <= rows.start:
        return Logits(logits, slope, None)  # the whole block is visible to every row
    positions = torch.tensor(block.positions, device=q.device)
    queries = torch.arange(rows.start, rows.stop, device=q.device)
    by_row = logits.view(call.q.shape[2], len(queries), len(positions))  # [H, n, m]
    if call.alibi_slopes is not None:
        distance = queries[:, None] - positions
        by_row -= (call.alibi_slopes.to(q.dtype) * LOG2E)[:, None, None] * distance
    hidden = positions > queries[:, None]
    if lane.lowest is not None:
        hidden |= positions < torch.tensor(lane.lowest[rows], device=q.device)[:, None]
    by_row.masked_fill_(hidden, -math.inf)
    return Logits(logits, slope, hidden.expand_as(by_row).reshape(logits.shape))


def _lane(call: Call, b: int, clock: Sequence[int]) -> Lane:
    """Gather what lane `b` sees, as views: the visible runs of its ring, then its real segment tokens."""
    memory = call.memory
    position, length, phase = clock
    horizon = int(memory.horizon)
    tokens = int(call.segment_len[b]) if call.segment_len is not None else call.q.shape[1]
    if phase + tokens > memory.geometry.max_segment and call.window == "segment":
        raise ValueError(
            f"q: lane {b} is at token {phase} of its open segment: expected at most "
            f"{memory.geometry.max_segment - phase} more, got {tokens}"
        )
    keys = [
        Block(
            memory.k[b, :, run.start : run.stop],
            memory.v[b, :, run.start : run.stop],
            None if memory.k_scale is None else memory.k_scale[b, :, run.start : run.stop],
            None if memory.v_scale is None else memory.v_scale[b, :, run.start : run.stop],
            run.positions,
            in_segment=False,
        )
        for run in memory.geometry.visible(horizon, call.window, position, length, phase)
    ]
    if tokens:
        k, v = (x[b, :tokens].transpose(0, 1).contiguous() for x in (call.k, call.v))
        keys.append(Block(k, v, None, None, range(tokens), in_segment=True))
    return Lane(tokens, keys, _lowest(call, b, tokens, horizon))


def _lowest(call: Call, b: int, tokens: int, horizon: int) -> Sequence[int] | None:
    """The lower bound of each query's interval on [memory | segment], or None where all earlier keys are visible."""
    starts = call.segment_start[b, :tokens].tolist() if call.segment_start is not None else [0] * tokens
    everything = -(2**62)
    lowest = [start or everything for start in starts]
    if call.window == "token":
        return [max(bound, i - horizon + 1) for i, bound in enumerate(lowest)]
    return lowest if any(starts) else None


def _tiles(lane: Lane) -> Iterator[slice]:
    for start in range(0, lane.tokens, TILE_TOKENS):
        yield slice(start, min(start + TILE_TOKENS, lane.tokens))


def _blocks(lane: Lane, rows: slice, packed_rows: int) -> Iterator[Block]:
    """Blocks of keys of which some query in `rows` sees some key; whole blocks outside every interval are skipped."""
    size = max(MIN_KEYS, BLOCK_LOGITS // packed_rows)
    lowest = lane.lowest[rows.start] if lane.lowest is not None else None
    for keys in lane.keys:
        # A segment's keys end at the tile's last query, and only those from its first query on need the causal mask.
        parts = ((0, rows.start), (rows.start, rows.stop)) if keys.in_segment else ((0, len(keys.positions)),)
        for first, end in parts:
            for start in range(first, end, size):
                block = keys.part(start, min(start + size, end))
                if lowest is None or block.positions[-1] >= lowest:
                    yield block


def _append(call: Call, clock: Sequence[Sequence[int]]) -> None:
    """Write each lane's real tokens into its ring; writing the same segment at the same clock again changes nothing."""
    memory = call.memory
    k, v, k_scale, v_scale = call.k, call.v, None, None
    if memory.k_scale is not None:
        (k, k_scale), (v, v_scale) = (quantise(x, memory.k.dtype) for x in (k, v))
    targets = ((memory.k, k), (memory.v, v), (memory.k_scale, k_scale), (memory.v_scale, v_scale))
    for b in range(call.q.shape[0]):
        position, length, _ = (row[b] for row in clock)
        tokens = int(call.segment_len[b]) if call.segment_len is not None else call.q.shape[1]
        starts = call.segment_start[b].tolist() if call.segment_start is not None else None
        for source, slots in memory.geometry.written(position, length, starts, tokens):
            for ring, segment in targets:
                if ring is not None and segment is not None and len(slots):
                    _write(ring[b], slots, segment[b].transpose(0, 1), source)
        memory.written[b].clamp_(min=position + tokens)


def _write(ring: Tensor, slots: Sequence[int], segment: Tensor, tokens: Sequence[int]) -> None:
    """`ring[:, slots] = segment[:, tokens]`, by slices where both are ranges."""
    if isinstance(slots, range) and isinstance(tokens, range):
        ring[:, slots.start : slots.stop] = segment[:, tokens.start : tokens.stop]
    else:
        ring[:, torch.tensor(slots, device=ring.device)] = segment[:, torch.tensor(tokens, device=ring.device)]


def _compute_dtype(call: Call) -> torch.dtype:
    return torch.float64 if call.q.dtype == torch.float64 else torch.float32


def _pack(x: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """`[n, H, D]` to `[Hkv, G * n, D]`: the query heads that share a KV head become rows of one product."""
    n, heads, dim = x.shape
    return x.to(dtype).transpose(0, 1).reshape(kv_heads, heads // kv_heads * n, dim)


def _unpack(x: Tensor, rows: slice) -> Tensor:
    """The inverse of `_pack`: `[Hkv, G * n, D]` to `[n, H, D]`."""
    return x.view(-1, rows.stop - rows.start, x.shape[-1]).transpose(0, 1)
