"""Options and checks that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from repzoo import verbs
from repzoo.console.output import Console
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.storage import require_different, require_writable, write_together

FILE = click.Path(path_type=Path)
DATA_HELP = (
    "Images: a folder with one subfolder for each class, or with such folders below train, "
    "validation (val, valid, dev) and test; the ImageNet validation folder; or `digits`. Classes "
    "are in sorted order, folders called 0 to n - 1 in numeric order. A file classes.tsv in the "
    "folder, with a class folder's name at the start of each line, sets the order of the outputs. "
    "Labels may also stand in metadata.csv or metadata.jsonl (file_name, label), or in Roboflow's "
    "_classes.csv."
)


class _ModelName(StringParamType):
    """A model file, or the name of a model of the zoo."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Names that begin with what was typed, else files."""
        # Only here: no command needs the catalog before it runs.
        from repzoo.zoo import catalog, embedded

        names = [*embedded.names(), *(row.name for row in catalog.models())]
        matching = [name for name in names if name.startswith(incomplete)]
        if incomplete and matching:
            return [CompletionItem(name) for name in matching]
        return [CompletionItem(incomplete, type="file")]


class _DataName(StringParamType):
    """A folder of images, or `digits`."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The name of the embedded data where it begins so, else folders."""
        if incomplete and "digits".startswith(incomplete):
            return [CompletionItem("digits")]
        return [CompletionItem(incomplete, type="dir")]


MODEL = _ModelName()
DATA = _DataName()

output_option = click.option(
    "-o", "--output", type=FILE, required=True, help="File to write."
)
data_option = click.option(
    "--data",
    type=DATA,
    required=True,
    help=DATA_HELP,
)
certificate_data_option = click.option(
    "--data", type=DATA, help="Also certify on images of this folder, or on `digits`."
)
part_option = click.option(
    "--part",
    multiple=True,
    help="Part of the data: train, validation or test, or its folder's name.  [default: all "
    "held-out parts]",
)
append_option = click.option(
    "--append", type=FILE, help="Append the Records to this .jsonl file."
)
engine_option = click.option(
    "--engine",
    default=DEFAULT_ENGINE,
    show_default=True,
    help="Engine that runs the model; `repzoo engines` lists them.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document on stdout, nothing else.",
)


def write_with_report(
    model: verbs.Artifact, output: Path, report: Path | None, document: Any
) -> None:
    """Write `model`, and `document` as JSON where a report was asked for.

    At once: a failure must not leave the model beside the report of an earlier run.
    """
    contents: list[Any] = model.files(output)
    if report:
        contents.append((report, Console.document(document)))
    write_together(contents)


def require_outside(folder: Path | None, *files: Path | None) -> None:
    """Refuse `files` in the folder of --pareto, where they could replace one of its own.

    Raises:
        InputError: one of them is in it.
    """
    for path in files:
        if folder and path and path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{path} is in the folder of --pareto, {folder}; give another place"
            )


def require_writable_files(
    output: Path | None = None, source: str = "", **others: Path | None
) -> None:
    """Refuse, before the work, output files that could not be written.

    output  the value of -o
    source  the file that the command reads, or the name of something else
    others  values of other options, by name; None where an option was not given

    Raises:
        InputError: one of them cannot be written, or would replace `source`, or two are the same
            file.
    """
    options = {"-o": output}
    for name, path in others.items():
        options[f"--{name}"] = path
    named = {option: path for option, path in options.items() if path is not None}
    for option, path in named.items():
        require_writable(path, option)
        if source and path.exists() and path.resolve() == Path(source).resolve():
            raise InputError(
                f"{path} is the input, which would be lost; give another name with {option}"
            )
    require_different(named.values())
