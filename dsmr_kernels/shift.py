"""Keys shifted by tokens: in some KV heads the key of position j is made from an earlier token than j.

An operator, because compiled code must neither run it again in a backward pass nor look into what it writes: the tail
of a ring, the last keys of the shifted heads. Its arithmetic is PyTorch's, on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsmr_kernels import autograd
from dsmr_kernels.clock import Clock, check_appended, loaded, moved
from dsmr_kernels.execution import refuse_forward_mode
from dsmr_kernels.ragged import check_ragged, values_are_at_hand
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.torch_private import running_node_number


def token_shift(
    k: Tensor, memory: RingMemory, *, segment_start: Tensor | None = None, segment_len: Tensor | None = None
) -> Tensor:
    """In KV head h, put the key of position j - shift[h] in place of the key of position j.

    With a shift of one token, a query that looks for its own token finds what followed it the last time. So one layer
    can learn to copy, which otherwise takes two (Olsson et al. 2022, "In-context Learning and Induction Heads", where a
    learned mix of both keys is called "smeared keys"; Peng et al. 2023, "RWKV", mixes whole inputs by "token shift").

    Call it on keys without positions, then apply those, then hand the result and the values, which stay where they are,
    to `recurrent_attention` with the same memory. A piece's first keys, before which nothing was said, are zero. The
    keys that later segments need go to the memory's tail, which is detached: gradients flow within the segment.
    The same segment at the same clock may be shifted any number of times.

    Args:
        k: keys `[B, T, Hkv, D]`, of the type that the stack was made for.
        memory: the layer's ring, `stack[layer]` of a `MemoryStack` made with `key_shift`.
        segment_start, segment_len: as for `recurrent_attention`. Keys of tokens that are not real are arbitrary.

    Returns:
        keys `[B, T, Hkv, D]`, contiguous.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says which, what was expected and what came.
        RuntimeError: as from `recurrent_attention`: from a call that a backward pass replays, if later segments or a
            loaded state have overwritten the tail that this segment saw, or if the ring's clock has moved since the
            first pass; or if `memory` was taken from the stack before its last `advance`.
    """
    if not isinstance(memory, RingMemory):
        raise TypeError(f"memory: expected a RingMemory, stack[layer] of a MemoryStack, got {type(memory).__name__}")
    if memory.key_shift is None or memory.tail is None or memory.tail_written is None:
        raise ValueError("memory: expected one of a MemoryStack made with key_shift, got one whose keys stay")
    _check_keys(k, memory.tail, memory.key_shift, memory.geometry.max_segment)
    memory.clock.check_present()
    if segment_start is not None or segment_len is not None:
        check_ragged(k.shape[0], k.shape[1], k.device, segment_start, segment_len)
    if not torch.compiler.is_compiling() and autograd.backward_pass() == autograd.FORWARD:
        memory.clock.is_called()
    shifted: Tensor = torch.ops.dsmr_kernels.token_shift_(
        *(k, memory.tail, memory.tail_written, memory.clock.state, segment_start, segment_len, [*memory.key_shift])
    )
    return shifted


def _check_keys(k: Tensor, tail: Tensor, shifts: Sequence[int], most: int) -> None:
    lanes, _, slots, dim = tail.shape
    if not isinstance(k, Tensor) or k.dtype != tail.dtype:
        raise TypeError(f"k: expected a tensor of {tail.dtype}, got {getattr(k, 'dtype', type(k).__name__)}")
    tokens = k.shape[1] if k.dim() == 4 else 0
    if tuple(k.shape) != (lanes, tokens, len(shifts), dim) or k.device != tail.device:
        raise ValueError(
            f"k: expected {[lanes, 'T', len(shifts), dim]} on {tail.device}, got {list(k.shape)} on {k.device}"
        )
    if not 1 <= tokens <= min(most, slots - max(shifts)):
        raise ValueError(f"k: expected from 1 to max_segment={most} tokens, got {tokens}")


class _Group(NamedTuple):
    """Neighbouring KV heads of one shift: `heads` of all, and `kept`, which of the tail's heads they are."""

    shift: int
    heads: slice
    kept: slice


