"""The tables of benchmarks/peers.py: repzoo beside other tools, on each kind of host.

A run is what one job timed: one model in one setting. The newest run of each host, model and
setting is shown, with one thread and a batch of 1 row by row. A summary has a line for every run,
and the geometric mean over the models of each setting.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.record import Record, select
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.printable import escape_markdown
from repzoo.processor import ISA_LIMIT
from repzoo.report import figures

WIDTH = 80  # columns of a line of Markdown
SHOWN_ROW_BY_ROW = Setting()
WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "contender": "What",
        "engine": "Engine",
        "ms": "ms",
        "ratio": "÷ best peer",
        "peak": "Peak",
        "same": "Same",
        "model": "Model",
        "setting": "Threads, batch",
        "own": "repzoo ÷ best peer",
        "own_exact": "÷ best exact peer",
        "clips": "clips",
        "best": "best peer",
        "mean": "geometric mean",
        "with": "with VNNI",
        "without": "without VNNI",
        "left_out": "Not timed:",
        "host": "{cpu}, {vnni}",
        "host_with_peak": "{cpu}, {vnni}, {clock:.1f} GHz, {macs:.0f} {unit} MACs a cycle",
        "limited": "{vnni} only ({isa})",
        "arithmetic": "{engine} computes float32 in {type} here, as its default sessions do.",
    },
    "zh": {
        "contender": "对象",
        "engine": "引擎",
        "ms": "毫秒",
        "ratio": "÷ 最快同类",
        "peak": "占峰值",
        "same": "不变",
        "model": "模型",
        "setting": "线程, 批",
        "own": "repzoo ÷ 最快同类",
        "own_exact": "÷ 最快精确同类",
        "clips": "截断",
        "best": "最快同类",
        "mean": "几何平均",
        "with": "有 VNNI",
        "without": "无 VNNI",
        "left_out": "未计时：",
        "host": "{cpu}，{vnni}",
        "host_with_peak": "{cpu}，{vnni}，{clock:.1f} GHz，每周期 {macs:.0f} 次 {unit} 乘加",
        "limited": "{vnni}（限于 {isa}）",
        "arithmetic": "{engine} 在此以 {type} 计算 float32，其默认会话也是如此。",
    },
}
Row = Record[PeerLatency]
Host = tuple[str, bool, str]  # processor, whether it has VNNI, ISA_LIMIT


@dataclass(frozen=True)
class Run:
    """The rows of one job: a model in a setting on a host."""

    host: Host
    model: str
    setting: Setting
    rows: tuple[Row, ...]

    def timed(self) -> list[Row]:
        """The rows with a latency, the fastest first."""
        return sorted(filter(_is_timed, self.rows), key=latency_ms)

    def own_best(self) -> Row | None:
        """repzoo's fastest row that is exact and not refused by its gate; None without one."""
        for row in self.timed():
            values = row.values
            if values.own and values.exact and not values.refused:
                return row
        return None


def table(records: Sequence[Record[Any]], language: str) -> list[str]:
    """Lines of Markdown: for each host its models row by row, then the summary.

    Raises:
        InputError: no row has a latency.
    """
    runs = newest_runs(select(records, PeerLatency))
    words = WORDS[language]
    by_host: dict[Host, list[Run]] = {}
    for run in runs:
        by_host.setdefault(run.host, []).append(run)
    lines: list[str] = []
    for of_host in by_host.values():
        lines += [f"**{_describe_host(of_host, words)}**", ""]
        lines += _arithmetic(of_host, words)
        lines += [*_summary(of_host, words, language), ""]
        for run in of_host:
            if run.setting == SHOWN_ROW_BY_ROW:
                lines += _row_by_row(run, words, language)
    return lines[:-1]


def newest_runs(rows: Sequence[Row]) -> list[Run]:
    """The newest run of each host, model and setting, in the order in which they came first.

    Raises:
        InputError: no row has a latency.
    """
    jobs: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (_host_of(row), row.artifact["name"], row.values.setting, row.job)
        jobs.setdefault(key, []).append(row)
    runs: dict[tuple[Any, ...], Run] = {}
    for (host, model, setting, _), of_job in jobs.items():
        run = Run(host, str(model), setting, tuple(of_job))
        if run.timed():
            # Files are append-only: the last job is the newest.
            runs[host, model, setting] = run
    if not runs:
        raise InputError(
            "nothing was timed yet; type: python -m benchmarks.peers MODEL"
        )
    return list(runs.values())


def latency_ms(row: Row) -> float:
    """The latency to compare, of a row that has one."""
    assert row.values.ms is not None
    return row.values.ms


def geometric_mean(ratios: Sequence[LatencyRatio | None]) -> float | None:
    """The geometric mean of the ratios that are known; None where none is."""
    known = [item.ratio for item in ratios if item is not None]
    return statistics.geometric_mean(known) if known else None


def _is_timed(row: Row) -> bool:
    return row.values.ms is not None


