"""Every command on good input: the fields of --json, text that fits 80 columns, and help."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich_click as click
from PIL import Image

from repzoo import __version__, job
from repzoo.artifact import Artifact
from repzoo.cli import COMMAND_GROUPS, cli
from repzoo.console import output
from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.zoo import catalog, embedded

Run = Callable[..., Any]
COMMANDS = [
    "convert",
    "download",
    "embed-input",
    "mismatch",
    "list",
    "info",
    "match",
    "engines",
    "export",
    "fold",
    "quantize",
    "harden",
    "pack",
    "toolchains",
    "import",
    "evaluate",
    "bench",
    "predict",
    "count",
    "train",
    "card",
    "page",
    "demo",
    "push",
    "completion",
]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def fits(text: str) -> bool:
    return 0 < max(len(line) for line in text.splitlines()) <= 80


def commands() -> dict[str, click.Command]:
    """Every command by its name, imported."""
    context = click.Context(cli)
    loaded = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in loaded.items() if command is not None}


def test_every_command_is_found_under_its_name() -> None:
    assert (
        sorted(commands()) == sorted(COMMANDS) == cli.list_commands(click.Context(cli))
    )
    assert all(command.name == name for name, command in commands().items())


def numbers(values: Iterable[Any]) -> bool:
    return all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


# Help


def test_the_version(run: Run) -> None:
    assert run("--version").out.strip().endswith(__version__)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_the_group_lists_every_command(run: Run, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert fits(ran.out)
    if not command:
        assert all(f" {name} " in ran.out for name in COMMANDS)


def test_every_command_is_in_one_group_of_the_help() -> None:
    grouped = [name for names in COMMAND_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)


def test_every_command_and_every_option_has_help_text() -> None:
    for name, command in commands().items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


def test_every_command_takes_json() -> None:
    assert all(
        any("--json" in option.opts for option in command.params)
        for command in commands().values()
    )


# Catalog


def test_list(run: Run) -> None:
    document = run("list", "repghost*", "--json").document
    rows = {row["name"]: row for row in document["models"]}
    assert set(rows) == {row.name for row in catalog.models("repghost*")}
    assert len(rows) > 5
    for row in rows.values():
        assert {
            "name",
            "family",
            "parameters_train",
            "parameters_deploy",
            "macs",
        } <= set(row)
        assert 0 < row["parameters_deploy"] < row["parameters_train"]
    ran = run("list")
    assert fits(ran.out)
    assert all(row.name in ran.out for row in catalog.models())


def test_info_of_a_catalog_model_an_embedded_one_and_a_file(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    assert (
        run("info", "repghostnet_050", "--json").document["name"] == "repghostnet_050"
    )
    assert run("info", "repghostnet_050.digits", "--json").document["form"] == "train"
    (tmp_path / "without_suffix").write_bytes(model_file.read_bytes())
    for path in (model_file, tmp_path / "without_suffix"):
        document = run("info", path, "--json").document
        assert document["form"] == "train"
        assert document["labels"] == list("0123456789")
        assert document["preprocess"]["size"] == 32
        assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("repghostnet_050", "repghostnet_050.digits"):
        assert fits(run("info", name).out)


def test_engines(run: Run) -> None:
    document = run("engines", "--json").document
    rows = {row["name"]: row for row in document["engines"]}
    assert rows["onnxruntime"]["version"]
    for row in rows.values():
        # an extra of repzoo, or a vendor's tool chain
        is_advised = "pip install" in row["hint"] or "--install" in row["hint"]
        assert row["version"] or is_advised
    assert "CPUExecutionProvider" in rows["onnxruntime"]["options"]
    assert document["host"]["cores"] >= 1
    assert fits(run("engines").out)


def test_count(run: Run, model_file: Path) -> None:
    document = run("count", model_file, "--json").document
    own = Artifact.read(model_file)
    assert document["parameters"] > 0
    assert document["macs"] > document["parameters"]
    assert document["bytes"] >= 4 * document["parameters"]
    assert document["uncounted"]["Relu"] == sum(
        node.op_type == "Relu" for node in own.model.graph.node
    )
    assert fits(run("count", model_file).out)


# Transforming


def test_fold(
    run: Run,
    model_file: Path,
    small_training_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    output, certificate = (
        tmp_path / "new" / "deploy.onnx",
        tmp_path / "certificate.json",
    )
    ran = run(
        "fold",
        model_file,
        "-o",
        output,
        "--certificate",
        certificate,
        "--data",
        digits_folder,
        "--json",
    )
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith(
        "data: numbers: 200 images (the first 16 certified on); 10 classes"
    )
    document = ran.document
    assert document["equal"] is True
    assert 0 < document["max_abs_error"] <= document["bound"]
    assert document["top1_agreement"] == 1
    assert len(document["folds"]) > 10
    assert all({"node", "reason"} <= set(refusal) for refusal in document["refusals"])
    assert document["before"]["parameters"] > document["after"]["parameters"]
    del document["data"]
    assert document.pop("remarks") == []
    assert json.loads(certificate.read_text()) == document
    artifact = Artifact.read(output)
    assert (artifact.form, artifact.steps[-1].verb, artifact.labels) == (
        "deploy",
        "fold",
        tuple("0123456789"),
    )
    assert artifact.steps[-1].input_sha256 == Artifact.read(model_file).sha256
    assert sorted(item.name for item in tmp_path.rglob("*")) == [
        "certificate.json",
        "deploy.onnx",
        "new",
    ]
    assert fits(run("fold", small_training_file, "-o", tmp_path / "d.onnx").out)


def test_quantize(quantized: Any) -> None:
    document = quantized.ran.document
    assert numbers(
        document[key] for key in ("drop", "drop_low", "drop_high", "latency_ratio")
    )
    assert document["drop_low"] <= document["drop"] <= document["drop_high"]
    assert document["placement"] in [rung["placement"] for rung in document["rungs"]]
    assert {"recipe", "culprits", "file"} <= set(document)
    artifact = Artifact.read(quantized.file)
    assert (artifact.form, [step.verb for step in artifact.steps][-2:]) == (
        "int8",
        ["fold", "quantize"],
    )
    assert artifact.labels == tuple("0123456789")


def test_export(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the torch extra is not installed")
    labels, output = tmp_path / "labels.txt", tmp_path / "new.onnx"
    labels.write_bytes("\ufeffcat\r\n狗\r\nbird\r\n".encode())
    command = [
        "export",
        "repghostnet_050",
        "-o",
        output,
        "--labels",
        labels,
        "--size",
        "64",
        "--mean",
        "0.5",
        "0.5",
        "0.5",
        "--json",
    ]
    document = run(*command).document
    artifact = Artifact.read(output)
    assert document == {
        "file": str(output),
        "form": "train",
        "opset": 17,
        "classes": 3,
        "remarks": [],
        "sha256": artifact.sha256,
    }
    assert artifact.labels == ("cat", "狗", "bird")
    assert artifact.require_preprocess().mean == (0.5, 0.5, 0.5)
    assert artifact.require_preprocess().size == 64
    assert [step.verb for step in artifact.steps] == ["build", "export"]


def test_export_of_an_embedded_model(run: Run, tmp_path: Path) -> None:
    name, output = "repghostnet_050.digits", tmp_path / "shipped.onnx"
    document = run("export", name, "-o", output, "--form", "deploy", "--json").document
    exported, shipped = Artifact.read(output), embedded.read(name)
    assert (document["form"], document["classes"]) == ("deploy", 10)
    assert [step.verb for step in exported.steps] == [
        *(step.verb for step in shipped.steps),
        "fold",
    ]
    assert exported.preprocess == shipped.preprocess


@pytest.mark.parametrize(
    "other",
    [["--num-classes", "5"], ["--opset", "13"], ["--size", "64"]],
    ids=lambda other: str(other[0]),
)
def test_an_embedded_model_cannot_be_exported_with_other_settings(
    run: Run, tmp_path: Path, other: list[str]
) -> None:
    ran = run("export", "repghostnet_050.digits", "-o", tmp_path / "no.onnx", *other)
    assert ran.code == 2
    assert "repghostnet_050.digits" in ran.err
    assert not (tmp_path / "no.onnx").exists()


# Measuring


def test_evaluate(
    run: Run, small_training_file: Path, int8_file: Path, digits_folder: Path
) -> None:
    ran = run(
        "evaluate",
        small_training_file,
        int8_file,
        "--against",
        small_training_file,
        "--data",
        digits_folder,
        "--json",
    )
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith("data: numbers: 200 images (evaluated); 10 classes")
    first, second = ran.document["runs"]
    assert (first["file"], first["engine"], first["n"]) == (
        "small",
        "onnxruntime",
        200,
    )
    for row in (first, second):
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 100
        assert row["top1"] <= row["top5"] <= 100
    same, changed = ran.document["all_paired"]
    assert ran.document["paired"] == same
    assert (same["drop"], same["flips"], same["p_value"]) == (0, [], 1)
    assert changed["drop"] == pytest.approx(first["top1"] - second["top1"])
    assert changed["drop_low"] <= changed["drop"] <= changed["drop_high"]
    assert fits(
        run(
            "evaluate",
            small_training_file,
            "--against",
            int8_file,
            "--data",
            digits_folder,
        ).out
    )


def test_evaluate_takes_parts(run: Run, model_file: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    ran = run("evaluate", model_file, "--data", "digits", "--part", "test", "--json")
    (row,) = ran.document["runs"]
    assert row["n"] == 360
    assert row["top1"] > 90  # the embedded model on digits that it has not seen


def test_bench(run: Run, model_file: Path, int8_file: Path) -> None:
    ran = run(
        "bench",
        model_file,
        int8_file,
        "--streams",
        "1,2",
        "--batch",
        2,
        "--seconds",
        0.05,
        "--json",
    )
    assert ran.code == 0
    rows = ran.document["runs"]
    assert [(row["file"], row["streams"], row["batch"]) for row in rows] == [
        ("digits", 1, 2),
        ("int8", 1, 2),
        ("digits", 2, 2),
        ("int8", 2, 2),
    ]
    for row in rows:
        assert {"engine", "threads", "samples"} <= set(row)
        assert numbers(row[key] for key in ("p50_ms", "p90_ms", "p99_ms", "fps"))
        assert 0 < row["p90_ms"] <= row["p99_ms"]
        assert row["p50_ms"] > 0
        assert row["fps"] > 0
    assert [(ratio["first"], ratio["second"]) for ratio in ran.document["ratios"]] == [
        ("int8", "digits")
    ] * 2
    shown = run("bench", model_file, "--seconds", 0.05).out
    assert fits(shown)
    assert "file digits, engine onnxruntime, scenario closed-loop" in shown


def test_predict(run: Run, model_file: Path, digits_folder: Path) -> None:
    images = [next((digits_folder / name).iterdir()) for name in "0123456789"]
    ran = run("predict", model_file, *images, "--top", 3, "--json")
    assert (ran.code, ran.err) == (0, "")
    predictions = ran.document["predictions"]
    assert [prediction["image"] for prediction in predictions] == [
        str(image) for image in images
    ]
    for prediction in predictions:
        shares = [row["probability"] for row in prediction["top"]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert 0 <= min(shares) <= sum(shares) <= 1 + 1e-9
    assert (
        sum(
            prediction["top"][0]["class"] == name
            for prediction, name in zip(predictions, "0123456789", strict=True)
        )
        >= 9
    )
    whole = run("predict", model_file, images[0], "--top", 100, "--json").document[
        "predictions"
    ][0]["top"]
    assert sum(row["probability"] for row in whole) == pytest.approx(1)
    assert fits(run("predict", model_file, *images).out)


def test_names_that_look_like_markup_are_shown_as_they_are(
    run: Run, trained: Artifact, digits_folder: Path, tmp_path: Path
) -> None:
    names = ["[red]", "[/]", ":cat:", "[link=x]", "[bold]b", "猫", "g", "h", "i", "j"]
    model = Artifact(trained.model, "m", trained.preprocess, tuple(names))
    model.save(tmp_path / "m.onnx")
    ran = run(
        "predict",
        tmp_path / "m.onnx",
        next((digits_folder / "7").iterdir()),
        "--top",
        10,
    )
    assert ran.code == 0
    assert all(f" {name} " in ran.out for name in names)


# Training and the whole job


def test_train(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the torch extra is not installed")
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("validation", 4)):
        for name in ("a", "b"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(
                    tmp_path / "data" / part / name / f"{number}.png"
                )
    options = ["--epochs", 1, "--batch", 8, "--size", 32]
    ran = run(
        "train",
        "repghostnet_050",
        "--data",
        tmp_path / "data",
        "-o",
        tmp_path / "run",
        *options,
        "--json",
    )
    assert ran.code == 0, ran.err
    assert [epoch["epoch"] for epoch in ran.document["epochs"]] == [0]
    artifact = Artifact.read(tmp_path / "run" / "repghostnet_050.data.onnx")
    assert (artifact.labels, artifact.form, artifact.sha256) == (
        ("a", "b"),
        "train",
        ran.document["sha256"],
    )
    assert (artifact.steps[0].verb, artifact.require_preprocess().size) == ("train", 32)


def test_card_writes_its_files_and_nothing_else_and_appends(
    run: Run,
    small_training_file: Path,
    digits_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[job.JobResult] = []
    do = job.run

    def run_once(*arguments: Any) -> job.JobResult:
        """The job takes seconds: the second command, without --json, shows the result of the
        first.
        """
        done.append(done[0] if done else do(*arguments))
        return done[-1]

    monkeypatch.setattr(job, "run", run_once)
    output, log = tmp_path / "out", tmp_path / "all.jsonl"
    log.write_text("")
    command = [
        "card",
        small_training_file,
        "--data",
        digits_folder,
        "-o",
        output,
        "--append",
        log,
        "--images",
        20,
        "--seconds",
        0.05,
        "--force",
    ]
    ran = run(*command, "--json")
    assert ran.code == 0, ran.err
    name = "small"
    expected = [f"{name}.{form}.onnx" for form in ("train", "deploy", "int8")]
    expected += [
        "card.json",
        "card.md",
        "card_cn.md",
        "certificate.json",
        "records.jsonl",
    ]
    expected.append("card.html")
    if importlib.util.find_spec("vl_convert"):
        expected += ["chart.svg", "layers.svg"]
        assert "![Accuracy against latency](chart.svg)" in (
            output / "card.md"
        ).read_text("utf-8")
    assert sorted(item.name for item in output.iterdir()) == sorted(expected)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["all.jsonl", "out"]
    assert sorted(Path(file).name for file in ran.document["files"]) == sorted(expected)
    assert ran.document["name"] == name
    assert record.read(log) == record.read(output / "records.jsonl")
    kinds = [row.kind for row in record.read(log)]
    assert set(kinds) == {
        "cost",
        "fold",
        "quantize",
        "accuracy",
        "paired",
        "latency",
        "ratio",
    }
    assert [Artifact.read(output / file).form for file in expected[:3]] == [
        "train",
        "deploy",
        "int8",
    ]
    shown = run(*command)
    assert shown.code == 0
    assert fits(shown.out)
    assert len(record.read(log)) == 2 * len(kinds)
    assert len(done) == 2


def test_card_without_a_model_is_that_of_the_embedded_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    names: list[str] = []

    def stop(model: Artifact, *_: object) -> None:
        names.append(model.name)
        raise InputError("stopped")

    monkeypatch.setattr(job, "run", stop)
    assert run("card", "-o", tmp_path / "out").code == 2
    assert names == ["repghostnet_050.digits"]


def test_a_label_cannot_steer_the_terminal(
    run: Run,
    trained: Artifact,
    tmp_path: Path,
    photograph: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # long paths would be wrapped
    labels = ("\x1b[31mred\x1b[0m", "two\nlines", *map(str, range(2, 10)))
    path = tmp_path / "m.onnx"
    dataclasses.replace(trained, labels=labels).save(path)
    photograph(32, 32).save(tmp_path / "\x1b[2Jcat.png")
    shown = run("predict", path, tmp_path / "\x1b[2Jcat.png", "--top", 10)
    assert shown.code == 0
    assert "\x1b" not in shown.out
    assert "\\x1b[31mred" in shown.out
    assert "two\\x0alines" in shown.out
    assert "\\x1b[2Jcat.png" in shown.out
    failed = run("predict", path, tmp_path / "\x1b[2Jdog.png")
    assert failed.code == 2
    assert "\x1b" not in failed.err


# Progress without a terminal


def test_a_long_command_prints_a_line_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.0)
    with output.Console(as_json=True) as console:
        console.progress("calibrate", 0, 20)
        console.progress("calibrate", 10, 20)
        console.progress("fold", 0, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "calibrate: 0 of 20\nfold: ...\n"


def test_a_stage_that_is_over_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.0)
    with output.Console(as_json=True) as console:
        for epoch in ("epoch 1/2: loss 0.5", "epoch 2/2: loss 0.4"):
            console.progress("training (images)", 8, 16)
            console.progress(epoch, 8, 8)
    assert capsys.readouterr().err.splitlines() == [
        "training (images): 8 of 16",
        "epoch 1/2: loss 0.5",
        "epoch 2/2: loss 0.4",
    ]


def test_an_epoch_and_a_stage_of_quantization_have_a_line_each(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    small_training_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.0)
    quick = ("--images", 16, "--search", 0, "--force", "--placement", "everything")
    files = (small_training_file, "-o", tmp_path / "o.onnx", "--data", digits_folder)
    ran = run("quantize", *files, *quick)
    assert ran.code == 0, ran.err
    assert re.search(r"^rounding: [\d.]+ % of the predictions unchanged", ran.err, re.M)


def test_a_short_command_prints_no_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with output.Console(as_json=True) as console:
        console.progress("calibrate", 0, 20)
    assert capsys.readouterr().err == ""


# Outputs


def test_outputs_are_refused_before_the_work(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.onnx"
    ran = run("fold", model_file, "-o", both, "--certificate", both)
    assert (ran.code, ran.out) == (2, "")
    assert "two outputs would both be written" in ran.err
    ran = run("bench", model_file, "--append", tmp_path)
    assert (
        ran.err
        == f"repzoo: {tmp_path} is a directory; give a file name with --append\n"
    )
