"""The page: all models of some Records in one HTML file."""

from __future__ import annotations

import base64
import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from repzoo.errors import InputError, MissingExtra
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.record import Record, select
from repzoo.report import (
    charts,
    html_file,
    page_charts,
    page_details,
    page_quantized,
    page_rows,
)
from repzoo.report.html_file import LANGUAGES
from repzoo.report.page_rows import PRECISIONS, Row
from repzoo.report.thumbnails import thumbnail

# interactive: drawn in the browser, with 0.9 MB of Vega; picture: drawn here; table: none.
Drawing = Literal["interactive", "picture", "table"]
MEASURES = ("ms", "mb", "macs")
CHOICES = ("family", "engine", "host", "threads", "precision")
LIMITS = ("max_ms", "min_top1", "max_mb")
NUMBERS = ("top1", "ms", "ratio", "mb", "macs")
COLUMNS = (
    "model",
    "family",
    "precision",
    "quantizer",
    "engine",
    "threads",
    *NUMBERS,
    "images",
    "host",
    "source",
)
MAX_BYTES = 1_500_000  # without pictures
MAX_PICTURES = 24  # of a model

Text = dict[str, str]


@dataclass(frozen=True)
class RenderedPage:
    """The page and what is in it.

    remarks  sentences on what was left out, as the page has them, in English
    """

    html: str
    rows: int
    models: int
    remarks: tuple[str, ...]


def render(
    records: Sequence[Record[Any]],
    drawing: Drawing = "interactive",
    images: Path | None = None,
) -> RenderedPage:
    """The page of `records`.

    Without vl-convert it is the table alone, whatever `drawing` asks for.

    images  folder of the images that were evaluated, to show those that are answered differently

    Raises:
        InputError: no Record holds a figure of a model.
    """
    records = page_rows.each_once(records)
    newest = page_rows.newest_runs(records)
    rows = page_rows.table_rows(newest)
    if not rows:
        raise InputError(
            "no Record holds an accuracy or a latency of a model; make some with: "
            "repzoo card MODEL --data DIR --append FILE.jsonl"
        )
    hosts = page_rows.host_names(newest)
    measures = [name for name in MEASURES if _has_points(rows, name)]
    bundle, picture, remarks = _drawn(rows, measures, drawing)
    notes = [*_notes(records, newest, rows), *remarks]
    models = _models(newest, hosts)
    pictures = _add_pictures(models, images) if images else []
    missing = pictures.count("")
    if missing:
        notes.append(_sentence("no_pictures", missing=missing, all=len(pictures)))
    data = {
        "words": words(),
        "fields": list(vars(rows[0])),
        "rows": [list(vars(row).values()) for row in rows],
        "columns": _columns(rows),
        "choices": CHOICES,
        "measures": measures or MEASURES[:1],
        "sort": "-top1" if _has(rows, "top1") else "ms",
        "colors": page_charts.COLORS,
        "models": models,
        "charts": _charts(measures, precisions(rows)) if bundle else {},
        "notes": notes,
    }
    html = _html(data, bundle, picture, measures, is_missing=bool(remarks))
    sentences = [note["en"] for note in notes]
    size = len(html.encode()) - sum(map(len, pictures))
    if size > MAX_BYTES:
        sentences.append(
            f"the page has {size / 1e6:.1f} MB; give fewer Records for a smaller one"
        )
    return RenderedPage(html, len(rows), len(models), tuple(sentences))


def card_files(records: Sequence[Record[Any]]) -> dict[str, str]:
    """What to look at beside the card of one job, by file name.

    card.html   the page of its Records
    chart.svg   accuracy against latency or size
    layers.svg  quantization noise by layer

    Without vl-convert there is the page alone, and a sentence in it that says so.
    """
    rows = page_rows.table_rows(page_rows.newest_runs(records))
    measures = [name for name in MEASURES if _has_points(rows, name)]
    if not measures:
        return {}
    files = {"card.html": render(records, "picture").html}
    specs = {"chart.svg": picture_spec(rows, measures[0])}
    noise = page_quantized.noise(records, {})
    if noise.get("rows"):
        specs["layers.svg"] = _noise_spec(noise["values"])
    try:
        for name, spec in specs.items():
            files[name] = charts.svg(spec)
    except MissingExtra:
        return files
    return files


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """The words of the page by language and key."""
    return tomllib.loads((files("repzoo.report") / "page.toml").read_text("utf-8"))


def _sentence(key: str, **fields: Any) -> Text:
    """The sentence `key` in every language."""
    return {name: words()[name][key].format(**fields) for name in LANGUAGES}


def _has(rows: Sequence[Row], name: str) -> bool:
    return any(getattr(row, name) not in (None, "") for row in rows)


def _has_points(rows: Sequence[Row], measure: str) -> bool:
    """Whether a row has both figures of a chart."""
    return _has([row for row in rows if row.top1 is not None], measure)


