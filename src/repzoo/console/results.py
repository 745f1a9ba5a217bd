"""Views of results: quantize, predict, train, card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repzoo import verbs
from repzoo.console.evaluations import paired_line
from repzoo.console.output import View, columned
from repzoo.measure.record import select, to_json
from repzoo.measure.results import PairedAccuracy
from repzoo.quant.search.gate import QuantReport
from repzoo.report import card as cards

if TYPE_CHECKING:  # they bring what takes long to import
    from repzoo.job import JobResult
    from repzoo.training.run import TrainResult

SHOWN_LAYERS = 8  # of a quantized model


def quantized(report: QuantReport, path: Path) -> View:
    """`repzoo quantize`."""
    table = columned("rung", ">drop", ">95 % interval", ">same %", ">expected", ">dB", ">s", "")
    for rung in report.candidates:
        mark = "chosen" if rung is report.chosen else ("" if rung.verdict.passes else "refused")
        table.add_row(
            rung.stage,
            *_drop(rung.paired),
            *_told(rung.paired),
            f"{rung.seconds:.1f}",
            mark,
        )
    verdict = "gate" if report.passes else "gate: refused"
    table.add_row(verdict, *_drop(report.paired.values), *_told(report.paired.values), "", "")
    worst = columned("noisiest layers", ">weights dB", ">input dB", "worst side, channels")
    for one in report.chosen.layers[:SHOWN_LAYERS]:
        channels = ", ".join(map(str, one.channels[:3]))
        worst.add_row(
            one.layer, f"{one.weight_db:.0f}", f"{one.activation_db:.0f}", f"{one.side} {channels}"
        )
    data, rungs_by = report.record.data, report.record.data["selection_images"]
    images = f"ranges by {data['images']} images; rungs compared on {rungs_by} others, the chosen one judged on {data['gate_images']} more"
    return View(
        {"file": str(path), **to_json(report.record.values)},
        table,
        *([images] if rungs_by else []),
        *([worst] if report.chosen.layers else []),
        *_placement(report),
        f"{path} written",
        remarks=report.warnings,
    )


def _drop(values: PairedAccuracy) -> tuple[str, str, str]:
    interval = f"{cards.points(values.drop_low)} .. {cards.points(values.drop_high)}"
    return cards.points(values.drop), interval, cards.percent(values.same_prediction)


def _told(values: PairedAccuracy) -> tuple[str, str]:
    """What the logits of a rung say: unchanged predictions to be expected, in percent, and the logits' signal to noise, in dB."""
    if values.expected is None:
        return "", ""
    return cards.percent(100 - values.expected.changed), f"{values.logits_snr_db:.0f}"


def _placement(report: QuantReport) -> list[str]:
    """What runs in INT8, why the rest does not, and what that gives."""
    ratio = report.chosen.ratio
    latency = (
        f"placement: {report.chosen.placement}; INT8 / float latency {cards.ratio_of(ratio.ratio)} "
        f"(95 % interval {cards.ratio_of(ratio.ratio_low)} .. {cards.ratio_of(ratio.ratio_high)})"
    )
    kept = [one for one in report.record.values.placement_trials or () if one.kept]
    why = [
        f"{one.group} ({one.nodes}) {'in INT8' if one.int8 else 'in float'}: {cards.ratio_of(one.ratio)} of the time"
        for one in kept
    ]
    return [latency, *([f"by timing on this engine: {'; '.join(why)}"] if why else [])]


def mismatches(result: verbs.Mismatches) -> View:
    """`repzoo mismatch`."""
    table = columned("prepared", ">Top-1 %", ">drop", ">95 % interval", ">p")
    right = result.right.values
    table.add_row("as the model says", cards.percent(right.top1), "", "", "")
    for one in result.wrong:
        values = one.values
        assert values.top1 is not None  # a mismatch row has it
        interval = f"{cards.points(values.drop_low)} .. {cards.points(values.drop_high)}"
        figures = (
            cards.percent(values.top1),
            cards.points(values.drop),
            interval,
            f"{values.p_value:.2g}",
        )
        table.add_row(values.mismatch, *figures)
    document = {
        "right": to_json(right),
        "wrong": [to_json(one.values) for one in result.wrong],
        "data": dict(result.right.data),
    }
    note = f"{right.n} images, the same in every row; drop in points of Top-1 against the first, p by McNemar's exact test."
    return View(document, table, note, remarks=result.remarks)


def predictions(found: Sequence[verbs.Prediction]) -> View:
    """`repzoo predict`."""
    table = columned("image", "class", ">probability")
    for one in found:
        for rank, (label, share) in enumerate(one.best):
            table.add_row("" if rank else one.image, label, f"{share:.4f}")
    document = [
        {
            "image": one.image,
            "top": [{"class": name, "probability": share} for name, share in one.best],
        }
        for one in found
    ]
    return View({"predictions": document}, table)


def trained(result: TrainResult) -> View:
    """`repzoo train`."""
    made, log = result.artifact, result.log
    scored = [one for one in log if not math.isnan(one.validation_top1)]
    table = columned(">epoch", ">loss", ">held-out Top-1 %", ">images/s")
    for one in scored[-5:]:
        table.add_row(
            str(one.epoch + 1),
            f"{one.loss:.4f}",
            cards.percent(one.validation_top1),
            cards.rate(one.images_per_second),
        )
    document = {
        "name": made.name,
        "sha256": made.sha256,
        "epochs": [dataclasses.asdict(one) for one in log],
    }
    return View(document, table, f"{made.name}: trained and written", remarks=result.remarks)


def card(result: JobResult, files: Sequence[Path]) -> View:
    """`repzoo card`: the seeds' row, one column a form, and where the card is."""
    facts = cards.summary(result.records)
    table = columned(facts.name, ">float", ">INT8")
    forms = ("deploy", "int8")
    table.add_row("size (pixels)", *[f"{facts.size}x{facts.size}"] * 2)
    table.add_row("classes", *[str(facts.classes)] * 2)
    table.add_row(
        "parameters (M)", *(cards.millions(facts.cost[form].parameters) for form in forms)
    )
    table.add_row("weights (kB)", *(f"{facts.cost[form].bytes / 1000:.0f}" for form in forms))
    table.add_row(
        f"Top-1 % (n = {facts.paired.n})",
        *(cards.percent(facts.accuracy[form].top1) for form in forms),
    )
    table.add_row("Top-5 %", *(cards.percent(facts.accuracy[form].top5) for form in forms))
    table.add_row(
        "latency, 1 thread (ms)", *(cards.ms(facts.single[form].p50_ms) for form in forms)
    )
    table.add_row(
        f"latency, {facts.client_threads} threads (ms)",
        *(cards.ms(facts.many[form].p50_ms) for form in forms),
    )
    table.add_row("frame rate (FPS)", *(cards.rate(facts.many[form].fps) for form in forms))
    ratio, fold = facts.ratios["int8"], facts.fold
    lines = [
        paired_line(select(result.records, PairedAccuracy)[0]),
        f"INT8 / float latency {cards.ratio_of(ratio.ratio)} (95 % interval {cards.ratio_of(ratio.ratio_low)} .. "
        f"{cards.ratio_of(ratio.ratio_high)})",
        f"fold: {fold.before.nodes} nodes -> {fold.after.nodes}, largest error {fold.max_abs_error:.2g} "
        f"(bound {fold.bound:.2g})",
    ]
    written = next(path for path in files if path.name == "card.md")
    document = {
        **facts.to_json(),
        "files": [str(path) for path in files],
        "remarks": list(result.remarks),
    }
    return View(document, table, *lines, f"card: {written}", remarks=result.remarks)
