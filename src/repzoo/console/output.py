"""Where output goes: results on stdout as tables or one JSON document, progress on stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import rich.console
import rich.progress
import rich.text
import rich_click as click
from rich.table import Table

from repzoo.data.description import DataDescription
from repzoo.printable import one_line, printable
from repzoo.storage import json_text

# A command that takes longer says what it does, and says so again while a stage goes on.
QUIET_SECONDS = 2.0
REPEAT_SECONDS = 60.0
# Where click keeps what was assumed about preprocessing during the command that runs.
ASSUMPTIONS = "repzoo.assumptions"


class View:
    """A result in both forms: `document` for --json, `shown` (text and tables) for a person.

    remarks  sentences that go to stderr in either case, and into the document as "remarks"
    """

    def __init__(
        self, document: Mapping[str, Any], *shown: Any, remarks: Sequence[str] = ()
    ) -> None:
        self.document = document
        self.shown = shown
        self.remarks = tuple(remarks)


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the command line; rich would exit with 1."""
        raise BrokenPipeError


class _Rate(rich.progress.ProgressColumn):
    """Units per second, such as images."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        """The rate, or nothing while it is unknown."""
        return rich.text.Text(f"{task.speed:.0f}/s" if task.speed else "")


class _StageLines:
    """Progress where stderr is no terminal: a line for each stage of a command that takes long.

    A command that ends within QUIET_SECONDS prints nothing. A stage that goes on is repeated
    every REPEAT_SECONDS, so that a log shows a command that is alive.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stage = ""
        self._line = ""
        self._printed: dict[str, float] = {}  # when each stage was last printed
        # The timer below reports from a thread of its own.
        self._lock = threading.Lock()
        # A stage may report nothing until it ends.
        self._timer = threading.Timer(QUIET_SECONDS, self._print_if_due)
        # A command that has failed must not wait for it.
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note the progress, and print it if it is due."""
        with self._lock:
            self._stage = stage
            self._line = f"{stage}: {done} of {total}" if total else f"{stage}: ..."
            # Of a stage that is over when it is first shown, its name says all.
            if 0 < total == done and stage not in self._printed:
                self._line = stage
        self._print_if_due()

    def close(self) -> None:
        """Print nothing more."""
        self._timer.cancel()

    def _print_if_due(self) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._stage or now - self._started < QUIET_SECONDS:
                return
            printed = self._printed.get(self._stage)
            if printed is not None and now - printed < REPEAT_SECONDS:
                return
            self._printed[self._stage] = now
            click.echo(self._line, err=True)


class Console:
    """Output of one command. As a context manager it shows progress on stderr.

    A terminal gets bars, anything else gets lines.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        # No markup and no emoji: a class may be called "[red]" or ":cat:".
        self._out = _Console(highlight=False, markup=False, emoji=False)
        self._err = rich.console.Console(stderr=True, highlight=False)
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._lines: _StageLines | None = None
        self._data: DataDescription | None = None

    def __enter__(self) -> Self:
        """Start to show progress."""
        if not self._err.is_terminal:
            self._lines = _StageLines()
            return self
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            _Rate(),
            rich.progress.TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bars; print no more lines."""
        if self._bars:
            self._bars.stop()
        if self._lines:
            self._lines.close()

    def progress(self, stage: str, done: int, total: int) -> None:
        """A repzoo.progress.Progress with one bar, or one line, for each stage."""
        if self._lines:
            self._lines(stage, done, total)
        if self._bars is None:
            return
        if stage not in self._tasks and 0 < total == done:
            # It is over: a line stays, while a bar for every epoch would fill the screen.
            self._err.print(rich.text.Text(stage))
            return
        if stage not in self._tasks:
            # Where the total is unknown, rich shows a moving bar for None.
            self._tasks[stage] = self._bars.add_task(
                stage, total=total or None, completed=done
            )
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def describe(self, data: DataDescription) -> None:
        """Say what the data set of this command was taken for, now and in the document.

        Now, because a command that ends with an error after this says it too.
        """
        self._data = data
        # Through the console that draws the bars, which would otherwise overwrite the line.
        line = rich.text.Text(f"data: {one_line(data)}")
        self._err.print(line, soft_wrap=True)

    @staticmethod
    def document(value: Any) -> str:
        """`value` as JSON text in ASCII, for any pipe."""
        return json_text(value, indent=1) + "\n"

    def show(self, view: View) -> None:
        """Print `view`: with --json its document, else what a person reads; remarks to stderr."""
        if self._as_json:
            click.echo(self.document(self._complete(view)), nl=False)
        else:
            for item in view.shown:
                self._out.print(
                    printable(item, keep="\n") if isinstance(item, str) else item
                )
        for remark in view.remarks:
            click.echo(f"note: {one_line(remark)}", err=True)

    def _complete(self, view: View) -> dict[str, Any]:
        """The document of `view`, with all remarks and the data set that was read."""
        document = dict(view.document)
        own = document.get("remarks", [])
        remarks = [*own, *view.remarks, *assumptions()]
        document["remarks"] = list(dict.fromkeys(remarks))
        if self._data is not None:
            document["data"] = {**self._data.to_json(), **document.get("data", {})}
        return document


def assumptions() -> list[str]:
    """What the command that runs has assumed about preprocessing so far; a caller may add to it."""
    context = click.get_current_context(silent=True)
    if context is None:
        return []
    listed: list[str] = context.meta.setdefault(ASSUMPTIONS, [])
    return listed


class _Table(Table):
    """A table whose cells may hold text of others, such as labels and paths."""

    def add_row(self, *cells: Any, **style: Any) -> None:
        """Add a row; what would steer the terminal, or break the row, is shown as an escape."""
        safe = [printable(cell) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*safe, **style)


def make_table(*columns: str) -> Table:
    """An empty table. A column named ">x" is right-aligned and holds numbers, which never wrap."""
    table = _Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_number = column.startswith(">")
        table.add_column(
            printable(column.removeprefix(">")),
            justify="right" if is_number else "left",
            # Folded, not cut: half a path names nothing.
            overflow="fold",
            no_wrap=is_number,
        )
    return table