def precisions(rows: Sequence[Row]) -> list[str]:
    """The precisions that a chart of `rows` shows, float first: the order of their colors."""
    drawn = [row for row in rows if row.top1 is not None and (row.ms or row.mb)]
    present = {row.precision for row in drawn}
    known = [PRECISIONS[form] for form in ("deploy", "int8", "fp16", "bf16", "train")]
    others = sorted(present - set(known))
    return [name for name in (*known, *others) if name in present]


def _columns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The columns that any row has a figure for."""
    shown = [name for name in COLUMNS if _has(rows, name)]
    return [{"name": name, "number": name in NUMBERS} for name in shown]


def _notes(
    records: Sequence[Record[Any]],
    newest: Sequence[Record[Any]],
    rows: Sequence[Row],
) -> list[Text]:
    """What a reader must know of the rows."""
    notes: list[Text] = []
    names = sorted({row.host for row in rows})
    if len(names) > 1:
        notes.append(_sentence("two_hosts", n=len(names), hosts="; ".join(names)))
    left = len(records) - len(newest)
    if left:
        notes.append(_sentence("older", all=len(records), left=left))
    if not _has(rows, "ms"):
        notes.append(_sentence("no_time"))
    if not _has(rows, "top1"):
        notes.append(_sentence("no_accuracy"))
    if select(newest, QuantizerComparison):
        notes.append(_sentence("compared_note"))
    return notes


def _models(
    records: Sequence[Record[Any]], hosts: Mapping[tuple[str, ...], str]
) -> list[dict[str, Any]]:
    by_name: dict[str, list[Record[Any]]] = {}
    for record in records:
        by_name.setdefault(page_rows.model_name(record), []).append(record)
    models = []
    for name, own in by_name.items():
        models.append({"name": name, "sections": page_details.sections(own, hosts)})
    return models


def _add_pictures(models: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Add the images that a section names, as `images`; all of them, "" for those not found."""
    added: list[str] = []
    for model in models:
        for section in model["sections"]:
            if section["title"] == "flips":
                keys = [row[0] for row in section.get("rows", ())[:MAX_PICTURES]]
                section["images"] = [thumbnail(folder, key) for key in keys]
                added += section["images"]
    return added


def _drawn(
    rows: Sequence[Row], measures: Sequence[str], drawing: Drawing
) -> tuple[str, str, list[Text]]:
    """(JavaScript that draws the charts, address of a picture, remarks)."""
    if drawing == "table" or not measures:
        return "", "", []
    try:
        if drawing == "interactive":
            return charts.browser_bundle(), "", []
        drawn = charts.svg(picture_spec(rows, measures[0]))
    except MissingExtra:
        return "", "", [_sentence("no_chart")]
    # As an image, an SVG can run nothing.
    encoded = base64.b64encode(drawn.encode()).decode()
    return "", f"data:image/svg+xml;base64,{encoded}", []


def picture_spec(rows: Sequence[Row], measure: str) -> charts.Spec:
    """The chart of the page with its data, in English, for `charts.svg` and `charts.png`."""
    values = []
    for row in rows:
        if getattr(row, measure) is not None and row.top1 is not None:
            values.append({**vars(row), "front": None})
    spec = page_charts.trade_off(measure, words()["en"], precisions(rows))
    return {**spec, "width": 640, "data": {"values": values}}


def _noise_spec(values: Sequence[Mapping[str, Any]]) -> charts.Spec:
    """The chart of the noise of each layer with its data, in English."""
    titles = words()["en"]
    spec = page_charts.layer_noise(titles["layer_snr"], titles["layer_index"])
    named = [{**value, "side": titles[value["side"]]} for value in values]
    return {**spec, "width": 640, "data": {"values": named}}


def _charts(
    measures: Sequence[str], shown: Sequence[str]
) -> dict[str, dict[str, charts.Spec]]:
    """The specifications of the page by language and name."""
    specs: dict[str, dict[str, charts.Spec]] = {}
    for language in LANGUAGES:
        titles = words()[language]
        own = {name: page_charts.trade_off(name, titles, shown) for name in measures}
        own["layer_noise"] = page_charts.layer_noise(
            titles["layer_snr"], titles["layer_index"]
        )
        specs[language] = own
    return specs


def _html(
    data: Mapping[str, Any],
    bundle: str,
    picture: str,
    measures: Sequence[str],
    is_missing: bool,
) -> str:
    own = [html_file.read_template(name) for name in ("page_views.js", "page.js")]
    scripts = []
    for text in (bundle, "".join(own)):
        if text:
            scripts.append(html_file.inline_script(text))
    # Vega sets styles of its own on what it draws.
    policy = html_file.policy(scripts, style_src="'unsafe-inline'", img_src="data:")
    return html_file.render(
        "page.html.j2",
        title=words()["en"]["title"],
        words=words()["en"],
        policy=policy,
        style=html_file.read_template("page.css"),
        data=html_file.json_element(data),
        scripts=scripts,
        picture=picture,
        has_chart=bool(bundle),
        is_missing=is_missing,
        choices=CHOICES,
        limits=LIMITS,
        measures=measures,
    )
