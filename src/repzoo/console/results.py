"""Views of results: mismatch, predict, train, page, demo."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repzoo import verbs
from repzoo.console.output import Summary, View, make_table
from repzoo.graph.tools.head import THRESHOLD
from repzoo.measure.record import Record, to_json
from repzoo.measure.results import PairedAccuracy
from repzoo.report import figures

if TYPE_CHECKING:  # it imports torch
    from repzoo.training.run import TrainResult

# Rows that a person is shown; --json has all.
SHOWN_EPOCHS = 5
SHOWN_MISTAKES = 11


def mismatches(result: verbs.Mismatches) -> View:
    """`repzoo mismatch`."""
    table = make_table("preprocessing", ">Top-1 %", ">drop", ">95 % interval", ">p")
    right = result.right.values
    table.add_row("the model's own", figures.percent(right.top1), "", "", "")
    shown = _largest_drops(result)
    for record in shown:
        values = record.values
        assert values.top1 is not None  # a mismatch row has it
        interval = figures.span(figures.points, values.drop_low, values.drop_high)
        table.add_row(
            values.mismatch,
            figures.percent(values.top1),
            figures.points(values.drop),
            interval,
            f"{values.p_value:.2g}",
        )
    document = {
        "right": to_json(right),
        "wrong": [to_json(record.values) for record in result.wrong],
        "data": dict(result.right.data),
    }
    note = (
        f"{right.n} images, the same in every row. Drop: Top-1 points below the first row. "
        "p: McNemar's exact test."
    )
    hidden = len(result.wrong) - len(shown)
    if hidden:
        note = f"{hidden} mistakes that cost less are left out (--json has all). {note}"
    return View(document, table, note, remarks=result.remarks)


def _largest_drops(result: verbs.Mismatches) -> list[Record[PairedAccuracy]]:
    """The mistakes that cost most, in their usual order."""
    by_drop = sorted(result.wrong, key=lambda record: -record.values.drop)
    # By identity: two mistakes may cost the same.
    kept = set(map(id, by_drop[:SHOWN_MISTAKES]))
    return [record for record in result.wrong if id(record) in kept]


def predictions(
    predictions: Sequence[verbs.Prediction], remarks: Sequence[str] = ()
) -> View:
    """`repzoo predict`."""
    table = make_table("image", "class", ">probability")
    document = []
    for prediction in predictions:
        shown = prediction.top
        row: dict[str, Any] = {"image": prediction.image}
        row["top"] = [_class_document(item) for item in prediction.top]
        if prediction.labels is not None:
            # Several labels may hold, or none: then the best one is shown with its probability.
            shown = prediction.labels or prediction.top[:1]
            row["labels"] = [_class_document(item) for item in prediction.labels]
            row["threshold"] = THRESHOLD
        for rank, item in enumerate(shown):
            name = prediction.image if rank == 0 else ""
            below = prediction.labels == ()
            mark = f" (below {THRESHOLD})" if below else ""
            table.add_row(name, f"{item.label}{mark}", f"{item.probability:.4f}")
        document.append(row)
    return View({"predictions": document}, table, remarks=remarks)


def _class_document(item: verbs.ClassProbability) -> dict[str, Any]:
    return {"class": item.label, "probability": item.probability}


def trained(result: TrainResult) -> View:
    """`repzoo train`."""
    artifact = result.artifact
    validated = [epoch for epoch in result.log if not math.isnan(epoch.validation_top1)]
    table = make_table(">epoch", ">loss", ">held-out Top-1 %", ">images/s")
    for epoch in validated[-SHOWN_EPOCHS:]:
        table.add_row(
            str(epoch.epoch + 1),
            f"{epoch.loss:.4f}",
            figures.percent(epoch.validation_top1),
            figures.rate(epoch.images_per_second),
        )
    document = {
        "name": artifact.name,
        "sha256": artifact.sha256,
        "epochs": [dataclasses.asdict(epoch) for epoch in result.log],
    }
    return Summary(
        document, table, f"{artifact.name}: trained and written", remarks=result.remarks
    )


def page(written: verbs.Page) -> View:
    """`repzoo page`."""
    document = {
        "path": str(written.path),
        "bytes": written.bytes,
        "models": written.models,
        "rows": written.rows,
    }
    size = f"{written.bytes / 1e6:.2f} MB"
    counts = f"models: {written.models}, rows: {written.rows}, {size}"
    lines = (str(written.path), counts, f"open {written.path} in a browser")
    return Summary(document, *lines, remarks=written.remarks)


def demo(written: verbs.Demo) -> View:
    """`repzoo demo`."""
    document = {
        "path": str(written.path),
        "bytes": written.bytes,
        "runtime": written.runtime,
    }
    size = f"{written.bytes / 1e6:.2f} MB, with {written.runtime}"
    return Summary(document, f"{written.path}\n{size}; open it in a browser")
