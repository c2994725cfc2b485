"""Page of takes: each can be seen, heard and taken away as MIDI, all from one HTML file.

The page reaches no network, as its security policy says. It holds notes, not sound: `piano.js` lets them sound while
they are played. A minute of music is some 30 kB so, at any length, and would be 3.5 MB as samples.
"""

from __future__ import annotations

import base64
import itertools
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dsmr.music.analysis.repetition import repeated
from dsmr.music.tokens import STEP_SECONDS, Performance, encode, fold_pedal
from dsmr.text import escaped
from dsmr.units import format_clock


@dataclass(frozen=True, eq=False)
class Playable:
    """A take as the page shows it; all text is plain and is escaped when the page is written.

    Args:
        name: on its button.
        performance: the notes that are seen and heard, with the pedal, if there is one.
        seconds: how long it is.
        midi: the content of the file that can be taken away.
        file: that file's name.
        prompt_seconds: until when it is a prompt, whose notes are paler.
        about: a few words below its name.
        by: the heading below which takes in a row stand that have the same one; "": none.
    """

    name: str
    performance: Performance
    seconds: float
    midi: bytes
    file: str
    prompt_seconds: float = 0.0
    about: str = ""
    by: str = ""


HOW_TO_PLAY = (
    "Click the notes to hear them from there. The space bar plays and pauses, the arrow keys go five seconds back and "
    "forth."
)
WHAT_RETURNS = "The line below the notes marks what was played before, in whatever key and tempo."
WHAT_IS_PALE = "The paler notes are the prompt."
ICONS = (
    '<svg class="start" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1.5v13l11-6.5z"/></svg>'
    '<svg class="pause" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1.5h3.6v13H3zM9.4 1.5H13v13H9.4z"/></svg>'
)


class _Template(string.Template):
    delimiter = "%%"  # which neither CSS nor JavaScript writes


def write_page(
    path: Path,
    takes: Sequence[Playable],
    *,
    title: str,
    lead: Sequence[str] = (),
    warnings: Sequence[str] = (),
    sections: str = "",
    style: str = "",
    footer: Sequence[str] = (),
) -> None:
    """Write a page.

    Args:
        path: the HTML file to write.
        takes: at least one.
        title, lead: the heading and the paragraphs below it.
        warnings: what went wrong, shown before all else.
        sections, style: HTML to follow the music, and CSS for it, both taken as they are.
        footer: paragraphs.

    Raises:
        ValueError: there are no takes.
    """
    if not takes:
        raise ValueError("takes: expected at least one, got none")
    data = [_data(take) for take in takes]
    caption = [HOW_TO_PLAY] + [WHAT_RETURNS] * any(take["again"] for take in data)
    caption += [WHAT_IS_PALE] * any(take["prompt"] for take in data)
    text = _Template(_resource("page.html")).substitute(
        title=as_html(title),
        style=_resource("page.css") + style,
        lead=paragraphs(lead, "lead") + paragraphs(warnings, "warning"),
        caption=" ".join(caption),
        icons=ICONS,
        takes=_list(takes),
        sections=sections,
        footer=paragraphs(footer, ""),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=_resource("piano.js") + _resource("player.js"),
    )
    path.write_text(text, encoding="utf-8")


def as_html(text: str) -> str:
    """Plain text as HTML, with what nobody can see in it written out."""
    return escape(escaped(text))


def paragraphs(texts: Sequence[str], kind: str) -> str:
    """Plain text as HTML paragraphs of a class."""
    return "\n".join(f'<p class="{kind}">{as_html(text)}</p>' for text in texts)


def _resource(name: str) -> str:
    return files("dsmr.music.player").joinpath(name).read_text(encoding="utf-8")


def _data(take: Playable) -> dict[str, Any]:
    """What the script needs of a take; times in seconds, notes as they sound."""
    notes, seconds = np.sort(fold_pedal(take.performance).notes, order="onset"), max(take.seconds, STEP_SECONDS)
    return {
        "name": escaped(f"{take.name}, {take.by}" if take.by else take.name),
        "alt": f"Piano roll of {len(notes):,} notes in {seconds:.0f} seconds, time from left to right, high keys "
        "above. Click to hear it from there.",
        "seconds": round(seconds, 3),
        "prompt": round(take.prompt_seconds, 3),
        "again": [[round(begin, 2), round(end, 2)] for begin, end in repeated(encode(take.performance))],
        "notes": [
            [round(onset, 3), round(min(offset, seconds), 3), pitch, velocity]
            for onset, offset, pitch, velocity in notes.tolist()
        ],
    }


def _list(takes: Sequence[Playable]) -> str:
    parts = []
    for by, group in itertools.groupby(takes, key=lambda take: take.by):
        if by:
            parts.append(f'<h3 class="by">{as_html(by)}</h3>')
        parts.append('<ul class="takes">\n' + "\n".join(map(_item, group)) + "\n</ul>")
    return "\n".join(parts)


def _item(take: Playable) -> str:
    name, file = as_html(take.name), as_html(take.file)
    link = f"data:audio/midi;base64,{base64.b64encode(take.midi).decode()}"
    about = " · ".join(filter(None, [format_clock(take.seconds), take.about]))
    return (
        f'<li><button type="button" data-name="{name}" aria-pressed="false" aria-label="Play {name}">{ICONS}</button>'
        f"<div>{name}<small>{as_html(about)}</small></div>"
        f'<a href="{link}" download="{file}" aria-label="{name} as a MIDI file">MIDI</a></li>'
    )
