"""Commands for boards and their makers' tools: harden, pack, toolchains, import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from repzoo import verbs
from repzoo.console import board_logs as log_views
from repzoo.console import hardened as views
from repzoo.console import lint as lint_views
from repzoo.console import next_step
from repzoo.console import toolchains as toolchain_views
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
    write_with_report,
)
from repzoo.console.options import options_of, preprocess_options, split_options
from repzoo.console.output import Console
from repzoo.errors import GateError, InputError
from repzoo.measure.record import append as append_records
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.image_size import load_any_graph
from repzoo.verbs.model_files import load_file, require_float


@click.command()
@click.argument("file", type=MODEL)
@output_option
@data_option
@click.option("--report", type=FILE, help="Also write the report to this JSON file.")
@options_of(verbs.HardenOptions)
@preprocess_options
@json_option
def harden(
    file: str,
    output: Path,
    data: str,
    report: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Prepare FILE.onnx for a vendor's own quantizer: a float model whose weights it keeps.

    Most vendors' tools compute all scales themselves. Here weights are equalized and rounded by
    GPTQ first, to values that the tool's own rounding returns unchanged. Exits with 4, and writes
    nothing, when the drop in the target's arithmetic is proven to exceed --max-drop.
    """
    options, preprocess = split_options(verbs.HardenOptions, values)
    artifact = load_file(file, **preprocess)
    require_float(artifact)
    require_writable_files(output, file, report=report)
    with Console(as_json) as console:
        source = open_data_source(data, unlabeled=True)
        console.describe(source.describe_quantization())
        result = verbs.harden(
            artifact, source, options=options, progress=console.progress
        )
    assert result.hardening is not None
    document = views.document(result.hardening)
    write_with_report(result, output, report, document)
    console.show(views.hardened(result.hardening, output))
    console.suggest(next_step.after_harden(result, output, options.target, data))


