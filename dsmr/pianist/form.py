"""Forms: how sections and their returns make a piece of a wanted length."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dsmr.pianist.harmony import Key
from dsmr.pianist.passage import Passage, token_count, transposed
from dsmr.pianist.workshop import Section, Workshop

Body = tuple[Passage, Section]
"""A piece without its frame, and the section that its introduction and coda refer to."""


def song_form(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose A A B A, or A B A where A came out too long for it."""
    a = workshop.section(key, 0.25 * budget)
    size = token_count(a.passage)
    opening = a.passage + a.passage if 3.4 * size < budget else a.passage
    b = workshop.middle(key, budget - token_count(opening) - size, a)
    return opening + b + workshop.again(a.passage), a


def ternary(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose A B A."""
    a = workshop.section(key, workshop.dice.between(0.3, 0.4) * budget)
    return a.passage + workshop.middle(key, budget - 2 * token_count(a.passage), a) + a.passage, a


def arch(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose A B C B A, the second B in another key."""
    a = workshop.section(key, 0.2 * budget)
    b = workshop.section(workshop.related_key(key), 0.18 * budget, a.theme.material, True)
    rest = budget - 2 * token_count(a.passage) - 2 * token_count(b.passage)
    c = workshop.episode(workshop.related_key(key), rest, b.theme, b.setting)
    shift = workshop.dice.pick((-5, 5, 2, -2, 3, -3))
    return a.passage + b.passage + c + transposed(b.passage, shift) + a.passage, a


def rondo(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose A B A C A and, where there is room, B again in the home key and A once more."""
    refrains = workshop.dice.pick((3, 4)) if budget > 5000 else 3
    a = workshop.section(key, 0.5 * budget / refrains)
    size = token_count(a.passage)
    away = workshop.related_key(key)
    b = workshop.section(away, (budget - refrains * size) / (refrains - 1), a.theme.material, True)
    back = transposed(b.passage, _shortest((key.tonic - away.tonic) % 12)) if refrains == 4 else ()
    rest = budget - refrains * size - token_count(b.passage) - token_count(back)
    c = workshop.section(workshop.related_key(key), rest, a.theme.material, True)
    passage = a.passage + b.passage + workshop.again(a.passage) + c.passage + a.passage
    return (passage + back + a.passage if back else passage), a


def sonata(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose exposition, development and recapitulation, where the second theme returns in the tonic."""
    repeated = budget > 6000 and workshop.dice.chance(0.4)
    part = (0.24 if repeated else 0.34) * budget
    second_key = key.on(3, False) if key.minor else key.on(7, False)
    first = workshop.section(key, 0.38 * part)
    bridge = workshop.transition(first.theme, key, second_key, 0.17 * part, first.setting)
    second = workshop.section(second_key, 0.38 * part, first.theme.material, True)
    codetta = workshop.episode(second_key, 0.07 * part, second.theme, second.setting)
    exposition = first.passage + bridge + second.passage + codetta
    home_bridge = workshop.transition(first.theme, key, key, 0.17 * part, first.setting)
    home = transposed(second.passage + codetta, _shortest((key.tonic - second_key.tonic) % 12))
    recapitulation = first.passage + home_bridge + home
    expositions = exposition + exposition if repeated else exposition
    rest = budget - token_count(expositions) - token_count(recapitulation)
    middle = workshop.development(key, rest, [first.theme, second.theme])
    return expositions + middle + recapitulation, first


def variations(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose a theme, variations on it, each with its halves repeated or not, and the theme again."""
    theme = workshop.song(key, budget / workshop.dice.integer(6, 10))
    size = token_count(theme.passage)
    passage = theme.passage
    number = 0
    while token_count(passage) + 1.5 * size < budget:
        number += 1
        minor = number % 4 == 3
        part = workshop.variation(theme.passage, workshop.dice.pick((0.2, 0.5, 0.8)), minor, refit=True)
        passage += part
        if token_count(passage) + 1.5 * size + token_count(part) < budget and workshop.dice.chance(0.3):
            passage += part
    return passage + theme.passage, theme


def chain(workshop: Workshop, key: Key, budget: float) -> Body:
    """Compose a chain of strains, each played twice, that ends with what it began with."""
    strains = [workshop.section(key, 0.12 * budget)]
    passage = strains[0].passage + strains[0].passage
    while True:
        rest = budget - token_count(passage) - token_count(strains[0].passage)
        if rest < 0.6 * token_count(strains[-1].passage):
            break
        if len(strains) > 2 and workshop.dice.chance(0.25):
            passage += workshop.dice.pick(strains[:-1]).passage
            continue
        near = strains[-1].theme
        strains.append(workshop.section(workshop.related_key(key), min(0.12 * budget, rest / 2), near.material, True))
        passage += strains[-1].passage + strains[-1].passage
    return passage + strains[0].passage, strains[0]


def _shortest(semitones: int) -> int:
    """The same interval, up or down, whichever is shorter."""
    return semitones - 12 if semitones > 6 else semitones


class Form(NamedTuple):
    """A form.

    Args:
        weight: how often it is chosen.
        least_bars: the shortest piece it makes sense for.
        build: composes the body of a piece in a key, of about so many tokens.
    """

    weight: float
    least_bars: int
    build: Callable[[Workshop, Key, float], Body]


FORMS = {
    "song": Form(3, 0, song_form),
    "ternary": Form(3, 0, ternary),
    "arch": Form(2, 44, arch),
    "rondo": Form(3, 44, rondo),
    "sonata": Form(3, 72, sonata),
    "variations": Form(2, 64, variations),
    "chain": Form(2, 80, chain),
}