def _groups(shifts: Sequence[int]) -> Iterator[_Group]:
    head = kept = 0
    for shift, group in groupby(shifts):
        count = len([*group])
        stays = 0 if shift else count
        yield _Group(shift, slice(head, head + count), slice(kept, kept + count - stays))
        head, kept = head + count, kept + count - stays


def _same_piece(shift: int, segment_start: Tensor | None, tokens: int) -> Tensor | None:
    """Whether a segment's tokens from `shift` on have their source in their own piece `[B, T - shift, 1, 1]`.

    None: all of them.
    """
    if segment_start is None:
        return None
    start = segment_start[:, shift:]
    rows = torch.arange(shift, max(tokens, shift), device=start.device)
    return ((start == 0) | (rows - start >= shift))[..., None, None]


def _shifted(k: Tensor, tail: Tensor, clock: Tensor, segment_start: Tensor | None, shifts: Sequence[int]) -> Tensor:
    """The shifted keys; nothing is written."""
    tokens, most = k.shape[1], max(shifts)
    position, length, _ = clock
    before = torch.arange(-most, 0, device=k.device)
    lanes = torch.arange(k.shape[0], device=k.device)[:, None]
    # What lies before the piece is masked, not multiplied by 0: it may be NaN.
    past = tail[lanes, :, (position[:, None] + before) % tail.shape[2]]  # [B, most, shifted heads, D]
    past = torch.where((-before <= length[:, None])[..., None, None], past, 0)
    parts = []
    for shift, heads, kept in _groups(shifts):
        own = k[:, :, heads]
        if shift:
            earlier = past[:, most - shift : most - shift + tokens, kept]
            if segment_start is not None:  # a piece that begins within these tokens does not see the memory
                earlier = torch.where((segment_start[:, :shift] == 0)[..., None, None], earlier, 0)
            later = own[:, : max(tokens - shift, 0)]
            mask = _same_piece(shift, segment_start, tokens)
            own = torch.cat([earlier, later if mask is None else torch.where(mask, later, 0)], 1)
        parts.append(own)
    return torch.cat(parts, 2).contiguous()  # cat may follow the strides of what it joins


def _keep(
    k: Tensor, tail: Tensor, newest: Tensor, clock: Tensor, segment_len: Tensor | None, shifts: Sequence[int]
) -> None:
    """Write the last keys of the shifted heads: as many tokens as later segments look back.

    Slots go by position, so writing a segment again changes nothing, and what it read is still there.
    """
    tokens, last = k.shape[1], min(max(shifts), k.shape[1])
    groups = [k[:, :, group.heads] for group in _groups(shifts) if group.shift]
    keys = groups[0] if len(groups) == 1 else torch.cat(groups, 2)  # [B, T, shifted heads, D]
    position, lanes = clock[0], torch.arange(k.shape[0], device=k.device)[:, None]
    rows = torch.arange(tokens - last, tokens, device=k.device)
    if segment_len is None:
        tail[lanes, :, (position[:, None] + rows) % tail.shape[2]] = keys[:, tokens - last :]
        torch.maximum(newest, position + tokens, out=newest)
        return
    rows = rows + (segment_len - tokens)[:, None]  # the last real ones; what is before the first stays as it is
    slots = (position[:, None] + rows) % tail.shape[2]
    tail[lanes, :, slots] = torch.where(
        (rows >= 0)[..., None, None], keys[lanes, rows.clamp_min(0)], tail[lanes, :, slots]
    )
    torch.maximum(newest, position + segment_len, out=newest)


def _forward_kernel(
    k: Tensor,
    tail: Tensor,
    newest: Tensor,
    clock: Tensor,
    segment_start: Tensor | None,
    segment_len: Tensor | None,
    shifts: list[int],
) -> Tensor:
    with torch.no_grad():
        if not _is_replay(k.shape[1], tail, newest, clock, segment_len, shifts):
            # Outside inference mode, tensors that were made inside may not be written.
            with torch.inference_mode() if tail.is_inference() else nullcontext():
                _keep(k, tail, newest, clock, segment_len, shifts)
        return _shifted(k, tail, clock, segment_start, shifts)


