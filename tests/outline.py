"""Web pages as tests look at them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "input", "img", "br"}


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


def leads_outside(outline: Outline) -> list[str]:
    """Everything by which a page would reach what is not in it; links to what it holds itself are none."""
    places = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    found = []
    for _, attributes in outline.elements:
        values = [attributes.get(name, "#") for name in places]
        found += [value for value in values if not value.startswith(("data:", "#"))]
        found += re.findall(r"url\((?!#).*?\)", attributes.get("style", ""))
    for tag, text in outline.texts:
        if tag == "style":
            found += re.findall(r"url\(.*?\)|@import.*", text)
        names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        found += [address for address in re.findall(r"https?://[^\"'\s<]+", text) if address not in names]
    return found
