"""What `repzoo quantize` says: how much runs in INT8, and the accuracy in float and in INT8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from repzoo.measure.results import PairedAccuracy
from repzoo.measure.sentences import gate_sentence

Run = Callable[..., Any]


def test_the_share_in_int8_and_both_accuracies_are_printed(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    output = ("-o", tmp_path / "o.onnx", "--placement", "everything")
    data = ("--data", "digits", "--images", 64)
    command = ("quantize", small_file, *output, *data, "--max-drop", 5)
    shown = run(*command)
    assert shown.code == 0, shown.err
    assert "INT8: 3 of 3 layers, 100 % of MACs, 100 % of bytes" in shown.out
    document = run(*command, "--json").document
    assert document["int8"] == {"layers": 3, "int8_layers": 3, "macs": 1, "bytes": 1}
    assert document["placement"] == "everything"
    drop = document["float_top1"] - document["top1"]
    assert document["drop"] == pytest.approx(drop)
    line = f"float {document['float_top1']:.2f} %, INT8 {document['top1']:.2f} %"
    assert line in " ".join(shown.out.split())


def test_for_a_board_nothing_is_timed_on_this_host(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    files = (small_file, "-o", tmp_path / "o.onnx", "--data", "digits")
    options = ("--images", 64, "--scheme", "rdk-x5", "--force", "--json")
    ran = run("quantize", *files, *options)
    assert ran.code == 0, ran.err
    assert ran.document["latency_ratio"] is None
    assert all("ratio" not in candidate for candidate in ran.document["rungs"])
    assert "times as long as float" not in ran.err


def test_the_view_of_a_model_for_a_board_shows_no_latency(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    output = ("-o", tmp_path / "card")
    data = ("--data", "digits", "--images", 64, "--seconds", 0.5)
    ran = run("card", small_file, *output, *data, "--scheme", "vastai", "--force")
    assert ran.code == 0, ran.err
    assert "INT8 / float latency" not in ran.out
    text = (tmp_path / "card" / "card.md").read_text("utf-8")
    assert "The INT8 model is for a board, so it was not timed here." in text
    assert "the float model serves as well" not in text


def test_without_labels_the_share_of_equal_predictions_is_printed() -> None:
    values = PairedAccuracy(
        n=180,
        drop=1.5,
        drop_low=0.5,
        drop_high=3.0,
        p_value=1.0,
        same_prediction=98.5,
        labeled=False,
    )
    line = gate_sentence(values, "INT8")
    assert "no labels, so no Top-1; 98.50 % of the predictions" in line


def test_another_quantizer_places_by_itself(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    options = ("--recipe", "ort-static", "--placement", "layers")
    files = (small_file, "-o", tmp_path / "o.onnx", "--data", "digits")
    refused = run("quantize", *files, *options)
    assert refused.code == 2
    assert "leave out the placement layers, or the recipe ort-static" in refused.err


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_of_a_fixed_batch_is_searched_and_profiled(
    engine: str, run: Run, small_file: Path, tmp_path: Path
) -> None:
    """torch's exporter fixes the batch by default, and there is no other to profile with."""
    pytest.importorskip(engine, reason=f"the {engine} extra is not installed")
    model = onnx.load(small_file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "three.onnx")
    files = (tmp_path / "three.onnx", "-o", tmp_path / "o.onnx", "--data", "digits")
    options = ("--images", 64, "--engine", engine, "--search", 1, "--force", "--json")
    ran = run("quantize", *files, *options)
    assert ran.code == 0, ran.err
    assert ran.document["operators"]
