"""Progress as one line, whatever the width: what is done, a bar, the time left, and of the notes those that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

NARROWEST_BAR = 10
BETWEEN_NOTES = "  "


class ProgressLine(Progress):
    """A `Progress` of one task, whose line fits into the console; the field `notes` is what else there is to say.

    Args:
        console: where it is shown.
        clock: seconds by which the pace is measured; the time left is what remains at the pace of the last 1,000 calls.
        live: keep the line on the terminal up to date, when `refresh` is called, and remove it at the end.
    """

    def __init__(self, console: Console, clock: Callable[[], float], live: bool) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(None, table_column=Column(ratio=1, width=NARROWEST_BAR)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            NotesColumn(),
            console=console,
            get_time=clock,
            speed_estimate_period=math.inf,  # a step may take longer than any period
            auto_refresh=False,
            transient=True,
            expand=True,
            disable=not live,
        )


class NotesColumn(ProgressColumn):
    """The field `notes` of a task: those that fit, from the first on, and none of them in halves."""

    def render(self, task: Task) -> Notes:
        """The notes as they are now."""
        return Notes(task.fields["notes"])


class Notes:
    """Short texts on one line, of which the last ones are left out where there is no room."""

    def __init__(self, notes: Sequence[str]) -> None:
        self._lines = [BETWEEN_NOTES.join(notes[:count]) for count in range(len(notes) + 1)]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, cell_len(self._lines[-1]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text([line for line in self._lines if cell_len(line) <= options.max_width][-1], no_wrap=True)
