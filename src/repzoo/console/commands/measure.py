"""Commands that measure models: evaluate, bench, predict, mismatch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import verbs
from repzoo.console import evaluations, next_step, results
from repzoo.console.bench import bench as bench_view
from repzoo.console.commands.shared import (
    FILE,
    MODEL,
    append_option,
    data_option,
    engine_option,
    json_option,
    part_option,
    require_writable_files,
)
from repzoo.console.options import options_of, preprocess_options, split_options
from repzoo.console.output import Console
from repzoo.data.batches import ReadReport
from repzoo.errors import INTERRUPTED
from repzoo.measure.class_mapping import binary_remarks
from repzoo.measure.record import Record
from repzoo.measure.record import append as append_records
from repzoo.progress import silent
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.image_size import load_any_graph
from repzoo.verbs.model_files import load_file
from repzoo.verbs.prediction import classify, images_below


@click.command()
@click.argument("files", type=MODEL, nargs=-1)
@data_option
@part_option
@click.option(
    "--against",
    type=MODEL,
    help="Float model to compare every other with, image by image.  [default: the first of FILES]",
)
@append_option
@options_of(verbs.EvaluateOptions)
@preprocess_options
@json_option
def evaluate(
    files: tuple[str, ...],
    data: str,
    against: str | None,
    append: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure Top-1 and Top-5 of FILES on labeled images, and compare them image by image.

    Intervals are 95 %. Several processes or hosts can share the images:
    torchrun --nproc-per-node=2 -m repzoo evaluate ...
    """
    from repzoo.measure import distributed

    part = values.pop("part")
    options, preprocess = split_options(verbs.EvaluateOptions, values)
    with distributed.join_group() as group:
        artifacts = [load_file(file, **preprocess) for file in files]
        reference = load_file(against, **preprocess) if against else None
        require_writable_files(append=append)
        console = Console(as_json)
        # Without labels, only a comparison with a float model says anything.
        source = open_data_source(data, unlabeled=against is not None)
        # Of several processes the first shows its progress and writes.
        is_first = not group.rank
        if is_first:
            console.describe(source.describe_evaluation(part))
        with console if is_first else contextlib.nullcontext():
            result = verbs.evaluate(
                artifacts,
                source,
                against=reference,
                part=part,
                options=options,
                progress=console.progress if is_first else silent,
                group=group,
            )
        if append and is_first:
            append_records(append, [*result.runs, *result.paired])
    if is_first:
        console.show(evaluations.evaluation(result))
        console.suggest(
            next_step.after_evaluate(files, against, options, append, preprocess)
        )


@click.command()
@click.argument("files", type=MODEL, nargs=-1, required=True)
@options_of(verbs.BenchOptions)
@append_option
@preprocess_options
@json_option
def bench(
    files: tuple[str, ...], append: Path | None, as_json: bool, **values: Any
) -> None:
    """Time FILES: latency percentiles, frames per second, and ratios with intervals.

    All cases are interleaved round by round. --append writes as each setting ends.
    """
    options, preprocess = split_options(verbs.BenchOptions, values)
    require_writable_files(append=append)

    def keep(records: Sequence[Record[Any]]) -> None:
        """Append the Records of a finished setting, so that an interrupt does not lose them."""
        if append:
            append_records(append, records)

    artifacts = [load_any_graph(file, **preprocess) for file in files]
    with Console(as_json) as console:
        result = verbs.benchmark(
            artifacts, options=options, progress=console.progress, on_records=keep
        )
    console.show(bench_view(result))
    console.suggest(next_step.after_records(append))
    # What was measured is shown and kept; a script must still see that it is not all.
    if result.interrupted:
        sys.exit(INTERRUPTED)


@click.command()
@click.argument("file", type=MODEL)
@click.argument("images", nargs=-1, required=True, type=FILE)
@click.option(
    "--top",
    default=5,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Classes to show.",
)
@engine_option
@preprocess_options
@json_option
def predict(
    file: str,
    images: tuple[Path, ...],
    top: int,
    engine: str,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Show the most probable classes of each of IMAGES: files, or folders at any depth.

    Probabilities are the model's own where it ends in Softmax or Sigmoid, else the softmax of its
    logits. Of a model that ends in Sigmoid the labels above 0.5 are shown.
    """
    remarks: list[str] = []
    with Console(as_json) as console:
        paths = _expand_folders(images, remarks)
        model = load_file(file, **preprocess)
        # A broken image is an error where it was named itself, and a remark within a folder.
        has_folder = any(path.is_dir() for path in images)
        report = ReadReport()
        # `verbs.predict` neither reports on the images nor leaves broken ones out.
        predictions = classify(
            model, paths, top, engine, report, has_folder, console.progress
        )
    remarks += [*binary_remarks(model), *report.sentences()]
    console.show(results.predictions(predictions, remarks))


def _expand_folders(paths: Sequence[Path], remarks: list[str]) -> list[Path]:
    """`paths` with each folder replaced by its images; what is passed over is a remark."""
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        below, passed_over = images_below(path)
        images += below
        if passed_over is not None:
            remarks.append(f"{path}: passed over {passed_over}")
    return images


@click.command()
@click.argument("file", type=MODEL)
@data_option
@part_option
@append_option
@engine_option
@preprocess_options
@json_option
def mismatch(
    file: str, data: str, append: Path | None, as_json: bool, **values: Any
) -> None:
    """Measure the Top-1 drop of FILE for every common preprocessing mistake.

    They are: resize, resampling filter, crop, channel order, NV12, mean and std.
    """
    part = values.pop("part")
    engine = values.pop("engine")
    artifact = load_file(file, **values)
    require_writable_files(append=append)
    source = open_data_source(data)
    with Console(as_json) as console:
        console.describe(source.describe_evaluation(part))
        result = verbs.measure_mismatch(
            artifact, source, part=part, engine=engine, progress=console.progress
        )
    if append:
        append_records(append, [result.right, *result.wrong])
    console.show(results.mismatches(result))
    console.suggest(next_step.after_records(append))