def _is_replay(
    tokens: int, tail: Tensor, newest: Tensor, clock: Tensor, segment_len: Tensor | None, shifts: list[int]
) -> bool:
    """Does a backward pass make this call again? RuntimeError if the tail is not as it was at the first pass."""
    running = autograd.backward_pass()
    if running == autograd.FORWARD:
        return False
    time = Clock.find(clock)
    if time is None:
        raise moved()
    if not time.is_replayed(running):
        return False
    if time.superseded and not autograd.untouched(tail, time.left.get(tail.data_ptr())):
        _check_not_overwritten(tail, newest, clock, max(shifts))
    if values_are_at_hand(newest.device):
        check_appended(time, tokens if segment_len is None else segment_len, newest)
    return True


def _check_not_overwritten(tail: Tensor, newest: Tensor, clock: Tensor, most: int) -> None:
    if -1 < running_node_number() < loaded.get(tail.data_ptr(), 0):
        raise RuntimeError(
            "the shifted keys were overwritten between forward and backward, by load_state_dict. Call backward before "
            "a state is loaded."
        )
    have = tail.shape[2]
    for lane, (position, length, end) in enumerate(zip(*clock[:2].tolist(), newest.tolist(), strict=True)):
        before = min(length, most)
        if before and (need := end - position + before) > have:
            raise RuntimeError(
                f"the shifted keys of lane {lane} were overwritten between forward and backward: this backward pass "
                f"needs {need} of them and the memory keeps {have}. Call backward before later segments are appended, "
                "or make the MemoryStack with more segments_in_flight."
            )


class _TokenShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(arguments[4])
        ctx.shifts = arguments[6]
        shifted: Tensor = torch.ops.dsmr_kernels.token_shift_forward_(*arguments)
        return shifted

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Back to where the keys came from, if that is in the segment: PyTorch's operators, differentiable again."""
        (segment_start,) = ctx.saved_tensors
        tokens, parts = grad.shape[1], []
        for shift, heads, _ in _groups(ctx.shifts):
            own = grad[:, :, heads]
            if shift:
                own = own[:, shift:]
                mask = _same_piece(shift, segment_start, tokens)
                own = F.pad(own if mask is None else torch.where(mask, own, 0), (0, 0, 0, 0, 0, min(shift, tokens)))
            parts.append(own)
        return torch.cat(parts, 2).contiguous(), *[None] * 6


def _autograd_kernel(*arguments: Any) -> Tensor:
    refuse_forward_mode(arguments)
    if torch.is_grad_enabled() and arguments[0].requires_grad:
        shifted: Tensor = _TokenShift.apply(*arguments)  # type: ignore[no-untyped-call]  # torch ships no types for it
        return shifted
    return _kernel(*arguments)


def _kernel(*arguments: Any) -> Tensor:
    shifted: Tensor = torch.ops.dsmr_kernels.token_shift_forward_(*arguments)
    return shifted


def _fake(k: Tensor, *_: Any) -> Tensor:
    return k.new_empty(k.shape)


_library = torch.library.Library("dsmr_kernels", "FRAGMENT")
for _name in ("token_shift_", "token_shift_forward_"):
    _library.define(
        f"{_name}(Tensor k, Tensor(a!) tail, Tensor(b!) tail_written, Tensor clock, Tensor? segment_start, "
        "Tensor? segment_len, int[] key_shift) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    torch.library.register_fake(f"dsmr_kernels::{_name}", _fake, lib=_library)
_library.impl("token_shift_forward_", _forward_kernel, "CompositeExplicitAutograd")
_library.impl("token_shift_", _kernel, "CompositeExplicitAutograd")
_library.impl("token_shift_", _autograd_kernel, "Autograd")
