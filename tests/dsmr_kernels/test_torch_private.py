"""Names that PyTorch keeps to itself stand in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsmr_kernels

ROOT = Path(dsmr_kernels.__file__).parent
OF_TENSORS_AND_NODES = {"_version", "_sequence_nr"}  # whoever has them


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(source: str) -> Iterator[str]:
    """What a module asks of PyTorch by names with an underscore."""
    tree = ast.parse(source)
    modules = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from filter(is_private, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = ast.unparse(node.value)
            if base.split(".")[0] in modules or node.attr in OF_TENSORS_AND_NODES:
                yield f"{base}.{node.attr}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stand_in_one_file(path: Path) -> None:
    found = list(private_names(path.read_text()))
    assert bool(found) == (path.name == "torch_private.py"), found
