"""Views of what makes INT8 models: quantize and card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from repzoo.console import screen
from repzoo.console.board_card import board_table
from repzoo.console.evaluations import paired_line
from repzoo.console.output import Summary, View, make_table
from repzoo.errors import MissingExtra
from repzoo.measure.race_result import RaceSummary
from repzoo.measure.record import select, share_of, to_json
from repzoo.measure.results import HalfSummary, Latency, LatencyRatio, PairedAccuracy
from repzoo.measure.sentences import gate_sentence
from repzoo.quant.search.candidate import Candidate
from repzoo.quant.search.gate import QuantReport
from repzoo.report import card as cards
from repzoo.report import card_facts, figures
from repzoo.report.race import race_cells

if TYPE_CHECKING:  # it imports what takes long
    from repzoo.job import JobResult

LATENCY_WORDS = {
    "latency1": "latency, 1 thread (ms)",
    "latencyn": "latency, {n} threads (ms)",
    "latency_clients": "latency, {clients} clients of {threads} threads (ms)",
}
# Rows that a person is shown; --json has all.
SHOWN_CANDIDATES = 6
SHOWN_LAYERS = 3
SHOWN_CHANNELS = 3
SHOWN_KEPT = 5
CARD_NOTE_LINES = 3


def quantized(report: QuantReport, path: Path) -> View:
    """`repzoo quantize`."""
    half = report.record.values.half
    precision = report.precision
    shown: list[Any] = [_candidates(report)]
    shown.append(gate_sentence(report.paired.values, precision))
    data = report.record.data
    # Another quantizer makes one model, so nothing is selected.
    if data["selection_images"]:
        shown.append(
            f"ranges set by {data['images']} images; candidates compared on "
            f"{data['selection_images']} others, the chosen one judged on "
            f"{data['gate_images']} more"
        )
    if report.chosen.layers:
        shown.append(_noisiest_layers(report))
    share = share_of(report.record.artifact)
    if half:
        shown.extend(_half_lines(half))
    else:
        shown.append(str(share))
    shown.extend(_placement_lines(report, precision))
    race = report.record.values.race
    if race is not None:
        shown += _race_lines(race)
    is_float = report.int8 is not None
    if is_float:
        shown.append(
            f"{path} written: the float model. The figures before the race are of INT8; "
            f"--engine {report.record.engine['name']} or --objective size writes that instead"
        )
    else:
        shown.append(f"{path} written")
    document = {
        "file": str(path),
        "form": "deploy" if is_float else str(report.record.artifact["form"]),
        **to_json(report.record.values),
    }
    if share is not None:
        document["int8"] = to_json(share)
    return Summary(document, *shown, remarks=report.warnings)


def _race_lines(race: RaceSummary) -> list[Any]:
    """The race, and why INT8 won; why float did is a remark."""
    lines: list[Any] = [_race_table(race)]
    if str(race.load):
        lines.append(f"timed with {race.load}")
    if race.chosen.form == "int8":
        lines.append(race.reason)
    return lines


def _race_table(race: RaceSummary) -> Table:
    """A row for each engine and form; of the one that won, that it did."""
    # Both would not fit 80 columns.
    speed = "FPS" if race.objective == "throughput" else "ms"
    table = make_table(
        "race", "form", f">{speed}", ">/ float", ">95 % interval", ">drop", ""
    )
    for entry in race.entries:
        form, ms, fps, *others = race_cells(entry)
        cells = [form, fps if speed == "FPS" else ms, *others]
        mark = entry.problem or (entry.verdict or "")
        if entry.could_not_win:
            mark = "slower"
        if entry is race.chosen:
            mark = "chosen"
        table.add_row(entry.engine, *cells, mark)
    return table


def _half_lines(half: HalfSummary) -> list[Any]:
    """How the file does on the engine and in exact arithmetic, and what stays in float32."""
    lines: list[Any] = []
    for where, values in (
        (f"in {half.precision.upper()} arithmetic", half.in_arithmetic),
        ("the file on this engine", half.on_engine),
    ):
        same = figures.percent(values.same_prediction)
        line = f"{where}: {same} % of the predictions unchanged"
        if values.logits_snr_db is not None:
            line += (
                f", signal-to-noise ratio of the logits {values.logits_snr_db:.0f} dB"
            )
        lines.append(line)
    if half.kept:
        table = make_table("in float32", "operator", "why")
        for item in half.kept[:SHOWN_KEPT]:
            table.add_row(item["node"], item["op"], item["reason"])
        lines.append(table)
    hidden = len(half.kept) - SHOWN_KEPT
    if hidden > 0:
        lines.append(f"and {hidden} more in float32; --json has all")
    return lines


def _candidates(report: QuantReport) -> Table:
    """A row for each candidate, and the verdict of the gate."""
    table = make_table(
        "stage", ">drop", ">95 % interval", ">same %", ">expected", ">dB", ">s", ""
    )
    candidates = _shown_candidates(report)
    for candidate in candidates:
        mark = "" if candidate.verdict.passes else "refused"
        # By identity: several candidates may have its placement.
        if candidate is report.chosen:
            mark = "chosen"
        figures = _drop_cells(candidate.paired)
        table.add_row(candidate.stage, *figures, f"{candidate.seconds:.1f}", mark)
    hidden = len(report.candidates) - len(candidates)
    if hidden:
        table.add_row(f"{hidden} more")
    verdict = "gate" if report.passes else "gate: refused"
    table.add_row(verdict, *_drop_cells(report.paired.values), "", "")
    return table


def _shown_candidates(report: QuantReport) -> list[Candidate]:
    """The candidates of a table that leaves room for the rest: the chosen one, and the last."""
    last = report.candidates[-SHOWN_CANDIDATES:]
    if any(candidate is report.chosen for candidate in last):
        return list(last)
    return [report.chosen, *last[1:]]


def _drop_cells(values: PairedAccuracy) -> tuple[str, str, str, str, str]:
    """Drop, interval, unchanged predictions in percent, those expected, and the logits' SQNR."""
    interval = figures.span(figures.points, values.drop_low, values.drop_high)
    expected = ""
    noise = ""
    if values.expected is not None:
        expected = figures.percent(100 - values.expected.changed)
        noise = f"{values.logits_snr_db:.0f}"
    same = figures.percent(values.same_prediction)
    return figures.points(values.drop), interval, same, expected, noise


