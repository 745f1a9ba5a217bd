"""Sweeps with engines of a third party: one sleeps a known time, one cannot compile, one fails
in the middle of its work.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.conftest import Run

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess
from repzoo.console import bench as views
from repzoo.errors import InputError
from repzoo.measure import record, sweep
from repzoo.measure.record import Record

PLUGIN = """
import time
import numpy as np
from repzoo.errors import InputError
class Sleeper:
    name = "sleeper"
    def version(self): return "1"
    def open(self, model, threads=1, exact=False, streams=1): return self
    def run(self, inputs):
        time.sleep(0.003)
        return np.zeros((len(inputs), 48), np.float32)
    def run_all(self, inputs): return [self.run(inputs)]
class Refuser(Sleeper):
    name = "refuser"
    def open(self, model, threads=1, exact=False, streams=1): raise InputError("refuser cannot compile this model: no such operator")
class Breaker(Sleeper):
    name, calls = "breaker", 0
    def run(self, inputs):
        self.calls += 1
        if self.calls > 12: raise InputError("breaker cannot go on: the device went away")
        return super().run(inputs)
class Stopped(Sleeper):
    name = "stopped"
    def run(self, inputs):
        if len(inputs) == 2: raise KeyboardInterrupt
        return super().run(inputs)
class Aborter(Sleeper):
    name = "aborter"
    def run(self, inputs):
        import os
        os.abort()