def _host_of(row: Row) -> Host:
    return str(row.host.get("cpu", "")), bool(row.host.get("vnni")), _isa_limit(row)


def _isa_limit(row: Row) -> str:
    """What OpenVINO was limited to; "" for nothing."""
    return str(row.host.get("threads", {}).get(ISA_LIMIT, ""))


def _describe_host(runs: Sequence[Run], words: Mapping[str, str]) -> str:
    """The host of `runs`, with the peak as the last of them measured it."""
    facts = runs[-1].rows[-1].host
    vnni = words["with" if facts.get("vnni") else "without"]
    isa = _isa_limit(runs[-1].rows[-1])
    if isa:
        vnni = words["limited"].format(vnni=vnni, isa=escape_markdown(isa))
    cpu = escape_markdown(str(facts.get("cpu", "")))
    if not facts.get("clock_ghz"):
        return words["host"].format(cpu=cpu, vnni=vnni)
    return words["host_with_peak"].format(
        cpu=cpu,
        vnni=vnni,
        clock=facts["clock_ghz"],
        macs=facts["macs_per_cycle"],
        unit=escape_markdown(str(facts["peak"])),
    )


def _arithmetic(runs: Sequence[Run], words: Mapping[str, str]) -> list[str]:
    """A sentence for each engine that computed float32 models in another type."""
    computed: dict[str, str] = {}
    for run in runs:
        for row in run.rows:
            if "float32" in row.engine:
                computed[str(row.engine["name"])] = str(row.engine["float32"])
    lines: list[str] = []
    for engine, name in computed.items():
        shown = {"engine": escape_markdown(engine), "type": escape_markdown(name)}
        lines += [words["arithmetic"].format(**shown), ""]
    return lines


def _summary(runs: Sequence[Run], words: Mapping[str, str], language: str) -> list[str]:
    headings = [words[name] for name in ("model", "setting", "own", "own_exact")]
    cells: list[list[str]] = []
    by_setting: dict[Setting, list[PeerLatency]] = {}
    for run in runs:
        best = run.own_best()
        if best is None:
            continue
        by_setting.setdefault(run.setting, []).append(best.values)
        cells.append(
            [
                escape_markdown(run.model),
                _threads_and_batch(run.setting),
                _ratio(best.values.ratio, language),
                _ratio(best.values.exact_ratio, language),
            ]
        )
    for setting, values in by_setting.items():
        means = (
            geometric_mean([item.ratio for item in values]),
            geometric_mean([item.exact_ratio for item in values]),
        )
        shown = [figures.ABSENT if mean is None else f"{mean:.2f}" for mean in means]
        cells.append([words["mean"], _threads_and_batch(setting), *shown])
    return figures.markdown_table(headings, cells)


def _threads_and_batch(setting: Setting) -> str:
    return f"{setting.threads}, {setting.batch}"


def _row_by_row(run: Run, words: Mapping[str, str], language: str) -> list[str]:
    columns = ("contender", "engine", "ms", "ratio", "peak", "same")
    headings = [words[name] for name in columns]
    cells = []
    for row in run.timed():
        share = row.values.peak_share
        cells.append(
            [
                escape_markdown(row.values.contender),
                _engine(row, words),
                figures.ms(latency_ms(row)),
                _ratio(row.values.ratio, language, words["best"]),
                figures.ABSENT if share is None else f"{100 * share:.0f} %",
                _same(row.values),
            ]
        )
    lines = [f"**{escape_markdown(run.model)}**", ""]
    lines += [*figures.markdown_table(headings, cells), ""]
    for row in run.rows:
        if not _is_timed(row):
            lines += [*_left_out(row, words), ""]
    return lines


def _same(values: PeerLatency) -> str:
    """Percent of unchanged predictions, with a cross where the gate would refuse the file."""
    if values.same is None:
        return figures.ABSENT
    if values.refused:
        return f"✗ {values.same:.0f}"
    # Four characters at most, for the width of the table.
    return "100" if values.same == 100 else f"{values.same:.1f}"


def _engine(row: Row, words: Mapping[str, str]) -> str:
    """The engine, and whether its session is exact or clips where both are known here."""
    name = str(row.engine.get("name", ""))
    session = row.engine.get("session")
    if not row.values.exact:
        session = words["clips"]
    return escape_markdown(f"{name}, {session}" if session else name)


def _ratio(
    ratio: LatencyRatio | None, language: str, absent: str = figures.ABSENT
) -> str:
    if ratio is None:
        return absent
    to = figures.TO[language]
    return figures.interval(
        figures.ratio_of, ratio.ratio, ratio.ratio_low, ratio.ratio_high, to
    )


def _left_out(row: Row, words: Mapping[str, str]) -> list[str]:
    name = f"{escape_markdown(row.values.contender)}, {_engine(row, words)}"
    text = f"{words['left_out']} {name}: {escape_markdown(row.values.reason)}"
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
