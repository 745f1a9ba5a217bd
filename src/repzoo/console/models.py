"""Views of models, engines and graphs: list, info, engines, download, export, fold, count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from repzoo.artifact import Artifact as StoredArtifact
from repzoo.console.output import Summary, View, make_table
from repzoo.data.names import enumeration
from repzoo.engines import statuses
from repzoo.measure import host
from repzoo.onnx_file import foreign_operators, has_open_sides
from repzoo.report import figures
from repzoo.zoo.catalog import FigureSource, ModelSpec

if TYPE_CHECKING:  # graph.* imports onnx-ir, which takes long
    from repzoo.graph.certificate.certify import Certificate
    from repzoo.graph.tools.cost_result import Cost
    from repzoo.verbs import Artifact, EmbeddedInput
    from repzoo.zoo.checkpoints import Loaded
    from repzoo.zoo.download import Fetched

# How a person reads the topics of `host.describe`.
HOST_TOPICS = {
    "processor": "processor",
    "int8": "INT8 instructions",
    "system": "system",
    "software": "software",
    "threads": "thread settings",
    "load": "load",
}
LONGEST_VALUE = 400  # characters of a value that a person is shown


def models(rows: Sequence[ModelSpec]) -> View:
    """`repzoo list`."""
    table = make_table("model", "size", ">train M", ">deploy M", ">MACs M", ">Top-1 %")
    for row in rows:
        # Sources disagree by tenths of a point; `repzoo info` shows all of them.
        published = [figure.top1 for figure in row.figures if figure.top1 is not None]
        table.add_row(
            row.name,
            str(row.preprocess.size),
            figures.millions(row.parameters_train),
            figures.millions(row.parameters_deploy),
            figures.millions(row.macs),
            str(max(published)) if published else "",
        )
    note = (
        "Millions of parameters in training and deploy form; the best published Top-1 "
        "(all figures: repzoo info MODEL)."
    )
    return View({"models": [row.document() for row in rows]}, table, note)


def spec(row: ModelSpec, sources: Mapping[str, FigureSource]) -> View:
    """`repzoo info` of a catalog model."""
    document = row.document()
    facts = make_table("", "")
    for name, value in document.items():
        if name not in ("figures", "notes", "preprocess"):
            facts.add_row(name, str(value))
    facts.add_row("preprocess", _pairs(document["preprocess"]))
    published = make_table("published by", "figures")
    used = {}
    for figure in document["figures"]:
        source = sources[figure["source"]]
        used[figure["source"]] = dataclasses.asdict(source)
        # The source has a column of its own, and the files' hashes are for programs.
        values = dict(figure)
        values.pop("source")
        values.pop("files", None)
        published.add_row(source.title, _pairs(values))
    notes = [f"note: {note}" for note in row.notes]
    return View({**document, "sources": used}, facts, published, *notes)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def artifact(model: Artifact) -> View:
    """`repzoo info` of a file."""
    preprocess = dataclasses.asdict(model.preprocess) if model.preprocess else None
    facts = {
        "name": model.name,
        "form": model.form,
        "opset": model.opset,
        "classes": model.num_classes,
        "labels": list(model.labels),
        "preprocess": preprocess,
        "steps": [dataclasses.asdict(step) for step in model.steps],
        "sha256": model.sha256,
    }
    if model.origin:
        facts["origin"] = model.origin
    shown = dict(facts)
    shown["preprocess"] = _pairs(preprocess) if preprocess else "not stated"
    shown["steps"] = [f"{step.verb} ({_pairs(step.settings)})" for step in model.steps]
    if model.form == "int8":
        # A file that is INT8 by name may keep most of its layers in float.
        from repzoo.graph.tools.int8_share import int8_share

        share = int8_share(model)
        facts["int8"] = dataclasses.asdict(share)
        shown["form"] = str(share)
    table = make_table("", "")
    for name, value in shown.items():
        table.add_row(name, _shorten(value))
    return View(facts, table)


def _shorten(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."


def engines() -> View:
    """`repzoo engines`."""
    table = make_table("engine", "version", "options, or how to install it")
    rows: list[dict[str, Any]] = []
    for status in statuses():
        row = {
            "name": status.name,
            "version": status.version,
            "hint": status.problem,
            "options": list(status.options),
        }
        rows.append(row)
        choices = [f"{status.name}:{option}" for option in status.options]
        # A line for each option: the table escapes line breaks in plain strings.
        shown = status.problem or Text("\n".join(choices))
        table.add_row(status.name, status.version, shown)
    facts = host.host()
    described = host.describe(facts)
    lines = [f"{HOST_TOPICS[topic]}: {text}" for topic, text in described.items()]
    return View({"engines": rows, "host": facts}, table, *lines)


def written(model: StoredArtifact, path: Path) -> View:
    """A model file that was written."""
    document = {
        "file": str(path),
        "form": model.form,
        "opset": model.opset,
        "classes": model.num_classes,
        "sha256": model.sha256,
    }
    remarks = []
    if model.steps and model.steps[0].verb == "build":
        build = model.steps[0].settings
        if "source" in build:
            remarks = [f"weights of {build['source']}", *build.get("remarks", [])]
    summary = (
        f"{path}: {model.form} form, opset {model.opset}, {model.num_classes} classes"
    )
    return Summary(document, summary, remarks=remarks)


def converted(weights: Loaded, path: Path, sha256: str) -> View:
    """`repzoo convert`."""
    document = {
        "file": str(path),
        "model": weights.model,
        "source": weights.source,
        "form": weights.form,
        "classes": weights.classes,
        "tensors": len(weights.state),
        "remarks": list(weights.remarks),
        "sha256": sha256,
    }
    summary = (
        f"{path}: {weights.model}, {len(weights.state)} tensors, {weights.classes} classes; "
        f"from {weights.source}"
    )
    return Summary(document, summary, remarks=weights.remarks)


def downloaded(fetched: Sequence[Fetched], failed: Sequence[str]) -> View:
    """`repzoo download`."""
    table = make_table("weights", "status", ">MB", "verified by")
    rows = []
    for item in fetched:
        verified = item.verified or "unverified: no published hash"
        table.add_row(item.name, item.status, f"{item.bytes / 1e6:.1f}", verified)
        rows.append({**dataclasses.asdict(item), "file": str(item.file)})
    shown = [table, *(str(item.file) for item in fetched)] if fetched else []
    # The command ends with the first failure as its error.
    return View({"files": rows, "failed": list(failed)}, *shown, remarks=failed[1:])


def embedded_input(embedded: EmbeddedInput, model: StoredArtifact, path: Path) -> View:
    """`repzoo embed-input`."""
    preprocess = model.require_preprocess()
    document = {
        **written(model, path).document,
        "placed": embedded.summary,
        "certificate": embedded.certificate.to_json(),
        "input": preprocess.input,
        "shape": list(preprocess.input_shape),
        "color": preprocess.color,
        "yuv": preprocess.yuv,
    }
    colors = preprocess.yuv if preprocess.input == "nv12" else preprocess.color
    shape = ", ".join(map(str, preprocess.input_shape))
    summary = f"{path}: takes {preprocess.input} [N, {shape}], {colors}"
    return Summary(document, summary, embedded.summary, embedded.certificate.line())


def certificate(proof: Certificate, path: Path, verbose: bool = False) -> View:
    """`repzoo fold`.

    verbose  list every fold and every refusal
    """
    document = proof.to_json()
    written = f"{path} written"
    lines = _refusals(proof) if verbose else []
    # Without a fold, nodes that change nothing may still have been removed.
    if not proof.folds and proof.before["nodes"] == proof.after["nodes"]:
        return Summary(document, "nothing to fold", *lines, proof.line(), written)
    sizes = make_table("", ">before", ">after")
    for name in ("nodes", "parameters", "macs", "bytes"):
        sizes.add_row(name, f"{proof.before[name]:,}", f"{proof.after[name]:,}")
    folds = _folds(proof) if verbose else _fold_counts(proof)
    return Summary(document, folds, *lines, sizes, proof.line(), written)


def _fold_counts(proof: Certificate) -> str:
    """How many folds were made, and how many refused."""
    nodes = sum(len(fold.nodes) for fold in proof.folds)
    counts = f"{nodes} nodes folded into {len(proof.folds)}"
    if not proof.folds:
        counts = "no folds; nodes that change nothing were removed"
    refused = len(proof.refusals)
    return f"{counts}; {refused} refused (--verbose says why)" if refused else counts


def _folds(proof: Certificate) -> Any:
    """All folds, as a table."""
    table = make_table("folded", "nodes", ">MACs per pixel")
    for fold in proof.folds:
        macs = f"{fold.macs_before:,.0f} -> {fold.macs_after:,.0f}"
        table.add_row(fold.output, f"{len(fold.nodes)} ({fold.kind})", macs)
    return table


def _refusals(proof: Certificate) -> list[str]:
    """All refusals, a line each."""
    lines = []
    for refusal in proof.refusals:
        lines.append(f"refused: {refusal.node}: {refusal.reason}")
    return lines


def cost(model: StoredArtifact, counted: Cost) -> View:
    """`repzoo count`."""
    table = make_table(model.name, f">{model.form} form")
    for name in ("parameters", "macs", "bytes", "nodes"):
        figure = f"{getattr(counted, name):,}"
        if name == "macs" and counted.unsized:
            figure = f"over {figure}" if counted.macs else "unknown"
        table.add_row(name, figure)
    uncounted = ", ".join(
        f"{number} {name}" for name, number in counted.uncounted.items()
    )
    note = f"not counted in macs: {uncounted or 'nothing'}"
    remarks = _unsized_remarks(model, counted)
    return View(dataclasses.asdict(counted), table, note, remarks=remarks)


def _unsized_remarks(model: StoredArtifact, counted: Cost) -> list[str]:
    """What the figure of MACs lacks, and what would complete it."""
    if not counted.unsized:
        return []
    layers = " and ".join(
        f"{number} {name}" for name, number in counted.unsized.items()
    )
    cause = "they depend on what the model computes"
    foreign = sorted(foreign_operators(model.model))
    if foreign:
        cause = f"they stand behind {enumeration(foreign)}, which ONNX does not define"
    if model.preprocess is None and has_open_sides(model.model):
        cause = "the input leaves its height and width open; give --size"
    return [f"macs lack {layers}, whose sizes are unknown: {cause}"]
