"""Built-in pianist: composes and performs piano pieces from a seed.

Its pieces are the corpus that needs no download and, because it knows what it repeats, the instrument that shows
whether a model's memory works. Everything in them is made up on the spot: themes from motifs, functional harmony,
textures, forms whose sections return thousands of tokens later, and a performance with rubato, dynamics and pedal.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsmr.music.tokens import Performance
from dsmr.pianist.character import Composer, draw_composer
from dsmr.pianist.dice import Dice
from dsmr.pianist.form import FORMS
from dsmr.pianist.frame import coda, introduction
from dsmr.pianist.passage import Restatement, assemble, find_returns, token_count
from dsmr.pianist.workshop import Workshop

FEWEST_TOKENS = 1000
"""The shortest piece that can be asked for."""

__all__ = ["FEWEST_TOKENS", "Composition", "Restatement", "compose"]


@dataclass(frozen=True)
class Composition:
    """A composed and performed piece.

    Args:
        performance: notes sorted by onset, then pitch; every time is a whole number of 10 ms steps.
        title: for example ``Rondo on a Tarantella in E-flat minor, Op. 17 No. 3``.
        form: one of ``dsmr.pianist.form.FORMS``.
        returns: every stretch that repeats an earlier one exactly or transposed, in order of their beginnings.
    """

    performance: Performance
    title: str
    form: str
    returns: tuple[Restatement, ...]


def compose(seed: int, tokens: int) -> Composition:
    """Compose and perform a piece.

    The same arguments give the same piece on every platform.

    Args:
        seed: at least 0; different seeds give different pieces. The same seed at another length is another piece by the
            same composer in the same key, perhaps on the same themes.
        tokens: how many tokens the piece shall encode to. Met to a fifth from 2,000 on, mostly much closer; shorter
            pieces may come out longer, because a theme has to end.

    Raises:
        TypeError: an argument that is not an integer.
        ValueError: an argument that is too small.
    """
    _check("seed", seed, 0)
    _check("tokens", tokens, FEWEST_TOKENS)
    dice = Dice(seed)
    composer = draw_composer(dice)
    workshop = Workshop(dice, composer)
    bars = tokens / workshop.bar_tokens
    form = dice.weighted({name: form.weight for name, form in FORMS.items() if form.least_bars <= bars})
    body, main = FORMS[form].build(workshop, composer.key, tokens - min(6, bars / 8) * workshop.bar_tokens)
    rest = tokens - token_count(body)
    opening = introduction(workshop, composer.key, main, rest)
    passage = opening + body + coda(workshop, composer.key, main, rest - token_count(opening))
    return Composition(assemble(passage), _title(dice, composer, form), form, find_returns(passage))


def _title(dice: Dice, composer: Composer, form: str) -> str:
    name = composer.character.name
    article = "an" if name[0] in "AEIOU" else "a"
    kind = {
        "rondo": f"Rondo on {article} {name}",
        "sonata": f"Sonata Movement, {name}",
        "variations": f"Variations on {article} {name}",
    }.get(form, name)
    return f"{kind} in {composer.key.name}, Op. {dice.integer(1, 150)} No. {dice.integer(1, 12)}"


def _check(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
