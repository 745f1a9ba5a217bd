"""Commands that show what there is: list, info, engines, count, download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from repzoo.console import models as views
from repzoo.console import next_step
from repzoo.console.commands.shared import FILE, MODEL, json_option
from repzoo.console.options import preprocess_options
from repzoo.console.output import Console
from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.verbs.model_files import load_file
from repzoo.zoo.hub import is_hub_name


@click.command("list")
@click.argument("pattern", default="*")
@json_option
def list_models(pattern: str, as_json: bool) -> None:
    """List the models of the zoo that match PATTERN: a glob, or a part of the name.

    For example 'repvgg_b*', or ghost.
    """
    from repzoo.zoo import catalog

    rows = catalog.models(pattern)
    if not rows:
        names = [row.name for row in catalog.models()]
        raise InputError(f"{unknown('model', pattern, names)} (repzoo list shows all)")
    Console(as_json).show(views.models(rows))


@click.command()
@click.argument("model", type=MODEL)
@json_option
def info(model: str, as_json: bool) -> None:
    """Describe MODEL: a catalog name, an embedded model or an ONNX file."""
    from repzoo.zoo import catalog

    console = Console(as_json)
    # Names in the catalog have no dot; weights that ship and files have one.
    if "." in model or is_hub_name(model) or Path(model).exists():
        console.show(views.artifact(load_file(model)))
    else:
        console.show(views.spec(catalog.spec(model), catalog.sources()))


@click.command()
@json_option
def engines(as_json: bool) -> None:
    """List the engines with their versions, and how to install missing ones."""
    Console(as_json).show(views.engines())


@click.command()
@click.argument("file", type=MODEL)
@preprocess_options
@json_option
def count(file: str, as_json: bool, **preprocess: Any) -> None:
    """Count parameters, MACs and bytes of FILE.onnx, and name what is not counted."""
    # It imports onnx-ir, for which the other commands here need not wait.
    from repzoo.graph.tools.cost import count as count_cost
    from repzoo.verbs.image_size import load_any_graph

    with Console(as_json) as console:
        console.progress("count", 0, 0)
        model = load_any_graph(file, **preprocess)
        counted = count_cost(model)
    console.show(views.cost(model, counted))


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Folder to put the files in.  [default: the cache, ~/.cache/repzoo]",
)
@click.option(
    "--sha256", default="", help="Expected SHA-256, where one file is fetched."
)
@json_option
def download(
    names: tuple[str, ...], output: Path | None, sha256: str, as_json: bool
) -> None:
    """Fetch published weights by name, model, family, glob or URL; `all` fetches everything.

    NAMES: for example repghostnet_100.in1k, repghostnet_100, repghost or 'repvgg_a*'.
    A broken transfer is resumed. Length and hash are checked before a file is put in place.
    """
    from repzoo.zoo import download as downloads

    rows = [row for name in names for row in downloads.matching(name, sha256)]
    with Console(as_json) as console:
        done, failed = downloads.fetch_all(rows, output, console.progress)
    # Before the error: what did arrive is there, and is shown.
    console.show(views.downloaded(done, failed))
    if len(rows) == len(done) == 1:
        console.suggest(next_step.after_download(rows[0].model, done[0].file))
    if failed:
        raise InputError(
            f"{len(failed)} of {len(rows)} could not be fetched. {failed[0]}"
        )
