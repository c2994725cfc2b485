"""Model configuration: everything that determines a model's shape and what it computes, and named presets of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from dsmr.fields import check_names, check_types, shown
from dsmr.model.schedules import Schedule, make_schedule
from dsmr.music.tokens import VOCAB_SIZE
from dsmr_kernels.checks import check_key_shift
from dsmr_kernels.geometry import Window

MOST_LAYERS, MOST_TOKENS = 1024, 1 << 24
"""Sizes that no weights vouch for are bounded: layers, and the tokens of a segment or a horizon. More are a mistake."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's shape and what it computes; stored inside every checkpoint.

    Args:
        width: size of the residual stream; `heads` must divide it.
        heads, kv_heads: query heads H and KV heads Hkv; H must be a multiple of Hkv.
        schedule: one memory horizon per layer; its length is the number of layers.
        segment: T, the tokens of a training segment; `window="segment"` makes generation keep to the same segments.
        window: "segment" (all queries of a segment see the same memory) or "token" (a sliding window per query).
        position: "rotary" rotates q and k (Su et al. 2021); "sinusoidal" adds Vaswani et al.'s (2017) signal to the
            input of the Q and K projections, as Depth-Structured Music Recurrence does. Both count from the beginning
            of the piece.
        position_base: the base of either position's geometric series of wavelengths.
        feed_forward: hidden size of the feed-forward network as a multiple of `width`.
        dropout: probability, applied to the embedding and to both residual branches.
        key_shift: tokens by which `dsmr_kernels.token_shift` moves the keys of each KV head, before rotation; with
            "sinusoidal" the signal moves along. None, or zeros, which become None: keys stay, as in the paper.
        rotary_share: the share of each KV head's dimensions, and of its queries', that "rotary" rotates: only what
            stays is found again at any distance ("partial rotary", as in GPT-NeoX; Black et al. 2022). Rounded down to
            pairs; their wavelengths are spread over what is rotated. None, or ones, which become None: all of them.
        qk_norm: normalise every head's queries and keys to a root mean square that is learned, one for each head
            ("query-key normalisation", Henry et al. 2020), before they are shifted and rotated.
    """

    width: int
    heads: int
    kv_heads: int
    schedule: Schedule
    segment: int = 1024
    window: Window = "segment"
    position: str = "rotary"
    position_base: float = 10_000.0
    feed_forward: int = 4
    dropout: float = 0.1
    vocab_size: int = VOCAB_SIZE
    key_shift: tuple[int, ...] | None = None
    rotary_share: tuple[float, ...] | None = None
    qk_norm: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "heads", "kv_heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"heads: expected a divisor of width={self.width} with an even quotient, got {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}")
        if self.position not in ("sinusoidal", "rotary"):
            raise ValueError(f"position: expected 'sinusoidal' or 'rotary', got {shown(self.position)}")
        if self.window not in ("segment", "token"):
            raise ValueError(f"window: expected 'segment' or 'token', got {shown(self.window)}")
        if self.segment < 1:
            raise ValueError(f"segment: expected at least 1 token, got {self.segment}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability below 1, got {self.dropout}")
        if not 0 < self.position_base < math.inf:
            raise ValueError(f"position_base: expected a finite number above 0, got {self.position_base}")
        object.__setattr__(self, "key_shift", check_key_shift(self.key_shift, self.kv_heads))
        object.__setattr__(self, "rotary_share", self._checked_rotary_share())
        retention = self.schedule.retention
        if self.window == "token" and retention is not None and retention.stride > 1:
            raise ValueError(f"window: 'token' needs every token kept, got a retention stride of {retention.stride}")
        if self.layers > MOST_LAYERS:
            raise ValueError(f"schedule: expected at most {MOST_LAYERS:,} layers, got {self.layers:,}")
        tokens = {"segment": self.segment, "schedule": max(self.schedule.horizons)}
        tokens["schedule"] = max(tokens["schedule"], retention.stride if retention else 0)
        for name, count in tokens.items():
            if count > MOST_TOKENS:
                raise ValueError(f"{name}: expected at most {MOST_TOKENS:,} tokens, got {count:,}")

    def _checked_rotary_share(self) -> tuple[float, ...] | None:
        shares = self.rotary_share
        if shares is None:
            return None
        if self.position != "rotary":
            raise ValueError(f"rotary_share: expected None with position={self.position!r}, got {shown(shares)}")
        if len(shares) != self.kv_heads or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"rotary_share: expected a number from 0 to 1 for each of {self.kv_heads} KV heads, got {shown(shares)}"
            )
        return None if all(share == 1 for share in shares) else tuple(map(float, shares))

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.schedule.horizons)

    @property
    def head_dim(self) -> int:
        """D, the size of one head."""
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """The inverse of `to_dict`, but that a field with a default may be missing: older versions lacked it.

        ValueError names a field that is missing, unknown, or has a value that it cannot have.
        """
        fields = check_names(cls, values, "config")
        for name in ("key_shift", "rotary_share"):
            if isinstance(value := fields.get(name), list):  # JSON has no tuples
                fields[name] = tuple(value)
        return cls(**{**fields, "schedule": Schedule.from_dict(fields["schedule"])})


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration: tiny (about 1 M parameters), small (5 M), base (25 M) or large (85 M).

    Every preset is a two-scale schedule, with heads that differ in what they look for, see `HEADS`. `changes` replace
    fields; with other KV heads or positions, the heads fit themselves to those. ValueError for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    config = PRESETS[name]
    kv_heads, position = (changes.get(field, getattr(config, field)) for field in ("kv_heads", "position"))
    return replace(config, **{**_heads(kv_heads, position), **changes})


HEADS = ((0, 1.0), (1, 1.0), (1, 0.25), (2, 0.125))
"""`key_shift` and `rotary_share` of the four quarters of a preset's KV heads.

The first two look for places, the others for content: little of them is rotated, so that it is found at any distance,
and their keys are shifted, so that what is found is what came next. docs/memory-study.md says what else was tried.
"""


def _heads(kv_heads: int, position: str = "rotary") -> dict[str, Any]:
    quarters = [HEADS[head * len(HEADS) // kv_heads] for head in range(kv_heads)]
    shares = tuple(share for _, share in quarters)
    return {
        "key_shift": tuple(shift for shift, _ in quarters),
        "rotary_share": shares if position == "rotary" else None,
    }


def _two_scale(layers: int, long: int, short: int, heads: int, **sizes: Any) -> ModelConfig:
    long_layers = max(1, layers // 4)
    budget = long_layers * long + (layers - long_layers) * short
    schedule = make_schedule(
        "two_scale", layers, budget_tokens=budget, long_layers=long_layers, ratio=long / short if short else 1.0
    )
    return ModelConfig(heads=heads, kv_heads=heads, schedule=schedule, qk_norm=True, **_heads(heads), **sizes)


PRESETS = {
    "tiny": _two_scale(5, long=2048, short=256, width=128, heads=4, segment=256, dropout=0.0),
    "small": _two_scale(6, long=4096, short=512, width=256, heads=4),
    "base": _two_scale(8, long=8192, short=512, width=512, heads=8),
    "large": _two_scale(12, long=8192, short=512, width=768, heads=12),
}