def _noisiest_layers(report: QuantReport) -> Table:
    table = make_table(
        "noisiest layers", ">weights dB", ">input dB", "worst side, channels"
    )
    for layer in report.chosen.layers[:SHOWN_LAYERS]:
        channels = ", ".join(map(str, layer.channels[:SHOWN_CHANNELS]))
        decibels = (f"{layer.weight_db:.0f}", f"{layer.activation_db:.0f}")
        table.add_row(layer.layer, *decibels, f"{layer.side} {channels}")
    return table


def _placement_lines(report: QuantReport, precision: str) -> list[str]:
    """What runs in `precision`, its latency over float's, and why other nodes stay in float."""
    placement = f"placement: {report.chosen.placement}"
    if report.chosen.ratio is not None:
        placement += f"; {_latency_ratio(report.chosen.ratio, precision)}"
    lines = [placement]
    reasons = []
    for trial in report.record.values.placement_trials or ():
        if trial.kept:
            side = "in INT8" if trial.int8 else "in float"
            ratio = figures.ratio_of(trial.ratio)
            reasons.append(f"{trial.group} ({trial.nodes}) {side}: {ratio} of the time")
    if reasons:
        lines.append(f"by timing on this engine: {'; '.join(reasons)}")
    operators = report.record.values.operators or ()
    converting = [item for item in operators if item.is_conversion]
    in_int8 = [item.share for item in converting if item.form == "int8"]
    if operators:
        lines.append(f"time in conversions: {100 * sum(in_int8):.0f} % of INT8")
    return lines


def _latency_ratio(values: LatencyRatio, precision: str = "INT8") -> str:
    interval = figures.span(figures.ratio_of, values.ratio_low, values.ratio_high)
    ratio = figures.ratio_of(values.ratio)
    return f"{precision} / float latency {ratio} (95 % interval {interval})"


