"""Sections of the demonstration's page: figures and numbers, each with a sentence on what it means.

All text is plain and is escaped here. The page around them is `dsmr.music.player.page`'s.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from dsmr.music.player.page import as_html, paragraphs
from dsmr.plots import COLOURS, FAINT, INK


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


def section(name: str, heading: str, *parts: str) -> str:
    """A section, which links find by its name; the parts are HTML."""
    body = "\n".join(parts)
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{as_html(heading)}</h2>\n{body}\n</section>'


def text(*texts: str) -> str:
    """Paragraphs in a section."""
    return paragraphs(texts, "quiet")


def numbers(each: Sequence[Number]) -> str:
    """Numbers as a grid of cards."""
    cells = "\n".join(
        f'<div><dt>{as_html(one.name)}</dt><dd class="value">{as_html(one.value)} '
        f'<small>{as_html(one.aside)}</small></dd><dd class="why">{as_html(one.sentence)}</dd></div>'
        for one in each
    )
    return f'<dl class="numbers">\n{cells}\n</dl>'


def figure(picture: Picture) -> str:
    """A plot that can be moved sideways where the page is narrower than it."""
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{as_html(picture.alt)}"', 1)
    return (
        f"<figure><figcaption><h3>{as_html(picture.title)}</h3><p>{as_html(picture.sentence)}</p></figcaption>"
        f'<div class="plot" tabindex="0" role="group" aria-label="{as_html(picture.title)}, plot">{svg}</div></figure>'
    )


def table(rows: Sequence[Row]) -> str:
    """Rows as a table; on a phone each is a card."""
    said = {None: "", True: '<span class="yes">usual</span>', False: '<span class="no">unusual</span>'}
    lines = "\n".join(
        f'<tr><th scope="row">{as_html(row.name)}</th><td class="number">{as_html(row.value)}</td>'
        f'<td class="number">{as_html(row.usual)}</td><td>{said[row.within]}</td>'
        f'<td class="why">{as_html(row.sentence)}</td></tr>'
        for row in rows
    )
    heads = "".join(f'<th scope="col">{each}</th>' for each in ("", "here", "in the corpus", "", "what it says"))
    return f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>"


def drawn(draw: Callable[[Path], None]) -> str:
    """Let a function of `dsmr.plots` draw into a file, and return the picture as SVG in the page's colours.

    Its ground is transparent, so that the page's shadows at the ends of a wide plot are seen through it.

    Args:
        draw: called with the path of the file.
    """
    # Text as text, and equal names for equal things: equal figures are equal bytes.
    style = matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "dsmr", "figure.facecolor": "none", "axes.facecolor": "none"}
    )
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
