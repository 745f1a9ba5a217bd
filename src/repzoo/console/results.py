"""Views of results: quantize, mismatch, predict, train, card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from repzoo import verbs
from repzoo.console.evaluations import paired_line
from repzoo.console.output import View, make_table
from repzoo.measure.record import select, to_json
from repzoo.measure.results import LatencyRatio, PairedAccuracy
from repzoo.quant.search.gate import QuantReport
from repzoo.report import card as cards

if TYPE_CHECKING:  # they import what takes long, or torch
    from repzoo.job import JobResult
    from repzoo.training.run import TrainResult

# Rows that a person is shown; --json has all.
SHOWN_LAYERS = 8
SHOWN_CHANNELS = 3
SHOWN_EPOCHS = 5


def quantized(report: QuantReport, path: Path) -> View:
    """`repzoo quantize`."""
    shown: list[Any] = [_candidates(report)]
    data = report.record.data
    if data["selection_images"]:
        shown.append(
            f"ranges set by {data['images']} images; candidates compared on "
            f"{data['selection_images']} others, the chosen one judged on "
            f"{data['gate_images']} more"
        )
    if report.chosen.layers:
        shown.append(_noisiest_layers(report))
    shown.extend(_placement_lines(report))
    shown.append(f"{path} written")
    document = {"file": str(path), **to_json(report.record.values)}
    return View(document, *shown, remarks=report.warnings)


def _candidates(report: QuantReport) -> Table:
    """A row for each candidate, and the verdict of the gate."""
    table = make_table(
        "stage", ">drop", ">95 % interval", ">same %", ">expected", ">dB", ">s", ""
    )
    for candidate in report.candidates:
        mark = "" if candidate.verdict.passes else "refused"
        if candidate is report.chosen:
            mark = "chosen"
        figures = _drop_cells(candidate.paired)
        table.add_row(candidate.stage, *figures, f"{candidate.seconds:.1f}", mark)
    verdict = "gate" if report.passes else "gate: refused"
    table.add_row(verdict, *_drop_cells(report.paired.values), "", "")
    return table


def _drop_cells(values: PairedAccuracy) -> tuple[str, str, str, str, str]:
    """Drop, interval, unchanged predictions in percent, those expected, and the logits' SQNR."""
    interval = f"{cards.points(values.drop_low)} .. {cards.points(values.drop_high)}"
    expected = ""
    noise = ""
    if values.expected is not None:
        expected = cards.percent(100 - values.expected.changed)
        noise = f"{values.logits_snr_db:.0f}"
    same = cards.percent(values.same_prediction)
    return cards.points(values.drop), interval, same, expected, noise


def _noisiest_layers(report: QuantReport) -> Table:
    table = make_table(
        "noisiest layers", ">weights dB", ">input dB", "worst side, channels"
    )
    for layer in report.chosen.layers[:SHOWN_LAYERS]:
        channels = ", ".join(map(str, layer.channels[:SHOWN_CHANNELS]))
        decibels = (f"{layer.weight_db:.0f}", f"{layer.activation_db:.0f}")
        table.add_row(layer.layer, *decibels, f"{layer.side} {channels}")
    return table


def _placement_lines(report: QuantReport) -> list[str]:
    """What runs in INT8, its latency over that of float, and why other nodes stay in float."""
    lines = [
        f"placement: {report.chosen.placement}; {_latency_ratio(report.chosen.ratio)}"
    ]
    reasons = []
    for trial in report.record.values.placement_trials or ():
        if trial.kept:
            side = "in INT8" if trial.int8 else "in float"
            ratio = cards.ratio_of(trial.ratio)
            reasons.append(f"{trial.group} ({trial.nodes}) {side}: {ratio} of the time")
    if reasons:
        lines.append(f"by timing on this engine: {'; '.join(reasons)}")
    return lines


def _latency_ratio(values: LatencyRatio) -> str:
    interval = (
        f"{cards.ratio_of(values.ratio_low)} .. {cards.ratio_of(values.ratio_high)}"
    )
    return f"INT8 / float latency {cards.ratio_of(values.ratio)} (95 % interval {interval})"


