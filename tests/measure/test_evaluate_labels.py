"""`evaluate` compares multi-label models label by label, and counts mean average precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from PIL import Image

from repzoo.artifact import Artifact, Preprocess

Run = Callable[..., Any]
PREPROCESS = Preprocess(
    size=4, resize="squash", crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)
COLORS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}


def multi_label(path: Path, *thresholds: float) -> Path:
    """A model that gives each label whose channel has a mean above its threshold."""
    nodes = [
        oh.make_node("GlobalAveragePool", ["x"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("Sub", ["f", "t"], ["z"]),
        oh.make_node("Sigmoid", ["z"], ["y"]),
    ]
    shift = onnx.numpy_helper.from_array(np.array(thresholds, np.float32), "t")
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [shift],
    )
    opset = [oh.make_opsetid("", 17)]
    model = oh.make_model(graph, opset_imports=opset, ir_version=8)
    Artifact(model, path.stem, PREPROCESS).save(path)
    return path


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Two images of each of three colors, in a folder for each."""
    for name, color in COLORS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            image = tmp_path / "data" / name / f"{number}.png"
            Image.new("RGB", (4, 4), color).save(image)
    return tmp_path / "data"


def test_labels_that_a_model_loses_are_counted(
    run: Run, colors: Path, tmp_path: Path
) -> None:
    first = multi_label(tmp_path / "first.onnx", 0.5, 0.5, 0.5)
    # Never gives the third label, though it ranks the images as before.
    second = multi_label(tmp_path / "second.onnx", 0.5, 0.5, 2.0)
    arguments = ("evaluate", second, "--against", first, "--data", colors)
    labels = run(*arguments, "--json").document["paired"]["multi_label"]
    assert (labels["given"], labels["lost"], labels["gained"]) == (6, 2, 0)
    assert labels["agreement"] == pytest.approx(100 * 2 * 4 / (6 + 4))
    assert labels["mean_average_precision"]["first"] == pytest.approx(100)
    assert labels["mean_average_precision"]["drop"] == pytest.approx(0)
    shown = run(*arguments)
    assert "lost 2, gained 0; mean average precision" in " ".join(shown.out.split())
    assert "second on onnxruntime: mean average precision 100.00 %" in shown.err


def test_without_labels_there_is_agreement_and_no_precision(
    run: Run, colors: Path, tmp_path: Path
) -> None:
    (colors / "d").mkdir()
    Image.new("RGB", (4, 4), COLORS["a"]).save(colors / "d" / "0.png")
    first = multi_label(tmp_path / "first.onnx", 0.5, 0.5, 0.5)
    ran = run("evaluate", first, "--against", first, "--data", colors, "--json")
    assert ran.code == 0, ran.err
    labels = ran.document["paired"]["multi_label"]
    assert labels["agreement"] == 100
    assert "mean_average_precision" not in labels
    assert "does not say which output" in ran.err
    assert "mean average precision" not in ran.err


def test_where_only_top1_is_compared_a_remark_says_what_the_labels_take(
    run: Run, colors: Path, tmp_path: Path
) -> None:
    first = multi_label(tmp_path / "first.onnx", 0.5, 0.5, 0.5)
    arguments = ("evaluate", first, "--against", first, "--data", colors, "--json")
    complete, resumed = (
        run(*arguments),
        run(*arguments, "--resume", tmp_path / "j.jsonl"),
    )
    remark = "was not compared label by label; that takes one process without --resume"
    assert remark not in complete.err
    assert remark in resumed.err
    assert "multi_label" not in resumed.document["paired"]
