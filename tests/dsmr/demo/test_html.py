"""The page: one file that needs nothing else, says what it was given, and plays in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dsmr.demo.html import Number, Page, Picture, Row, drawn, write_page
from dsmr.music.sound import SAMPLE_RATE, write_wav
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance
from dsmr.plots import Curve, training_curve
from tests import chromium

HOSTILE = "</script><script>alert('x')</script> & \"Prélude\" <img src=x onerror=alert(1)> %%title ${seconds}"
VOID = {"meta", "link", "input", "img", "br"}


def a_performance() -> Performance:
    notes = np.zeros(120, NOTE_DTYPE)
    notes["onset"] = np.arange(120) / 4
    notes["offset"] = notes["onset"] + 0.2
    notes["pitch"] = 48 + np.arange(120) * 5 % 36
    notes["velocity"] = 20 + np.arange(120) * 7 % 100
    return Performance(notes, np.array([(1.0, 127), (3.0, 0)], PEDAL_DTYPE))


def a_page(text: str = "plain") -> Page:
    losses = [Curve(text, [0, 1000, 2000], [4.0, 3.0, 2.5]), Curve("validation", [1000, 2000], [3.1, 2.7])]
    return Page(
        title=text,
        lead=[text, "second"],
        warnings=[text],
        music=a_performance(),
        seconds=30.0,
        music_caption=text,
        numbers=[Number(text, text, text, text)] * 2,
        figures=[Picture(text, text, text, drawn(lambda path: training_curve(losses, path)))] * 2,
        rows=[Row(text, text, text, within, text) for within in (True, False, None)],
        rows_caption=text,
        footer=[text],
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "music.wav"
    write_wav(a_performance(), path)
    return path


@pytest.fixture(scope="module")
def plain(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(a_page(), sound, path)
    return path


@pytest.fixture(scope="module")
def hostile(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "hostile.html"
    write_page(a_page(HOSTILE), sound, path)
    return path


class Outline(HTMLParser):
    """Every element with its attributes, every text with the element that it is in; tags have to nest."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_parses_and_has_one_of_everything_named(plain: Path) -> None:
    outline = Outline(plain)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    twice = {name for name in ids if ids.count(name) > 1}
    assert all(name.startswith(("p", "m")) for name in twice)  # equal figures' clip paths and markers are equal
    assert {"roll", "seek", "play", "audio", "data"} <= set(ids)
    assert len(outline.of("h1")) == 1
    assert len(outline.of("svg")) == 2 + 2  # the figures; and the button's icons


