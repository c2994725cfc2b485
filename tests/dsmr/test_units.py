import pytest

from dsmr.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (9961472, "9.5 MiB"), (3 * 2**40, "3,072.0 GiB")],
    ids=lambda value: str(value),
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text
