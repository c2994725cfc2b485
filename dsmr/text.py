"""Escaped text of others: on one line, in which nothing commands the terminal or hides.

Python's own codec `unicode_escape` would escape every letter beyond ASCII as well.
"""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Controls, marks that turn or hide what follows, halves of characters (bytes that are no UTF-8), ends of lines."""


def escaped(text: str, encoding: str = "utf-8") -> str:
    """Return text with everything that cannot be seen, or that an encoding lacks, written as in Python: ``\\x1b``.

    File names, titles and what libraries say of files go through here before anybody reads them.

    Args:
        text: anything; bytes of a file's name that are no UTF-8, as `os.fsdecode` gives them, become ``\\xff``.
        encoding: of the stream that the text is for.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_escape(char) if unicodedata.category(char) in _UNSEEN else char for char in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
