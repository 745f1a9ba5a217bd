"""Tables of documents: rendered from Records, stale ones noticed, names cannot break them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_card import other_engine_records
from tests.report.test_card import (
    records as job_records,
)  # the Records of one made-up job
from tests.sample_results import engine_comparison

from repzoo.errors import InputError
from repzoo.graph.tools.int8_share import Int8Share
from repzoo.measure import record
from repzoo.measure.comparison_results import QuantizerComparison
from repzoo.measure.results import LatencyRatio
from repzoo.report import card_facts, figures, tables

PAGE = "before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n"


def tied_records(name: str, job: str) -> list[record.Record[Any]]:
    """One job's Records under another name."""

    def rename(row: record.Record[Any]) -> record.Record[Any]:
        artifact: dict[str, Any] = (
            {**row.artifact, "name": name}
            if "name" in row.artifact
            else dict(row.artifact)
        )
        return dataclasses.replace(row, job=job, artifact=artifact)

    return [rename(row) for row in job_records()]


def test_a_table_shows_the_newest_job_of_each_model(tmp_path: Path) -> None:
    record.append(
        tmp_path / "one.jsonl",
        [*tied_records("a", "1"), *tied_records("b|c", "2"), *tied_records("a", "3")],
    )
    document = tables.render(PAGE, tmp_path, "en")
    rows = [line for line in document.splitlines() if line.startswith("|")]
    assert document.startswith("before\n")
    assert document.endswith("\nafter\n")
    assert "old" not in document
    assert [row.split(",")[0] for row in rows[2:]] == ["| a", r"| b\|c"]
    facts = card_facts.summary(tied_records("a", "3"))
    assert figures.percent(facts.accuracy["int8"].top1) in rows[2]
    assert tables.render(document, tmp_path, "en") == document


def test_a_row_names_the_engines_where_there_are_several(tmp_path: Path) -> None:
    others = [
        replace(row, job="1")
        for row in [*other_engine_records(), *other_engine_records("slow", ["int8"])]
    ]
    record.append(
        tmp_path / "one.jsonl",
        [*tied_records("a", "1"), *others, *tied_records("b", "2")],
    )
    rows = [
        line.split(" | ")
        for line in tables.render(PAGE, tmp_path, "en").splitlines()
        if line.startswith("| ")
    ]
    column = next(index for index, head in enumerate(rows[0]) if "1 thread" in head)
    assert (
        rows[2][column]
        == "onnxruntime 31.0 → 51.0<br>open_vino 211 → 231<br>slow – → 231"
    )
    assert rows[3][column] == "31.0 → 51.0"


def test_no_records_is_a_sentence(tmp_path: Path) -> None:
    record.append(tmp_path / "one.jsonl", job_records())  # not of a job
    with pytest.raises(InputError, match="repzoo card MODEL"):
        tables.render(PAGE, tmp_path, "en")


def comparison(
    name: str, job: str, recipe: str, bytes_written: int | None = 1_400_000
) -> record.Record[QuantizerComparison]:
    engines = {}
    if bytes_written:
        first = engine_comparison(0.2, n=500, expected_drop=0.1)
        engines = {"onnxruntime": first, "openvino": engine_comparison(21.9, n=500)}
    values = QuantizerComparison(
        recipe=recipe,
        seconds=12.3,
        reason="",
        engines=engines,
        bytes=bytes_written,
        float_bytes=5_000_000,
    )
    return record.Record({"name": name}, values, job=job)


def test_quantizers_comparison(tmp_path: Path) -> None:
    old, new = (
        replace(comparison("a", "1", "old"), data={"gate": "others"}),
        [comparison("a", "2", "repzoo"), comparison("a", "2", "b|c", None)],
    )
    record.append(tmp_path / "one.jsonl", [old, *new, comparison("z", "3", "repzoo")])
    rows = [
        line
        for line in tables.render(PAGE, tmp_path, "en").splitlines()
        if line.startswith("|")
    ]
    assert rows[0].startswith(
        "| Model | Quantizer | Drop (points) | Expected drop (points) "
        "| Same prediction as float (%) | Size (MB), float → INT8 |"
    )
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert [row.split(" | ")[:2] for row in rows[2:]] == [
        ["| a", "repzoo"],
        ["| a", r"b\|c"],
        ["| z", "repzoo"],
    ]
    assert "+0.20 (−0.80 to +1.20), n = 500" in rows[2]
    assert "+0.10 (−0.10 to +0.30)" in rows[2]
    assert "5.0 → 1.4" in rows[2]
    assert "21.9" in rows[2]
    assert "refused" in rows[3]
    assert "精度损失" in tables.render(PAGE, tmp_path, "zh")


def test_quantizers_say_how_much_runs_in_int8_where_it_is_known(tmp_path: Path) -> None:
    known = comparison("a", "1", "repzoo")
    share = Int8Share(layers=96, int8_layers=1, macs=0.154, bytes=0.46)
    engines = {
        name: replace(measured, int8=share)
        for name, measured in known.values.engines.items()
    }
    known = replace(known, values=replace(known.values, engines=engines))
    record.append(tmp_path / "one.jsonl", [known, comparison("a", "1", "other")])
    lines = tables.render(PAGE, tmp_path, "en").splitlines()
    cells = [line.split(" | ")[2] for line in lines if line.startswith("| ")]
    assert cells == ["In INT8", "---", "1 of 96 layers, 15 % of MACs", "–"]


def test_the_documents_of_this_repository_are_not_stale() -> None:
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "repzoo.report.tables",
        "--check",
        str(root / "docs" / "results.md"),
        str(root / "docs" / "results_cn.md"),
        str(root / "docs" / "boards.md"),
        "--results",
        str(root / "results"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_folds_beside_timms_have_a_column_for_each_engine(tmp_path: Path) -> None:
    (job_ratio,) = record.select(job_records(), LatencyRatio)[:1]
    rows: list[record.Record[Any]] = []
    for name, engine, ratio in (
        ("a|b", "onnxruntime", 1.02),
        ("a|b", "openvino", 0.93),
        ("c", "openvino", 0.95),
        ("a|b", "onnxruntime", 0.91),
    ):
        sides = {
            "first": {"name": f"{name} by repzoo"},
            "second": {"name": f"{name} by timm"},
        }
        values = replace(job_ratio.values, ratio=ratio, ratio_low=0.9, ratio_high=1.1)
        rows.append(
            replace(
                job_ratio,
                job="",
                artifact=sides,
                values=values,
                engine={"name": engine, "version": "1"},
            )
        )
    record.append(tmp_path / "one.jsonl", rows)
    lines = tables.render(PAGE, tmp_path, "en").splitlines()
    shown = [line for line in lines if line.startswith("|")]
    assert shown[0] == "| Model | onnxruntime | openvino |"
    assert shown[2:] == [
        r"| a\|b | 0.91 (0.90 to 1.10) | 0.93 (0.90 to 1.10) |",
        "| c | – | 0.95 (0.90 to 1.10) |",
    ]
