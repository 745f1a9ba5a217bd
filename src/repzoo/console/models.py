"""Views of models, engines and graphs: list, info, engines, export, fold, count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repzoo.artifact import Artifact
from repzoo.console.output import View, columned
from repzoo.engines import ENGINES, engine, options
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.report import card as cards
from repzoo.zoo.catalog import FigureSource, ModelSpec

if TYPE_CHECKING:  # graph.* brings onnx-ir, which takes long to import
    from repzoo.graph.certificate.certify import Certificate
    from repzoo.graph.tools.cost import Cost
    from repzoo.verbs import EmbeddedInput
    from repzoo.zoo.checkpoints import Loaded
    from repzoo.zoo.download import Fetched


def models(rows: Sequence[ModelSpec]) -> View:
    """`repzoo list`."""
    table = columned("model", "size", ">train M", ">deploy M", ">MACs M", ">Top-1 %")
    for row in rows:
        top1 = max((figure.top1 for figure in row.figures if figure.top1 is not None), default=None)
        counts = (row.parameters_train, row.parameters_deploy, row.macs)
        table.add_row(
            row.name,
            str(row.preprocess.size),
            *map(cards.millions, counts),
            "" if top1 is None else str(top1),
        )
    note = "Parameters in training and deploy form; Top-1: the best published (see: repzoo info MODEL)."
    return View({"models": [row.document() for row in rows]}, table, note)


def spec(row: ModelSpec, sources: Mapping[str, FigureSource]) -> View:
    """`repzoo info` of a catalog model."""
    document = row.document()
    facts = columned("", "")
    for key, value in document.items():
        if key not in ("figures", "notes", "preprocess"):
            facts.add_row(key, str(value))
    facts.add_row(
        "preprocess", ", ".join(f"{key} {value}" for key, value in document["preprocess"].items())
    )
    figures = columned("published by", "figures")
    for figure in document["figures"]:
        said = [f"{key} {value}" for key, value in figure.items() if key not in ("source", "files")]
        figures.add_row(sources[figure["source"]].title, ", ".join(said))
    used = {
        figure["source"]: dataclasses.asdict(sources[figure["source"]])
        for figure in document["figures"]
    }
    return View(
        {**document, "sources": used}, facts, figures, *[f"note: {note}" for note in row.notes]
    )


def artifact(one: Artifact) -> View:
    """`repzoo info` of a file."""
    facts = {
        "name": one.name,
        "form": one.form,
        "opset": one.opset,
        "classes": one.num_classes,
        "labels": list(one.labels),
        "preprocess": dataclasses.asdict(one.preprocess) if one.preprocess else None,
        "steps": [dataclasses.asdict(step) for step in one.steps],
        "sha256": one.sha256,
    }
    table = columned("", "")
    for key, value in facts.items():
        table.add_row(key, _short(value))
    return View(facts, table)


def engines() -> View:
    """`repzoo engines`."""
    table = columned("engine", "version", "options, or what to type")
    found: list[dict[str, Any]] = []
    for name in ENGINES.names():
        row: dict[str, Any] = {"name": name, "version": "", "hint": "", "options": []}
        try:
            row |= {"version": engine(name).version(), "options": options(name)}
        except InputError as error:
            row["hint"] = str(error)
        found.append(row)
        table.add_row(
            name,
            row["version"],
            row["hint"] or "\n".join(f"{name}:{one}" for one in row["options"]),
        )
    facts = host()
    return View(
        {"engines": found, "host": facts},
        table,
        f"host: {facts['cpu']}, INT8 by {', '.join(facts['int8']) or 'nothing special'}",
    )


def written(one: Artifact, path: Path) -> View:
    """A file that was made."""
    document = {
        "file": str(path),
        "form": one.form,
        "opset": one.opset,
        "classes": one.num_classes,
        "sha256": one.sha256,
    }
    build = one.steps[0].settings if one.steps and one.steps[0].verb == "build" else {}
    remarks = (
        [f"weights of {build['source']}", *build.get("remarks", [])] if "source" in build else []
    )
    return View(
        document,
        f"{path}: {one.form} form, opset {one.opset}, {one.num_classes} classes",
        remarks=remarks,
    )


def converted(one: Loaded, path: Path, sha256: str) -> View:
    """`repzoo convert`."""
    facts = {
        "model": one.model,
        "source": one.source,
        "form": one.form,
        "classes": one.classes,
        "tensors": len(one.state),
    }
    document = {"file": str(path), **facts, "remarks": list(one.remarks), "sha256": sha256}
    said = (
        f"{path}: {one.model}, {len(one.state)} tensors, {one.classes} classes; from {one.source}"
    )
    return View(document, said, remarks=one.remarks)


def downloaded(done: Sequence[Fetched], failed: Sequence[str]) -> View:
    """`repzoo download`."""
    table = columned("weights", "status", ">MB", "verified by")
    for one in done:
        table.add_row(
            one.name,
            one.status,
            f"{one.bytes / 1e6:.1f}",
            one.verified or "nobody: no hash is published",
        )
    rows = [{**dataclasses.asdict(one), "file": str(one.file)} for one in done]
    shown = [table, *(str(one.file) for one in done)] if done else []
    return View({"files": rows, "failed": list(failed)}, *shown, remarks=failed[1:])


def embedded_input(made: EmbeddedInput, one: Artifact, path: Path) -> View:
    """`repzoo embed-input`."""
    document = {
        **written(one, path).document,
        "placed": made.said,
        "certificate": made.certificate.to_json(),
    }
    prepared = one.require_preprocess()
    document |= {
        "input": prepared.input,
        "shape": list(prepared.input_shape),
        "color": prepared.color,
        "yuv": prepared.yuv,
    }
    how = prepared.yuv if prepared.input == "nv12" else prepared.color
    shape = ", ".join(map(str, prepared.input_shape))
    return View(
        document,
        f"{path}: takes {prepared.input} [N, {shape}], {how}",
        made.said,
        made.certificate.line(),
    )


def certificate(one: Certificate, path: Path) -> View:
    """`repzoo fold`."""
    table = columned("", ">before", ">after")
    for key in ("nodes", "parameters", "macs", "bytes"):
        table.add_row(key, f"{one.before[key]:,}", f"{one.after[key]:,}")
    folds = columned("folded", "nodes", ">MACs a pixel")
    for fold in one.folds:
        folds.add_row(
            fold.output,
            f"{len(fold.nodes)} ({fold.kind})",
            f"{fold.macs_before:,.0f} -> {fold.macs_after:,.0f}",
        )
    refused = [f"refused: {refusal.node}: {refusal.reason}" for refusal in one.refusals]
    return View(one.to_json(), folds, *refused, table, one.line(), f"{path} written")


def cost(artifact: Artifact, one: Cost) -> View:
    """`repzoo count`."""
    table = columned(artifact.name, f">{artifact.form} form")
    for key in ("parameters", "macs", "bytes", "nodes"):
        table.add_row(key, f"{getattr(one, key):,}")
    left = ", ".join(f"{count} {name}" for name, count in one.uncounted.items())
    return View(dataclasses.asdict(one), table, f"not counted in macs: {left or 'nothing'}")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 400 else text[:400] + " ..."
