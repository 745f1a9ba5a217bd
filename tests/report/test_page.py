"""The page: its figures are the Records', its file is whole, and names of others are only text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.sample_results import latency, latency_ratio, paired_accuracy

import repzoo
from repzoo.errors import InputError
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure import record
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, Setting
from repzoo.report import page, page_details, page_rows, tables

RESULTS = Path(__file__).parents[2] / "results"
TEMPLATES = Path(page.__file__).parent / "templates"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&=\u202enet"
HOST = {"cpu": "some", "cores": 2, "int8": ["avx2"]}
Run = Callable[..., Any]


def identity(name: str = "net", form: str = "int8") -> dict[str, Any]:
    return {"name": name, "form": form, "sha256": f"{name}-{form}", "classes": 10}


def timed(name: str = "net", ms: float = 2.0, **changes: Any) -> Record[Any]:
    fields: dict[str, Any] = {"engine": {"name": "ort", "version": "1"}, "host": HOST}
    values = latency(ms, setting=changes.pop("setting", Setting()))
    return Record(identity(name), values, **{**fields, **changes})


def judged(name: str = "net", top1: float = 80.0, **changes: Any) -> Record[Any]:
    values = Accuracy(
        n=100,
        top1=top1,
        top1_low=top1 - 1,
        top1_high=top1 + 1,
        top5=99.0,
        top5_low=98.0,
        top5_high=100.0,
    )
    fields: dict[str, Any] = {
        "engine": {"name": "ort", "version": "1"},
        "host": HOST,
        "data": {"name": "photos", "sha256": "d"},
    }
    return Record(identity(name), values, **{**fields, **changes})


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._is_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._is_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False

    @property
    def data(self) -> Any:
        [text] = [text for attributes, text in self.scripts if "type" in attributes]
        return json.loads(text)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rows_of(parsed: Parsed) -> list[dict[str, Any]]:
    fields = parsed.data["fields"]
    return [dict(zip(fields, cells, strict=True)) for cells in parsed.data["rows"]]


@pytest.fixture(scope="module")
def real() -> Parsed:
    """The page of the results of this repository, without charts."""
    records = [
        row for path in sorted(RESULTS.glob("*.jsonl")) for row in record.read(path)
    ]
    return Parsed(page.render(records, "table").html)


def test_figures_are_those_of_the_newest_jobs(real: Parsed) -> None:
    jobs = tables.newest_jobs(record.read(RESULTS / "clothing.jsonl"))
    for facts in jobs:
        [row] = [
            row
            for row in rows_of(real)
            if row["model"] == facts.name
            and row["precision"] == "INT8"
            and row["engine"] == facts.engine["name"]
            and row["threads"] == "1"
            and row["date"] == facts.date
        ]
        assert row["ms"] == facts.single["int8"].p50_ms
        assert row["top1"] == facts.accuracy["int8"].top1
        assert row["top1_low"] == facts.accuracy["int8"].top1_low
        assert row["mb"] == facts.cost["int8"].bytes / 1e6
        assert row["ratio"] == facts.ratios["int8"].ratio


def test_every_model_of_the_table_can_be_opened(real: Parsed) -> None:
    models = {model["name"] for model in real.data["models"]}
    assert {row["model"] for row in rows_of(real)} <= models
    assert len(models) >= 6


def test_a_model_shows_what_its_records_hold_and_names_the_rest(real: Parsed) -> None:
    [model] = [
        item for item in real.data["models"] if item["name"] == "repvgg_a0.clothing"
    ]
    sections = {section["title"]: section for section in model["sections"]}
    assert list(sections) == list(page_details.SECTIONS)
    held = {title for title, section in sections.items() if section.get("rows")}
    assert held == set(sections) - {"similarity"}
    for section in sections.values():
        widths = {len(cells) for cells in section.get("rows", ())}
        assert widths <= {len(section.get("head", ()))}
    noise = sections["noise"]
    assert {value["side"] for value in noise["values"]} == {"weights", "activations"}
    hashes = [cells[2] for cells in sections["provenance"]["rows"]]
    assert any(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)


def test_the_file_asks_for_nothing_and_runs_only_its_own_scripts(real: Parsed) -> None:
    for tag, attributes in real.tags:
        assert not {"src", "action", "onclick", "onload"} & attributes.keys(), tag
        assert attributes.get("href", "data:,") == "data:,"
    [policy] = [
        attributes["content"]
        for attributes in real.named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    for attributes, text in real.scripts:
        if "type" not in attributes:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_every_control_has_a_label(real: Parsed) -> None:
    names = [item.get("name") for item in real.named("input") + real.named("select")]
    assert names == ["q", *page.LIMITS, *page.CHOICES]
    labeled = [item.get("for") for item in real.named("label")]
    assert sorted(map(str, labeled)) == sorted(map(str, names))


def test_both_languages_have_every_word_that_is_used() -> None:
    words = page.words()
    assert list(words["en"]) == list(words["zh"])
    assert all(text.strip() for table in words.values() for text in table.values())
    script = "".join(path.read_text("utf-8") for path in TEMPLATES.glob("page*.js"))
    html = (TEMPLATES / "page.html.j2").read_text("utf-8")
    used = set(re.findall(r'word\("(\w+)"\)', script))
    used |= set(re.findall(r'(?:data-word|data-label)="(\w+)"', html))
    used |= {*page.COLUMNS, *page.CHOICES, *page.LIMITS, *page_details.SECTIONS}
    assert used <= set(words["en"])
    for key, text in words["en"].items():
        fields = set(re.findall(r"{(\w+)}", text))
        assert fields == set(re.findall(r"{(\w+)}", words["zh"][key])), key


def test_headings_and_words_of_sections_are_translated(real: Parsed) -> None:
    known = set(page.words()["en"])
    for model in real.data["models"]:
        for section in model["sections"]:
            assert set(section.get("head", ())) <= known
            cells = [cell for row in section.get("rows", ()) for cell in row]
            keys = {
                cell["w"] for cell in cells if "w" in cell and isinstance(cell, dict)
            }
            assert keys <= known


def test_our_script_stays_short() -> None:
    lines = (TEMPLATES / "page.js").read_text("utf-8").splitlines()
    assert len(lines) <= 200


def test_names_of_others_stay_text() -> None:
    records = [timed(HOSTILE), judged(HOSTILE)]
    records.append(timed("net", engine={"name": HOSTILE, "version": HOSTILE}))
    html = page.render(records, "table").html
    parsed = Parsed(html)
    assert not parsed.named("img")
    assert html.count("<script") == html.count("</script") == 2
    names = {row["model"] for row in rows_of(parsed)}
    # As in cards, what would turn text around is shown as its escape.
    assert names == {HOSTILE.replace("\u202e", "\\u202e"), "net"}
    assert "\u202e" not in html


def test_a_newer_row_replaces_an_older_one() -> None:
    old = timed(ms=5.0, time="2026-01-01T00:00:00+00:00")
    new = timed(ms=2.0, time="2026-02-01T00:00:00+00:00")
    rows = page_rows.table_rows(page_rows.newest_runs([new, old]))
    assert [row.ms for row in rows] == [2.0]


def test_of_jobs_only_the_newest_of_a_model_on_a_host_is_kept() -> None:
    other = {**HOST, "cpu": "another"}
    old = [timed(ms=5.0, job="a", time="1"), judged(job="a", time="1")]
    new = [timed(ms=2.0, job="b", time="2"), judged(job="b", time="2")]
    elsewhere = [
        timed(ms=9.0, job="c", time="0", host=other),
        judged(job="c", time="0", host=other),
    ]
    rendered = page.render([*elsewhere, *new, *old], "table")
    rows = rows_of(Parsed(rendered.html))
    assert sorted((row["host"], row["ms"]) for row in rows) == [
        ("another, 2 cores", 9.0),
        ("some, 2 cores", 2.0),
    ]
    assert any(remark.startswith("Figures of 2 hosts") for remark in rendered.remarks)
    assert any("2 are of older runs" in remark for remark in rendered.remarks)


def test_a_record_that_is_in_two_files_is_shown_once() -> None:
    records = [timed(), judged()]
    rendered = page.render([*records, *records], "table")
    assert rendered == page.render(records, "table")
    assert not rendered.remarks
    assert "There is no chart" not in rendered.html.partition("<script")[0]


def test_hosts_of_one_name_are_told_apart() -> None:
    records = [timed(), timed(host={**HOST, "int8": ["avx512_vnni"]}), timed()]
    names = page_rows.host_names(records)
    assert sorted(names.values()) == [
        "some, 2 cores, avx2",
        "some, 2 cores, avx512_vnni",
    ]


def test_an_accuracy_of_another_engine_says_so() -> None:
    records = [judged(), timed(engine={"name": "vino", "version": "2"})]
    [on_ort, on_vino] = sorted(
        page_rows.table_rows(records), key=lambda row: row.engine
    )
    assert (on_ort.top1, on_ort.ms, on_ort.accuracy_on) == (80.0, None, "")
    assert (on_vino.top1, on_vino.ms) == (80.0, 2.0)
    assert on_vino.accuracy_on == "ort, some, 2 cores"


def test_what_no_record_holds_is_none() -> None:
    [row] = page_rows.table_rows([timed(setting=Setting(streams=2))])
    assert row.threads == "2 x 1"
    assert row.top1 is row.mb is row.macs is row.ratio is None
    rendered = page.render([timed()], "table")
    assert rendered.remarks == ("No Record holds an accuracy.",)


def test_size_and_ratio_are_joined_by_the_file() -> None:
    cost = Cost(3_000_000, 2_000_000, 1_500_000, 9, {}, {})
    pair = {"first": identity(), "second": identity(form="deploy")}
    records = [
        timed(),
        Record(identity(), cost, host=HOST),
        Record(identity("other"), cost, host=HOST),
        Record(pair, latency_ratio(0.5, 0.4, 0.6), {"name": "ort"}, host=HOST),
    ]
    [row] = page_rows.table_rows(records)
    assert (row.mb, row.macs, row.parameters) == (1.5, 2.0, 3.0)
    assert (row.ratio, row.ratio_low, row.ratio_high) == (0.5, 0.4, 0.6)


def test_figures_of_boards_name_their_source_and_are_not_mixed_with_a_host() -> None:
    engine = {"name": "hrt_model_exec", "version": "1"}
    on_board = BoardLatency(target="rdk-x5", source="board log", latency_ms=1.5)
    accuracy = BoardAccuracy(
        target="rdk-x5", source="board log", precision="int8", top1=70.0
    )
    artifact = identity(form="deploy")
    records = [
        Record(artifact, on_board, engine, host={"kind": "board"}),
        Record(artifact, accuracy, engine, host={"kind": "board"}),
        Record(artifact, judged().values, {"name": "ort"}, host=HOST),
    ]
    rows = {row.host: row for row in page_rows.table_rows(records)}
    assert rows["rdk-x5"].source == "board log"
    assert (rows["rdk-x5"].ms, rows["rdk-x5"].top1) == (1.5, 70.0)
    assert (rows["rdk-x5"].precision, rows["rdk-x5"].top1_low) == ("int8", None)
    assert rows["some, 2 cores"].top1 == 80.0


def test_the_command_writes_the_page_and_says_what_is_in_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    source, output = tmp_path / "r.jsonl", tmp_path / "page.html"
    record.append(source, [timed(), judged()])
    ran = run("page", source, "-o", output, "--json")
    assert ran.code == 0
    document = ran.document
    assert (document["models"], document["rows"]) == (1, 1)
    assert document["bytes"] == output.stat().st_size < 100_000
    assert any("repzoo[page]" in remark for remark in document["remarks"])
    assert "There is no chart" in output.read_text("utf-8")
    written = repzoo.page(source, output)
    assert asdict(written)["rows"] == 1


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["{"], "line 1 is not a Record"),
        ([record.line(timed())[:-9]], "line 1 is not a Record"),
        ([], "no Record holds"),
    ],
    ids=["no JSON", "half-written", "empty"],
)
def test_bad_files_are_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, lines: list[str], reason: str
) -> None:
    source, output = tmp_path / "r.jsonl", tmp_path / "page.html"
    source.write_text("".join(line + "\n" for line in lines))
    ran = run("page", source, "-o", output)
    assert ran.code == 2
    assert reason in ran.err
    assert not output.exists()


def test_the_records_are_not_overwritten(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "r.jsonl"
    record.append(source, [timed()])
    ran = run("page", source, "-o", source)
    assert ran.code == 2
    assert "another file" in ran.err
    assert record.read(source)


def test_a_picture_has_the_points_of_the_table() -> None:
    pytest.importorskip("vl_convert")
    rendered = page.render(
        [timed(), judged(), timed("b"), judged("b", 70.0)], "picture"
    )
    [image] = Parsed(rendered.html).named("img")
    address = image["src"]
    assert address is not None
    drawn = base64.b64decode(address.partition(",")[2]).decode()
    assert drawn.startswith("<svg")
    assert drawn.count('aria-roledescription="point"') == 2
    assert len(rendered.html) < 200_000


def test_a_card_has_a_page_and_charts_only_where_they_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vl_convert")
    files = page.card_files([timed(), judged()])
    assert sorted(files) == ["card.html", "chart.svg"]
    assert files["chart.svg"].startswith("<svg")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    files = page.card_files([timed(), judged()])
    assert list(files) == ["card.html"]
    assert "There is no chart" in files["card.html"]
    assert page.card_files([timed()]) == {}


def flipped(*keys: str) -> Record[Any]:
    """Two models that answer the images `keys` differently."""
    pair = {"first": identity(form="deploy"), "second": identity()}
    flips = [{"key": key, "first": 0, "second": 1, "target": 0} for key in keys]
    return Record(pair, paired_accuracy(), {"name": "ort"}, samples={"flips": flips})


def test_images_that_are_answered_differently_are_shown_from_the_folder_only(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    folder, output = tmp_path / "photos", tmp_path / "page.html"
    folder.mkdir()
    Image.new("RGB", (300, 200), "red").save(folder / "a.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "secret.png")
    (folder / "text.png").write_text("no image")
    source = tmp_path / "r.jsonl"
    keys = ("a.png", "../secret.png", str(tmp_path / "secret.png"), "text.png", "b.png")
    record.append(source, [timed(), judged(), flipped(*keys)])
    ran = run("page", source, "-o", output, "--images", folder)
    assert ran.code == 0
    assert "4 of 5 images" in ran.err
    [model] = Parsed(output.read_text("utf-8")).data["models"]
    [section] = [item for item in model["sections"] if item["title"] == "flips"]
    assert [bool(address) for address in section["images"]] == [True] + [False] * 4
    pixels = base64.b64decode(section["images"][0].partition(",")[2])
    assert Image.open(io.BytesIO(pixels)).size == (96, 64)
    ran = run("page", source, "-o", output, "--images", tmp_path / "none")
    assert ran.code == 2
    assert "no folder" in ran.err


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(InputError, match="repzoo card"):
        page.render([], "table")
