"""Progressions in stock: what harmony does in two bars, by dialect, mode and place in the phrase."""

from __future__ import annotations

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Key

# Bars are parted by "|"; the chords of a bar share it. `open` starts a phrase, `answer` replies to the opening, `go on`
# drives, `half`, `full` and `evade` are cadences, `close` confirms one, `stand` waits on the dominant.
_Table = dict[str, tuple[str, ...]]

_CLASSICAL_MAJOR: _Table = {
    "open": (
        "I | I", "I | V7", "I | V43", "I V65 | I", "I | IV64 I", "I vi | ii6 V", "I IV | I6 V43", "I viio6 | I6",
        "I | ii42", "I I6 | IV", "I V6 | vi V", "I IV64 | I V7",
    ),
    "answer": (
        "V7 | I", "V65 | I", "V43 | I6", "viio6 | I6", "ii6 | V7", "V42 | I6", "IV | I6", "V7 | vi", "ii6 V7 | I",
    ),
    "go on": (
        "vi | ii6", "IV | I6", "V65/IV IV | V65/V V", "I6 V43 | I V65/IV", "vi V43/ii | ii V43", "IV viio6 | iii vi",
        "V7/vi vi | V7/V V", "ii V7 | iii vi", "I6 IV | ii V", "IV I6 | ii6 V65/V",
    ),
    "half": ("ii6 | V", "IV V65/V | V", "I6 ii6 | V", "I64 | V", "vi V65/V | V", "I IV | V", "ii V65/V | V"),
    "full": (
        "ii6 V7 | I", "I64 V7 | I", "IV V7 | I", "ii65 V7 | I", "I6 IV I64 V7 | I", "vi ii6 I64 V7 | I",
        "ii6 I64 V7 | I",
    ),
    "evade": ("ii6 V7 | vi", "IV V42 | I6", "I64 V7 | vi", "ii6 V7 | V65/IV IV"),
    "close": ("V7 | I", "IV64 | I", "I V7 | I", "I V65/IV IV V7 | I", "ii6 V7 | I"),
    "stand": ("V | V", "V I64 | V", "V7 | I64 V", "V V65/V | V7"),
}  # fmt: skip
_CLASSICAL_MINOR: _Table = {
    "open": (
        "i | i", "i | V7", "i | V43", "i V65 | i", "i | iv64 i", "i VI | iiø65 V", "i iv | i6 V43", "i viio6 | i6",
        "i | iiø42", "i i6 | iv", "i V6 | i VI", "i | viio7 i",
    ),
    "answer": (
        "V7 | i", "V65 | i", "V43 | i6", "viio6 | i6", "iiø65 | V7", "V42 | i6", "iv | i6", "V7 | VI", "viio7 | i",
    ),
    "go on": (
        "VI | iio6", "iv | i6", "V65/iv iv | V65/V V", "i6 V43 | i V65/iv", "VII | III", "VI III | iv i6",
        "V7/III III | V7/iv iv", "iv VII | III VI", "V7/VI VI | iiø65 V",
    ),
    "half": ("iio6 | V", "iv V65/V | V", "iv6 | V", "i64 | V", "Ger | V", "i VI | V", "i viio7/V | V"),
    "full": (
        "iio6 V7 | i", "i64 V7 | i", "iv V7 | i", "iiø65 V7 | i", "i6 iv i64 V7 | i", "VI iio6 i64 V7 | i",
        "bII6 V7 | i",
    ),
    "evade": ("iio6 V7 | VI", "iv V42 | i6", "i64 V7 | VI", "iiø65 V7 | V65/iv iv"),
    "close": ("V7 | i", "iv64 | i", "viio7 | i", "i V7 | i", "iv V7 | i"),
    "stand": ("V | V", "V i64 | V", "V7 | i64 V", "V viio7/V | V7"),
}  # fmt: skip
_ROMANTIC_MAJOR: _Table = {
    "open": (
        "I viio7/ii | ii V7", "I | iv64 I", "I V42/IV | IV6 iv6", "I | bVI", "I I+ | IV", "I7 | IV7", "I iii | IV iv",
    ),
    "answer": ("V7 | I", "iiø65 | I64", "viio7 | I", "V7/ii ii | V7", "ii65 V7 | I7", "iv6 | I64 V7"),
    "go on": (
        "I V7/vi | vi V7/IV", "IV iv | I V7/ii", "V7/ii ii | V7/iii iii", "vi V7/iii | iii V7/ii", "bVI | bII6 V7",
        "viio7/vi vi | viio7/V V", "IV7 viiø7 | iii7 vi7", "ii7 V7 | I7 IV7",
    ),
    "half": ("Ger | V", "viio7/V | V", "iv6 | V7", "ii65 V7/V | V", "bVI | V7"),
    "full": (
        "iv V7 | I", "bII6 V7 | I", "ii65 V7 | I", "iiø65 V7 | I", "Ger I64 V7 | I", "I64 V7 | I",
        "ii6 viio7/V I64 V7 | I",
    ),
    "evade": ("ii65 V7 | bVI", "I64 V7 | vi", "iv V7 | V65/IV IV", "V7 | V7/ii"),
    "close": ("iv64 | I", "iiø42 | I", "V7 | I", "bVI V7 | I", "viio7/V V7 | I"),
    "stand": ("V7 | V7", "V viio7/V | V7", "V7 iv64 | V7", "V7 I64 | V7"),
}  # fmt: skip
_ROMANTIC_MINOR: _Table = {
    "open": (
        "i viio7/V | V7 i", "i | bII6", "i V42/iv | iv6 iv", "i | VI", "i III | iv V7", "i v6 | iv6 V7", "i7 | iv7",
    ),
    "answer": ("V7 | i", "viio7 | i", "iv6 | i64 V7", "bII6 | V7", "iiø65 V7 | i", "V7 | VI"),
    "go on": (
        "V7/iv iv | V7/III III", "VI bII6 | V7 i", "i V7/VI | VI V7/iv", "iv7 VII7 | III7 VI7",
        "viio7/iv iv | viio7/V V", "III | VI bII6", "iiø7 V7 | i7 iv7",
    ),
    "half": ("Ger | V", "viio7/V | V", "iv6 | V7", "iiø65 V7/V | V", "VI | V7"),
    "full": ("bII6 V7 | i", "iiø65 V7 | i", "iv V7 | i", "Ger i64 V7 | i", "i64 V7 | i", "iv viio7/V i64 V7 | i"),
    "evade": ("iiø65 V7 | VI", "i64 V7 | VI", "iv V7 | V65/iv iv", "V7 | V7/iv"),
    "close": ("iv64 | i", "iiø42 | i", "V7 | i", "bII6 V7 | i", "viio7 | i"),
    "stand": ("V7 | V7", "V viio7/V | V7", "V7 iv64 | V7", "V7 i64 | V7"),
}  # fmt: skip
_BAROQUE_MAJOR: _Table = {
    "open": (
        "I | V6 I", "I V | vi iii", "I IV | V I", "I V6 | vi V65/V", "I | IV64 V7", "I I6 | IV V42", "I V43 | I6 V65",
    ),
    "answer": ("IV I6 | ii6 V", "V I | V65 I", "IV I | ii V", "viio6 I6 | ii6 V", "V42 I6 | V43 I"),
    "go on": (
        "I IV | viio iii", "vi ii | V I", "vi V7/V | V V7/IV", "ii7 V7 | I7 IV7", "I6 IV | V6 I", "V7/vi vi | V7/V V",
        "IV viio6 | iii vi", "iii vi | ii V",
    ),
    "half": ("vi V65/V | V", "IV6 V65/V | V", "I6 ii6 | V", "vi ii6 | V"),
    "full": ("IV V7 | I", "ii65 V7 | I", "I6 ii65 V V7 | I", "vi ii65 I64 V7 | I", "IV6 V65 I V7 | I"),
    "evade": ("ii65 V7 | vi", "IV V42 | I6"),
    "close": ("IV64 V7 | I", "V7/IV IV64 V7 V7 | I", "V7 | I", "ii42 V65 | I"),
    "stand": ("V I64 | V7", "V V43/V | V7", "V IV64 | V7"),
}  # fmt: skip
_BAROQUE_MINOR: _Table = {
    "open": (
        "i | V6 i", "i v6 | iv6 V", "i iv | V i", "i V6 | i V65/V", "i | iv64 V7", "i i6 | iv V42", "i V43 | i6 V65",
    ),
    "answer": ("iv i6 | iio6 V", "V i | V65 i", "VI III | iio6 V", "viio6 i6 | iio6 V", "V42 i6 | V43 i"),
    "go on": (
        "i iv | VII III", "VI iio6 | V i", "V7/iv iv | V7/III III", "iv7 VII7 | III7 VI7", "i6 iv | V6 i",
        "VI VII | III V65", "iv VII | III VI", "iiø7 V7 | i VI",
    ),
    "half": ("VI V65/V | V", "iv6 V65/V | V", "i6 iio6 | V", "i v6 iv6 iv6 | V"),
    "full": ("iv V7 | i", "iiø65 V7 | i", "i6 iiø65 V V7 | i", "VI iiø65 i64 V7 | i", "iv6 V65 i V7 | i"),
    "evade": ("iiø65 V7 | VI", "iv V42 | i6"),
    "close": ("iv64 V7 | i", "V7/iv iv64 V7 V7 | i", "V7 | i", "iiø42 V65 | i"),
    "stand": ("V i64 | V7", "V V43/V | V7", "V iv64 | V7"),
}  # fmt: skip
_MODAL_MAJOR: _Table = {
    "open": ("I | IV", "I bVII | IV I", "I V | vi IV", "I iii | IV I", "I7 | IV7", "I | ii", "vi | IV", "I v | IV I"),
    "answer": ("IV | I", "bVII | IV", "vi IV | V", "ii7 | V", "iii vi | IV V", "IV7 | iii7"),
    "go on": (
        "vi IV | I V", "IV V | iii vi", "ii iii | IV V", "bVII IV | I V", "vi iii | IV I", "iii7 vi7 | ii7 V7",
        "bVI bVII | I",
    ),
    "half": ("IV | V", "ii7 | V", "vi IV | V", "I bVII | V"),
    "full": ("IV V | I", "bVII | I", "iv | I", "ii7 V7 | I", "bVI bVII | I", "IV iv | I"),
    "evade": ("IV V | vi", "ii7 V | IV", "bVII | IV"),
    "close": ("IV | I", "bVII | I", "ii7 | I7", "IV64 | I"),
    "stand": ("V | V", "V IV | V", "v | V"),
}  # fmt: skip
_MODAL_MINOR: _Table = {
    "open": (
        "i VII | VI VII", "i | IV", "i v | VI III", "i III | VII iv", "i7 | iv7", "i | VII", "VI | VII i",
        "i VII | i v",
    ),
    "answer": ("iv | i", "VII | III", "VI VII | i", "IV7 | i", "III VII | i v", "VI7 | v7"),
    "go on": (
        "VI III | VII i", "iv VII | III VI", "III VII | iv v", "VI VII | v i", "iv7 VII7 | III7 VI7",
        "i IV | VII III",
    ),
    "half": ("iv | v", "VI | VII", "iv VI | V", "i VII | v"),
    "full": ("VI VII | i", "v | i", "iv v | i", "iv V | i", "VII | i", "VI V7 | i"),
    "evade": ("VI VII | III", "iv v | VI", "VII | IV"),
    "close": ("iv | i", "VII | i", "IV | i", "iv64 | i"),
    "stand": ("v | V", "VII | VII", "V iv | V"),
}  # fmt: skip

