"""Commands that make one model from another: export, convert, fold, embed-input, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import verbs
from repzoo.console import models as views
from repzoo.console import next_step
from repzoo.console import quantized as quantized_views
from repzoo.console.commands.shared import (
    FILE,
    MODEL,
    certificate_data_option,
    data_option,
    engine_option,
    json_option,
    output_option,
    require_outside,
    require_writable_files,
    write_with_report,
)
from repzoo.console.options import options_of, preprocess_options, split_options
from repzoo.console.output import Console
from repzoo.verbs.convert_checkpoint import require_safetensors
from repzoo.verbs.image_data import CERTIFICATE_IMAGES, open_data_source
from repzoo.verbs.model_files import load_file, read_labels, require_float
from repzoo.zoo.naming import CheckpointOptions

CERTIFICATE_USE = f"the first {CERTIFICATE_IMAGES} certified on"


@click.command()
@click.argument("model", type=MODEL)
@output_option
@options_of(verbs.ExportOptions)
@preprocess_options
@json_option
def export(
    model: str, output: Path, labels: Path | None, as_json: bool, **values: Any
) -> None:
    """Write the catalog model MODEL as ONNX, in training form unless --form deploy."""
    options, preprocess = split_options(verbs.ExportOptions, values)
    require_writable_files(output)
    names = read_labels(labels) if labels else []
    with Console(as_json) as console:
        console.progress(f"export {model}", 0, 0)
        artifact = verbs.export(model, labels=names, options=options, **preprocess)
        written = artifact.save(output)
    console.show(views.written(written, output))
    console.suggest(next_step.after_export(written, output))


@click.command()
@click.argument("checkpoint")
@click.option(
    "--model",
    type=MODEL,
    required=True,
    help="Catalog model that the weights belong to.",
)
@output_option
@options_of(CheckpointOptions)
@json_option
def convert(
    checkpoint: str, model: str, output: Path, as_json: bool, **values: Any
) -> None:
    """Write the weights in CHECKPOINT as .safetensors, in the catalog's naming.

    CHECKPOINT: a .pth or .pt (PyTorch), .pdparams (Paddle) or .safetensors file of any known
    source. No code in it is run.
    """
    options, _ = split_options(CheckpointOptions, values)
    require_writable_files(output, checkpoint)
    # Before the work, which may begin with a download.
    require_safetensors(output)
    with Console(as_json) as console:
        console.progress("convert", 0, 0)
        converted = verbs.convert(checkpoint, model, options=options)
        converted.save(output)
    console.show(views.converted(converted.weights, output, converted.sha256))
    console.suggest(next_step.after_convert(model, output))


@click.command()
@click.argument("file", type=MODEL)
@output_option
@click.option(
    "--certificate", type=FILE, help="Also write the certificate to this JSON file."
)
@certificate_data_option
@click.option(
    "--timed/--no-timed",
    help="Also refuse folds that an engine runs slower here; the result then depends on it.",
)
@click.option("--verbose", is_flag=True, help="List every fold and every refusal.")
@preprocess_options
@json_option
def fold(
    file: str, output: Path, certificate: Path | None, as_json: bool, **values: Any
) -> None:
    """Fold FILE.onnx into its deploy form, with a certificate that both are equal.

    FILE.onnx is any float graph, with inputs and outputs of any number, rank and type.
    """
    data_name = values.pop("data")
    timed = values.pop("timed")
    verbose = values.pop("verbose")
    artifact = load_file(file, **values)
    require_writable_files(output, file, certificate=certificate)
    with Console(as_json) as console:
        console.progress("fold", 0, 0)
        data = None
        if data_name is not None:
            # Labels do not matter: the two graphs are compared with each other.
            data = open_data_source(data_name, unlabeled=True)
            console.describe(data.describe_evaluation(use=CERTIFICATE_USE))
        folded = verbs.fold(artifact, data, timed=timed, progress=console.progress)
    assert folded.certificate is not None
    write_with_report(folded, output, certificate, folded.certificate.to_json())
    console.show(views.certificate(folded.certificate, output, verbose))
    console.suggest(next_step.after_fold(file, folded, output, data_name, values))


@click.command("embed-input")
@click.argument("file", type=MODEL)
@output_option
@click.option(
    "--order",
    type=click.Choice(["RGB", "BGR"]),
    help="Channel order of the uint8 buffer.  [default: the model's]",
)
@certificate_data_option
@engine_option
@preprocess_options
@json_option
def embed_input(file: str, output: Path, as_json: bool, **values: Any) -> None:
    """Move normalization and color conversion into FILE.onnx, so that it takes a camera's buffer.

    --input uint8 or nv12 says what the buffer holds. The result is certified like a fold.
    """
    names = ("order", "data", "engine", "yuv")
    settings = {name: values.pop(name) for name in names}
    # No input is called so: the verb refuses it, and says which there are.
    kind = values.pop("input") or "nothing"
    artifact = load_file(file, **values)
    require_writable_files(output, file)
    with Console(as_json) as console:
        console.progress("embed and certify", 0, 0)
        if settings["data"] is not None:
            source = open_data_source(settings["data"], unlabeled=True)
            settings["data"] = source
            console.describe(source.describe_evaluation(use=CERTIFICATE_USE))
        embedded = verbs.embed_input(artifact, kind, **settings)
        written = embedded.artifact.save(output)
    console.show(views.embedded_input(embedded, written, output))
    console.suggest(next_step.after_writing(output))


@click.command()
@click.argument("file", type=MODEL)
@output_option
@data_option
@click.option("--report", type=FILE, help="Also write the report to this JSON file.")
@options_of(verbs.QuantizeOptions)
@preprocess_options
@json_option
def quantize(
    file: str,
    output: Path,
    data: str,
    report: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Quantize FILE.onnx to INT8, or --precision fp16. A training form is folded first.

    Of the installed engines, the fastest gets the file. Where no INT8 model is as fast as float,
    the file is the float model, unless an --engine or a --placement is named.

    Exits with 4, and writes nothing, when the accuracy drop is proven to exceed --max-drop.
    """
    options, preprocess = split_options(verbs.QuantizeOptions, values)
    artifact = load_file(file, **preprocess)
    require_float(artifact)
    require_writable_files(output, file, report=report)
    require_outside(options.pareto, output, report)
    with Console(as_json) as console:
        source = open_data_source(data, unlabeled=True)
        console.describe(source.describe_quantization())
        int8 = verbs.quantize(
            artifact, source, options=options, progress=console.progress
        )
    assert int8.report is not None
    write_with_report(int8, output, report, int8.report.record.to_json())
    console.show(quantized_views.quantized(int8.report, output))
    console.suggest(
        next_step.after_quantize(
            file, output, data, int8.report.engine_name, preprocess
        )
    )
