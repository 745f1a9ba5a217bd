"""The command line: one command a verb, thin. Options are derived from the verbs' own settings dataclasses.

stdout carries the result (with --json: one JSON document and nothing else), stderr progress and remarks.
Exit codes: 0 done, 1 defect in repzoo, 2 bad input or usage, 3 certificate failed, 4 gate not met.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import __version__, verbs
from repzoo.artifact import Artifact
from repzoo.console import evaluations, models, results
from repzoo.console.bench import bench as bench_view
from repzoo.console.options import POSITIVE, options_of, preprocess_options, several
from repzoo.console.output import Console
from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.source import open_source
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError, MissingExtra, RepzooError
from repzoo.progress import silent
from repzoo.storage import (
    read_lines,
    require_writable,
    require_writable_folder,
    sha256_of,
    write_atomically,
    write_together,
)
from repzoo.training.options import Running, TrainOptions
from repzoo.zoo.naming import CheckpointOptions

INTERRUPTED, PIPE_CLOSED = 130, 141  # as shells say it: 128 + the signal
FILE = click.Path(path_type=Path)
output_option = click.option("-o", "--output", type=FILE, required=True, help="File to write.")
data_option = click.option(
    "--data", required=True, help="Class folders, ImageNet's validation layout, or `digits`."
)
engine_option = click.option(
    "--engine", default=DEFAULT_ENGINE, show_default=True, help="Engine that runs the model."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else on stdout."
)


class _Group(click.RichGroup):
    """The group of all commands; errors of repzoo become one sentence and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except RepzooError as error:
            if error.exit_code == 1:
                raise
            click.echo(f"repzoo: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            sys.stdout = None  # else Python complains when it flushes at exit
            sys.exit(PIPE_CLOSED)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="repzoo")
def cli() -> None:
    """From a light classifier's training form to a proven, measured INT8 model.

    Start with `repzoo card`: it folds, quantizes, evaluates and times the embedded model and writes its card to out/.
    """


@cli.command("list")
@click.argument("pattern", default="*")
@json_option
def list_models(pattern: str, as_json: bool) -> None:
    """Show the models of the zoo whose names match PATTERN (a glob such as 'repvgg_b*')."""
    from repzoo.zoo import catalog

    rows = catalog.models(pattern)
    Console(as_json).show(models.models(rows))


@cli.command()
@click.argument("model")
@json_option
def info(model: str, as_json: bool) -> None:
    """Show all that is known of MODEL: a catalog name, an embedded checkpoint or an ONNX file."""
    from repzoo.zoo import catalog

    if "." in model or Path(model).exists():
        Console(as_json).show(models.artifact(verbs.load(model)))
    else:
        Console(as_json).show(models.spec(catalog.spec(model), catalog.sources()))


@cli.command()
@json_option
def engines(as_json: bool) -> None:
    """Show the engines, their versions, and what to type for one that is missing."""
    Console(as_json).show(models.engines())


@cli.command()
@click.argument("model")
@output_option
@click.option("--labels", type=FILE, help="Text file with one class name a line.")
@options_of(verbs.ExportOptions)
@preprocess_options
@json_option
def export(model: str, output: Path, labels: Path | None, as_json: bool, **settings: Any) -> None:
    """Write the catalog model MODEL as ONNX, in training form unless --form deploy."""
    options, preprocess = _settings(verbs.ExportOptions, settings)
    require_writable(output)
    names = tuple(line.strip() for line in read_lines(labels)) if labels else ()
    try:
        made = verbs.export(model, options, names, **preprocess)
    except ModuleNotFoundError as error:
        raise _missing_torch("export", error) from error
    Console(as_json).show(models.written(made.save(output), output))


@cli.command()
@click.argument("checkpoint")
@click.option("--model", required=True, help="Catalog model that the weights are of.")
@output_option
@options_of(CheckpointOptions)
@json_option
def convert(checkpoint: str, model: str, output: Path, as_json: bool, **settings: Any) -> None:
    """Write the weights in CHECKPOINT, of any known source, as .safetensors in the catalog's naming.

    CHECKPOINT: .pth or .pt (PyTorch), .pdparams (Paddle) or .safetensors. Nothing in it is run.
    """
    options, _ = _settings(CheckpointOptions, settings)
    require_writable(output)
    if output.suffix != ".safetensors":
        raise InputError(f"{output} would hold .safetensors; give it that ending")
    try:
        data, found = verbs.convert(checkpoint, model, options)
    except ModuleNotFoundError as error:
        raise _missing_torch("convert", error) from error
    write_atomically(output, data)
    Console(as_json).show(models.converted(found, output, sha256_of(data)))


