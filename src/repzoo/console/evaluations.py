"""The view of `repzoo evaluate`: accuracies, the classes that are worst, and what differs between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from repzoo import verbs
from repzoo.console.output import View, columned
from repzoo.measure.record import Record, to_json
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.report import card as cards

WORST, FLIPS = 5, 5  # rows shown; --json has all


def evaluation(result: verbs.Evaluation) -> View:
    """`repzoo evaluate`."""
    several = len({one.engine["name"] for one in result.runs}) > 1
    table = columned(
        "file", *(["engine"] if several else []), ">n", ">Top-1 %", ">95 % interval", ">Top-5 %"
    )
    for one in result.runs:
        values = one.values
        names = (one.artifact["name"], one.engine["name"])[: 1 + several]
        interval = _interval(values.top1_low, values.top1_high)
        figures = (cards.percent(values.top1), interval, cards.percent(values.top5))
        table.add_row(*names, str(values.n), *figures)
    shown: list[Any] = [table]
    if worst := _worst(result.runs):
        shown.append(worst)
    for pair in result.paired:
        shown.extend(_paired(pair, len(result.paired) > 1))
    runs = [
        {
            "file": one.artifact["name"],
            "engine": one.engine["name"],
            **to_json(one.values),
            "per_class": one.samples["classes"],
        }
        for one in result.runs
    ]
    paired = [
        {
            "first": one.artifact["first"]["name"],
            "second": one.artifact["second"]["name"],
            **to_json(one.values),
            **one.samples,
        }
        for one in result.paired
    ]
    document = {"runs": runs, **({"paired": paired[0], "all_paired": paired} if paired else {})}
    return View(document, *shown, remarks=result.remarks)


def paired_line(one: Record[PairedAccuracy]) -> str:
    """The drop of a paired Record in a sentence."""
    values = one.values
    return (
        f"drop {cards.points(values.drop)} points (95 % interval {cards.points(values.drop_low)} .. "
        f"{cards.points(values.drop_high)}, p = {values.p_value:.3g}), "
        f"{len(one.samples['flips'])} of {values.n} predictions changed"
    )


def _interval(low: float, high: float) -> str:
    return f"{cards.percent(low)} .. {cards.percent(high)}"


def _worst(runs: Sequence[Record[Accuracy]]) -> Table | None:
    """The classes that the first run does worst on, and how the others do on them."""
    first, *others = runs
    rows = [one for one in first.samples["classes"] if one["top1"] < 100][:WORST]
    if not rows:
        return None
    table = columned(
        "worst classes",
        ">n",
        ">Top-1 %",
        ">95 % interval",
        "taken for",
        *([">others"] if others else []),
    )
    for row in rows:
        same = [
            next((one for one in run.samples["classes"] if one["index"] == row["index"]), None)
            for run in others
        ]
        beside = " ".join(cards.percent(one["top1"]) if one else "-" for one in same)
        cells = (
            row["class"],
            str(row["n"]),
            cards.percent(row["top1"]),
            _interval(row["top1_low"], row["top1_high"]),
            row["taken_for"] or "",
        )
        table.add_row(*cells, *([beside] if others else []))
    return table


def _paired(one: Record[PairedAccuracy], named: bool) -> Iterator[Any]:
    values, flips = one.values, one.samples["flips"]
    names = (
        f"{one.artifact['second']['name']} ({one.engine['name']}) against {one.artifact['first']['name']}: "
        if named
        else ""
    )
    yield names + paired_line(one)
    yield (
        f"lost {values.lost}, gained {values.gained}; to see a drop of {values.needed_drop:g} points takes "
        f"{values.needed:,} images, and {values.n:,} show one of {values.visible:.2f} points "
        f"(power {100 * (values.power or 0):.0f} %)"
    )
    if flips:
        lost_first = sorted(
            flips,
            key=lambda flip: (flip["first"] != flip["target"], flip["second"] == flip["target"]),
        )
        table = columned("image", "is", "first says", "second says")
        for flip in lost_first[:FLIPS]:
            table.add_row(
                flip["key"], flip["target_label"], flip["first_label"], flip["second_label"]
            )
        yield table
        if len(flips) > FLIPS:
            yield f"... and {len(flips) - FLIPS} more (--json lists them)"
