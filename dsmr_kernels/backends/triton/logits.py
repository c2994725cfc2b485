"""From products q . k to logits, and which of them a row sees.

Logits are kept in base 2. Queries and keys may lie along either axis: their positions come shaped to broadcast.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def factor_of(rule, shape: tl.constexpr):
    """What `logits` still have to be multiplied by: in a plain call the softmax applies scale and base."""
    return rule.scale * LOG2E if shape.PLAIN else 1.0


@triton.jit
def steepness(rule, head):
    """By how much logits fall from key to key: ALiBi's slope of a head, in base 2."""
    return tl.load(rule.slopes + head).to(tl.float32) * LOG2E if rule.slopes is not None else 0.0


@triton.jit
def saturated(x, cap):
    """`tanh(x / cap)`."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E) / cap)
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def logits(products, queries, keys, steep, rule, shape: tl.constexpr):
    """Logits of `q . k` at these positions, in base 2 after `factor_of`; their derivative by the scaled product."""
    x, slope = products, 1.0
    if rule.softcap is not None:
        saturation = saturated(products * rule.scale, rule.softcap)
        x, slope = saturation * (rule.softcap * LOG2E), 1.0 - saturation * saturation
    elif not shape.PLAIN:
        x = products * (rule.scale * LOG2E)
    if rule.slopes is not None:
        x -= steep * (queries - keys).to(tl.float32)
    return x, slope


@triton.jit
def visible(keys, low, last, shape: tl.constexpr):
    """Does a row see a key? Those from `low` to `last`; all three count from the same point."""
    seen = keys <= last
    if shape.BOUNDED:
        seen = seen & (keys >= low)
    return seen
