"""Sections of the demonstration's page: they say what they were given, and wide plots can be moved on a phone."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files
from pathlib import Path

from matplotlib.image import imread

from dsmr.demo.html import Number, Picture, Row, drawn, figure, numbers, section, table, text
from dsmr.music.player.page import Playable, write_page
from dsmr.plots import Curve, training_curve
from tests import chromium
from tests.dsmr.playing import performance
from tests.outline import Outline, leads_outside

HOSTILE = "</script><script>alert('x')</script> & \"Prélude\" <img src=x onerror=alert(1)> %%title ${seconds}"


def sections(said: str) -> str:
    losses = [Curve(said, [0, 1000, 2000], [4.0, 3.0, 2.5]), Curve("validation", [1000, 2000], [3.1, 2.7])]
    picture = Picture(said, said, said, drawn(lambda path: training_curve(losses, path)))
    rows = [Row(said, said, said, within, said) for within in (True, False, None)]
    return section("one", said, text(said, said), numbers([Number(said, said, said, said)] * 2)) + section(
        "two", said, figure(picture), figure(picture), table(rows)
    )


def a_page(path: Path, said: str) -> Path:
    style = files("dsmr.demo").joinpath("page.css").read_text(encoding="utf-8")
    take = Playable("Take 1", performance((0.0, 1.0, 60, 64)), 1.0, b"MThd", "take-1.mid")
    write_page(path, [take], title="Sections", sections=sections(said), style=style)
    return path


def test_parses_and_reaches_nothing_outside_itself(tmp_path: Path) -> None:
    outline = Outline(a_page(tmp_path / "page.html", "plain"))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    twice = {name for name in ids if ids.count(name) > 1}
    assert all(name.startswith(("p", "m")) for name in twice)  # equal figures' clip paths and markers are equal
    assert {each["aria-labelledby"] for each in outline.of("section") if "aria-labelledby" in each} == {"one", "two"}
    assert leads_outside(outline) == []


def test_says_everything_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    outline = Outline(a_page(tmp_path / "page.html", HOSTILE))
    said = [text for _, text in outline.texts if HOSTILE in text]
    assert len(said) == 2 + 2 + 2 * 4 + 2 * 2 + 3 * 4  # headings, paragraphs, numbers, figures, rows
    begun = [text for _, text in outline.texts if HOSTILE[:20] in text]
    assert len(begun) == len(said) + 2  # the legend of each figure, where the middle of long names is left out
    assert len(outline.of("script")) == 2
    assert not outline.of("img")
    described = [each["aria-label"] for each in outline.of("svg") if each.get("role") == "img"]
    assert described == [HOSTILE] * 2
    assert [text for _, text in outline.texts if text in ("usual", "unusual")] == ["usual", "unusual"]


def test_figures_take_the_pages_colours_and_letters() -> None:
    svg = drawn(lambda path: training_curve([Curve("loss", [0, 1], [1, 2])], path))
    assert svg.startswith("<svg")
    assert "var(--c0)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "loss</text>" in svg
    assert "DejaVu" not in svg


def test_figures_let_the_page_be_seen_through_them() -> None:
    """The shadows that say that a plot goes on lie below it."""
    svg = drawn(lambda path: training_curve([Curve("loss", [0, 1], [1, 2])], path))
    background = re.search(r'<g id="patch_1">.*?</g>|<path d="M 0 [^>]*>', svg, re.DOTALL)
    assert background
    assert re.search(r"fill: none", background[0])


def test_plots_that_are_wider_than_a_phone_show_that_they_can_be_moved(
    phone: chromium.Chromium, tmp_path: Path
) -> None:
    phone.open(a_page(tmp_path / "page.html", "plain"))
    assert phone.evaluate("innerWidth") == 360
    assert phone.evaluate("document.documentElement.scrollWidth") == 360  # only plots are wider
    phone.evaluate("window.plot = document.querySelector('.plot')")
    assert phone.evaluate("plot.scrollWidth > plot.clientWidth + 100")
    assert phone.evaluate("getComputedStyle(plot).overflowX") == "auto"
    bar = phone.evaluate("plot.offsetHeight - plot.clientHeight - 2")  # less the borders
    assert bar >= 8
    assert phone.evaluate("plot.scrollLeft = 1000, plot.scrollLeft") > 100
    assert phone.problems == []


def test_plots_that_fit_have_no_bar(browser: chromium.Chromium, tmp_path: Path) -> None:
    browser.ask("Emulation.setScrollbarsHidden", hidden=False)
    browser.open(a_page(tmp_path / "page.html", "plain"))
    browser.evaluate("window.plot = document.querySelector('.plot')")
    assert browser.evaluate("plot.scrollWidth === plot.clientWidth && plot.offsetHeight - plot.clientHeight === 2")


def shadows(driver: chromium.Chromium) -> tuple[bool, bool]:
    """Whether the first plot is dark at its left and at its right end, a few pixels below its upper border."""
    box = driver.evaluate(
        "(() => { const box = document.querySelector('.plot').getBoundingClientRect();"
        "return [box.x + scrollX, box.y + scrollY + 5, box.width, 4]; })()"
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
    taken = driver.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
    row = imread(io.BytesIO(base64.b64decode(taken)))[..., :3].min((0, 2))
    ratio = len(row) / box[2]
    left, right = (row[round(at * ratio)] for at in (3, box[2] - 3))
    return bool(left < 0.6), bool(right < 0.6)


def test_a_shadow_lies_at_the_end_at_which_a_plot_goes_on(
    browser: chromium.Chromium, phone: chromium.Chromium, tmp_path: Path
) -> None:
    page = a_page(tmp_path / "page.html", "plain")
    for driver in (browser, phone):
        driver.open(page)
        driver.evaluate("document.documentElement.style.setProperty('--shade', '#000000')")
    assert shadows(browser) == (False, False)
    assert shadows(phone) == (False, True)
    phone.evaluate("document.querySelector('.plot').scrollLeft = 1000")
    assert shadows(phone) == (True, False)
