"""Commands that run for long, and pages to look at: train, card, page, demo."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import job, verbs
from repzoo.console import next_step, results
from repzoo.console import quantized as views
from repzoo.console.commands.shared import (
    DATA,
    DATA_HELP,
    FILE,
    MODEL,
    append_option,
    data_option,
    json_option,
    output_option,
    require_writable_files,
)
from repzoo.console.options import options_of, preprocess_options, split_options
from repzoo.console.output import Console
from repzoo.data.source import open_source
from repzoo.local_paths import LocalPaths
from repzoo.measure.record import append as append_records
from repzoo.measure.record import read as read_records
from repzoo.progress import silent
from repzoo.storage import require_writable_folder
from repzoo.training.options import TrainOptions
from repzoo.verbs.model_files import embedded_for, load_file, require_float
from repzoo.zoo import embedded


@click.command()
@click.argument("model", type=MODEL)
@data_option
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Folder of the run; the same command resumes it.  [default: runs/MODEL.DATA]",
)
@click.option(
    "--recipe",
    default="",
    help="Training recipe: a name, or FILE.toml.  [default: digits for digits, else photos]",
)
@options_of(verbs.RecipeChanges)
@options_of(TrainOptions)
@json_option
def train(
    model: str,
    data: str,
    output: Path | None,
    recipe: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Train MODEL, a catalog name or any model of timm, on the `train` part of the data.

    Validation and test images are scored, never trained on. Several processes or hosts:
    torchrun --nproc-per-node=2 -m repzoo train ...
    """
    from repzoo.measure import distributed

    with distributed.join_group() as group:
        console = Console(as_json)
        # Of several processes the first shows its progress and writes.
        is_first = not group.rank
        if is_first:
            console.describe(open_source(data).describe_training())
        with console if is_first else contextlib.nullcontext():
            artifact = verbs.train(
                model,
                data,
                recipe=recipe,
                output=output,
                progress=console.progress if is_first else silent,
                group=group,
                **values,
            )
    if is_first:
        assert artifact.training is not None
        console.show(results.trained(artifact.training))
        console.suggest(next_step.after_train(artifact, output, data))


def _license(_: click.Context, __: click.Parameter, value: str) -> str:
    # It becomes part of the card's YAML, which Hugging Face refuses with other characters.
    if value and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", value):
        raise click.BadParameter(
            f"{value!r} is no identifier of a license; expected one such as apache-2.0"
        )
    return value


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--data",
    type=DATA,
    # With the embedded model of digits, `repzoo card` alone shows the whole job.
    default="digits",
    show_default=True,
    help=DATA_HELP,
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("out"),
    show_default=True,
    help="Folder for the card and its files.",
)
@append_option
@click.option(
    "--records",
    "record_files",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Records of --target from repzoo import, evaluate --engine or pack --compile. May be "
    "given several times.",
)
@click.option(
    "--license",
    "license_id",
    default="",
    metavar="ID",
    callback=_license,
    help="License of the model for its model card, as Hugging Face lists it, such as "
    "apache-2.0.  [default: that of the embedded weights, else unknown]",
)
@options_of(job.JobOptions)
@options_of(verbs.QuantizeOptions)
@preprocess_options
@json_option
def card(
    model: str | None,
    data: str,
    output: Path,
    append: Path | None,
    record_files: tuple[Path, ...],
    license_id: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Fold, quantize, evaluate and time MODEL, and write its card.

    Without MODEL: the embedded model that knows the classes of the data.
    """
    quantize_options, values = split_options(verbs.QuantizeOptions, values)
    options, preprocess = split_options(job.JobOptions, values)
    # A field that holds settings itself has no option: its own fields have them.
    options = replace(options, quantize=quantize_options)
    source = open_source(data)
    name = model or embedded_for(source.classes)
    artifact = load_file(name, **preprocess)
    require_float(artifact)
    require_writable_folder(output)
    require_writable_files(append=append)
    records = [row for file in record_files for row in read_records(file)]
    with Console(as_json) as console:
        console.describe(source.describe_quantization())
        result = job.run(artifact, source, options, console.progress, records)
    # For the card, whose reader may type it again, but need not know the folders of this machine.
    paths = LocalPaths()
    arguments = [paths.short_argument(argument) for argument in sys.argv[1:]]
    command = shlex.join(["repzoo", *arguments])
    if not license_id and name in embedded.names():
        license_id = embedded.LICENSE
    files = job.write(result, output, command, license_id)
    if append:
        append_records(append, result.records)
    console.show(views.card(result, files))
    console.suggest(next_step.after_card(output, append))


@click.command()
@click.argument("records", nargs=-1, required=True, type=FILE)
@output_option
@click.option(
    "--images",
    type=FILE,
    metavar="DIR",
    help="Folder of the images that were evaluated: the page then shows those that float and "
    "INT8 answer differently.",
)
@json_option
def page(
    records: tuple[Path, ...], output: Path, images: Path | None, as_json: bool
) -> None:
    """Write one HTML file of RECORDS: accuracy against latency, a table, all on each model.

    RECORDS are .jsonl files, such as those of repzoo card --append. The file needs no network.
    """
    with Console(as_json) as console:
        written = verbs.page(records, output, images=images, progress=console.progress)
    console.show(results.page(written))


@click.command()
@click.argument("file", type=MODEL)
@output_option
@preprocess_options
@json_option
def demo(file: str, output: Path, as_json: bool, **preprocess: Any) -> None:
    """Write one HTML file in which the model FILE classifies pictures, in a browser.

    It takes pictures and the camera, prepares them as Python does, and needs no network: the model
    and onnxruntime-web are in it. npm fetches the latter the first time.
    """
    model = load_file(file, **preprocess)
    with Console(as_json) as console:
        written = verbs.demo(model, output, progress=console.progress)
    console.show(results.demo(written))
