"""Characters: the kinds of piece the pianist knows, and the composer and performer drawn for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Key
from dsmr.pianist.performance import Touch
from dsmr.pianist.rhythm import METRES
from dsmr.pianist.theme import Language


@dataclass(frozen=True)
class Character:
    """A kind of piece.

    Args:
        name: as a title says it.
        metres: it may be written in.
        dialects: of its harmony, by weight.
        manners: of its rhythm, by weight.
        textures: right hands and left hands of its main themes, which combine freely.
        contrasts: the same for contrasting sections.
        tempo: beats a minute, slowest and fastest.
        density: notes a second to aim at, thinnest and thickest; the tempo gives way to it.
        pedals: see ``performance.Setting``, by weight.
        hold: shares of their lengths that melody and accompaniment are held.
        freedom: 0..1, how free the tempo is.
        minor: probability of a minor key.
    """

    name: str
    metres: tuple[str, ...]
    dialects: Mapping[str, float]
    manners: Mapping[str, float]
    textures: tuple[tuple[str, ...], tuple[str, ...]]
    contrasts: tuple[tuple[str, ...], tuple[str, ...]]
    tempo: tuple[int, int]
    density: tuple[float, float]
    pedals: Mapping[str, float]
    hold: tuple[float, float]
    freedom: float
    minor: float = 0.5


_SONGFUL = {"lyrical": 4, "flowing": 2, "dotted": 1, "rippling": 1}
_LIVELY = {"dance": 3, "motoric": 2, "dotted": 2, "flowing": 1, "syncopated": 1}
_ROMANTIC = {"romantic": 4, "classical": 1, "modal": 1}
_CLASSICAL = {"classical": 4, "romantic": 1, "baroque": 1}
_BAROQUE = {"baroque": 5, "classical": 1}
_DRY = {"none": 3, "touch": 1}
_WET = {"harmony": 4, "bar": 1}

CHARACTERS = (
    Character(
        "Nocturne", ("4/4", "6/8", "12/8"), _ROMANTIC, _SONGFUL,
        (("single", "thirds", "filled"), ("nocturne", "nocturne 8", "harp", "rolling")),
        (("chords", "octaves", "tenor"), ("chorale", "triplets", "surge", "pulse high")),
        (44, 80), (5.5, 9), _WET, (1.0, 0.95), 0.9,
    ),
    Character(
        "Waltz", ("3/4",), _ROMANTIC, {"dance": 3, "flowing": 3, "lyrical": 2, "rippling": 1},
        (("single", "thirds", "octaves", "broken"), ("waltz", "waltz light")),
        (("chords", "octaves", "thirds", "tenor"), ("waltz", "heavy", "pulse high", "nocturne 8")),
        (132, 208), (6, 10), {"touch": 3, "harmony": 1, "bar": 1}, (0.95, 0.5), 0.5,
    ),
    Character(
        "Mazurka", ("3/4",), {"romantic": 2, "modal": 2}, {"dotted": 4, "rippling": 2, "dance": 1},
        (("single", "thirds", "chords"), ("waltz", "waltz light", "pulse high")),
        (("octaves", "chords", "filled"), ("drone", "waltz", "heavy")),
        (116, 170), (6, 9), {"touch": 3, "none": 1}, (0.9, 0.5), 0.7,
    ),
    Character(
        "March", ("4/4", "2/4"), _CLASSICAL, {"dotted": 4, "dance": 2, "rippling": 1},
        (("chords", "octaves", "filled"), ("march", "stride 8", "heavy", "pulse high")),
        (("thirds", "single", "tenor"), ("alberti 16", "song", "rolling", "murky")),
        (96, 132), (7, 12), {"touch": 2, "none": 2, "harmony": 1}, (0.75, 0.6), 0.15,
    ),
    Character(
        "Study", ("4/4", "2/4", "3/4"), {"romantic": 3, "classical": 2, "modal": 1},
        {"lyrical": 2, "flowing": 2, "dance": 2},
        (("broken", "broken octaves", "octaves", "tenor"), ("surge", "harp", "octaves", "running", "heavy")),
        (("chords", "octaves", "broken"), ("surge", "drone", "rolling 16", "stride 8")),
        (88, 144), (10, 15), _WET, (0.9, 0.9), 0.25,
    ),
    Character(
        "Toccata", ("4/4", "2/4", "12/8"), {"baroque": 2, "classical": 1, "modal": 2}, {"motoric": 5, "dance": 2},
        (("broken", "broken octaves", "single"), ("murky", "running", "ostinato", "octaves")),
        (("chords", "octaves"), ("ostinato", "drone", "running", "heavy")),
        (104, 152), (10, 15), {"none": 2, "touch": 2, "harmony": 1}, (0.7, 0.7), 0.08, 0.7,
    ),
    Character(
        "Prelude", ("4/4", "3/4", "6/8", "9/8", "5/4"), {"romantic": 2, "modal": 2, "baroque": 1}, _SONGFUL,
        (("single", "filled", "tenor"), ("song", "rolling 16", "harp", "song 8")),
        (("chords", "octaves", "broken"), ("chorale", "surge", "triplets", "drone")),
        (54, 112), (6, 12), _WET, (1.0, 0.95), 0.6,
    ),
    Character(
        "Invention", ("4/4", "3/4", "2/4"), _BAROQUE, {"motoric": 4, "flowing": 3},
        (("single",), ("imitation", "walking", "running")),
        (("single", "thirds"), ("running", "imitation", "walking", "chorale")),
        (72, 112), (6, 10), {"none": 1}, (0.9, 0.85), 0.12,
    ),
    Character(
        "Minuet", ("3/4",), _CLASSICAL, {"dance": 2, "flowing": 2, "dotted": 1, "rippling": 1},
        (("single", "thirds", "filled"), ("alberti", "walking", "waltz light", "rolling")),
        (("thirds", "octaves", "single"), ("drone", "running", "alberti 16", "murky")),
        (112, 156), (5, 9), _DRY, (0.85, 0.7), 0.2, 0.3,
    ),
    Character(
        "Gigue", ("6/8", "12/8"), _BAROQUE, {"motoric": 3, "flowing": 2, "dotted": 1},
        (("single", "thirds"), ("imitation", "walking", "running")),
        (("single", "thirds", "filled"), ("running", "walking", "octaves")),
        (76, 126), (7, 11), _DRY, (0.8, 0.8), 0.1,
    ),
    Character(
        "Tarantella", ("6/8",), {"classical": 1, "romantic": 1, "modal": 1}, {"motoric": 3, "dance": 3, "rippling": 1},
        (("single", "thirds", "octaves"), ("tarantella", "octaves", "rolling")),
        (("chords", "octaves", "tenor"), ("octaves", "tarantella", "triplets")),
        (104, 168), (9, 14), {"touch": 2, "none": 1}, (0.8, 0.55), 0.12, 0.8,
    ),
    Character(
        "Polonaise", ("3/4",), _ROMANTIC, {"dotted": 3, "dance": 2, "motoric": 1, "rippling": 1},
        (("chords", "octaves", "thirds"), ("polonaise", "heavy")),
        (("single", "octaves", "tenor"), ("murky", "drone", "nocturne 8", "polonaise")),
        (84, 108), (8, 13), {"touch": 2, "harmony": 2}, (0.85, 0.65), 0.3,
    ),
    Character(
        "Barcarolle", ("6/8", "12/8"), {"romantic": 3, "modal": 1}, _SONGFUL,
        (("thirds", "single", "filled"), ("nocturne", "nocturne 8", "song 8")),
        (("octaves", "thirds", "tenor"), ("harp", "surge", "rolling 16")),
        (42, 76), (6, 10), _WET, (1.0, 0.95), 0.6,
    ),
    Character(
        "Lullaby", ("6/8", "2/4", "3/4"), {"modal": 2, "romantic": 1, "classical": 1}, {"lyrical": 3, "flowing": 1},
        (("single", "thirds"), ("ostinato", "rolling", "nocturne 8", "alberti")),
        (("filled", "thirds", "single"), ("drone", "song", "harp")),
        (50, 84), (4.5, 7.5), _WET, (1.0, 0.9), 0.4, 0.25,
    ),
    Character(
        "Song without Words", ("4/4", "2/4", "6/8"), {"romantic": 2, "classical": 2}, _SONGFUL,
        (("single", "filled", "tenor"), ("song", "triplets", "song 8", "rolling 16")),
        (("octaves", "chords"), ("song", "pulse high", "surge")),
        (60, 100), (7, 11), _WET, (1.0, 0.9), 0.6,
    ),
    Character(
        "Rag", ("2/4", "4/4"), {"classical": 3, "romantic": 1}, {"syncopated": 6, "motoric": 1},
        (("octaves", "single", "thirds", "chords"), ("stride 8", "after-beat")),
        (("chords", "octaves", "broken"), ("stride 8", "heavy", "walking")),
        (80, 116), (8, 12), _DRY, (0.85, 0.6), 0.05, 0.1,
    ),
    Character(
        "Elegy", ("4/4", "3/4", "5/4"), {"romantic": 3, "modal": 2}, {"lyrical": 4, "dotted": 2},
        (("single", "chords", "tenor"), ("triplets", "pulse high", "chorale", "song")),
        (("octaves", "chords", "filled"), ("surge", "heavy", "harp", "chorale")),
        (46, 76), (5, 9), _WET, (1.0, 0.95), 0.8, 0.9,
    ),
    Character(
        "Scherzo", ("3/4", "2/4", "6/8"), {"classical": 2, "romantic": 3}, {"dance": 4, "motoric": 2, "dotted": 1},
        (("single", "octaves", "thirds", "broken"), ("waltz light", "after-beat", "octaves", "pulse high")),
        (("chords", "thirds", "tenor"), ("harp", "chorale", "surge", "triplets")),
        (120, 200), (8, 13), {"none": 2, "touch": 2, "harmony": 1}, (0.65, 0.5), 0.2, 0.6,
    ),
    Character(
        "Impromptu", ("4/4", "3/4", "6/8", "2/4"), _ROMANTIC, {"rippling": 3, "flowing": 3, "lyrical": 1},
        (("single", "octaves", "broken"), ("harp", "rolling 16", "nocturne", "triplets")),
        (("chords", "octaves", "tenor"), ("surge", "triplets", "song")),
        (66, 120), (8, 13), _WET, (0.95, 0.9), 0.5,
    ),
    Character(
        "Bagatelle", ("2/4", "3/4", "6/8", "4/4"), _CLASSICAL, _LIVELY,
        (("single", "thirds", "filled"), ("alberti", "alberti 16", "after-beat", "pulse")),
        (("octaves", "thirds", "chords"), ("rolling 16", "murky", "walking", "drone")),
        (76, 132), (6, 10), {"none": 2, "touch": 2, "harmony": 1}, (0.8, 0.75), 0.25,
    ),
    Character(
        "Rhapsody", ("4/4", "2/4", "3/4"), {"romantic": 3, "modal": 3},
        {"dotted": 2, "rippling": 2, "syncopated": 1, "lyrical": 1},
        (("octaves", "chords", "broken octaves"), ("surge", "heavy", "march", "harp")),
        (("single", "tenor", "filled"), ("song", "rolling", "habanera", "drone")),
        (72, 132), (8, 14), {"harmony": 3, "touch": 1}, (0.9, 0.85), 0.8, 0.6,
    ),
    Character(
        "Habanera", ("2/4", "4/4"), {"romantic": 1, "modal": 1, "classical": 1},
        {"syncopated": 3, "rippling": 3, "dotted": 1},
        (("single", "thirds", "octaves"), ("habanera",)),
        (("chords", "thirds", "tenor"), ("habanera", "song", "after-beat")),
        (58, 88), (6, 10), {"touch": 2, "harmony": 1}, (0.9, 0.6), 0.3, 0.6,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Composer:
    """Who writes and plays one piece: its character, key, language and touch."""

    character: Character
    key: Key
    language: Language
    touch: Touch
    level: float


def draw_composer(dice: Dice) -> Composer:
    """Invent the composer-performer of one piece."""
    character = dice.pick(CHARACTERS)
    metre = METRES[dice.pick(character.metres)]
    bar_seconds = metre.beats * 60 / (sum(character.tempo) / 2)
    language = Language(
        metre=metre,
        dialect=dice.weighted(character.dialects),
        chords=min(max(round(2 * bar_seconds / dice.between(1.2, 2.2)), 2), 6),
        leaps=dice.between(0.15, 0.5),
        dissonance=dice.between(0.45, 1.1),
        literal=dice.between(0.4, 1.0),
        ornaments=dice.pick((0.0, 0.05, 0.15)),
    )
    free = character.freedom * dice.between(0.6, 1.2)
    steady = dice.chance(0.9 - 0.8 * free)
    touch = Touch(
        steady=steady,
        arch=0.0 if steady else 0.02 + 0.22 * free,
        ritardando=0.15 + 0.6 * free,
        jitter=dice.weighted({0: 1.5 - free, 1: 1 + free, 2: free}),
        lead=dice.integer(0, 2) + (1 if free > 0.5 else 0),
        spread=dice.weighted({0: 1, 1: 3, 2: 3, 3: 2 * free}),
        roll=0.5 * free * dice.unit(),
        accent=dice.between(6, 20),
        noise=dice.between(4, 12),
        voicing=dice.between(9, 22),
        overlap=dice.integer(0, 4),
    )
    key = Key(dice.integer(0, 11), dice.chance(character.minor))
    return Composer(character, key, language, touch, dice.between(54, 70))
