"""Numbers in few characters: none that reads as another."""

import pytest

from dsmr.units import format_bytes, format_clock, format_span, format_tokens


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (9961472, "9.5 MiB"), (3 * 2**40, "3,072.0 GiB")],
    ids=lambda value: str(value),
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("tokens", "text"), [(0, "0"), (512, "512"), (1000, "1000"), (1536, "1.5k"), (8192, "8k"), (1024000, "1000k")]
)
def test_format_tokens(tokens, text):
    assert format_tokens(tokens) == text


def test_format_span():
    assert (format_span(512, 1024), format_span(32768, None)) == ("512-1k", "32k+")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (65, "1:05"), (3600, "60:00")])
def test_format_clock(seconds, text):
    assert format_clock(seconds) == text
