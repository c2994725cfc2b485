"""Triton's interpreter, which shows on a CPU that kernels are right, but takes seconds."""

from __future__ import annotations

import dataclasses
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton when it is imported


class Nothing:
    """Stands in for the record of what a patch changed."""

    def restore(self) -> None:
        """Nothing was changed."""


def quicken() -> None:
    """Spare the interpreter what takes two thirds of its time and shows nothing here.

    It replaces the functions of `triton.language` at every call between a kernel's functions, by the same; and it does
    all arithmetic of integers twice, to find overflows that tests of this size cannot have.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
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