@click.command()
@click.argument("file", type=MODEL, required=False)
@click.option("-o", "--output", type=FILE, help="Folder to write; it must be empty.")
@click.option(
    "--check",
    type=FILE,
    metavar="PATH",
    help="Write nothing: say what is wrong in a pack, in a vendor's configuration or in "
    "calibration files.",
)
@click.option(
    "--model",
    type=MODEL,
    metavar="FILE",
    help="With --check: the model that PATH is for.  [default: the one it names]",
)
@click.option(
    "--data",
    type=DATA,
    help=f"{DATA_HELP} With --check: measure what mistakes cost.",
)
@append_option
@options_of(verbs.PackOptions)
@preprocess_options
@json_option
def pack(
    file: str | None,
    output: Path | None,
    check: Path | None,
    model: str | None,
    data: str | None,
    append: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a folder with all that a vendor's tool chain needs to put FILE.onnx on its board.

    The model as the tool wants it (see `repzoo harden`), its configuration, calibration images,
    numbered steps, labels, a README in English and Chinese, and a manifest with hashes.

    With --check PATH, check such a folder or a vendor's own file instead. Exits with 4 where there
    are errors.

    With --compile the tool chain runs at once; `repzoo pack FOLDER --compile` runs it on a pack
    that is there already. --append keeps the compiler's estimates and the similarity of each node.
    """
    options, preprocess = split_options(verbs.PackOptions, values)
    if check is not None:
        if output is not None or (file is not None and model is not None):
            raise click.UsageError(
                "--check writes nothing: leave out -o, and give one model."
            )
        _check(check, model or file, data, preprocess, as_json)
        return
    require_writable_files(append=append)
    if append and not options.compile:
        raise InputError("--append keeps what the tool chain says; give --compile too")
    if file is not None and Path(file).is_dir():
        _compile_folder(Path(file), output, options, append, as_json)
        return
    if file is None or output is None or data is None:
        missing = "FILE" if file is None else "-o" if output is None else "--data"
        raise click.UsageError(f"Missing {missing}; or give --check PATH.")
    if model is not None:
        raise click.UsageError("--model is for --check; the model to pack is FILE.")
    artifact = load_file(file, **preprocess)
    with Console(as_json) as console:
        source = open_data_source(data, unlabeled=True)
        console.describe(source.describe_quantization())
        written = verbs.pack(
            artifact, source, output, options=options, progress=console.progress
        )
    if append and written.compiled:
        append_records(append, written.compiled.records)
    console.show(views.packed(written))
    console.suggest(next_step.after_pack(file, written, data, options, preprocess))


def _check(
    path: Path,
    model: str | None,
    data: str | None,
    preprocess: dict[str, Any],
    as_json: bool,
) -> None:
    """Show what is wrong; leave with 2 for files that cannot be read, 4 for errors."""
    artifact = load_file(model, **preprocess) if model is not None else None
    stated = [name for name, value in preprocess.items() if value is not None]
    if artifact is None and stated:
        raise click.UsageError(
            f"--{stated[0].replace('_', '-')} says how the model's images are prepared; give "
            "--model too."
        )
    with Console(as_json) as console:
        report = verbs.check_pack(path, artifact, data, progress=console.progress)
    console.show(lint_views.findings(report))
    unreadable = [item for item in report.findings if item.code == "unreadable"]
    if unreadable:
        raise InputError(unreadable[0].message)
    errors = report.count("error")
    if errors:
        raise GateError(f"{path} has {errors} {'error' if errors == 1 else 'errors'}")


def _compile_folder(
    folder: Path,
    output: Path | None,
    options: verbs.PackOptions,
    append: Path | None,
    as_json: bool,
) -> None:
    """`repzoo pack FOLDER --compile`."""
    if not options.compile:
        raise InputError(
            f"{folder} is a folder, not a model; to run the tool chain of a pack, add --compile"
        )
    if options.chip:
        raise InputError(
            f"{folder} says for which chip it is; write a pack for {options.chip} with --chip"
        )
    with Console(as_json) as console:
        compiled = verbs.compile_pack(
            folder, output, minutes=options.compile_minutes, progress=console.progress
        )
    if append:
        append_records(append, compiled.records)
    console.show(views.compiled(compiled))


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--install",
    "install_missing",
    is_flag=True,
    help="Install NAMES that are not there, from PyPI into ~/.cache/repzoo/toolchains. Each is "
    "its maker's, under its maker's terms.",
)
@click.option(
    "--python",
    default="",
    metavar="PATH",
    help="Python to make the environments from.  [default: one that fits]",
)
@json_option
def toolchains(
    names: tuple[str, ...], install_missing: bool, python: str, as_json: bool
) -> None:
    """Show vendors' tool chains: what is installed, and what to type for the rest.

    Each has a Python environment of its own, outside of this one.
    """
    with Console(as_json) as console:
        statuses = verbs.toolchains(
            names,
            install_missing=install_missing,
            python=python,
            progress=console.progress,
        )
    console.show(toolchain_views.toolchains(statuses))


@click.command("import")
@click.argument("logs", nargs=-1, required=True, type=FILE)
@click.option(
    "--model",
    type=MODEL,
    metavar="FILE",
    help="ONNX that was compiled: logs of another model are refused.  [default: the model as the "
    "log names it]",
)
@append_option
@options_of(verbs.ImportOptions)
@json_option
def import_logs(
    logs: tuple[Path, ...],
    model: str | None,
    append: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Read LOGS of a board or of a vendor's tool: latency, accuracy, similarity of every node.

    hb_mapper (checker, makertbin), quant_info.json, main_graph_subgraph_0.json or .html;
    hrt_model_exec perf; Vastai's eval_topk and profiles; rknn-toolkit2's accuracy_analysis,
    eval_perf and eval_memory; Sophgo's model_deploy, run_calibration and bmrt_test. Results for
    each image, such as result.txt, belong to repzoo evaluate --result.
    """
    options = verbs.ImportOptions(**values)
    require_writable_files(append=append)
    artifact = load_any_graph(model) if model else None
    imported = verbs.import_logs(logs, artifact, options=options)
    if append and not imported.records:
        raise InputError(
            f"{logs[0]} holds no figures to append"
            + "".join(f"; {remark}" for remark in imported.remarks[:1])
        )
    if append:
        append_records(append, imported.records)
    console = Console(as_json)
    console.show(log_views.imported(imported))
    console.suggest(next_step.after_records(append))
