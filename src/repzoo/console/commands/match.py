"""The command match: a model chosen by latency, accuracy and size.

It stands apart from `catalog.py`, whose commands need not wait for what measuring imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import verbs
from repzoo.console import matches, next_step
from repzoo.console.commands.shared import (
    DATA,
    FILE,
    append_option,
    json_option,
    require_writable_files,
)
from repzoo.console.options import options_of
from repzoo.console.output import Console
from repzoo.errors import GateError, InputError
from repzoo.measure.record import Record
from repzoo.measure.record import append as append_records


@click.command()
@options_of(verbs.MatchOptions)
@click.option(
    "--records",
    type=FILE,
    multiple=True,
    help="File of Records (.jsonl) whose measured figures also count; may be repeated.",
)
@click.option(
    "--data",
    type=DATA,
    help="Folder of labeled images: choose among the models whose Top-1 on its held-out images is "
    "in --records.  [default: published Top-1 on ImageNet]",
)
@append_option
@json_option
def match(
    records: tuple[Path, ...],
    data: str | None,
    append: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Choose models by latency, accuracy, size and MACs: best first, and what figures rest on.

    For example: repzoo match --host rdk-x5 --max-ms 2 --min-top1 74 --max-mb 8

    Ends with 4 if nothing is known to fit; the nearest are then shown.
    """
    options = verbs.MatchOptions(**values)
    if append and not options.measure:
        raise InputError(
            "--append keeps what --measure times; give both, or leave --append out"
        )
    require_writable_files(append=append)

    def keep(measured: Sequence[Record[Any]]) -> None:
        """Append the Records of a model, so that an interrupt does not lose them."""
        if append:
            append_records(append, measured)

    with Console(as_json) as console:
        result = verbs.match(
            records,
            data,
            options=options,
            progress=console.progress,
            on_records=keep,
        )
    console.show(matches.match(result))
    console.suggest(next_step.after_match(result))
    if not result.fits:
        raise GateError(matches.summary_of_failure(result))
