"""Where output goes: results on stdout as tables or one JSON document, progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import rich.console
import rich.progress
import rich.text
import rich_click as click
from rich.table import Table


class View:
    """A result in both forms: `document` for --json, `shown` (text and tables) for a person.

    remarks  sentences that go to stderr in either case
    """

    def __init__(self, document: Any, *shown: Any, remarks: Sequence[str] = ()) -> None:
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


class Console:
    """Output of one command. As a context manager it shows progress bars on stderr."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        # No markup and no emoji: a class may be called "[red]" or ":cat:".
        self._out = _Console(highlight=False, markup=False, emoji=False)
        self._err = rich.console.Console(stderr=True, highlight=False)
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars, unless stderr is no terminal."""
        if self._err.is_terminal:
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
        """Clear the bars."""
        if self._bars:
            self._bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """A repzoo.progress.Progress with one bar for each stage."""
        if self._bars is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(
                stage, total=total or None, completed=done
            )
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    @staticmethod
    def document(value: Any) -> str:
        """`value` as JSON text in ASCII, for any pipe; NaN and infinity become null."""
        return json.dumps(_finite(value), indent=1) + "\n"

    def show(self, view: View) -> None:
        """Print `view`: with --json its document, else what a person reads; remarks to stderr."""
        if self._as_json:
            click.echo(self.document(view.document), nl=False)
        else:
            for item in view.shown:
                self._out.print(item)
        for remark in view.remarks:
            click.echo(f"note: {remark}", err=True)


def make_table(*columns: str) -> Table:
    """An empty table. A column named ">x" is right-aligned and holds numbers, which never wrap."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_number = column.startswith(">")
        table.add_column(
            column.removeprefix(">"),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number,
        )
    return table


def _finite(value: Any) -> Any:
    """`value` with NaN and infinity replaced by None, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
