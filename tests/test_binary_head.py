"""A single sigmoid output tells two classes apart: every verb reads it so, and says so."""

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
    size=8, resize="squash", crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)


@pytest.fixture
def red_or_blue(tmp_path: Path) -> Path:
    """A model whose only output is the probability that an image is red."""
    weight = np.zeros((4, 3, 3, 3), np.float32)
    weight[:, 0, 1, 1] = 1
    weight[:, 2, 1, 1] = -1
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        oh.make_node("GlobalAveragePool", ["c"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("MatMul", ["f", "v"], ["z"]),
        oh.make_node("Sigmoid", ["z"], ["y"]),
    ]
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1])],
        [
            onnx.numpy_helper.from_array(weight, "w"),
            onnx.numpy_helper.from_array(np.ones((4, 1), np.float32), "v"),
        ],
    )
    opset = [oh.make_opsetid("", 17)]
    path = tmp_path / "red.onnx"
    model = oh.make_model(graph, opset_imports=opset, ir_version=8)
    Artifact(model, "red", PREPROCESS).save(path)
    return path


def folders(root: Path, **counts: int) -> Path:
    """A folder of images for each name: those that begin with "r" are red, the others blue.

    The first image of each is of the other color.
    """
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            is_red = name.startswith("r") != (number == 0)
            color = (255 - number, 0, 9) if is_red else (9, 0, 255 - number)
            Image.new("RGB", (8, 8), color).save(root / name / f"{number}.png")
    return root


def test_evaluate_counts_both_classes(
    run: Run, red_or_blue: Path, tmp_path: Path
) -> None:
    data = folders(tmp_path / "data", blue=4, red=10)
    ran = run("evaluate", red_or_blue, "--data", data, "--json")
    assert ran.code == 0, ran.err
    (row,) = ran.document["runs"]
    assert (row["n"], row["top1"]) == (14, pytest.approx(100 * 12 / 14))
    assert "above 0.5 it says red, else blue" in ran.err


def test_one_label_names_the_second_class(
    run: Run, red_or_blue: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("red")
    # In sorted order "red" is the first folder: only the label tells that it is the second class.
    data = folders(tmp_path / "data", red=4, zinc=4)
    ran = run("evaluate", red_or_blue, "--data", data, "--labels", labels, "--json")
    assert ran.document["runs"][0]["top1"] == pytest.approx(75)
    image = data / "red" / "1.png"
    ran = run("predict", red_or_blue, image, "--labels", labels, "--json")
    names = [row["class"] for row in ran.document["predictions"][0]["top"]]
    assert names == ["red", "not red"]


def test_predict_asks_for_the_class_that_the_output_stands_for(
    run: Run, red_or_blue: Path, tmp_path: Path
) -> None:
    image = folders(tmp_path / "data", red=2) / "red" / "1.png"
    ran = run("predict", red_or_blue, image)
    assert (ran.code, ran.out) == (2, "")
    assert "nothing says which class that is; give --labels FILE" in ran.err


def test_two_labels_name_both_classes(
    run: Run, red_or_blue: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("other\nred")
    data = folders(tmp_path / "data", red=4, other=4)
    ran = run("evaluate", red_or_blue, "--data", data, "--labels", labels, "--json")
    assert ran.document["runs"][0]["top1"] == pytest.approx(75)


def test_quantize_judges_both_classes(
    run: Run, red_or_blue: Path, tmp_path: Path
) -> None:
    data = folders(tmp_path / "data", blue=20, red=20)
    output = tmp_path / "int8.onnx"
    ran = run(
        "quantize", red_or_blue, "-o", output, "--data", data, "--search", "0",
        "--images", "8", "--placement", "layers", "--force", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "above 0.5 it says red, else blue" in ran.err
    again = run("evaluate", output, "--data", data, "--against", red_or_blue, "--json")
    assert again.document["paired"]["same_prediction"] == 100
    assert Artifact.read(output).labels == ("blue", "red")


def test_three_folders_are_refused(run: Run, red_or_blue: Path, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", blue=2, red=2, green=2)
    ran = run("evaluate", red_or_blue, "--data", data)
    assert ran.code == 2
    assert "has 3 classes, but red tells 2 apart" in ran.err
