"""HTML page in one file: music that can be seen while it is heard, figures and numbers, each with a sentence.

Everything is in the file; its security policy lets it reach no network. The template is `page.html`.
"""

from __future__ import annotations

import base64
import json
import re
import string
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np

from dsmr.music.sound import half_rate
from dsmr.music.tokens import Performance, fold_pedal
from dsmr.plots import COLOURS, FAINT, INK
from dsmr.units import format_clock


@dataclass(frozen=True)
class Number:
    """A number, and one sentence that says what it means; `aside` stands beside it in small."""

    name: str
    value: str
    sentence: str
    aside: str = ""


@dataclass(frozen=True)
class Picture:
    """A plot, a sentence that says how to read it, and `alt`, what it shows, for those who do not see it.

    `svg` is what `drawn` returns.
    """

    title: str
    sentence: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Row:
    """A number of the music, what is usual, whether it is usual (None: that does not say), and a sentence."""

    name: str
    value: str
    usual: str
    within: bool | None
    sentence: str


@dataclass(frozen=True)
class Page:
    """What a page says; all text is plain and is escaped when the page is written.

    Args:
        title, lead: the heading and the paragraphs below it.
        warnings: what went wrong, shown before all else.
        music, seconds: what is seen and heard, and how long it is.
        music_caption: below the music.
        numbers: about the model.
        figures: plots.
        rows, rows_caption: the music beside the corpus.
        footer: paragraphs.
    """

    title: str
    lead: Sequence[str]
    warnings: Sequence[str]
    music: Performance
    seconds: float
    music_caption: str
    numbers: Sequence[Number]
    figures: Sequence[Picture]
    rows: Sequence[Row]
    rows_caption: str
    footer: Sequence[str]


class _Template(string.Template):
    delimiter = "%%"  # which neither CSS nor JavaScript writes


def write_page(page: Page, sound: Path, path: Path) -> None:
    """Write a page.

    Args:
        page: what it says.
        sound: the music as a WAV file, as `dsmr.music.sound.write_wav` writes it.
        path: the HTML file to write.
    """
    template = _Template(files("dsmr.demo").joinpath("page.html").read_text(encoding="utf-8"))
    notes = fold_pedal(page.music).notes
    data = {
        "seconds": round(page.seconds, 3),
        "notes": [
            [round(onset, 3), round(min(offset, page.seconds), 3), pitch, velocity]
            for onset, offset, pitch, velocity in np.sort(notes, order="onset").tolist()
        ],
    }
    alt = f"Piano roll of {len(notes):,} notes in {page.seconds:.0f} seconds, time from left to right, high keys above."
    text = template.substitute(
        title=escape(page.title),
        lead=_paragraphs(page.lead, "lead") + _paragraphs(page.warnings, "warning"),
        roll_alt=escape(f"{alt} Click to hear it from there."),
        seconds=f"{page.seconds:.1f}",
        length=format_clock(page.seconds),
        sound=f"data:audio/wav;base64,{base64.b64encode(half_rate(sound)).decode()}",
        music_caption=escape(page.music_caption),
        sections="\n".join([_numbers(page.numbers), _figures(page.figures), _table(page.rows, page.rows_caption)]),
        footer=_paragraphs(page.footer, ""),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    path.write_text(text, encoding="utf-8")


def drawn(draw: Callable[[Path], None]) -> str:
    """Let a function of `dsmr.plots` draw into a file, and return the picture as SVG in the page's colours.

    Args:
        draw: called with the path of the file.
    """
    # Text as text, and equal names for equal things: equal figures are equal bytes.
    style = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dsmr"})
    with tempfile.TemporaryDirectory() as folder, style:
        path = Path(folder) / "figure.svg"
        draw(path)
        svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g|<svg|<path|<text)([^>]*?) id="\w+_\d+"', r"\1\2", svg)  # names that every figure has
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"""font: ([^'";]*?)[\d.]*px '[^;"]*|font-family: [^;"]*""", _own_font, svg)
    for colour, name in [(INK, "ink"), (FAINT, "faint"), ("#ffffff", "card"), *_numbered(COLOURS)]:
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def _own_font(found: re.Match[str]) -> str:
    """The page's font in place of matplotlib's, at the same size."""
    size = re.search(r"[\d.]+px", found[0])
    return f"font: {found[1] or ''}{size[0]} system-ui, sans-serif" if size else "font-family: system-ui, sans-serif"


def _numbered(colours: Sequence[str]) -> list[tuple[str, str]]:
    return [(colour, f"c{number}") for number, colour in enumerate(colours)]


def _paragraphs(texts: Sequence[str], kind: str) -> str:
    return "\n".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def _section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{body}\n</section>'


def _numbers(numbers: Sequence[Number]) -> str:
    cells = "\n".join(
        f'<div><dt>{escape(each.name)}</dt><dd class="value">{escape(each.value)} '
        f'<small>{escape(each.aside)}</small></dd><dd class="why">{escape(each.sentence)}</dd></div>'
        for each in numbers
    )
    return _section("numbers", "The model, in numbers", f'<dl class="numbers">\n{cells}\n</dl>')


def _figures(figures: Sequence[Picture]) -> str:
    body = "\n".join(
        f"<figure><figcaption><h3>{escape(each.title)}</h3><p>{escape(each.sentence)}</p></figcaption>"
        f'<div class="plot" tabindex="0" role="group" aria-label="{escape(each.title)}, plot">'
        + each.svg.replace("<svg", f'<svg role="img" aria-label="{escape(each.alt)}"', 1)
        + "</div></figure>"
        for each in figures
    )
    return _section("figures", "What it learned", body)


def _table(rows: Sequence[Row], caption: str) -> str:
    said = {None: "", True: '<span class="yes">usual</span>', False: '<span class="no">unusual</span>'}
    lines = "\n".join(
        f'<tr><th scope="row">{escape(each.name)}</th><td class="number">{escape(each.value)}</td>'
        f'<td class="number">{escape(each.usual)}</td><td>{said[each.within]}</td>'
        f'<td class="why">{escape(each.sentence)}</td></tr>'
        for each in rows
    )
    columns = "".join(f'<th scope="col">{each}</th>' for each in ("", "here", "in the corpus", "", "what it says"))
    return _section(
        "music",
        "The music, beside the corpus",
        f'<p class="quiet">{escape(caption)}</p>\n'
        '<div class="scroll" tabindex="0" role="group" aria-labelledby="music">'
        f"<table><thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>",
    )
