"""`repzoo predict`: what the outputs of a graph mean, folders, and fixed batches."""

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


def colors_model(
    path: Path,
    *tail: str,
    weight: Any = None,
    batch: int | str = "n",
    keeps_axes: bool = False,
) -> Path:
    """A classifier whose logits are `weight` times the mean of each channel, then `tail`."""
    values = np.asarray(np.eye(3) if weight is None else weight, np.float32)
    nodes = [oh.make_node("GlobalAveragePool", ["x"], ["p"])]
    if keeps_axes:
        values = values.T[..., None, None]
        nodes.append(oh.make_node("Conv", ["p", "w"], ["y"]))
        sides: list[int | str] = [batch, values.shape[0], 1, 1]
    else:
        nodes.append(oh.make_node("Flatten", ["p"], ["f"]))
        nodes.append(oh.make_node("MatMul", ["f", "w"], ["z" if tail else "y"]))
        sides = [batch, values.shape[1]]
    for number, kind in enumerate(tail):
        source = "z" if number == 0 else f"z{number}"
        target = "y" if number == len(tail) - 1 else f"z{number + 1}"
        nodes.append(oh.make_node(kind, [source], [target]))
    is_argmax = "ArgMax" in tail
    element = onnx.TensorProto.INT64 if is_argmax else onnx.TensorProto.FLOAT
    if is_argmax:
        sides = [batch, 1]
        del nodes[-1].attribute[:]
        nodes[-1].attribute.append(oh.make_attribute("axis", 1))
    graph = oh.make_graph(
        nodes,
        "colors",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 4, 4])],
        [oh.make_tensor_value_info("y", element, sides)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(values), "w")],
    )
    opset = [oh.make_opsetid("", 17)]
    model = oh.make_model(graph, opset_imports=opset, ir_version=8)
    Artifact(model, "colors", PREPROCESS).save(path)
    return path


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """An image whose channels have the means 1, 0.2 and 0."""
    Image.new("RGB", (4, 4), (255, 51, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


MEANS = np.array([1, 0.2, 0])


def predict(run: Run, *arguments: object) -> list[dict[str, Any]]:
    ran = run("predict", *arguments, "--json")
    assert ran.code == 0, ran.err
    rows: list[dict[str, Any]] = ran.document["predictions"][0]["top"]
    return rows


def test_softmax_is_applied_to_logits_only(run: Run, red: Path, tmp_path: Path) -> None:
    expected = np.exp(MEANS) / np.exp(MEANS).sum()
    for tail in ((), ("Softmax",), ("LogSoftmax",)):
        rows = predict(run, colors_model(tmp_path / "m.onnx", *tail), red)
        assert [row["class"] for row in rows] == ["0", "1", "2"]
        shares = [row["probability"] for row in rows]
        np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_labels_of_a_sigmoid_head_are_those_above_the_threshold(
    run: Run, red: Path, tmp_path: Path
) -> None:
    weight = np.diag([4, 4, 4]) - 1
    model = colors_model(tmp_path / "m.onnx", "Sigmoid", weight=weight)
    ran = run("predict", model, red, "--json")
    (document,) = ran.document["predictions"]
    logits = MEANS @ weight
    assert [row["class"] for row in document["top"]] == ["0", "1", "2"]
    np.testing.assert_allclose(
        [row["probability"] for row in document["top"]],
        1 / (1 + np.exp(-logits)),
        rtol=1e-6,
    )
    assert [row["class"] for row in document["labels"]] == ["0"]
    assert document["threshold"] == 0.5
    shown = run("predict", model, red).out.splitlines()
    assert sum(" 0." in line for line in shown) == 1


def test_where_no_label_holds_the_best_is_shown_as_such(
    run: Run, red: Path, tmp_path: Path
) -> None:
    model = colors_model(tmp_path / "m.onnx", "Sigmoid", weight=-np.eye(3) - 1)
    ran = run("predict", model, red)
    assert "2 (below 0.5)" in ran.out
    assert (
        run("predict", model, red, "--json").document["predictions"][0]["labels"] == []
    )


def test_one_sigmoid_decides_between_two_classes(
    run: Run, red: Path, tmp_path: Path
) -> None:
    weight = [[-3.0], [0.0], [1.0]]
    model = colors_model(tmp_path / "m.onnx", "Sigmoid", weight=weight)
    labels = tmp_path / "labels.txt"
    labels.write_text("other\nblue")
    ran = run("predict", model, red, "--labels", labels, "--json")
    first, second = ran.document["predictions"][0]["top"]
    probability = 1 / (1 + np.exp(3))
    assert (first["class"], second["class"]) == ("other", "blue")
    assert first["probability"] == pytest.approx(1 - probability)
    assert second["probability"] == pytest.approx(probability)
    assert "read as the probability of its second class" in ran.err


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batches_and_axes_of_one_element_change_nothing(
    run: Run, red: Path, tmp_path: Path, batch: int
) -> None:
    expected = predict(run, colors_model(tmp_path / "m.onnx"), red)
    for keeps_axes in (False, True):
        path = tmp_path / f"{keeps_axes}.onnx"
        model = colors_model(path, batch=batch, keeps_axes=keeps_axes)
        assert predict(run, model, red) == expected


@pytest.mark.parametrize(
    ("tail", "weight", "message"),
    [
        (("ArgMax",), np.eye(3), "does not hold floating-point numbers"),
        ((), np.ones((3, 1)), "the only output has no Sigmoid"),
    ],
)
def test_a_head_without_classes_is_named_in_one_sentence(
    run: Run,
    red: Path,
    tmp_path: Path,
    tail: tuple[str, ...],
    weight: Any,
    message: str,
) -> None:
    model = colors_model(tmp_path / "m.onnx", *tail, weight=weight)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.open(red).save(tmp_path / "data" / name / "1.png")
    for arguments in (
        ["predict", model, red],
        ["evaluate", model, "--data", tmp_path / "data"],
    ):
        ran = run(*arguments)
        assert (ran.code, ran.out) == (2, "")
        # `evaluate` says before what it took the folder for.
        sentences = [
            line for line in ran.err.splitlines() if not line.startswith("data: ")
        ]
        assert len(sentences) == 1
        assert message in sentences[0]


def test_outputs_that_are_not_finite_are_refused(
    run: Run, red: Path, tmp_path: Path
) -> None:
    ran = run(
        "predict",
        colors_model(tmp_path / "m.onnx", weight=np.full((3, 2), np.nan)),
        red,
    )
    assert (ran.code, ran.out) == (2, "")
    assert "not finite" in ran.err


def test_a_folder_stands_for_its_images(run: Run, red: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/c.png", "a"):
        Image.open(red).save(folder / name, "PNG")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    model = colors_model(tmp_path / "m.onnx")
    ran = run("predict", model, folder, "--json")
    assert ran.code == 0, ran.err
    names = [row["image"] for row in ran.document["predictions"]]
    assert names == [str(folder / name) for name in ("a", "b.png", "deep/c.png")]
    assert "passed over 1 file that Pillow cannot read (notes.txt)" in ran.err
    assert "broken.png is not an image" in ran.err
    (tmp_path / "empty").mkdir()
    ran = run("predict", model, tmp_path / "empty")
    assert (ran.code, ran.out) == (2, "")
    assert "holds no image" in ran.err


def test_evaluate_shows_the_accuracy_of_the_reference(
    run: Run, red: Path, tmp_path: Path
) -> None:
    for name in ("0", "1", "2"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.open(red).save(tmp_path / "data" / name / "1.png")
    right = colors_model(tmp_path / "right.onnx")
    wrong = colors_model(tmp_path / "wrong.onnx", weight=-np.eye(3))
    arguments = ["evaluate", wrong, "--against", right, "--data", tmp_path / "data"]
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    (reference,) = ran.document["against"]
    assert (reference["file"], reference["top1"]) == ("right", pytest.approx(100 / 3))
    assert [row["file"] for row in ran.document["runs"]] == ["wrong"]
    shown = run(*arguments).out
    assert shown.index("right") < shown.index("wrong")


def test_predict_counts_orientation_tags(run: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (4, 8), 255).save(tmp_path / "1.png", exif=exif)
    model = colors_model(tmp_path / "m.onnx")
    ran = run("predict", model, tmp_path / "1.png")
    assert "converted to RGB: 1 L" in ran.err
    assert "images with an EXIF orientation tag: 1" in ran.err


@pytest.mark.parametrize("folders", [("a", "b"), ()])
def test_images_without_labels_show_the_agreement_with_the_reference(
    run: Run, red: Path, tmp_path: Path, folders: tuple[str, ...]
) -> None:
    for number, name in enumerate(folders or ("", "")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(red).save(folder / f"{number}.png")
    first = colors_model(tmp_path / "first.onnx")
    same = colors_model(tmp_path / "same.onnx", weight=2 * np.eye(3))
    other = colors_model(tmp_path / "other.onnx", weight=-np.eye(3))
    arguments = ["--against", first, "--data", tmp_path / "data", "--json"]
    ran = run("evaluate", same, other, *arguments)
    assert ran.code == 0, ran.err
    assert [row["top1"] for row in ran.document["runs"]] == [100, 0]
    assert ran.document["runs"][0]["n"] == 2
    assert "predicts the same as first" in ran.err
    results = tmp_path / "result.csv"
    results.write_text("0.png,0\n1.png,2\n")
    ran = run("evaluate", same, *arguments, "--result", results)
    assert ran.code == 0, ran.err
    assert [row["top1"] for row in ran.document["runs"]] == [100, 50]


def photographs(root: Path, names: str, count: int) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_folders_calibrate_and_name_what_they_can(run: Run, tmp_path: Path) -> None:
    model = colors_model(tmp_path / "m.onnx", keeps_axes=True)
    output = tmp_path / "int8.onnx"
    arguments = ["quantize", model, "-o", output, "--search", 0, "--force", "--json"]
    ran = run(*arguments, "--data", photographs(tmp_path / "two", "ab", 8))
    assert ran.code == 0, ran.err
    assert ran.document["labeled"] is False
    assert "2 classes and m 3 outputs without labels" in ran.err
    assert Artifact.read(output).labels == ()
    ran = run(*arguments, "--data", photographs(tmp_path / "three" / "train", "abc", 8))
    assert ran.code == 0, ran.err
    assert "training images" in ran.err
    assert Artifact.read(output).labels == ("a", "b", "c")
