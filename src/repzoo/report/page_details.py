"""What the page says of one model when it is opened: sections with tables, from its Records.

A section is plain data: a title, headings and rows. Titles, headings and `word(...)` cells are keys
of page.toml; other cells are text of a Record, or figures printed as cards print them.
A section whose figures no Record holds is left out, and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repzoo.graph.tools.cost_result import Cost
from repzoo.graph.tools.int8_share import Int8Share, percent_of_share
from repzoo.measure.board import BoardAccuracy, BoardLatency, BoardSimilarity
from repzoo.measure.record import Record, select, share_of
from repzoo.measure.results import (
    Accuracy,
    CandidateSummary,
    ExpectedDrop,
    FoldSummary,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    QuantizerComparison,
    QuantizeSummary,
)
from repzoo.printable import one_line
from repzoo.report import figures
from repzoo.report.page_rows import PRECISIONS, host_key, part_of, setting_text
from repzoo.report.translation import translate

Cell = str | dict[str, str]
Section = dict[str, Any]
Hosts = Mapping[tuple[str, ...], str]
MAX_FLIPS = 60  # of a model; thousands would make the page slow and tell no more
MAX_NODES = 20


def sections(records: Sequence[Record[Any]], hosts: Hosts) -> list[Section]:
    """The sections of one model's `records`; of those without figures only the title."""
    built: list[Section] = []
    for title, build in SECTIONS.items():
        built.append({"title": title, **build(records, hosts)})
    return built


def word(key: str) -> dict[str, str]:
    """A cell that page.toml has in every language."""
    return {"w": key}


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Section:
    return {"head": list(head), "rows": [list(row) for row in rows]} if rows else {}


def _accuracy(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, Accuracy):
        values = record.values
        rows.append(
            [
                _form(record.artifact),
                _engine(record.engine),
                hosts[host_key(record)],
                one_line(record.data.get("name", "")),
                str(values.n),
                _interval(
                    figures.percent, values.top1, values.top1_low, values.top1_high
                ),
                _interval(
                    figures.percent, values.top5, values.top5_low, values.top5_high
                ),
            ]
        )
    for board in select(records, BoardAccuracy):
        on_board = board.values
        rows.append(
            [
                one_line(on_board.precision),
                f"{_engine(board.engine)} ({on_board.source})",
                one_line(on_board.target),
                one_line(board.data.get("log", "")),
                _number(on_board.n),
                _interval(
                    figures.percent,
                    on_board.top1,
                    on_board.top1_low,
                    on_board.top1_high,
                ),
                _shown(figures.percent, on_board.top5),
            ]
        )
    return _table(("precision", "engine", "host", "images", "n", "top1", "top5"), rows)