def card(result: JobResult, files: Sequence[Path]) -> View:
    """`repzoo card`: the figures of the card, a column for each form, and where the card is."""
    facts = card_facts.summary(result.records)
    fold = facts.fold
    lines = []
    if facts.int8 is not None:
        lines.append(str(facts.int8))
    if facts.float_serves:
        lines.append("INT8 gains less than 5 % here: the float model serves as well")
    lines += [
        _training_line(result.training, facts.data_name),
        paired_line(select(result.records, PairedAccuracy)[0]),
    ]
    for form in facts.accuracy_forms:
        if form in facts.ratios and form != "deploy":
            lines.append(_latency_ratio(facts.ratios[form], form.upper()))
    lines += [
        f"fold: {fold.before.nodes} nodes -> {fold.after.nodes}, "
        f"largest error {fold.max_abs_error:.2g} (bound {fold.bound:.2g})",
    ]
    written = next(path for path in files if path.name == "card.md")
    document = {
        **facts.to_json(),
        "training": to_json(result.training),
        "files": [str(path) for path in files],
        "remarks": list(result.remarks),
    }
    further: list[list[Any]] = []
    if result.board:
        further.append([board_table(facts, result.board)])
        document["board"] = to_json(result.board)
    if facts.quantize.race is not None:
        further.append(_race_lines(facts.quantize.race))
    if facts.half is not None:
        further.append(_half_lines(facts.half.summary))
    remarks = list(result.remarks)
    if not any(path.suffix == ".svg" for path in files):
        remarks.insert(0, str(MissingExtra("drawing the charts of the card", "page")))
    shown = _fitting([_card_table(facts)], further, [*lines, f"card: {written}"])
    return Summary(document, *shown, remarks=remarks, rest=str(written))


def _fitting(
    first: list[Any], further: Sequence[list[Any]], last: list[str]
) -> list[Any]:
    """What of a card fits a screen with a few notes; the card has all of it."""
    room = screen.LINES - screen.ASIDES - CARD_NOTE_LINES
    middle: list[Any] = []
    hidden = False
    for items in further:
        if screen.line_count([*first, *middle, *items, *last]) <= room:
            middle += items
        else:
            hidden = True
    if hidden:
        last = [*last[:-1], f"{last[-1]} has more tables"]
    return [*first, *middle, *last]


def _training_line(training: cards.Training, data_name: str) -> str:
    """What is known of the images that the model was trained on."""
    if training.kind == "these":
        return (
            f"by its history the model was trained on {data_name} itself: its accuracy says "
            "nothing about new images"
        )
    if training.kind == "named":
        return f"by its history the model was trained on {', '.join(training.names)}"
    return (
        "the file does not say which images the model was trained on; if these were among them, "
        "its accuracy says nothing about new images"
    )


def _card_table(facts: card_facts.CardFacts) -> Table:
    forms = facts.accuracy_forms
    table = make_table(
        f"{facts.name}, {figures.pixels(facts.size)}",
        ">float",
        *(f">{form.upper()}" for form in forms[1:]),
    )
    costs = [facts.cost[form] for form in forms]
    accuracies = [facts.accuracy[form] for form in forms]
    # The INT8 model has no latency where only a board runs it.
    single = [facts.single.get(form) for form in forms]
    many = [facts.many.get(form) for form in forms]
    _add(table, "parameters (M)", costs, lambda cost: figures.millions(cost.parameters))
    _add(table, "weights (kB)", costs, lambda cost: f"{cost.bytes / 1000:.0f}")
    top1 = f"Top-1 % (n = {facts.paired.n})"
    _add(table, top1, accuracies, lambda item: figures.percent(item.top1))
    if facts.has_top5:
        _add(table, "Top-5 %", accuracies, lambda item: figures.percent(item.top5))
    for rows, by_form in ((single, facts.single), (many, facts.many)):
        heading = cards.latency_heading(by_form["deploy"].setting, LATENCY_WORDS)
        _add(table, heading, rows, _p50)
    _add(table, "frame rate (FPS)", many, lambda item: figures.rate(item.fps))
    return table


def _add(
    table: Table, name: str, forms: Sequence[Any], show: Callable[[Any], str]
) -> None:
    """A row of the card's table: a cell for each of `forms`, empty for None."""
    table.add_row(name, *("" if form is None else show(form) for form in forms))


def _p50(latency: Latency) -> str:
    return figures.ms(latency.p50_ms)
