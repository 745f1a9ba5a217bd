"""Where output goes: results on stdout as tables or one JSON document, progress on stderr."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Self

import rich.console
import rich.text
import rich_click as click
from rich.table import Table

from repzoo.console import stages
from repzoo.console.screen import fitting_notes
from repzoo.data.description import DataDescription
from repzoo.printable import one_line, printable
from repzoo.storage import json_text

# A command that takes longer says what it does, and says so again while a stage goes on.
QUIET_SECONDS = 2.0
REPEAT_SECONDS = 60.0
# Where click keeps what was assumed about preprocessing during the command that runs.
ASSUMPTIONS = "repzoo.assumptions"
# Where it keeps that --quiet was given.
QUIET = "repzoo.quiet"


class View:
    """A result in both forms: `document` for --json, `shown` (text and tables) for a person.

    remarks  sentences that go to stderr in either case, and into the document as "remarks"
    rest     where all remarks can be read, for a view that is to fit a screen; "": it is not
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        *shown: Any,
        remarks: Sequence[str] = (),
        rest: str = "",
    ) -> None:
        self.document = document
        self.shown = shown
        self.remarks = tuple(remarks)
        self.rest = rest


class Summary(View):
    """What sums up a result that is in files; --quiet leaves `shown` out."""


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the command line; rich would exit with 1."""
        raise BrokenPipeError


class Console:
    """Output of one command. As a context manager it shows progress on stderr.

    A terminal gets bars, anything else gets lines.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._quiet = is_quiet()
        # No markup and no emoji: a class may be called "[red]" or ":cat:".
        self._out = _Console(highlight=False, markup=False, emoji=False)
        self._err = _stderr()
        self._stages: stages.Bars | stages.Lines | None = None
        self._data: DataDescription | None = None

    def __enter__(self) -> Self:
        """Start to show progress."""
        if self._quiet:
            return self
        # A terminal without cursor movement can show no bars.
        if _is_terminal(self._err) and not self._err.is_dumb_terminal:
            self._stages = stages.Bars(self._err)
        else:
            self._stages = stages.Lines(QUIET_SECONDS, REPEAT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bars; print no more lines."""
        if self._stages is not None:
            self._stages.close()
            self._stages = None

    def progress(self, stage: str, done: int, total: int) -> None:
        """A repzoo.progress.Progress with one bar, or one line, for each stage."""
        if self._stages is not None:
            self._stages(stage, done, total)

    def describe(self, data: DataDescription) -> None:
        """Say what the data set of this command was taken for, now and in the document.

        Now, because a command that ends with an error after this says it too.
        """
        self._data = data
        if not self._quiet:
            # Through the console that draws the bars, which would otherwise overwrite the line.
            print_aside(f"data: {one_line(data)}", self._err)

    def suggest(self, command: Sequence[str] | None) -> None:
        """Print what to type next, quoted for a shell; nothing with --json or --quiet.

        A command with characters that a terminal would obey is not printed.
        """
        if command is None or self._as_json or self._quiet:
            return
        line = shlex.join(command)
        if printable(line) == line:
            # Unwrapped: a line break in it would end the command when it is pasted.
            click.echo(f"next: {line}", err=True)

    @staticmethod
    def document(value: Any) -> str:
        """`value` as JSON text in ASCII, for any pipe."""
        return json_text(value, indent=1) + "\n"

    def show(self, view: View) -> None:
        """Print `view`: with --json its document, else what a person reads; remarks to stderr."""
        if self._as_json:
            click.echo(self.document(self._complete(view)), nl=False)
        elif not (self._quiet and isinstance(view, Summary)):
            for item in view.shown:
                self._out.print(
                    printable(item, keep="\n") if isinstance(item, str) else item
                )
        if self._quiet:
            return
        remarks = view.remarks
        if view.rest and not self._as_json:
            remarks = tuple(fitting_notes(view.shown, view.remarks, view.rest))
        for remark in remarks:
            print_aside(f"note: {one_line(remark)}", self._err)

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


def print_aside(line: str, console: rich.console.Console | None = None) -> None:
    """Print a line on stderr. On a terminal it breaks between words, elsewhere not at all."""
    console = console or _stderr()
    console.print(rich.text.Text(line), soft_wrap=not _is_terminal(console))


def _stderr() -> rich.console.Console:
    return _Console(stderr=True, highlight=False)


def _is_terminal(console: rich.console.Console) -> bool:
    # With FORCE_COLOR rich takes a log file for a terminal, which bars would fill.
    return console.is_terminal and console.file.isatty()


def is_quiet() -> bool:
    """Whether the command that runs was given --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


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
