"""The whole job: its Records, its remarks, and what it does when an engine or the disk fails.

Folding and quantizing have tests of their own. Here both are done once for all jobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conftest import Run
from tests.sample_results import paired_accuracy
from tests.small_model import small_training_form

from repzoo import job, verbs
from repzoo.artifact import Step
from repzoo.data.source import open_source
from repzoo.engines import ENGINES
from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.measure.board import BoardLatency
from repzoo.measure.client_threads import ClientThreads
from repzoo.measure.host import host
from repzoo.plugins import Plugin
from repzoo.report import card
from repzoo.verbs import QuantizeOptions

QUICK = job.JobOptions(QuantizeOptions(images=20, search=0, force=True), seconds=0.05)


def small_model() -> verbs.Artifact:
    """In training form."""
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    return verbs.Artifact.wrap(small_training_form())


@pytest.fixture(scope="module", autouse=True)
def _fold_and_quantize_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fold", "quantize"):
            patch.setattr(verbs, name, _remember_result(getattr(verbs, name)))
        yield


def _remember_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which gives the result of its first call from then on."""
    results: list[Any] = []

    def call(*arguments: Any, **options: Any) -> Any:
        if not results:
            results.append(function(*arguments, **options))
        return results[0]

    return call


def test_a_remark_says_that_the_model_was_trained_on_these_images(
    digits_folder: Path,
) -> None:
    source = open_source(digits_folder)
    name = source.join(*source.parts).name
    model = small_model()
    train = Step("train", "0", {"data": name})
    trained = dataclasses.replace(model, steps=(*model.steps, train))
    first = job.run(model, source, QUICK)
    second = job.run(trained, source, QUICK)
    assert not any("trained on" in remark for remark in first.remarks)
    assert second.remarks[0].startswith(f"the model was trained on {name}")
    # The files are the same, and yet nobody takes the Records of one job for those of the other.
    jobs = [{record.job for record in result.records} for result in (first, second)]
    assert len(jobs[0]) == len(jobs[1]) == 1
    assert jobs[0] != jobs[1]


def test_other_engines_are_timed_in_the_same_rounds_and_failures_are_remarked(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ENGINES._builtin, "absent", Plugin("no_such_runtime:Absent", "absent")
    )
    options = dataclasses.replace(
        QUICK,
        time_on=("onnxruntime", "pytorch", "openvino:CPU", "openvino:cpu", "absent"),
    )
    result = job.run(small_model(), open_source(digits_folder), options)
    timed = [
        (record.engine["name"], record.artifact["form"])
        for record in result.records
        if record.kind == "latency"
    ]
    assert timed.count(("onnxruntime", "int8")) == 1 + (host()["affinity"] > 1)
    assert [record for record in timed if record[0] != "onnxruntime"] == [
        ("pytorch", "deploy"),
        ("openvino:CPU", "deploy"),
        ("openvino:CPU", "int8"),
    ]
    assert (
        len(
            {
                record.values.rounds
                for record in result.records
                if record.kind == "latency"
            }
        )
        == 1
    )
    assert [
        record.engine["name"] for record in result.records if record.kind == "ratio"
    ] == [
        "onnxruntime",
        "onnxruntime",
        "openvino:CPU",
    ]
    assert (
        sum(
            "nothing was timed on absent: the engine 'absent' needs an optional dependency"
            in remark
            for remark in result.remarks
        )
        == 1
    )
    assert any(
        "int8 form was not timed on pytorch: it computes INT8 models in float" in remark
        for remark in result.remarks
    )
    page = card.render(result.records, result.remarks)["card.md"]
    assert "| pytorch |" in page


def test_a_card_for_a_board_has_its_records_and_the_hardened_model(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = small_model()
    predicted = record.Record({}, paired_accuracy(0.5, top1=97.5))
    report = SimpleNamespace(predicted=predicted, warnings=("a warning of harden",))
    hardened = verbs.Artifact.wrap(model, hardening=report)
    monkeypatch.setattr(verbs, "harden", lambda *_, **__: hardened)
    estimate = BoardLatency(
        target="rdk-x5", source="compiler estimate", latency_ms=0.25, fps=4000.0
    )
    rows = [record.Record({"name": "board"}, estimate, {"name": "hb_mapper"})]
    options = dataclasses.replace(QUICK, target="rdk-x5")
    result = job.run(model, open_source(digits_folder), options, board_records=rows)
    assert result.board is not None
    assert result.board.estimate == estimate
    assert "a warning of harden" in result.remarks
    assert any("of board; they were taken" in remark for remark in result.remarks)
    files = {path.name: path for path in job.write(result, tmp_path / "out")}
    assert "small.rdk-x5.onnx" in files
    page = files["card.md"].read_text("utf-8")
    assert "97.50 (prediction) | 0.250 (estimate) | – | 4000 (estimate) |" in page
    # What is of a board is no measurement of this host, and stays out of its Records.
    assert not {row.kind for row in result.records} & {"board_latency"}
    with pytest.raises(InputError, match="say which with --target"):
        job.run(model, open_source(digits_folder), QUICK, board_records=rows)


def test_a_card_shows_int8_where_the_race_handed_out_float(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = open_source(digits_folder), verbs.load("repghostnet_050.digits")
    deploy = verbs.fold(model)
    int8 = verbs.quantize(deploy, source, options=QUICK.quantize)
    assert int8.report is not None
    report = dataclasses.replace(int8.report, int8=int8)
    handed_out = verbs.Artifact.wrap(deploy, report=report)
    monkeypatch.setattr(verbs, "quantize", lambda *_, **__: handed_out)
    result = job.run(model, source, QUICK)
    forms = {name: artifact.form for name, artifact in result.artifacts.items()}
    assert forms == {"train": "train", "deploy": "deploy", "int8": "int8"}


def test_an_unknown_engine_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    ended = run(
        "card",
        "repghostnet_050.digits",
        "--time-on",
        "openvino,openvini",
        "-o",
        tmp_path / "out",
    )
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean" in ended.err
    assert "'openvini'" in ended.err
    assert not (tmp_path / "out" / "card.md").exists()


def test_a_failing_engine_is_left_out_unless_it_is_the_cards_own(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another engine: its case is left out; of the record that the card is about: no card."""
    source, model = open_source(digits_folder), small_model()
    failing = {"name": "openvino"}

    def broken(clients: ClientThreads, _nanoseconds: int) -> None:
        if clients.case.engine.name == failing["name"]:
            raise InputError("broke off")
        original_round(clients, _nanoseconds)

    original_round = ClientThreads.time_round
    monkeypatch.setattr(ClientThreads, "time_round", broken)
    result = job.run(model, source, dataclasses.replace(QUICK, time_on=("openvino",)))
    assert (
        sum("not timed on openvino: broke off" in remark for remark in result.remarks)
        == 2
    )
    assert {
        record.engine["name"] for record in result.records if record.kind == "latency"
    } == {"onnxruntime"}
    failing["name"] = "onnxruntime"
    with pytest.raises(InputError, match="broke off"):
        job.run(model, source, QUICK)


def test_a_full_disk_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[Path]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "_write_all", full)
    result = job.JobResult({}, (), {}, ())
    with pytest.raises(InputError, match=r"No space left.*give another place"):
        job.write(result, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
