"""How a file that nobody wants to meet is put down: its builder, and what is to become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Outcome = int | str
Builder = Callable[[], bytes]


@dataclass(frozen=True)
class Hostile:
    """A file's builder, and what becomes of the file: notes read, or why it is left out (a regular expression)."""

    build: Builder
    outcome: Outcome
    large: bool = False  # a megabyte and more


class Files(dict[str, Hostile]):
    """Hostile files by name."""

    def becomes(self, outcome: Outcome, large: bool = False) -> Callable[[Builder], Builder]:
        """Put down the function that is decorated."""

        def register(build: Builder) -> Builder:
            self[build.__name__] = Hostile(build, outcome, large)
            return build

        return register
