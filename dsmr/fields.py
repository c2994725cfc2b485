"""Typed fields of dataclasses whose values come from files: each of its annotated type, or an error by name.

It is our own so that a checkpoint can be read with PyTorch and safetensors alone, without pydantic.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1
"""The largest integer that native code and tensors hold."""


def check_types(instance: Any) -> None:
    """ValueError that names a field of a dataclass whose value is not of its annotated type.

    An integer is no `bool` and fits into 64 bits; a number is a float or such an integer.
    """
    for name, kind in get_type_hints(type(instance)).items():
        if not _fits(value := getattr(instance, name), kind):
            raise ValueError(f"{name}: expected {_describe(kind)}, got {shown(value)}")


def check_names(cls: type, values: Any, what: str) -> dict[str, Any]:
    """The values of a dataclass's fields, from a file. What has a default may be missing: older versions lacked it.

    Args:
        cls: the dataclass.
        values: what the file holds.
        what: how to call it in an error.

    Raises:
        ValueError: `values` is not a dictionary, a field without a default is missing, or one is unknown.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: expected its fields by name, got {shown(values)}")
    known = {field.name: field for field in fields(cls)}
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(
            f"{what}: expected the fields of this version, got {shown(unknown[0])}, which only a newer one can know"
        )
    needed = [name for name, field in known.items() if field.default is field.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{what}: expected the fields {needed}, got none called {missing[0]!r}")
    return dict(values)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of 64 bits, and no `bool`."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def shown(value: Any) -> str:
    """A value from a file in few characters, however long or deeply nested it is."""
    return reprlib.repr(value)


def _fits(value: Any, kind: Any) -> bool:
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is tuple:
        if options[1:] == (...,):
            return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if kind is int:
        return is_integer(value)
    if kind is float:
        return isinstance(value, float) or is_integer(value)
    return isinstance(value, origin or kind)


def _describe(kind: Any) -> str:
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        *others, last = ", ".join(map(_describe, options)).split(", ")
        return f"{', '.join(others)} or {last}"
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    if origin is tuple:
        count = "a tuple of" if options[1:] == (...,) else len(options)
        return f"{count} values, each {_describe(options[0])}"
    names = {int: "an integer of 64 bits", float: "a number", bool: "True, False", str: "text"}
    return "None" if kind is types.NoneType else names.get(kind, kind.__name__)
