"""Sections of the page on one model: how it was folded and quantized, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from repzoo.graph.tools.int8_share import Int8Share, percent_of_share
from repzoo.measure.board import BoardSimilarity
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.record import Record, select, share_of
from repzoo.measure.results import (
    CandidateSummary,
    FoldSummary,
    QuantizeSummary,
)
from repzoo.printable import one_line
from repzoo.report import figures
from repzoo.report.page_cells import (
    Cell,
    Hosts,
    Section,
    figure,
    form_of,
    interval,
    table,
    word,
)
from repzoo.report.translation import translate

MAX_NODES = 20  # of hundreds; the chart has all


def fold(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Before, after, and the certificate, of the newest fold."""
    folds = select(records, FoldSummary)
    if not folds:
        return {}
    values = folds[-1].values
    before, after = values.before, values.after
    verdict = {True: "equal", False: "not_equal", None: "inconclusive"}[values.equal]
    rows: list[list[Cell]] = [
        [word("nodes"), str(before.nodes), str(after.nodes)],
        [
            word("parameters"),
            figures.millions(before.parameters),
            figures.millions(after.parameters),
        ],
        [word("macs"), f"{before.macs / 1e6:.1f}", f"{after.macs / 1e6:.1f}"],
        [word("mb"), f"{before.bytes / 1e6:.2f}", f"{after.bytes / 1e6:.2f}"],
        [word("certificate"), "", word(verdict)],
        [word("max_error"), "", f"{values.max_abs_error:.2g}"],
        [word("bound"), "", f"{values.bound:.2g}"],
        [word("folds"), "", str(values.folds)],
        [word("refusals"), "", str(values.refusals)],
        [word("proven"), "", str(values.proven)],
    ]
    return table(("what", "before", "after"), rows)


def candidates(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Every INT8 model that was tried, and which one was chosen."""
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        chosen = (record.values.recipe, record.values.placement)
        for candidate in record.values.rungs:
            is_chosen = (candidate.recipe or chosen[0], candidate.placement) == chosen
            rows.append([*_candidate(candidate), word("yes") if is_chosen else ""])
    head = ("stage", "placement", "verdict", "drop", "same", "ratio", "seconds")
    return table((*head, "chosen"), rows)


def _candidate(candidate: CandidateSummary) -> list[Cell]:
    paired, ratio = candidate.paired, candidate.ratio
    shown = ""
    if ratio is not None:
        shown = interval(
            figures.ratio_of, ratio.ratio, ratio.ratio_low, ratio.ratio_high
        )
    return [
        one_line(candidate.recipe),
        one_line(candidate.placement),
        one_line(candidate.verdict or ""),
        interval(figures.points, paired.drop, paired.drop_low, paired.drop_high),
        figures.percent(paired.same_prediction),
        shown,
        "" if math.isnan(candidate.seconds) else f"{candidate.seconds:.1f}",
    ]


def placements(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Moves that the search for the placement tried."""
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        for trial in record.values.placement_trials or ():
            rows.append(
                [
                    one_line(trial.group),
                    str(trial.nodes),
                    "INT8" if trial.int8 else "float32",
                    interval(figures.ratio_of, trial.ratio, trial.low, trial.high),
                    word("yes" if trial.kept else "no"),
                ]
            )
    return table(("group", "nodes", "tried_in", "time_ratio", "kept"), rows)


def in_float(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """What does not run in INT8 or half precision, and why."""
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        name = f"{form_of(record.artifact)}, {record.values.placement}"
        rows += _share(name, share_of(record.artifact))
        rows += _kept_in_float(record.values)
    for comparison in select(records, QuantizerComparison):
        for engine, measured in comparison.values.engines.items():
            rows += _share(f"{comparison.values.recipe}, {engine}", measured.int8)
    return table(("what", "why"), rows)


def _share(name: str, share: Int8Share | None) -> list[list[Cell]]:
    if share is None:
        return []
    layers = share.layers - share.int8_layers
    english = f"{layers} of {share.layers} layers in float"
    chinese = f"{share.layers} 层中有 {layers} 层为浮点"
    if not math.isnan(share.macs):
        macs = percent_of_share(1 - share.macs)
        english += f", {macs} of MACs"
        chinese += f"，占乘加的 {macs}"
    return [[one_line(name), {"en": english, "zh": chinese}]]


def _kept_in_float(values: QuantizeSummary) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for trial in values.placement_trials or ():
        if trial.kept and not trial.int8:
            time = interval(figures.ratio_of, trial.ratio, trial.low, trial.high)
            why = {"en": f"faster: {time} of the time", "zh": f"更快：耗时比 {time}"}
            rows.append([one_line(trial.group), why])
    for item in values.half.kept if values.half else ():
        reason = str(item["reason"])
        why = {name: one_line(translate(reason, name)) for name in ("en", "zh")}
        rows.append([one_line(f"{item['node']} ({item['op']})"), why])
    return rows


def noise(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Signal-to-noise ratio of each layer, and ranges of the noisiest."""
    summaries = [row for row in select(records, QuantizeSummary) if row.values.layers]
    if not summaries:
        return {}
    layers = summaries[-1].values.layers
    values: list[dict[str, Any]] = []
    for index, layer in enumerate(layers, 1):
        name = one_line(layer.get("layer", ""))
        for side, key in (("weights", "weight_db"), ("activations", "activation_db")):
            if isinstance(layer.get(key), int | float):
                db = round(layer[key], 1)
                values.append({"index": index, "layer": name, "side": side, "db": db})
    rows: list[list[Cell]] = []
    for layer in layers[:MAX_NODES]:
        rows.append(
            [
                one_line(layer.get("layer", "")),
                figure(_decibels, layer.get("weight_db")),
                figure(_decibels, layer.get("activation_db")),
                _range(layer.get("seen")),
                _range(layer.get("range")),
                one_line(layer.get("method") or ""),
            ]
        )
    head = ("layer", "weight_db", "activation_db", "seen", "clipped", "observer")
    return {**table(head, rows), "chart": "layer_noise", "values": values}


def _decibels(value: float) -> str:
    return f"{value:.1f}"


def _range(ends: Any) -> str:
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return ""
    return " … ".join(figure(lambda end: f"{end:.3g}", end) for end in ends)


def similarity(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """The tensors of a maker's quantized model that are least like those of the float model."""
    rows: list[list[Cell]] = []
    for record in select(records, BoardSimilarity):
        nodes = [node for node in record.values.nodes if node.cosine is not None]
        nodes.sort(key=lambda node: node.cosine or 0.0)
        for node in nodes[:MAX_NODES]:
            rows.append(
                [
                    one_line(record.values.target),
                    one_line(node.name),
                    one_line(node.op),
                    one_line(node.device),
                    f"{node.cosine:.6f}",
                ]
            )
    return table(("target", "node", "operator", "device", "cosine"), rows)