def _float_and_int8(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """Every model against the float model on the same images."""
    rows: list[list[Cell]] = []
    for record in select(records, PairedAccuracy):
        second = part_of(record.artifact, "second")
        engine = part_of(record.engine, "second") or record.engine
        name = str(second.get("variant") or _form(second))
        rows.append([one_line(name), _engine(engine), *_paired(record.values)])
    for comparison in select(records, QuantizerComparison):
        for engine_name, values in comparison.values.engines.items():
            name = one_line(comparison.values.recipe)
            rows.append([name, one_line(engine_name), *_paired(values)])
        if not comparison.values.engines:
            reason = one_line(comparison.values.reason)
            rows.append([one_line(comparison.values.recipe), reason, *[""] * 6])
    head = ("second", "engine", "n", "drop", "expected", "same", "lost_gained", "snr")
    return _table(head, rows)


def _paired(values: Any) -> list[Cell]:
    """The cells of a PairedAccuracy or an EngineComparison."""
    lost, gained = getattr(values, "lost", None), getattr(values, "gained", None)
    return [
        str(values.n),
        _interval(figures.points, values.drop, values.drop_low, values.drop_high),
        _expected(values.expected),
        figures.percent(values.same_prediction),
        "" if lost is None else f"{lost} / {gained}",
        _shown(figures.percent, values.logits_snr_db),
    ]


def _expected(expected: ExpectedDrop | None) -> str:
    if expected is None:
        return ""
    return _interval(figures.points, expected.drop, *expected.drop_interval())


def _latency(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, Latency):
        values = record.values
        rows.append(
            [
                _form(record.artifact),
                _engine(record.engine),
                hosts[host_key(record)],
                setting_text(values.setting),
                _interval(
                    figures.ms, values.p50_ms, values.p50_low_ms, values.p50_high_ms
                ),
                figures.ms(values.p90_ms),
                figures.ms(values.p99_ms),
                figures.rate(values.fps),
                _steady(values.steady),
            ]
        )
    for board in select(records, BoardLatency):
        on_board = board.values
        rows.append(
            [
                "",
                f"{_engine(board.engine)} ({on_board.source})",
                one_line(on_board.target),
                _number(on_board.threads),
                _shown(figures.ms, on_board.latency_ms),
                "",
                "",
                _shown(figures.rate, on_board.fps),
                "",
            ]
        )
    head = ("precision", "engine", "host", "threads", "ms", "p90", "p99", "fps")
    return _table((*head, "steady"), rows)


def _steady(steady: bool | None) -> Cell:
    return "" if steady is None else word("yes" if steady else "no")


def _ratios(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, LatencyRatio):
        values = record.values
        sides = [part_of(record.artifact, side) for side in ("first", "second")]
        rows.append(
            [
                " / ".join(map(_form, sides)),
                _engine(record.engine),
                hosts[host_key(record)],
                setting_text(values.setting),
                _interval(
                    figures.ratio_of, values.ratio, values.ratio_low, values.ratio_high
                ),
            ]
        )
    return _table(("pair", "engine", "host", "threads", "ratio"), rows)


def _size(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, Cost):
        values = record.values
        rows.append(
            [
                _form(record.artifact),
                figures.millions(values.parameters),
                f"{values.macs / 1e6:.1f}",
                f"{values.bytes / 1e6:.2f}",
                str(values.nodes),
            ]
        )
    return _table(("precision", "parameters", "macs", "mb", "nodes"), rows)


def _fold(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
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
    return _table(("what", "before", "after"), rows)


def _candidates(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        chosen = (record.values.recipe, record.values.placement)
        for candidate in record.values.rungs:
            is_chosen = (candidate.recipe or chosen[0], candidate.placement) == chosen
            rows.append([*_candidate(candidate), word("yes") if is_chosen else ""])
    head = ("stage", "placement", "verdict", "drop", "same", "ratio", "seconds")
    return _table((*head, "chosen"), rows)


def _candidate(candidate: CandidateSummary) -> list[Cell]:
    paired, ratio = candidate.paired, candidate.ratio
    shown = ""
    if ratio is not None:
        shown = _interval(
            figures.ratio_of, ratio.ratio, ratio.ratio_low, ratio.ratio_high
        )
    return [
        one_line(candidate.recipe),
        one_line(candidate.placement),
        one_line(candidate.verdict or ""),
        _interval(figures.points, paired.drop, paired.drop_low, paired.drop_high),
        figures.percent(paired.same_prediction),
        shown,
        "" if math.isnan(candidate.seconds) else f"{candidate.seconds:.1f}",
    ]


def _placement(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        for trial in record.values.placement_trials or ():
            rows.append(
                [
                    one_line(trial.group),
                    str(trial.nodes),
                    "INT8" if trial.int8 else "float32",
                    _interval(figures.ratio_of, trial.ratio, trial.low, trial.high),
                    word("yes" if trial.kept else "no"),
                ]
            )
    return _table(("group", "nodes", "tried_in", "time_ratio", "kept"), rows)


def _in_float(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """What does not run in INT8 or half precision, and why."""
    rows: list[list[Cell]] = []
    for record in select(records, QuantizeSummary):
        name = f"{_form(record.artifact)}, {record.values.placement}"
        rows += _share(name, share_of(record.artifact))
        rows += _kept_in_float(record.values)
    for comparison in select(records, QuantizerComparison):
        for engine, measured in comparison.values.engines.items():
            rows += _share(f"{comparison.values.recipe}, {engine}", measured.int8)
    return _table(("what", "why"), rows)


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
            time = _interval(figures.ratio_of, trial.ratio, trial.low, trial.high)
            why = {"en": f"faster: {time} of the time", "zh": f"更快：耗时比 {time}"}
            rows.append([one_line(trial.group), why])
    for item in values.half.kept if values.half else ():
        reason = str(item["reason"])
        why = {name: one_line(translate(reason, name)) for name in ("en", "zh")}
        rows.append([one_line(f"{item['node']} ({item['op']})"), why])
    return rows


def _noise(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
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
                _shown(_decibels, layer.get("weight_db")),
                _shown(_decibels, layer.get("activation_db")),
                _range(layer.get("seen")),
                _range(layer.get("range")),
                one_line(layer.get("method") or ""),
            ]
        )
    head = ("layer", "weight_db", "activation_db", "seen", "clipped", "observer")
    return {**_table(head, rows), "chart": "layer_noise", "values": values}


def _decibels(value: float) -> str:
    return f"{value:.1f}"


def _range(ends: Any) -> str:
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return ""
    return " … ".join(_shown(lambda end: f"{end:.3g}", end) for end in ends)


def _similarity(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
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
    return _table(("target", "node", "operator", "device", "cosine"), rows)


def _flips(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    """The images that float and INT8 answer differently, by name: Records hold no pictures."""
    rows: list[list[Cell]] = []
    for record in select(records, PairedAccuracy):
        for flip in record.samples.get("flips", ()):
            labels = [_label(flip, side) for side in ("target", "first", "second")]
            rows.append([one_line(flip.get("key", "")), *labels])
    shown = rows[:MAX_FLIPS]
    section = _table(("image", "truth", "float_says", "int8_says"), shown)
    left = len(rows) - len(shown)
    if left:
        section["note"] = {
            "en": f"{left} more are in the Records.",
            "zh": f"另有 {left} 张见记录。",
        }
    return section


def _label(flip: Mapping[str, Any], side: str) -> str:
    label = flip.get(f"{side}_label")
    return one_line(flip.get(side, "") if label is None else label)


def _classes(records: Sequence[Record[Any]], _hosts: Hosts) -> Section:
    rows: list[list[Cell]] = []
    for record in select(records, Accuracy):
        if record.artifact.get("form") != "int8":
            continue
        for item in list(record.samples.get("classes", ()))[:5]:
            ends = item.get("top1_low"), item.get("top1_high")
            top1 = _interval(figures.percent, item.get("top1"), *ends)
            mistaken = one_line(item.get("taken_for") or "")
            label, n = one_line(item.get("class", "")), _number(item.get("n"))
            rows.append([label, n, top1, mistaken])
    return _table(("class", "n", "top1", "taken_for"), rows)


def _provenance(records: Sequence[Record[Any]], hosts: Hosts) -> Section:
    """Every file, data set, engine and host that a figure rests on; each once."""
    rows: dict[tuple[str, ...], list[Cell]] = {}

    def add(kind: str, name: object, detail: object) -> None:
        """Note it, unless it is there."""
        shown = (kind, one_line(name), one_line(detail))
        rows.setdefault(shown, [word(kind), shown[1], shown[2]])

    for record in records:
        for artifact in _artifacts(record):
            add("file", _form(artifact), artifact.get("sha256") or "")
    for record in records:
        data = record.data
        name = data.get("name") or data.get("log") or data.get("calibration")
        if name:
            add("images", name, data.get("sha256") or "")
    for record in records:
        add("host", hosts[host_key(record)], _software(record.host))
    for job, times in _times(records).items():
        add("run", " … ".join(dict.fromkeys([min(times), max(times)])), job)
    return _table(("what", "name", "detail"), list(rows.values()))


def _times(records: Sequence[Record[Any]]) -> dict[str, list[str]]:
    """When the Records of each job were made."""
    times: dict[str, list[str]] = {}
    for record in records:
        times.setdefault(record.job, []).append(record.time)
    return times


def _artifacts(record: Record[Any]) -> list[Mapping[str, Any]]:
    if "name" in record.artifact:
        return [record.artifact]
    return [item for item in record.artifact.values() if isinstance(item, Mapping)]


def _software(host: Mapping[str, Any]) -> str:
    versions = []
    for key in ("system", "repzoo", "python", "numpy"):
        if key in host:
            versions.append(f"{host[key]}" if key == "system" else f"{key} {host[key]}")
    return ", ".join(versions)


def _form(artifact: Mapping[str, Any]) -> str:
    form = str(artifact.get("form", ""))
    return one_line(PRECISIONS.get(form, form))


def _engine(engine: Mapping[str, Any]) -> str:
    return one_line(f"{engine.get('name', '')} {engine.get('version', '')}")


def _number(value: float | None) -> str:
    return "" if value is None else str(value)


def _shown(show: figures.Show, value: Any) -> str:
    """`value` printed by `show`; "" where it is not known."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return show(value)


def _interval(show: figures.Show, value: Any, low: Any, high: Any) -> str:
    """As `figures.interval`, in every language; without the ends where they are not known."""
    ends = [_shown(show, low), _shown(show, high)]
    shown = _shown(show, value)
    return f"{shown} ({ends[0]} … {ends[1]})" if all(ends) else shown


Build = Callable[[Sequence[Record[Any]], Hosts], Section]
# The titles are keys of page.toml; their order is that of the page.
SECTIONS: dict[str, Build] = {
    "accuracy": _accuracy,
    "float_and_int8": _float_and_int8,
    "latency": _latency,
    "ratios": _ratios,
    "size": _size,
    "fold": _fold,
    "candidates": _candidates,
    "placements": _placement,
    "noise": _noise,
    "in_float": _in_float,
    "similarity": _similarity,
    "flips": _flips,
    "classes": _classes,
    "provenance": _provenance,
}
