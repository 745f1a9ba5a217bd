"""Where output goes: results on stdout as tables that read well at 80 columns or as one JSON document; progress on stderr."""

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
    """One result: `document` for --json, `shown` (text and tables) for a person, `remarks` for both."""

    def __init__(self, document: Any, *shown: Any, remarks: Sequence[str] = ()) -> None:
        self.document, self.shown, self.remarks = document, shown, tuple(remarks)


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line; rich would exit with 1."""
        raise BrokenPipeError


class _Rate(rich.progress.ProgressColumn):
    """Units a second, such as images."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        """Empty until it is known."""
        return rich.text.Text(f"{task.speed:.0f}/s" if task.speed else "")


class Console:
    """Output of one command. As a context manager it shows progress bars on stderr while the block runs."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        # No markup and no emoji: a class may be called "[red]" or ":cat:".
        self._out = _Console(highlight=False, markup=False, emoji=False)
        self._err = rich.console.Console(stderr=True, highlight=False)
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars where stderr is a terminal."""
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
        """A repzoo.progress.Progress: one bar for each stage."""
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total or None, completed=done)
            self._bars.update(self._tasks[stage], completed=done, total=total or None)

    @staticmethod
    def document(value: Any) -> str:
        """JSON text in ASCII, for any pipe; numbers that are not finite become null, as JSON has none."""
        return json.dumps(_finite(value), indent=1) + "\n"

    def show(self, view: View) -> None:
        """Print `view`: its document with --json, else what a person reads; remarks go to stderr either way."""
        if self._json:
            click.echo(self.document(view.document), nl=False)
        else:
            for item in view.shown:
                self._out.print(item)
        for remark in view.remarks:
            click.echo(f"note: {remark}", err=True)


def columned(*columns: str) -> Table:
    """A table whose columns named ">x" are right-aligned: figures, which are never broken, as words are where a line is too long."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        figures = column.startswith(">")
        table.add_column(
            column.removeprefix(">"),
            justify="right" if figures else "left",
            overflow="fold",
            no_wrap=figures,
        )
    return table


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
