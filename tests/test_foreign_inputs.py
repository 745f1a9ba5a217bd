"""Inputs as other exporters make them: rectangles, gray, NHWC, half precision, open batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import repzoo
from repzoo.artifact import Artifact, Preprocess
from repzoo.data.preprocess import model_input, prepare
from repzoo.errors import AssumedPreprocess, InputError
from repzoo.onnx_file import parse, sort_nodes
from repzoo.preprocessing import parse_size

Run = Callable[..., Any]
EXACT: list[Any] = ["--mean", 0, 0, 0, "--std", 1, 1, 1, "--crop-fraction", 1]


def classifier(
    shape: Sequence[Any],
    element: int = TensorProto.FLOAT,
    axes: Sequence[int] = (2, 3),
    channels: int = 3,
) -> onnx.ModelProto:
    """The mean of each channel; `axes` are those of height and width."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weight = numpy_helper.from_array(np.eye(channels, dtype=dtype), "weight")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=list(axes), keepdims=0),
        helper.make_node("MatMul", ["m", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, [shape[0], channels])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """`save(model)`: its path."""

    def saved(model: onnx.ModelProto, name: str = "m.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return saved


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """24 x 24 pixels of (30, 90, 150)."""
    path = tmp_path / "i.png"
    Image.new("RGB", (24, 24), (30, 90, 150)).save(path)
    return path


SHAPES: list[tuple[list[Any], tuple[int, ...], Preprocess]] = [
    (["n", 3, 48, 192], (2, 3), Preprocess(size=(48, 192))),
    (["n", 16, 16, 3], (1, 2), Preprocess(size=16, layout="NHWC")),
    (["n", 8, 16, 3], (1, 2), Preprocess(size=(8, 16), layout="NHWC")),
    ([1, 3, 16, 16], (2, 3), Preprocess(size=16)),
]


@pytest.mark.parametrize(("shape", "axes", "expected"), SHAPES)
def test_size_and_layout_are_read_from_the_graph(
    save: Any,
    run: Run,
    picture: Path,
    shape: list[Any],
    axes: tuple[int, ...],
    expected: Preprocess,
) -> None:
    path = save(classifier(shape, axes=axes))
    shown = run("predict", path, picture, "--json", *EXACT)
    assert shown.code == 0, shown.err
    assert shown.document["predictions"][0]["top"][0]["class"] == "2"
    assert "mean" not in shown.err
    assert "resize short assumed" in shown.err
    with pytest.warns(AssumedPreprocess):
        model = repzoo.load(path, mean=(0, 0, 0), std=(1, 1, 1)).predict(picture)
    assert model.label == "2"
    known = repzoo.load(path, resize="short").preprocess
    assert known is not None
    assert (known.size, known.layout) == (expected.size, expected.layout)


def test_one_channel_is_the_luma_of_pillow(picture: Path) -> None:
    gray = Preprocess(size=24, color="GRAY", mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.open(picture)
    expected = np.asarray(image.convert("L"), np.float32)[None] / np.float32(255)
    assert np.array_equal(prepare(image, gray), expected)
    # A gray image stays what it is.
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.repeat(ramp[..., None], 3, -1)
    as_bytes = Preprocess(size=16, color="GRAY", input="uint8")
    assert np.array_equal(model_input(pixels, as_bytes)[..., 0], ramp)


def test_mean_and_std_of_one_channel_are_the_averages(picture: Path) -> None:
    gray = Preprocess(size=24, color="GRAY", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    plain = Preprocess(size=24, color="GRAY", mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.open(picture)
    expected = (prepare(image, plain) - np.float32(0.2)) / np.float32(2)
    assert np.array_equal(prepare(image, gray), expected)


def test_channels_last_holds_the_same_numbers(picture: Path) -> None:
    image = Image.open(picture)
    first = prepare(image, Preprocess(size=(12, 20)))
    last = prepare(image, Preprocess(size=(12, 20), layout="NHWC"))
    assert np.array_equal(np.moveaxis(last, -1, 0), first)


@pytest.mark.parametrize(
    ("resize", "image", "between"),
    [
        ("squash", (100, 100), (192, 48)),
        ("short", (100, 100), (192, 192)),  # covers 48 x 192 and is cropped
        ("short", (800, 100), (384, 48)),
    ],
)
def test_a_rectangle_is_covered_then_cropped(
    resize: Any, image: tuple[int, int], between: tuple[int, int]
) -> None:
    preprocess = Preprocess(
        size=(48, 192), resize=resize, crop_fraction=1, mean=(0, 0, 0), std=(1, 1, 1)
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (image[1], image[0], 3), np.uint8)
    source = Image.fromarray(pixels)
    resized = source.resize(between, Image.Resampling.BILINEAR)
    left, top = (between[0] - 192) // 2, (between[1] - 48) // 2
    expected = np.asarray(resized.crop((left, top, left + 192, top + 48)))
    tensor = prepare(source, preprocess)
    assert np.array_equal(
        np.moveaxis(tensor, 0, -1), expected.astype(np.float32) / np.float32(255)
    )


def test_sizes_are_written_as_height_and_width() -> None:
    assert parse_size("224") == 224
    assert parse_size("48x192") == (48, 192)
    assert Preprocess(size=(32, 32)) == Preprocess(size=32)
    assert Preprocess.from_mapping({"size": [48, 192]}).input_shape == (3, 48, 192)
    for text in ("", "x", "48x", "-3", "4.5", "48x192x3"):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


def test_a_rectangle_survives_its_file(save: Any) -> None:
    path = save(classifier(["n", 3, 48, 192]))
    model = repzoo.load(path, size=(48, 192))
    again = Artifact.from_bytes(model.to_bytes(), "m")
    assert again.preprocess == model.preprocess
    assert again.require_preprocess().size == (48, 192)
    assert again.assumed == model.assumed


def test_an_option_that_contradicts_the_graph_is_to_be_left_out(
    save: Any, run: Run, picture: Path
) -> None:
    path = save(classifier(["n", 3, 48, 192]))
    refused = run("predict", path, picture, "--size", "48")
    assert refused.code == 2
    assert "takes images of 48x192 pixels" in refused.err
    assert "leave out --size" in refused.err
    assert run("predict", path, picture).code == 0
    assert run("predict", path, picture, "--size", "48x192").code == 0


def test_what_is_assumed_is_said_once_and_kept(
    save: Any, run: Run, picture: Path, tmp_path: Path
) -> None:
    path = save(classifier(["n", 3, 16, 16]))
    shown = run("predict", path, picture, picture, "--json", "--resize", "squash")
    assert shown.err.count("mean and std of ImageNet assumed") == 1
    assert "--mean, --std" in shown.err
    assert "--resize" not in shown.err
    # What was assumed does not become a fact of the file.
    folded = tmp_path / "folded.onnx"
    assert run("fold", path, "-o", folded, "--resize", "squash").code == 0
    assert "assumed" in run("predict", folded, picture).err
    stated = [*EXACT, "--resize", "squash", "--interpolation", "nearest"]
    silent = run("predict", path, picture, *stated, "--color", "RGB")
    assert silent.err == ""


def test_an_open_size_is_asked_for(save: Any, run: Run, picture: Path) -> None:
    path = save(classifier(["n", 3, "h", "w"]))
    refused = run("predict", path, picture)
    assert refused.code == 2
    assert "leaves the size of its images open; give it with --size" in refused.err
    assert run("predict", path, picture, "--size", "24").code == 0


@pytest.mark.parametrize("batch", [-1, 0])
def test_an_open_batch_may_be_written_as_a_number(batch: int) -> None:
    model = classifier([batch, 3, 16, 16])
    graph = parse(model.SerializeToString(), "m").model.graph
    for value in (graph.input[0], graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        assert (dim.dim_param, dim.dim_value) == ("N", 0)


def test_half_precision_gets_half_precision(save: Any, run: Run, picture: Path) -> None:
    path = save(classifier([1, 3, 16, 16], TensorProto.FLOAT16))
    shown = run("predict", path, picture, "--json", *EXACT)
    assert shown.code == 0, shown.err
    assert shown.document["predictions"][0]["top"][0]["class"] == "2"


def test_unsorted_nodes_are_sorted_and_sorted_ones_stay() -> None:
    model = classifier([1, 3, 16, 16])
    before = list(model.graph.node)
    assert not sort_nodes(model.graph)
    assert list(model.graph.node) == before
    reversed_nodes = before[::-1]
    del model.graph.node[:]
    model.graph.node.extend(reversed_nodes)
    parsed = parse(model.SerializeToString(), "m").model
    assert list(parsed.graph.node) == before


def test_a_cycle_is_refused() -> None:
    model = classifier([1, 3, 16, 16])
    model.graph.node[0].input[0] = "y"
    with pytest.raises(InputError, match="is not valid ONNX"):
        parse(model.SerializeToString(), "m")


def test_a_graph_of_another_kind_is_no_classifier(
    save: Any, run: Run, picture: Path
) -> None:
    path = save(classifier(["n", 3, 16, 16]))
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=7)
    refused = run("predict", save(model, "other.onnx"), picture)
    assert refused.code == 2
    assert "other is not a classifier" in refused.err


def test_the_file_says_what_was_assumed(save: Any) -> None:
    model = repzoo.load(save(classifier(["n", 3, 16, 16])), size=16, mean=(0, 0, 0))
    entry = next(
        item
        for item in onnx.load_from_string(model.to_bytes()).metadata_props
        if item.key == "repzoo.assumed"
    )
    assert json.loads(entry.value) == [
        "std",
        "resize",
        "crop_fraction",
        "interpolation",
        "color",
    ]


def test_onnx_prints_nothing_beside_json(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = classifier([1, 3, 16, 16])
    # The checker warns of such operators by printing to stdout.
    node = helper.make_node("ImageScaler", ["x"], ["scaled"], scale=1.0, bias=[0.0] * 3)
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "scaled"
    model.opset_import[0].version = 9
    capfd.readouterr()
    parse(model.SerializeToString(), "m")
    assert capfd.readouterr() == ("", "")


def test_half_of_a_surrogate_pair_is_damage() -> None:
    model = classifier([1, 3, 16, 16])
    model.metadata_props.add(key="repzoo.labels", value='["\\ud800", "b", "c"]')
    with pytest.raises(InputError, match="has damaged metadata"):
        Artifact.from_bytes(model.SerializeToString(), "m")
