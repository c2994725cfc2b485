"""Text of others on one line: nothing hidden, nothing that commands, nothing that the stream lacks."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.text import escaped

ANY = st.text(st.characters(exclude_categories=()))
ENCODINGS = pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252", "gbk"])


@ENCODINGS
@given(text=ANY)
def test_every_text_is_one_visible_line_in_every_encoding(encoding: str, text: str) -> None:
    shown = escaped(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1
    assert escaped(shown, encoding) == shown


@given(st.text(st.characters(exclude_categories=("C", "Zl", "Zp"))))
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[31m\x9b2J\x07", r"\x1b[31m\x9b2J\x07", id="escape-codes"),
        pytest.param("a\r\nb\x85c\u2028d", r"a\x0d\x0ab\x85c\u2028d", id="line-ends"),
        pytest.param("dim\u202efdp.\u2066x", r"dim\u202efdp.\u2066x", id="turned-around"),
        pytest.param("a\u200bb\ufeff\U000e0041", r"a\u200bb\ufeff\U000e0041", id="unseen"),
        pytest.param(os.fsdecode(b"\xff\xe4.mid"), r"\xff\xe4.mid", id="no-utf-8"),
        pytest.param("\ud800", r"\ud800", id="half-a-character"),
    ],
)
def test_what_commands_or_hides_is_written_out(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_what_the_encoding_lacks_is_written_out() -> None:
    assert escaped("中é.mid", "cp1252") == r"\u4e2dé.mid"
    assert escaped("中é.mid", "ascii") == r"\u4e2d\xe9.mid"