@cli.command()
@click.argument("wanted", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Folder to put the files in.  [default: the cache, ~/.cache/repzoo]",
)
@click.option("--sha256", default="", help="What the SHA-256 of the one file must be.")
@json_option
def download(wanted: tuple[str, ...], output: Path | None, sha256: str, as_json: bool) -> None:
    """Fetch published weights: a name (repghostnet_100.in1k), a model, a family, a glob, `all`, or an address.

    Goes on where an earlier transfer broke, and checks length and hash before a file takes its place.
    """
    from repzoo.zoo import download as downloads

    rows = [row for one in wanted for row in downloads.matching(one, sha256)]
    with Console(as_json) as console:
        done, failed = downloads.fetch_all(rows, output, console.progress)
    console.show(models.downloaded(done, failed))
    if failed:
        raise InputError(f"{len(failed)} of {len(rows)} could not be fetched. {failed[0]}")


@cli.command()
@click.argument("file")
@output_option
@click.option(
    "--certificate", "certificate_file", type=FILE, help="Write the certificate here too (JSON)."
)
@click.option("--data", help="Images to certify on besides random ones: a folder or `digits`.")
@click.option(
    "--timed/--no-timed",
    help="Also refuse folds that take longer on this machine; the result then depends on it.",
)
@preprocess_options
@json_option
def fold(
    file: str,
    output: Path,
    certificate_file: Path | None,
    data: str | None,
    timed: bool,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Fold FILE.onnx into its deploy form, with a certificate that the two are equal."""
    artifact = verbs.load(file, **preprocess)
    _require_places(output, certificate_file)
    images = (
        verbs.first_images(open_source(data).held_out(), artifact.require_preprocess())
        if data
        else None
    )
    made, certificate = verbs.fold(artifact, images, timed=timed)
    beside = (
        [(certificate_file, Console.document(certificate.to_json()))] if certificate_file else []
    )
    write_together([(output, made.chunks()), *beside])
    Console(as_json).show(models.certificate(certificate, output))


@cli.command("embed-input")
@click.argument("file")
@output_option
@click.option(
    "--order",
    type=click.Choice(["RGB", "BGR"]),
    help="Channel order of the uint8 buffer.  [default: the model's]",
)
@click.option("--data", help="Images to certify on besides random ones: a folder or `digits`.")
@engine_option
@preprocess_options
@json_option
def embed_input(
    file: str,
    output: Path,
    order: Any,
    data: str | None,
    engine: str,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Let FILE.onnx take a camera's buffer (--input uint8 or nv12): normalization and colors move into its graph, certified."""
    kind, yuv = preprocess.pop("input"), preprocess.pop("yuv")
    artifact = verbs.load(file, **preprocess)
    require_writable(output)
    images = open_source(data).held_out() if data else None
    made = verbs.embed_input(artifact, kind or "nothing", yuv, order, images, engine)
    Console(as_json).show(models.embedded_input(made, made.artifact.save(output), output))


@cli.command()
@click.argument("file")
@data_option
@click.option(
    "--part",
    multiple=True,
    help="Part of the data (train, validation, test); default: all that is held out.",
)
@click.option("--append", type=FILE, help="Append the Records to this .jsonl file too.")
@engine_option
@preprocess_options
@json_option
def mismatch(
    file: str,
    data: str,
    part: tuple[str, ...],
    append: Path | None,
    engine: str,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Measure what each mistake in preparing images costs FILE in Top-1: resize, kernel, crop, colors, NV12, mean and std."""
    from repzoo.measure import record

    artifact = verbs.load(file, **preprocess)
    _require_places(append)
    with Console(as_json) as console:
        result = verbs.measure_mismatch(
            artifact, _dataset(open_source(data), part), engine, console.progress
        )
    if append:
        record.append(append, [result.right, *result.wrong])
    console.show(results.mismatches(result))


@cli.command()
@click.argument("file")
@output_option
@data_option
@click.option("--report", "report_file", type=FILE, help="Write the report here too (JSON).")
@options_of(verbs.QuantizeOptions)
@preprocess_options
@json_option
def quantize(
    file: str, output: Path, data: str, report_file: Path | None, as_json: bool, **settings: Any
) -> None:
    """Quantize FILE.onnx (folded first when it is not) to INT8; exit 4 when the accuracy budget is proven exceeded."""
    options, preprocess = _settings(verbs.QuantizeOptions, settings)
    artifact = _float(verbs.load(file, **preprocess))
    _require_places(output, report_file)
    with Console(as_json) as console:
        made, report = verbs.quantize(artifact, data, options, console.progress)
    beside = [(report_file, Console.document(report.record.to_json()))] if report_file else []
    write_together([(output, made.chunks()), *beside])
    console.show(results.quantized(report, output))


@cli.command()
@click.argument("files", nargs=-1)
@data_option
@click.option(
    "--part",
    multiple=True,
    help="Part of the data (train, validation, test); default: all that is held out.",
)
@click.option(
    "--against",
    help="Float model to compare everything with, image by image; default: the first of FILES.",
)
@click.option("--append", type=FILE, help="Append the Records to this .jsonl file.")
@options_of(verbs.EvaluateOptions)
@preprocess_options
@json_option
def evaluate(
    files: tuple[str, ...],
    data: str,
    part: tuple[str, ...],
    against: str | None,
    append: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure Top-1 and Top-5 of FILES on labeled images, with 95 % intervals; compare them image by image.

    Several processes, or hosts, share the images: torchrun --nproc-per-node=2 -m repzoo evaluate ...
    """
    from repzoo.measure import distributed, record

    options, preprocess = _settings(verbs.EvaluateOptions, settings)
    with distributed.join_group() as group:
        artifacts = [verbs.load(file, **preprocess) for file in files]
        reference = verbs.load(against, **preprocess) if against else None
        _require_places(append)
        images, console = _dataset(open_source(data), part), Console(as_json)
        with console if not group.rank else contextlib.nullcontext():
            progress = silent if group.rank else console.progress
            result = verbs.evaluate(artifacts, images, options, reference, progress, group)
        if append and not group.rank:
            record.append(append, [*result.runs, *result.paired])
    if not group.rank:
        console.show(evaluations.evaluation(result))


@cli.command()
@click.argument("files", nargs=-1, required=True)
@options_of(verbs.BenchOptions)
@click.option(
    "--append", type=FILE, help="Append the Records to this .jsonl file as each setting ends."
)
@preprocess_options
@json_option
def bench(files: tuple[str, ...], append: Path | None, as_json: bool, **settings: Any) -> None:
    """Time FILES, interleaved round by round: latency percentiles, frames a second, ratios with intervals."""
    from repzoo.measure import record

    options, preprocess = _settings(verbs.BenchOptions, settings)
    _require_places(append)
    artifacts = [verbs.load(file, **preprocess) for file in files]
    with Console(as_json) as console:
        swept = verbs.benchmark(
            artifacts,
            options,
            console.progress,
            partial(record.append, append) if append else lambda _: None,
        )
    console.show(bench_view(swept))
    if swept.interrupted:
        sys.exit(INTERRUPTED)


@cli.command()
@click.argument("file")
@click.argument("images", nargs=-1, required=True, type=FILE)
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(1, 100), help="Classes to show."
)
@engine_option
@preprocess_options
@json_option
def predict(
    file: str, images: tuple[Path, ...], top: int, engine: str, as_json: bool, **preprocess: Any
) -> None:
    """Show the best classes of each of IMAGES with their probabilities."""
    Console(as_json).show(
        results.predictions(verbs.predict(verbs.load(file, **preprocess), images, top, engine))
    )


@cli.command()
@click.argument("file")
@preprocess_options
@json_option
def count(file: str, as_json: bool, **preprocess: Any) -> None:
    """Count parameters, MACs and bytes of FILE.onnx, and name what was not counted."""
    from repzoo.graph.tools.cost import count as count_cost

    artifact = verbs.load(file, **preprocess)
    Console(as_json).show(models.cost(artifact, count_cost(artifact)))


@cli.command()
@click.argument("model")
@data_option
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Folder of the run; the same command goes on with it.  [default: runs/MODEL.DATA]",
)
@click.option(
    "--recipe",
    "recipe_name",
    help="A recipe's name, or FILE.toml.  [default: digits for digits, else photos]",
)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option(
    "--batch",
    type=click.IntRange(2),
    help="Images a step over all processes, instead of the recipe's.",
)
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate, instead of the recipe's (and for as many images as it says).",
)
@click.option(
    "--amp",
    type=click.Choice(["off", "on", "bf16", "fp16"]),
    help="Mixed precision, instead of the recipe's.",
)
@click.option(
    "--distill",
    type=click.Choice(["none", "soft", "hard"]),
    help="How to learn from --teacher, instead of the recipe's.",
)
@click.option(
    "--size", type=click.IntRange(32), help="Side of the input in pixels, instead of the recipe's."
)
@options_of(TrainOptions)
@json_option
def train(
    model: str,
    data: str,
    output: Path | None,
    recipe_name: str | None,
    size: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train MODEL on the `train` part of the data; validation and test images are scored, never trained on.

    MODEL: a name of the catalog, or any of timm's. Several processes, or hosts: torchrun --nproc-per-node=2 -m repzoo train ...
    """
    from repzoo.measure import distributed
    from repzoo.training.recipe import recipe as recipe_called

    options, changed = _settings(TrainOptions, settings)
    changed["distill"] = "" if changed["distill"] == "none" else changed["distill"]
    chosen = (
        recipe_called(recipe_name or ("digits" if data == "digits" else "photos"))
        .for_model(model)
        .changed(**changed)
    )
    if size:
        chosen = chosen.changed(preprocess={**chosen.preprocess, "size": size})
    with distributed.join_group() as group:
        source, console = open_source(data), Console(as_json)
        run = Running(
            output=output or Path("runs") / f"{model}.{source.name}", **dataclasses.asdict(options)
        )
        if not group.rank:
            require_writable_folder(run.output)
        with console if not group.rank else contextlib.nullcontext():
            progress = silent if group.rank else console.progress
            result = verbs.trainer()(model, source, chosen, run, group, progress)
    if not group.rank:
        console.show(results.trained(result))


@cli.command()
@click.argument("model", required=False)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="Folder with one subfolder of images a class, or `digits`.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("out"),
    show_default=True,
    help="Folder for the card and its files.",
)
@click.option("--append", type=FILE, help="Append the Records to this .jsonl file too.")
@click.option(
    "--streams",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Clients of the multi-thread row; 0: one for each core.",
)
@click.option(
    "--seconds", default=5.0, show_default=True, type=POSITIVE, help="Time for all timing."
)
@click.option(
    "--time-on", help="Engines to time the float and the INT8 file on too.", **several(str)
)
@options_of(verbs.QuantizeOptions)
@preprocess_options
@json_option
def card(
    model: str | None, data: str, output: Path, append: Path | None, as_json: bool, **settings: Any
) -> None:
    """Do the whole job on MODEL and write its card: fold, quantize, evaluate, time.

    Without MODEL: the embedded checkpoint whose classes are those of the data.
    """
    from repzoo import job
    from repzoo.measure import record

    times = {key: settings.pop(key) for key in ("streams", "seconds", "time_on")}
    options, preprocess = _settings(verbs.QuantizeOptions, settings)
    source = open_source(data)
    artifact = _float(verbs.load(model or verbs.embedded_for(source.classes), **preprocess))
    require_writable_folder(output)
    if append:
        require_writable(append)
    with Console(as_json) as console:
        result = job.run(artifact, source, job.JobOptions(options, **times), console.progress)
    files = job.write(result, output)
    if append:
        record.append(append, result.records)
    console.show(results.card(result, files))


def _settings(kind: type[Any], values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the settings dataclass, the preprocess fields) from a command's options."""
    own = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
    return kind(**own), values


def _dataset(source: DataSource, parts: tuple[str, ...]) -> Dataset:
    return source.join(*parts) if parts else source.held_out()


def _float(artifact: Artifact) -> Artifact:
    if artifact.form == "int8":
        raise InputError(
            f"{artifact.name} is quantized already; give the float model it was made from"
        )
    return artifact


def _require_places(*paths: Path | None) -> None:
    for path in paths:
        if path:
            require_writable(path)


def _missing_torch(feature: str, error: ModuleNotFoundError) -> ModuleNotFoundError | MissingExtra:
    return error if (error.name or "").split(".")[0] == "repzoo" else MissingExtra(feature, "torch")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments`, or on the process's own; always ends in SystemExit."""
    warnings.filterwarnings(
        "ignore", module="PIL"
    )  # of odd but readable images; unreadable ones are counted and named
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # names that the terminal's encoding lacks
    cli.main(arguments, prog_name="repzoo", standalone_mode=True)
