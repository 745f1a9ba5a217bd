"""The view of `repzoo evaluate`: accuracies, the worst classes, and what differs between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from repzoo import verbs
from repzoo.console.output import View, make_table
from repzoo.measure.record import Record, to_json
from repzoo.measure.results import Accuracy, LabelAgreement, PairedAccuracy
from repzoo.measure.sentences import drop_clause
from repzoo.report import figures

# Rows that a person is shown; --json has all.
SHOWN_CLASSES = 3
SHOWN_FLIPS = 3


def evaluation(result: verbs.Evaluation) -> View:
    """`repzoo evaluate`."""
    shown: list[Any] = [_accuracy_table(result)]
    worst = _worst_classes(result.runs)
    if worst is not None:
        shown.append(worst)
    for record in result.paired:
        shown.extend(_comparison(record, is_named=len(result.paired) > 1))
    return View(_document(result), *shown, remarks=result.remarks)


def paired_line(record: Record[PairedAccuracy]) -> str:
    """The drop of a paired Record in a sentence."""
    values = record.values
    changed = len(record.samples["flips"])
    return f"{drop_clause(values)}, {changed} of {values.n} predictions changed"


def _document(result: verbs.Evaluation) -> dict[str, Any]:
    document: dict[str, Any] = {"runs": _run_documents(result.runs)}
    if result.against:
        document["against"] = _run_documents(result.against)
    paired = []
    for comparison in result.paired:
        sides = {
            side: comparison.artifact[side]["name"] for side in ("first", "second")
        }
        paired.append({**sides, **to_json(comparison.values), **comparison.samples})
    if paired:
        # Most evaluations have one comparison, which is then read without an index.
        document["paired"] = paired[0]
        document["all_paired"] = paired
    return document


def _run_documents(runs: Sequence[Record[Accuracy]]) -> list[dict[str, Any]]:
    documents = []
    for record in runs:
        names = {"file": record.artifact["name"], "engine": record.engine["name"]}
        classes = record.samples["classes"]
        documents.append({**names, **to_json(record.values), "per_class": classes})
    return documents


def _accuracy_table(result: verbs.Evaluation) -> Table:
    """A row for each run; the model that others are compared with comes first."""
    # A float model may be among the files too, and is listed once.
    references = [record for record in result.against if record not in result.runs]
    runs = [*references, *result.runs]
    has_engines = len({record.engine["name"] for record in runs}) > 1
    names = ["file", "engine"] if has_engines else ["file"]
    table = make_table(*names, ">n", ">Top-1 %", ">95 % interval", ">Top-5 %")
    for record in runs:
        values = record.values
        cells = [record.artifact["name"]]
        if has_engines:
            cells.append(record.engine["name"])
        interval = figures.span(figures.percent, values.top1_low, values.top1_high)
        cells += [str(values.n), figures.percent(values.top1), interval]
        table.add_row(*cells, figures.percent(values.top5))
    return table


def _worst_classes(runs: Sequence[Record[Accuracy]]) -> Table | None:
    """The classes with the lowest Top-1 in the first run, and their Top-1 in the other runs."""
    first, *others = runs
    classes = [row for row in first.samples["classes"] if row["top1"] < 100]
    if not classes:
        return None
    headings = ["worst classes", ">n", ">Top-1 %", ">95 % interval", "mistaken for"]
    if others:
        headings.append(">others")
    table = make_table(*headings)
    for row in classes[:SHOWN_CLASSES]:
        cells = [
            row["class"],
            str(row["n"]),
            figures.percent(row["top1"]),
            figures.span(figures.percent, row["top1_low"], row["top1_high"]),
            row["taken_for"] or "",
        ]
        if others:
            cells.append(" ".join(_class_top1(run, row["index"]) for run in others))
        table.add_row(*cells)
    return table


def _class_top1(run: Record[Accuracy], index: int) -> str:
    """Top-1 of the class `index` in `run`; "-" where it has no image."""
    # By its index: each run lists its own worst class first.
    for row in run.samples["classes"]:
        if row["index"] == index:
            return figures.percent(row["top1"])
    return "-"


def _comparison(record: Record[PairedAccuracy], is_named: bool) -> list[Any]:
    """Sentences about one comparison, and a table of images whose prediction changed."""
    values = record.values
    sentence = paired_line(record)
    if is_named:
        second = f"{record.artifact['second']['name']} ({record.engine['name']})"
        sentence = f"{second} against {record.artifact['first']['name']}: {sentence}"
    detection = (
        f"lost {values.lost}, gained {values.gained}; {values.needed:,} images would detect a drop "
        f"of {values.needed_drop:g} points, these {values.n:,} detect one of {values.visible:.2f} "
        f"points (power {100 * (values.power or 0):.0f} %)"
    )
    shown: list[Any] = [sentence, detection]
    if values.multi_label is not None:
        shown.append(_labels_line(values.multi_label))
    flips = record.samples["flips"]
    if not flips:
        return shown
    shown.append(_flips_table(flips))
    if len(flips) > SHOWN_FLIPS:
        shown.append(f"... and {len(flips) - SHOWN_FLIPS} more (--json lists them)")
    return shown


def _labels_line(labels: LabelAgreement) -> str:
    """Two multi-label models compared label by label."""
    if not labels.is_known:
        return f"label by label: no output of either model is above {labels.threshold}"
    interval = figures.span(
        figures.percent, labels.agreement_low, labels.agreement_high
    )
    line = (
        f"label by label: {figures.percent(labels.agreement)} % agreement (95 % interval "
        f"{interval}) on {labels.given} labels above {labels.threshold}, lost {labels.lost}, "
        f"gained {labels.gained}"
    )
    precision = labels.mean_average_precision
    if precision is None:
        return line
    span = figures.span(figures.points, precision.drop_low, precision.drop_high)
    return (
        f"{line}; mean average precision {figures.percent(precision.first)} and "
        f"{figures.percent(precision.second)} %, drop {figures.points(precision.drop)} points "
        f"(95 % interval {span})"
    )


def _flips_table(flips: Sequence[Mapping[str, Any]]) -> Table:
    """The first images whose prediction changed; those that the second model lost come first."""

    def order(flip: Mapping[str, Any]) -> tuple[bool, bool]:
        """Lost images first, then those that are wrong in both models."""
        return flip["first"] != flip["target"], flip["second"] == flip["target"]

    table = make_table("image", "is", "first says", "second says")
    for flip in sorted(flips, key=order)[:SHOWN_FLIPS]:
        labels = (flip["target_label"], flip["first_label"], flip["second_label"])
        table.add_row(flip["key"], *labels)
    return table
