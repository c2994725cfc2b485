"""Workshop: sections of a wanted size, from themes and phrases up to compound songs, episodes and developments."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsmr.music.tokens import HIGHEST_KEY, STEPS_PER_SECOND
from dsmr.pianist.character import Composer
from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Key
from dsmr.pianist.melody import Compass
from dsmr.pianist.passage import Passage, Player, louder, token_count, transposed
from dsmr.pianist.performance import Setting
from dsmr.pianist.texture import Texture
from dsmr.pianist.theme import (
    Idea,
    Material,
    Phrase,
    Theme,
    draw_material,
    in_parallel_key,
    varied,
    write_idea,
    write_phrase,
    write_theme,
)

_TOKENS_PER_NOTE = 4.1  # of real performances; only for plans, what was played is counted


@dataclass(frozen=True)
class Section:
    """A passage, the theme that it presents and how that was played."""

    passage: Passage
    theme: Theme
    setting: Setting


class Workshop:
    """Builds the sections of one piece.

    Args:
        dice: the piece's dice.
        composer: its composer.
    """

    def __init__(self, dice: Dice, composer: Composer) -> None:
        self.dice = dice
        self.composer = composer
        self.language = composer.language
        self.player = Player(dice, composer)
        self.manner = dice.weighted(composer.character.manners)
        self.tempo = 0.0  # beats a minute, once a first sketch has shown what suits the character
        self._sketch()

    def _sketch(self) -> None:
        """Try a theme to find the tempo, and what a bar will cost."""
        theme = self.theme(self.composer.key, 4)
        ideas = theme.phrases[0]
        setting = self.setting(ideas, False, 0.0)
        self.tempo = 60 * STEPS_PER_SECOND / (setting.pace * self.language.metre.beat)
        self.bar_tokens = self._bar_cost(ideas, setting)

    def _bar_cost(self, ideas: tuple[Idea, ...], setting: Setting) -> float:
        """About how many tokens a bar of ideas takes in a setting."""
        return self.player.density(ideas, setting.texture) * self.language.metre.beats * _TOKENS_PER_NOTE

    # Themes and how they are played

    def theme(self, key: Key, phrase_bars: int, kin: Material | None = None, away: Key | None = None) -> Theme:
        """Compose a period (see ``write_theme``), in a range of its own."""
        middle = self.dice.integer(70, 79)
        reach = self.dice.integer(9, 12)
        manner = (
            self.manner if kin is None or self.dice.chance(0.5) else self.dice.weighted(self.composer.character.manners)
        )
        material = draw_material(self.dice, self.language, manner, Compass(middle - reach, middle + reach), kin)
        return write_theme(self.dice, self.language, key, material, phrase_bars, away)

    def setting(self, ideas: tuple[Idea, ...], contrast: bool, level: float) -> Setting:
        """Choose a texture for ideas, and a pace at which it is as dense as the character asks.

        Args:
            ideas: what will be played.
            contrast: whether it is for a contrasting section.
            level: velocity above the composer's own.
        """
        character = self.composer.character
        texture, tempo = self._texture(ideas, contrast)
        hold, accompaniment_hold = character.hold
        top = max((tone.pitch for idea in ideas for tone in idea.melody), default=HIGHEST_KEY)
        return Setting(
            texture=texture,
            pace=60 * STEPS_PER_SECOND / (tempo * self.language.metre.beat),
            level=self.composer.level + level,
            swell=self.dice.between(5, 22),
            octave=12 if top <= 84 and self.dice.chance(0.25) else 0,
            hold=hold * self.dice.between(0.9, 1.03),
            accompaniment_hold=accompaniment_hold * self.dice.between(0.85, 1.1),
            pedal=self.dice.weighted(character.pedals),
        )

    def _texture(self, ideas: tuple[Idea, ...], contrast: bool) -> tuple[Texture, float]:
        """A texture out of a few draws, and a tempo near the piece's, that come nearest to the density asked for."""
        character = self.composer.character
        rights, lefts = character.contrasts if contrast else character.textures
        thin, thick = character.density
        if contrast:
            thin, thick = 0.75 * thin, 1.3 * thick
        slowest, fastest = (0.85 * self.tempo, 1.18 * self.tempo) if self.tempo else character.tempo
        drawn: list[tuple[float, Texture, float]] = []
        for _ in range(6):
            texture = Texture(self.dice.pick(rights), self.dice.pick(lefts))
            notes = self.player.density(ideas, texture)
            tempo = min(max(60 * self.dice.between(thin, thick) / notes, slowest), fastest)
            density = notes * tempo / 60
            if density > 1.2 * thick:  # no fingers are that fast
                tempo *= 1.2 * thick / density
            drawn.append((max(thin - density, density - thick, 0.0), texture, tempo))
        _, texture, tempo = min(drawn, key=lambda draw: draw[0])
        if self.composer.touch.steady:  # a beat of whole steps sounds, and encodes, like the next one
            tempo = 60 * STEPS_PER_SECOND / round(60 * STEPS_PER_SECOND / tempo)
        return texture, tempo

    def related_key(self, key: Key) -> Key:
        """Choose a key for a contrast to another one."""
        if key.minor:
            return key.on(
                *self.dice.weighted({(3, False): 5, (7, True): 2, (5, True): 2, (8, False): 2, (0, False): 2})
            )
        near = {(7, False): 4, (9, True): 3, (5, False): 3, (0, True): 2, (2, True): 1}
        if self.language.dialect == "romantic":
            near |= {(4, False): 2, (8, False): 2, (3, False): 1}
        return key.on(*self.dice.weighted(near))

    def breath(self) -> int:
        """Steps of rest at the end of a section."""
        return self.dice.integer(6, 20) + int(60 * self.composer.touch.ritardando * self.dice.unit())

    # Sections

    def section(self, key: Key, budget: float, kin: Material | None = None, contrast: bool = False) -> Section:
        """Compose a closed section of about so many tokens: a song, or a ternary form of smaller sections.

        Args:
            key: where it begins and ends.
            budget: tokens.
            kin: material to derive its own from.
            contrast: whether it contrasts with what came before.
        """
        if budget < 44 * self.bar_tokens:
            return self.song(key, budget, kin, contrast)
        outer = self.section(key, budget * self.dice.between(0.3, 0.4), kin, contrast)
        rest = budget - 2 * token_count(outer.passage)
        inner = self.section(self.related_key(key), rest, outer.theme.material, not contrast)
        return replace(outer, passage=outer.passage + inner.passage + self.again(outer.passage))

    def middle(self, key: Key, budget: float, outer: Section) -> Passage:
        """Compose what stands between a section and its return: a section of its own if there is room for one."""
        if budget < 2 * self.bar_tokens:
            return ()
        if budget < 12 * self.bar_tokens:
            return self.episode(self.related_key(key), budget, outer.theme, outer.setting)
        return self.section(self.related_key(key), budget, outer.theme.material, True).passage

    def song(self, key: Key, budget: float, kin: Material | None = None, contrast: bool = False) -> Section:
        """Compose a theme and lay it out as a, aa, aba, aaba or aababa, whichever comes nearest to the budget."""
        level = self.dice.between(-16, 18) if contrast else self.dice.between(-6, 8)
        bars = budget / self.bar_tokens
        phrase_bars = 8 if bars > 40 or (bars > 14 and self.dice.chance(0.75)) else 4
        away = self.related_key(key) if self.dice.chance(0.2) and bars > 20 else None
        theme = self.theme(key, phrase_bars, kin, away)
        ideas = tuple(dict.fromkeys(idea for phrase in theme.phrases for idea in phrase))
        setting = self.setting(ideas, contrast, level)
        phrases = theme.phrases
        if budget < 0.75 * len(phrases) * phrase_bars * self._bar_cost(ideas, setting):
            phrases = phrases[1:]
        a = self.player.play(phrases, setting, self.breath())
        size = token_count(a)
        self.bar_tokens = 0.5 * self.bar_tokens + 0.5 * size / (len(phrases) * phrase_bars)
        times = budget / size
        if times < 1.5:
            passage = a
        elif times < 2.4:
            passage = a + self.again(a)
        elif times < 3.3:
            passage = a + self.episode(self.related_key(key), budget - 2 * size, theme, setting) + self.again(a)
        elif times < 6:
            first = a + self.again(a)
            passage = first + self.episode(self.related_key(key), budget - 3 * size, theme, setting) + self.again(a)
        else:
            b = self.episode(self.related_key(key), (budget - 4 * size) / 2, theme, setting)
            passage = a + a + b + a + b + self.again(a)
        return Section(passage, theme, setting)

    def again(self, passage: Passage) -> Passage:
        """Return a passage as it was or, now and then, varied."""
        return passage if self.dice.chance(self.language.literal) else self.variation(passage, 0.3)

    def variation(self, passage: Passage, busy: float, minor: bool = False, refit: bool = False) -> Passage:
        """Play a passage again with ornaments.

        Args:
            passage: what to vary.
            busy: 0..1, how many notes are divided.
            minor: whether to change the mode.
            refit: whether to choose new textures.
        """
        level = self.dice.between(-16, 18)

        def new_idea(idea: Idea) -> Idea:
            changed = varied(self.dice, idea, busy)
            return in_parallel_key(changed) if minor else changed

        def new_setting(setting: Setting) -> Setting:
            if not refit:
                return louder(setting, level)
            ideas = tuple(new_idea(p.cell.idea) for p in passage[:2] if p.cell.idea is not None)
            return self.setting(ideas, self.dice.chance(0.5), level)

        return self.player.replay(passage, new_idea, new_setting)

    def episode(self, key: Key, budget: float, theme: Theme, setting: Setting) -> Passage:
        """Spin phrase after phrase until about so many tokens: new ones, literal and transposed repeats, sequences.

        Args:
            key: where it begins.
            budget: tokens.
            theme: the theme whose material it spins on.
            setting: how that was played; the episode may take another one.
        """
        passage: Passage = ()
        phrases: list[Passage] = []
        material = theme.material
        while not passage or budget - token_count(passage) > 2 * self.bar_tokens:
            left = budget - token_count(passage)
            if phrases and left > 0.8 * token_count(phrases[-1]) and self.dice.chance(0.45):
                passage += self._repeat(phrases)
                continue
            if len(phrases) % 3 == 0:
                if phrases:
                    key = self.related_key(key)
                if self.dice.chance(0.4):
                    material = draw_material(self.dice, self.language, self.manner, material.voice, material)
            if left < 3 * self.bar_tokens or (left > 7 * self.bar_tokens and self.dice.chance(0.3)):
                model = self._model(key, material, 1)
                phrases.append(self._sequence(self.player.play((model,), setting, 0), left)[0])
            else:
                bars = 8 if left > 9 * self.bar_tokens and self.dice.chance(0.5) else 4
                cadence = self.dice.weighted({"half": 3, "full": 2, "evade": 2})
                phrase = write_phrase(self.dice, self.language, key, material, bars, cadence)
                if len(phrases) % 3 == 0 and self.dice.chance(0.75):
                    setting = self.setting(phrase, True, self.dice.between(-14, 16))
                phrases.append(self.player.play((phrase,), setting, self.dice.integer(2, 12)))
            passage += phrases[-1]
        return passage

    def _repeat(self, phrases: list[Passage]) -> Passage:
        """The last phrase, or an earlier one, as it was or in another key."""
        repeated = phrases[-1] if self.dice.chance(0.7) else self.dice.pick(phrases)
        shift = self.dice.weighted({0: 3, 2: 1, -2: 1, 5: 1, -5: 0.5, 3: 0.7, -3: 0.7})
        return transposed(repeated, shift) if shift else repeated

    def _model(self, key: Key, material: Material, ideas: int) -> Phrase:
        """One or two ideas for a sequence to repeat."""
        start = sum(material.voice) // 2 + self.dice.integer(-5, 5)
        plan = (("open", material.basic), ("go on", material.contrast))[:ideas]
        return tuple(
            write_idea(self.dice, self.language, key, material, purpose, motif, start) for purpose, motif in plan
        )

    def _sequence(self, model: Passage, budget: float) -> tuple[Passage, int]:
        """The model and its repeats, each so many semitones further; with the semitones the last one has come to."""
        step = self.dice.pick((0, 0, 2, -2, 5, -5, 3, -3, -1))
        passage, shift = model, 0
        for k in range(1, self.dice.integer(2, 4)):
            if token_count(passage) + 0.5 * token_count(model) > budget:
                break
            shift = (k * step + 6) % 12 - 6  # sequences by fifths go up a fourth and down a fifth
            passage += transposed(model, shift) if shift else model
        return passage, shift

    def development(self, home: Key, budget: float, themes: list[Theme]) -> Passage:
        """Lead themes through keys by sequences and fragments, then stand on the dominant of the home key."""
        stand = write_idea(self.dice, self.language, home, themes[0].material, "stand", themes[0].material.basic, 72)
        passage: Passage = ()
        key = home
        setting: Setting | None = None
        while setting is None or budget - token_count(passage) > 6 * self.bar_tokens:
            key = self.related_key(key)
            material = self.dice.pick(themes).material
            model = self._model(key, material, self.dice.integer(1, 2))
            if setting is None or self.dice.chance(0.6):
                setting = self.setting(model, self.dice.chance(0.5), self.dice.between(-6, 22))
            sequence, shift = self._sequence(self.player.play((model,), setting, 0), budget - token_count(passage))
            passage += sequence
            key = key.on(shift, key.minor)
            if budget - token_count(passage) > 8 * self.bar_tokens and self.dice.chance(0.6):
                fragment = write_phrase(self.dice, self.language, key, material, 4, "evade")
                passage += self.player.play((fragment,), setting, 1)
        waiting = self.player.play(((stand,),), setting, 0)
        return passage + waiting + waiting

    def transition(self, theme: Theme, home: Key, goal: Key, budget: float, setting: Setting) -> Passage:
        """Lead from one key to the dominant of another."""
        material = theme.material
        passage: Passage = ()
        start = sum(material.voice) // 2
        while True:
            left = budget - token_count(passage)
            key = home if not passage else goal
            if left < 6 * self.bar_tokens:
                phrase = write_phrase(self.dice, self.language, goal, material, 4, "half")
                return passage + self.player.play((phrase,), setting, self.dice.integer(4, 20))
            idea = write_idea(self.dice, self.language, key, material, "go on", material.contrast, start)
            played = self.player.play(((idea,),), setting, 0)
            passage += played + (transposed(played, self.dice.pick((2, -2, 3))) if self.dice.chance(0.6) else played)