def mismatches(result: verbs.Mismatches) -> View:
    """`repzoo mismatch`."""
    table = make_table("preprocessing", ">Top-1 %", ">drop", ">95 % interval", ">p")
    right = result.right.values
    table.add_row("the model's own", cards.percent(right.top1), "", "", "")
    for record in result.wrong:
        values = record.values
        assert values.top1 is not None  # a mismatch row has it
        interval = (
            f"{cards.points(values.drop_low)} .. {cards.points(values.drop_high)}"
        )
        figures = (cards.percent(values.top1), cards.points(values.drop), interval)
        table.add_row(values.mismatch, *figures, f"{values.p_value:.2g}")
    document = {
        "right": to_json(right),
        "wrong": [to_json(record.values) for record in result.wrong],
        "data": dict(result.right.data),
    }
    note = (
        f"{right.n} images, the same in every row. Drop: Top-1 points below the first row. "
        "p: McNemar's exact test."
    )
    return View(document, table, note, remarks=result.remarks)


def predictions(predictions: Sequence[verbs.Prediction]) -> View:
    """`repzoo predict`."""
    table = make_table("image", "class", ">probability")
    document = []
    for prediction in predictions:
        rows = []
        for rank, best in enumerate(prediction.top):
            name = prediction.image if rank == 0 else ""
            table.add_row(name, best.label, f"{best.probability:.4f}")
            rows.append({"class": best.label, "probability": best.probability})
        document.append({"image": prediction.image, "top": rows})
    return View({"predictions": document}, table)


def trained(result: TrainResult) -> View:
    """`repzoo train`."""
    artifact = result.artifact
    validated = [epoch for epoch in result.log if not math.isnan(epoch.validation_top1)]
    table = make_table(">epoch", ">loss", ">held-out Top-1 %", ">images/s")
    for epoch in validated[-SHOWN_EPOCHS:]:
        table.add_row(
            str(epoch.epoch + 1),
            f"{epoch.loss:.4f}",
            cards.percent(epoch.validation_top1),
            cards.rate(epoch.images_per_second),
        )
    document = {
        "name": artifact.name,
        "sha256": artifact.sha256,
        "epochs": [dataclasses.asdict(epoch) for epoch in result.log],
    }
    return View(
        document, table, f"{artifact.name}: trained and written", remarks=result.remarks
    )


def card(result: JobResult, files: Sequence[Path]) -> View:
    """`repzoo card`: the figures of the card, a column for each form, and where the card is."""
    facts = cards.summary(result.records)
    fold = facts.fold
    lines = [
        paired_line(select(result.records, PairedAccuracy)[0]),
        _latency_ratio(facts.ratios["int8"]),
        f"fold: {fold.before.nodes} nodes -> {fold.after.nodes}, "
        f"largest error {fold.max_abs_error:.2g} (bound {fold.bound:.2g})",
    ]
    written = next(path for path in files if path.name == "card.md")
    document = {
        **facts.to_json(),
        "files": [str(path) for path in files],
        "remarks": list(result.remarks),
    }
    return View(
        document, _card_table(facts), *lines, f"card: {written}", remarks=result.remarks
    )


def _card_table(facts: cards.CardFacts) -> Table:
    table = make_table(facts.name, ">float", ">INT8")
    forms = ("deploy", "int8")
    costs = [facts.cost[form] for form in forms]
    accuracies = [facts.accuracy[form] for form in forms]
    single = [facts.single[form] for form in forms]
    many = [facts.many[form] for form in forms]
    size = f"{facts.size}x{facts.size}"
    table.add_row("size (pixels)", size, size)
    table.add_row("classes", str(facts.classes), str(facts.classes))
    table.add_row(
        "parameters (M)", *(cards.millions(cost.parameters) for cost in costs)
    )
    table.add_row("weights (kB)", *(f"{cost.bytes / 1000:.0f}" for cost in costs))
    table.add_row(
        f"Top-1 % (n = {facts.paired.n})",
        *(cards.percent(item.top1) for item in accuracies),
    )
    table.add_row("Top-5 %", *(cards.percent(item.top5) for item in accuracies))
    table.add_row("latency, 1 thread (ms)", *(cards.ms(item.p50_ms) for item in single))
    clients = facts.client_threads
    table.add_row(
        f"latency, {clients} threads (ms)", *(cards.ms(item.p50_ms) for item in many)
    )
    table.add_row("frame rate (FPS)", *(cards.rate(item.fps) for item in many))
    return table