_DIALECTS: dict[str, tuple[_Table, _Table]] = {
    "classical": (_CLASSICAL_MAJOR, _CLASSICAL_MINOR),
    "romantic": (_ROMANTIC_MAJOR, _ROMANTIC_MINOR),
    "baroque": (_BAROQUE_MAJOR, _BAROQUE_MINOR),
    "modal": (_MODAL_MAJOR, _MODAL_MINOR),
}
DIALECTS = tuple(_DIALECTS)


def progression(dice: Dice, dialect: str, key: Key, purpose: str, chords: int) -> tuple[tuple[str, ...], ...]:
    """Draw a two-bar progression: the symbols of each bar.

    Args:
        dice: the piece's dice.
        dialect: one of ``DIALECTS``. The romantic one also speaks the classical.
        key: only its mode matters here.
        purpose: what the bars do in their phrase: ``open``, ``answer``, ``go on``, ``half``, ``full``, ``evade``,
            ``close`` or ``stand``.
        chords: how many chords suit the tempo; the nearest of a few draws is taken.
    """
    if dialect == "romantic" and dice.chance(0.4):
        dialect = "classical"
    table = _DIALECTS[dialect][key.minor][purpose]
    drawn = [tuple(tuple(bar.split()) for bar in dice.pick(table).split("|")) for _ in range(3)]
    return min(drawn, key=lambda bars: abs(sum(map(len, bars)) - chords))