"""
NAMES = {
    "sleeper": "Sleeper",
    "refuser": "Refuser",
    "breaker": "Breaker",
    "stopped": "Stopped",
    "aborter": "Aborter",
}


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the distribution down as pip would."""
    folder = tmp_path / "site"
    info = folder / "sweep_engines-1.dist-info"
    info.mkdir(parents=True)
    (folder / "sweep_engines.py").write_text(PLUGIN)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sweep-engines\nVersion: 1\n"
    )
    entries = "".join(
        f"{name} = sweep_engines:{kind}\n" for name, kind in NAMES.items()
    )
    (info / "entry_points.txt").write_text(f"[repzoo.engines]\n{entries}")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] data) => (float[N, 48] output) { output = Flatten (data) }"""
    path = tmp_path / "flat.onnx"
    Artifact(onnx.parser.parse_model(text), "flat", Preprocess(size=4)).save(path)
    return path


def bench(flat: Path, *engines: str, **options: Any) -> sweep.SweepResult:
    return verbs.benchmark(
        verbs.load(flat), engine=engines, **{"seconds": 0.02, **options}
    )


def test_an_engine_that_crashes_the_process_loses_its_own_rows_only(
    flat: Path, run: Run
) -> None:
    ran = run(
        "bench", flat, "--engine", "aborter,sleeper", "--seconds", "0.02", "--json"
    )
    assert ran.code == 0
    assert [row["engine"] for row in ran.document["runs"]] == ["sleeper"]
    assert "left out: flat on aborter" in ran.err
    assert "crashed (signal SIGABRT)" in ran.err


def test_failing_settings_are_skipped_and_the_sweep_continues(flat: Path) -> None:
    swept = bench(flat, "refuser", "sleeper", "breaker", "onnxruntime", streams=(1, 2))
    assert [
        (record.engine["name"], record.values.setting.streams)
        for record in swept.records
    ] == [
        ("sleeper", 1),
        ("onnxruntime", 1),
        ("sleeper", 2),
        ("onnxruntime", 2),
    ]
    assert all(
        record.values.p50_ms >= 3
        for record in swept.records
        if record.engine["name"] == "sleeper"
    )
    assert [
        (skipped.file, skipped.engine, len(skipped.settings))
        for skipped in swept.left_out
    ] == [
        ("flat", "refuser", 2),
        ("flat", "breaker", 2),
    ]
    assert "because breaker cannot go on: the device went away" in str(
        swept.left_out[1]
    )
    assert [
        (ratio.engine["name"], ratio.engine["second"]["name"]) for ratio in swept.ratios
    ] == [("onnxruntime", "sleeper")] * 2
    assert all(ratio.values.ratio_high < 1 for ratio in swept.ratios)


def rounded() -> Artifact:
    """A model in INT8 form that only rounds its input."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] data) => (float[N, 48] output)
        <float scale = {0.1}, uint8 zero = {128}> {
        steps = QuantizeLinear (data, scale, zero)
        back = DequantizeLinear (steps, scale, zero)
        output = Flatten (back) }"""
    return Artifact(onnx.parser.parse_model(text), "rounded", Preprocess(size=4))


def test_a_quantized_file_says_how_much_of_it_is_int8(flat: Path) -> None:
    swept = verbs.benchmark([verbs.load(flat), rounded()], seconds=0.02)
    shares = [record.share_of(row.artifact) for row in swept.records]
    assert shares[0] is None
    assert shares[1] is not None
    assert shares[1].layers == 0
    view = views.bench(swept)
    lines = [str(item) for item in view.shown if "INT8: " in str(item)]
    assert lines == ["rounded: INT8: 0 of 0 layers, 0 % of MACs, 0 % of bytes"]
    assert ["int8" in row for row in view.document["runs"]] == [False, True]


def test_an_engine_that_computes_int8_in_float_says_so(flat: Path) -> None:
    int8 = rounded()
    for engine, count in (("mnn", 1), ("reference", 1), ("onnxruntime", 0)):
        swept = verbs.benchmark([int8, verbs.load(flat)], engine=engine, seconds=0.02)
        assert sum("no latency of INT8" in remark for remark in swept.remarks) == count


def test_nothing_measured_is_one_sentence(run: Run, flat: Path) -> None:
    ran = run("bench", flat, "--engine", "refuser", "--seconds", 0.02)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert "no such operator" in ran.err
    with pytest.raises(InputError, match="no engine is called 'onnxruntim'"):
        bench(flat, "sleeper", "onnxruntim")


def test_records_are_kept_setting_by_setting(
    run: Run, flat: Path, tmp_path: Path
) -> None:
    """The interrupt comes in the second setting: the first one's Records are in the file, and
    shown.
    """
    kept = tmp_path / "kept.jsonl"
    ran = run(
        "bench",
        flat,
        "--engine",
        "stopped,sleeper",
        "--batch",
        "1,2",
        "--seconds",
        0.02,
        "--append",
        kept,
        "--json",
    )
    assert ran.code == 130
    assert [row["batch"] for row in ran.document["runs"]] == [1, 1]
    assert ran.document["interrupted"] is True
    assert [(row.kind, row.values.setting.batch) for row in record.read(kept)] == [
        ("latency", 1),
        ("latency", 1),
        ("ratio", 1),
    ]
    assert {"load_before", "load_after", "affinity"} <= set(record.read(kept)[0].host)


def test_a_full_disk_ends_the_sweep_and_leaves_what_was_kept(flat: Path) -> None:
    kept: list[Record[Any]] = []

    def keep(records: Sequence[Record[Any]]) -> None:
        if kept:
            raise InputError(f"kept.jsonl cannot be written: {errno.ENOSPC}")
        kept.extend(records)

    options = verbs.BenchOptions(engine=("sleeper",), batch=(1, 2, 3), seconds=0.02)
    with pytest.raises(InputError, match="cannot be written"):
        verbs.benchmark(flat, options=options, on_records=keep)
    assert [row.values.setting.batch for row in kept] == [1]


def test_every_combination_once_and_single_stream_alone() -> None:
    combinations = sweep.settings(
        ["single-stream", "multi-stream", "offline"], [1, 2], [1, 4], []
    )
    shown = [
        (setting.scenario, setting.threads, setting.streams, setting.batch)
        for setting in combinations
    ]
    assert len(set(shown)) == len(shown) == 2 + 4 + 4
    assert {row[2:] for row in shown if row[0] == "single-stream"} == {(1, 1)}
    assert {row[3] for row in shown if row[0] == "multi-stream"} == {8}


def test_lists_by_commas_and_by_repeating_are_one(run: Run, flat: Path) -> None:
    ran = run(
        "bench",
        flat,
        "--engine",
        "sleeper",
        "--streams",
        "1",
        "--streams",
        2,
        "--batch",
        "2",
        "--seconds",
        0.02,
        "--json",
    )
    assert [(row["streams"], row["batch"]) for row in ran.document["runs"]] == [
        (1, 2),
        (2, 2),
    ]
    assert json.dumps(ran.document["runs"][0]["latency_us"])
    for wrong in ("0", "1,0", "1,", "x"):
        assert run("bench", flat, "--streams", wrong).code == 2


def test_remarks_name_what_is_uncertain(flat: Path) -> None:
    remarks = " ".join(bench(flat, "sleeper").remarks)
    assert "p99 rests on" in remarks
    assert "662 are needed" in remarks