def test_reaches_nothing_outside_itself(plain: Path) -> None:
    outline = Outline(plain)
    for tag, attributes in outline.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, name, attributes[name])
        assert not re.search(r"url\((?!#)", attributes.get("style", ""))
    style = "".join(text for tag, text in outline.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    addresses = re.findall(r"https?://[^\"'\s<]+", plain.read_text(encoding="utf-8"))
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    (policy,) = (each["content"] for each in outline.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_holds_the_notes_as_they_sound(plain: Path) -> None:
    (text,) = (text for tag, text in Outline(plain).texts if tag == "script" and text.startswith("{"))
    data = json.loads(text)
    assert data["seconds"] == 30
    assert len(data["notes"]) == 120
    assert data["notes"][0] == [0, 0.2, 48, 20]
    assert data["notes"][4][1] > 1.2  # released at 1.2 s, with the pedal down


def test_holds_the_sound_at_half_its_rate(plain: Path, sound: Path) -> None:
    (audio,) = Outline(plain).of("audio")
    head, encoded = audio["src"].split(",", 1)
    assert head == "data:audio/wav;base64"

    def read(file: wave.Wave_read) -> np.ndarray:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).astype(np.float64)

    with wave.open(str(sound), "rb") as file:
        before, rate = read(file), file.getframerate()
    with wave.open(io.BytesIO(base64.b64decode(encoded)), "rb") as file:
        after = read(file)
        assert file.getframerate() * 2 == rate == SAMPLE_RATE
    assert len(after) == -(-len(before) // 2)
    # What a low-pass filter takes away is above a quarter of the old rate; below, the two are one sound.
    kept = [
        np.fft.rfft(signal, size, axis=0)[: len(after) // 4] / size
        for signal, size in ((before, 2 * len(after)), (after, len(after)))
    ]
    assert np.linalg.norm(kept[0] - kept[1]) < 0.01 * np.linalg.norm(kept[0])


def test_says_everything_and_takes_nothing_for_markup(hostile: Path) -> None:
    outline = Outline(hostile)
    said = [text for tag, text in outline.texts if HOSTILE in text]
    # Title, heading, two paragraphs, caption, numbers, figures, rows, the table's caption, the footer.
    assert len(said) == 2 + 2 + 1 + 2 * 4 + 2 * 2 + 3 * 4 + 1 + 1
    begun = [text for tag, text in outline.texts if HOSTILE[:20] in text]
    assert len(begun) == len(said) + 2  # the legend of each figure, where the middle of long names is left out
    assert len(outline.of("script")) == 2
    assert not outline.of("img")
    assert all(f"{HOSTILE}" == each["aria-label"] for each in outline.of("svg") if "viewbox" in each and "role" in each)


def test_every_figure_is_described_and_every_control_named(plain: Path) -> None:
    outline = Outline(plain)
    for svg in outline.of("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    assert all(each["aria-label"] for each in (*outline.of("button"), *outline.of("input")))
    assert outline.of("html") == [{"lang": "en"}]


def test_figures_take_the_pages_colours_and_letters() -> None:
    svg = drawn(lambda path: training_curve([Curve("loss", [0, 1], [1, 2])], path))
    assert svg.startswith("<svg")
    assert "var(--c0)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "loss</text>" in svg
    assert "DejaVu" not in svg


@pytest.fixture
def browser() -> Iterator[chromium.Chromium]:
    path = chromium.find()
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(chromium.NAMES)} is installed")
    with chromium.Chromium(path) as started:
        yield started


def test_follows_the_music_in_a_browser(browser: chromium.Chromium, plain: Path) -> None:
    browser.open(plain)
    browser.evaluate("window.at = (id) => new DOMMatrix(getComputedStyle(document.getElementById(id)).transform).m41")
    browser.evaluate("window.audio = document.getElementById('audio')")
    browser.wait("audio.readyState >= 2")
    assert browser.evaluate("audio.duration") == pytest.approx(30 + 1, abs=1.2)  # the last notes ring on
    width = browser.evaluate("document.getElementById('roll').clientWidth")

    # Seeking by keyboard moves both marks; in the middle of the music the roll moves below a playhead that stands.
    browser.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    browser.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
    browser.wait("!audio.seeking")
    assert browser.evaluate("audio.currentTime") == 5
    assert browser.evaluate("at('here')") == pytest.approx(5 / 30 * width, abs=1)
    browser.evaluate("audio.currentTime = 15")
    browser.wait("!audio.seeking && document.getElementById('clock').textContent === '0:15 / 0:30'")
    assert browser.evaluate("at('playhead')") == pytest.approx(width / 3, abs=1)

    # A click there and then: half a roll before the end is half a roll before the end.
    x = browser.evaluate("document.getElementById('roll').getBoundingClientRect().right") - width / 3
    y = browser.evaluate("document.getElementById('roll').getBoundingClientRect().top") + 50
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.wait("!audio.seeking && audio.currentTime > 15")
    clicked = browser.evaluate("audio.currentTime")
    assert 15 < clicked < 30

    # While it plays the mark is where the sound is.
    browser.evaluate("document.getElementById('play').click()")
    browser.wait(f"audio.currentTime > {clicked} + 0.5")
    apart = browser.evaluate(
        "new Promise((done) => requestAnimationFrame(() => "
        "done(Math.abs(at('here') - audio.currentTime / 30 * document.getElementById('roll').clientWidth))))"
    )
    assert apart < 0.25 / 30 * width  # a quarter of a second, on a busy machine
    assert browser.evaluate("document.getElementById('play').getAttribute('aria-label')") == "Pause"
    browser.evaluate("document.getElementById('play').click()")
    browser.wait("document.getElementById('play').getAttribute('aria-label') === 'Play'")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []


def test_hostile_titles_do_nothing_in_a_browser(browser: chromium.Chromium, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    browser.wait("document.getElementById('audio').readyState >= 1")
    assert browser.problems == []


def test_the_reader_sees_a_page_without_notes(sound: Path, tmp_path: Path, browser: chromium.Chromium) -> None:
    write_page(replace(a_page(), music=Performance(np.empty(0, NOTE_DTYPE))), sound, tmp_path / "silence.html")
    browser.open(tmp_path / "silence.html")
    browser.wait("document.getElementById('audio').readyState >= 1")
    assert browser.problems == []
