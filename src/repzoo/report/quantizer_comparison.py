"""The table of quantizers side by side, from the Records of benchmarks/int8.py: for each model the newest row of each recipe.

Rows of one model belong together where images and kind of host are the same; others, of an older run, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.expected_drop import drop_interval
from repzoo.measure.record import Record
from repzoo.report import card

HEADS = {
    "en": ("Model", "Recipe", "Drop (points)", "Drop to expect", "Same prediction as float (%)", "Size (MB), float → INT8",
           "Latency over float, {engine}", "Drop on {engine} (points)", "Seconds to quantize"),
    "zh": ("模型", "方法", "精度损失（百分点）", "预期损失", "与浮点预测一致 (%)", "大小 (MB)，浮点 → INT8",
           "{engine} 延迟 / 浮点", "{engine} 精度损失（百分点）", "量化用时 (s)"),
}  # fmt: skip
REFUSED = {"en": "refused", "zh": "拒绝"}


def table(records: Sequence[Record], language: str) -> list[str]:
    """Markdown lines. Accuracy is that of the first engine of a row, onnxruntime; of the others, only the drop is shown.

    Raises:
        InputError: there is no Record of a side-by-side.
    """
    newest: dict[str, dict[str, Record]] = {}
    for one in records:
        if "engines" in one.values:
            rows = newest.setdefault(str(one.artifact["name"]), {})
            if any(_setting(other) != _setting(one) for other in rows.values()):
                rows.clear()
            rows[one.values["recipe"]] = one
    if not newest:
        raise InputError(
            "no Records of quantizers side by side; make some with: python -m benchmarks.int8 MODEL=DATA"
        )
    every = [one for rows in newest.values() for one in rows.values()]
    engines = list(dict.fromkeys(name for one in every for name in one.values["engines"]))
    lines = [_heads(language, engines), ["---"] * len(_heads(language, engines))]
    return [
        "| " + " | ".join(cells) + " |"
        for cells in (*lines, *(_cells(one, engines, language) for one in every))
    ]


def _setting(one: Record) -> tuple[Any, ...]:
    """What rows must share to stand side by side: images, kind of host, the float model (by its size)."""
    host = {key: one.host.get(key) for key in ("cpu", "cores", "int8")}
    return dict(one.data), host, one.values["float_bytes"]


def _heads(language: str, engines: Sequence[str]) -> list[str]:
    *first, ratio, drop, seconds = HEADS[language]
    return [
        *first,
        *(ratio.format(engine=name) for name in engines),
        *(drop.format(engine=name) for name in engines[1:]),
        seconds,
    ]


def _cells(one: Record, engines: Sequence[str], language: str) -> list[str]:
    values = one.values
    found: list[Mapping[str, Any] | None] = [values["engines"].get(name) for name in engines]
    main = found[0] if found else None
    size = (
        f"{values['float_bytes'] / 1e6:.1f} → {values['bytes'] / 1e6:.1f}"
        if values["bytes"]
        else REFUSED[language]
    )
    return [
        card.escape_markdown(one.artifact["name"]),
        card.escape_markdown(values["recipe"]),
        f"{_points(main, 'drop')}, n = {main['n']}" if main else "–",
        _expected(main),
        card.percent(main["same_prediction"]) if main else "–",
        size,
        *(_ratio(item) for item in found),
        *(_points(item, "drop") for item in found[1:]),
        f"{values['seconds']:.0f}",
    ]


def _points(values: Mapping[str, Any] | None, key: str) -> str:
    return _interval(values, key, card.points)


def _expected(values: Mapping[str, Any] | None) -> str:
    """From the noise on the logits."""
    if not values or "expected_drop" not in values:
        return "–"
    low, high = map(card.points, drop_interval(values))
    return f"{card.points(values['expected_drop'])} ({low} .. {high})"


def _ratio(values: Mapping[str, Any] | None) -> str:
    return _interval(values, "latency_ratio", card.ratio_of)


def _interval(values: Mapping[str, Any] | None, key: str, shown: Any) -> str:
    if values is None:
        return "–"
    low, high = (shown(values[f"{key}_{end}"]) for end in ("low", "high"))
    return f"{shown(values[key])} ({low} .. {high})"


def belongs(records: Iterable[Record]) -> bool:
    """Whether these are Records of a side-by-side and not of jobs."""
    return any(one.kind == "quantize" and "engines" in one.values for one in records)
