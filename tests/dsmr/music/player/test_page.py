"""The page of takes: one file that needs nothing else, whose takes are seen, heard and taken away."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest

from dsmr.music.midi import read_midi, write_midi
from dsmr.music.player.page import WHAT_IS_PALE, WHAT_RETURNS, Playable, write_page
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance
from tests import chromium
from tests.outline import Outline, leads_outside

HOSTILE = "</script><script>alert('x')</script> & \"Prélude\" <img src=x onerror=alert(1)> %%title ${seconds}"


def a_performance(seed: int = 0) -> Performance:
    """30 s whose last third is the first in another key, with the pedal down from 1 s to 3 s."""
    notes = np.zeros(240, NOTE_DTYPE)
    notes["onset"] = np.arange(240) / 8
    notes["offset"] = notes["onset"] + 0.1
    notes["pitch"] = np.random.default_rng(seed).integers(48, 80, 240)
    notes["pitch"][160:] = notes["pitch"][:80] + 5
    notes["velocity"] = 20 + np.arange(240) * 7 % 100
    return Performance(notes, np.array([(1.0, 127), (3.0, 0)], PEDAL_DTYPE))


def playable(folder: Path, number: int, **changes: object) -> Playable:
    performance = a_performance(number)
    write_midi(performance, folder / "take.mid")
    midi = (folder / "take.mid").read_bytes()
    take = Playable(f"Take {number}", performance, 30.0, midi, f"take-{number}.mid")
    return replace(take, **changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    takes = [playable(folder, 1, by="one"), playable(folder, 2, by="one"), playable(folder, 3, by="another")]
    write_page(folder / "index.html", takes, title="Music", lead=["words"], footer=["more"])
    return folder / "index.html"


def data_of(path: Path) -> list[dict]:
    (text,) = (text for tag, text in Outline(path).texts if tag == "script" and text.startswith("["))
    return json.loads(text)


def downloads(path: Path) -> dict[str, bytes]:
    found = {}
    for link in Outline(path).of("a"):
        head, encoded = link["href"].split(",", 1)
        assert head == "data:audio/midi;base64"
        found[link["download"]] = base64.b64decode(encoded, validate=True)
    return found


def test_every_take_has_a_button_and_its_midi_file(plain: Path, tmp_path: Path) -> None:
    outline = Outline(plain)
    labels = [each["aria-label"] for each in outline.of("button") if "data-name" in each]
    assert labels == ["Play Take 1", "Play Take 2", "Play Take 3"]
    files = downloads(plain)
    assert list(files) == ["take-1.mid", "take-2.mid", "take-3.mid"]
    for number, content in enumerate(files.values(), 1):
        (tmp_path / "read.mid").write_bytes(content)
        read, own = read_midi(tmp_path / "read.mid"), a_performance(number)
        for name in NOTE_DTYPE.names or ():
            np.testing.assert_allclose(read.notes[name], own.notes[name], atol=0.0005)  # half a tick
        assert mido.MidiFile(file=io.BytesIO(content)).length == pytest.approx(30, abs=0.1)
    headings = [text for tag, text in outline.texts if tag == "h3"]
    assert headings == ["one", "another"]


def test_holds_the_notes_as_they_sound(plain: Path) -> None:
    first = data_of(plain)[0]
    assert (first["name"], first["seconds"], first["prompt"]) == ("Take 1, one", 30, 0)
    assert len(first["notes"]) == 240
    assert first["notes"][0][:2] == [0, 0.1]
    assert first["notes"][8][1] > 1.2  # released at 1.1 s, with the pedal down
    assert [note[0] for note in first["notes"]] == sorted(note[0] for note in first["notes"])


def test_marks_what_is_played_again(plain: Path) -> None:
    """160 notes of four tokens or so lie between a third and its return."""
    for take in data_of(plain):
        assert take["again"] == [[20.0, 29.88]]
    assert WHAT_RETURNS in plain.read_text(encoding="utf-8")


def test_says_nothing_of_returns_and_prompts_where_there_are_none(tmp_path: Path) -> None:
    once = Performance(a_performance().notes[:80])
    write_page(tmp_path / "page.html", [playable(tmp_path, 1, performance=once)], title="once")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert WHAT_RETURNS not in text
    assert WHAT_IS_PALE not in text


def test_tells_the_prompt_from_what_follows(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", [playable(tmp_path, 1, prompt_seconds=7.25)], title="prompted")
    assert data_of(tmp_path / "page.html")[0]["prompt"] == 7.25
    assert WHAT_IS_PALE in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_parses_and_names_everything_once(plain: Path) -> None:
    outline = Outline(plain)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {"roll", "seek", "play", "data"} <= set(ids)
    assert len(outline.of("h1")) == 1
    assert outline.of("html") == [{"lang": "en"}]
    assert all(each["aria-label"] for each in (*outline.of("button"), *outline.of("input"), *outline.of("a")))


def test_reaches_nothing_outside_itself(plain: Path) -> None:
    outline = Outline(plain)
    assert leads_outside(outline) == []
    (policy,) = (each["content"] for each in outline.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_is_small(plain: Path) -> None:
    """The player itself, and for each note some 30 bytes to see and 20 to take away."""
    assert plain.stat().st_size < 40_000 + 3 * 240 * 60


def test_takes_nothing_for_markup(tmp_path: Path) -> None:
    take = playable(tmp_path, 1, name=HOSTILE, file=HOSTILE, about=HOSTILE, by=HOSTILE)
    write_page(tmp_path / "page.html", [take], title=HOSTILE, lead=[HOSTILE], warnings=[HOSTILE], footer=[HOSTILE])
    outline = Outline(tmp_path / "page.html")
    assert len(outline.of("script")) == 2
    assert not outline.of("img")
    said = [text for tag, text in outline.texts if HOSTILE in text]
    assert len(said) == 2 + 1 + 1 + 1 + 3  # title, heading; lead; warning; footer; whose, name, what is said about it
    assert outline.of("a")[0]["download"] == HOSTILE
    assert data_of(tmp_path / "page.html")[0]["name"] == f"{HOSTILE}, {HOSTILE}"


def test_writes_out_what_nobody_can_see_in_names(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xff\x1b\n.mid")
    write_page(tmp_path / "page.html", [playable(tmp_path, 1, name=odd, file=odd)], title=odd)
    assert r"a\xff\x1b\x0a.mid" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_page_has_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes: expected at least one, got none"):
        write_page(tmp_path / "page.html", [], title="nothing")
    assert not (tmp_path / "page.html").exists()


# In a browser.

AT = "window.at = (id) => new DOMMatrix(getComputedStyle(document.getElementById(id)).transform).m41"
CLOCK = "document.getElementById('clock').textContent"


def seconds_heard(browser: chromium.Chromium) -> int:
    minutes, seconds = browser.evaluate(CLOCK).split(" / ")[0].split(":")
    return 60 * int(minutes) + int(seconds)


def test_follows_the_music_in_a_browser(browser: chromium.Chromium, plain: Path) -> None:
    browser.open(plain)
    browser.evaluate(AT)
    width = browser.evaluate("document.getElementById('roll').clientWidth")
    browser.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
    assert browser.evaluate(CLOCK) == "0:05 / 0:30"
    assert browser.evaluate("at('here')") == pytest.approx(5 / 30 * width, abs=1)

    # In the middle of the music the roll moves below a playhead that stands.
    browser.evaluate(
        "{ const seek = document.getElementById('seek'); seek.value = 12; seek.dispatchEvent(new Event('input')); }"
    )
    standing = browser.evaluate("at('playhead')")
    browser.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))")
    assert browser.evaluate(CLOCK) == "0:17 / 0:30"
    assert browser.evaluate("at('playhead')") == pytest.approx(standing, abs=1)

    # A click goes where the notes are that were clicked.
    right = browser.evaluate("document.getElementById('roll').getBoundingClientRect().right")
    top = browser.evaluate("document.getElementById('roll').getBoundingClientRect().top")
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=right - 40, y=top + 50, button="left", clickCount=1)
    assert 17 < seconds_heard(browser) < 30
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []


def test_plays_the_take_that_was_chosen(browser: chromium.Chromium, plain: Path) -> None:
    browser.open(plain)
    browser.evaluate("window.buttons = document.querySelectorAll('.takes button')")
    browser.evaluate("buttons[2].click()")
    assert browser.evaluate("document.getElementById('current').textContent") == "Take 3, another"
    pressed = "[...buttons].map((each) => each.getAttribute('aria-pressed')).join()"
    assert browser.evaluate(pressed) == "false,false,true"
    assert browser.evaluate("document.getElementById('play').getAttribute('aria-label')") == "Pause"
    browser.wait(f"parseInt({CLOCK}.split(':')[1]) >= 1")
    browser.evaluate("document.getElementById('play').click()")
    assert browser.evaluate(pressed) == "false,false,false"
    paused = browser.evaluate(CLOCK)
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser.evaluate(CLOCK) == paused
    browser.evaluate("buttons[0].click()")  # another take begins at its beginning
    assert browser.evaluate("document.getElementById('current').textContent") == "Take 1, one"
    browser.evaluate("buttons[0].click()")
    assert seconds_heard(browser) == 0
    assert browser.problems == []


def test_stops_at_the_end_and_begins_again(browser: chromium.Chromium, plain: Path) -> None:
    browser.open(plain)
    browser.evaluate(
        "{ const seek = document.getElementById('seek'); seek.value = 29.5; seek.dispatchEvent(new Event('input')); }"
    )
    browser.evaluate("document.getElementById('play').click()")
    browser.wait("document.getElementById('play').getAttribute('aria-label') === 'Play'")
    browser.wait(f"{CLOCK} === '0:30 / 0:30'")
    browser.evaluate("document.getElementById('play').click()")
    browser.wait(f"{CLOCK}.startsWith('0:00')")
    assert browser.problems == []


@pytest.mark.parametrize("pitch", [33, 69, 100])
def test_a_note_sounds_at_its_pitch_until_it_is_released(browser: chromium.Chromium, plain: Path, pitch: int) -> None:
    """What the page's piano plays, rendered to samples: [onset, offset, pitch, velocity] of 0.5 s to 1.5 s."""
    source = (Path(__file__).parents[4] / "dsmr" / "music" / "player" / "piano.js").read_text(encoding="utf-8")
    browser.open(plain)
    browser.evaluate(source.replace("class Piano", "window.strike = strike; class Piano"))
    samples = browser.evaluate(
        "(async () => { const context = new OfflineAudioContext(2, 2 * 44100, 44100);"
        f"strike(context, context.destination, [0.5, 1.5, {pitch}, 90], 0.5);"
        "const sound = await context.startRendering();"
        "return [0, 1].map((channel) => Array.from(sound.getChannelData(channel))); })()"
    )
    left, right = np.array(samples)
    sound = left + right
    assert not sound[: 44100 // 2].any()
    assert np.abs(sound).max() < 1
    assert np.square(sound[-4410:]).mean() < 1e-4 * np.square(sound[22050:44100]).mean()  # released half a second ago
    spectrum = np.abs(np.fft.rfft(sound[22050:66150] * np.hanning(44100)))  # a bin a hertz
    partials = np.arange(1, 200) * 440 * 2 ** ((pitch - 69) / 12)
    strongest = int(spectrum.argmax())
    assert np.abs(partials / strongest - 1).min() < 0.02  # a stiff string's partials are a little sharp
    energy = [np.square(channel).sum() for channel in (left, right)]
    assert (energy[1] > energy[0]) == (pitch > 64)  # high keys are to the right


def coloured_pixels(browser: chromium.Chromium) -> tuple[int, ...]:
    """How many pixels of the roll have a note's colour: where times are named, where keys are, and where notes are."""
    return tuple(
        browser.evaluate(
            "(() => { const canvas = document.getElementById('notes'), ratio = devicePixelRatio;"
            f"const [x, y, w, h] = {box}.map((each) => Math.round(each * ratio));"
            "const data = canvas.getContext('2d').getImageData(x, y, w, h).data; let found = 0;"
            "for (let i = 0; i < data.length; i += 4) {"
            "const low = Math.min(...data.slice(i, i + 3)), high = Math.max(...data.slice(i, i + 3));"
            "if (data[i + 3] > 127 && high - low > 60) found++; } return found; })()"
        )
        for box in (
            "[0, canvas.clientHeight - 18, canvas.clientWidth, 18]",
            "[0, 0, 29, canvas.clientHeight]",
            "[30, 0, canvas.clientWidth - 30, canvas.clientHeight - 24]",
        )
    )


@pytest.mark.parametrize("screen", ["browser", "phone"])
def test_notes_never_cover_the_names_of_times_and_keys(
    screen: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Notes of all keys, the lowest and the highest too, all the time."""
    notes = np.zeros(128, NOTE_DTYPE)
    notes["offset"], notes["pitch"], notes["velocity"] = 20.0, np.arange(128), 100
    page = tmp_path / "page.html"
    write_page(page, [playable(tmp_path, 1, performance=Performance(notes), seconds=20.0)], title="full")
    browser: chromium.Chromium = request.getfixturevalue(screen)
    browser.open(page)
    for moment in (0, 10, 20):
        browser.evaluate(
            "{ const seek = document.getElementById('seek'); "
            f"seek.value = {moment}; seek.dispatchEvent(new Event('input')); }}"
        )
        below, beside, inside = coloured_pixels(browser)
        assert (below, beside) == (0, 0)
        assert inside > 10_000
    assert browser.evaluate("document.documentElement.scrollWidth") <= browser.evaluate("innerWidth")


def test_hostile_names_do_nothing_in_a_browser(browser: chromium.Chromium, tmp_path: Path) -> None:
    take = playable(tmp_path, 1, name=HOSTILE, file=HOSTILE, about=HOSTILE, by=HOSTILE)
    write_page(tmp_path / "page.html", [take], title=HOSTILE)
    browser.open(tmp_path / "page.html")
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert browser.evaluate("document.getElementById('current').textContent") == f"{HOSTILE}, {HOSTILE}"
    assert browser.problems == []


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_take_without_notes_is_shown(browser: chromium.Chromium, tmp_path: Path, seconds: float) -> None:
    silence = Performance(np.empty(0, NOTE_DTYPE))
    write_page(tmp_path / "page.html", [playable(tmp_path, 1, performance=silence, seconds=seconds)], title="silence")
    browser.open(tmp_path / "page.html")
    browser.evaluate("document.getElementById('play').click()")
    browser.wait(f"{CLOCK}.includes('/')")
    assert browser.problems == []


def test_an_hour_of_music_is_drawn_and_played_from_anywhere(browser: chromium.Chromium, tmp_path: Path) -> None:
    notes = np.zeros(100_000, NOTE_DTYPE)
    notes["onset"] = np.arange(100_000) * 0.036
    notes["offset"] = notes["onset"] + 0.03
    notes["pitch"], notes["velocity"] = 40 + np.arange(100_000) % 41, 64
    write_page(
        tmp_path / "page.html", [playable(tmp_path, 1, performance=Performance(notes), seconds=3600.0)], title=""
    )
    browser.open(tmp_path / "page.html")
    browser.evaluate(
        "{ const seek = document.getElementById('seek'); seek.value = 3000; seek.dispatchEvent(new Event('input')); }"
    )
    assert browser.evaluate(CLOCK) == "50:00 / 60:00"
    browser.evaluate("document.getElementById('play').click()")
    browser.wait(f"{CLOCK} >= '50:01 / 60:00'")
    assert browser.problems == []
