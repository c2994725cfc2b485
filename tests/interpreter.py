"""Triton's interpreter, which shows on a CPU that kernels are right, but takes seconds."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton when it is imported


class Nothing:
    """Stands in for the record of what a patch changed."""

    def restore(self) -> None:
        """Nothing was changed."""


def quicken() -> None:
    """Let the interpreter replace the functions of `triton.language` once a kernel, not at every call inside it.

    It replaces what it has already replaced, by the same, which takes a third of its time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    replace, original = interpreter._patch_lang, tl.range
    done: set[int] = set()

    def replace_once(function: object) -> object:
        key = id(function.__globals__)
        if tl.range is original:  # a new kernel: what the last one replaced was restored
            done.clear()
        if key in done:
            return Nothing()
        done.add(key)
        return replace(function)

    interpreter._patch_lang = replace_once
