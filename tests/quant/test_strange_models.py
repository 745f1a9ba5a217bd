"""What is given wrong or strange ends in a sentence and exit 2 (or 4, the gate), or in a model that agrees with the float one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import small

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.quant.rewrites import stages as rungs
from repzoo.quant.search import ladder

Run = Callable[..., Any]
Arrays = dict[str, npt.NDArray[np.float32]]


@pytest.fixture
def quantize(run: Run, tmp_path: Path) -> Callable[..., Any]:
    """`quantize(artifact or file, *options)`: exit code 2 or 4 with one sentence and no file, or 0 and a file."""

    def done(given: Artifact | Path, *options: object, data: object = "digits") -> Any:
        source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
        source.write_bytes(given.read_bytes() if isinstance(given, Path) else given.to_bytes())
        ran = run(
            "quantize",
            source,
            "-o",
            out,
            "--data",
            data,
            "--images",
            32,
            "--max-drop",
            3,
            "--search",
            0,
            "--json",
            *options,
        )
        assert ran.code in (0, 2, 4), ran.err
        assert "Traceback" not in ran.err
        assert out.exists() == (ran.code == 0)
        if ran.code:
            assert ran.out == ""
            assert next(
                line for line in ran.err.splitlines() if not line.startswith("note: ")
            ).startswith("repzoo: ")
        return ran

    return done


def changed(**given: npt.NDArray[np.floating[Any]]) -> Artifact:
    """The small classifier with other weights."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    for item in model.graph.initializer:
        if item.name in given:
            item.CopyFrom(numpy_helper.from_array(given[item.name].astype(np.float32), item.name))
    return replace(small(), model=model)


def weights() -> Arrays:
    return {item.name: numpy_helper.to_array(item) for item in small().model.graph.initializer}


def agreement(made: Path, floating: Artifact, name: str) -> float:
    """Share of images on which the quantized file and the float model say the same, on the engine called `name`."""
    data = open_source("digits").held_out()
    some = data.subset(range(0, len(data), 4))
    inputs = np.concatenate(
        [one.inputs for one in batches(some, small().require_preprocess(), 64, ReadReport())]
    )
    answers = [
        engine(name).open(one).run(inputs).argmax(1)
        for one in (floating.model, Artifact.read(made).model)
    ]
    return float(np.mean(answers[0] == answers[1]))


def require_agreement(tmp_path: Path, floating: Artifact, least: float = 0.95) -> None:
    for name in ("onnxruntime", "reference"):
        assert agreement(tmp_path / "out.onnx", floating, name) >= least, name


# Weights and activations


def dead_channels() -> Artifact:
    first = weights()["first"].copy()
    first[::3] = 0
    return changed(first=first)


def constant_activations() -> Artifact:
    return changed(first=np.zeros_like(weights()["first"]))


def all_zero() -> Artifact:
    return changed(**{name: np.zeros_like(value) for name, value in weights().items()})


def wide_then_narrow(factor: float) -> Callable[[], Artifact]:
    """The same function, with activations in between that reach `factor`."""

    def made() -> Artifact:
        both = weights()
        return changed(
            first=both["first"] * np.float32(factor), second=both["second"] / np.float32(factor)
        )

    return made


@pytest.mark.parametrize(
    "given",
    [
        dead_channels,
        constant_activations,
        all_zero,
        *(wide_then_narrow(factor) for factor in (1e4, 1e-4, 1e15, 1e-15, 1e30, 1e-30)),
    ],
    ids=["dead", "constant", "zero", "1e4", "1e-4", "1e15", "1e-15", "1e30", "1e-30"],
)
def test_strange_weights_give_a_model_that_agrees_or_a_sentence(
    quantize: Callable[..., Any], tmp_path: Path, given: Callable[[], Artifact]
) -> None:
    floating = given()
    ran = quantize(floating)
    if ran.code == 0:
        require_agreement(tmp_path, floating)


def with_relu6(given: Callable[[], Artifact]) -> Callable[[], Artifact]:
    """The same behind ReLU6s: another function where 6 is passed."""

    def made() -> Artifact:
        model = onnx.ModelProto()
        model.CopyFrom(given().model)
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Clip"
                node.input.extend(["zero", "six"])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(end, np.float32), name)
            for name, end in (("zero", 0), ("six", 6))
        )
        return replace(small(), model=model)

    return made


@pytest.mark.parametrize(
    "given",
    [
        dead_channels,
        constant_activations,
        all_zero,
        *(wide_then_narrow(factor) for factor in (1e4, 1e-4, 1e30, 1e-30)),
        with_relu6(dead_channels),
        with_relu6(wide_then_narrow(1e-4)),
        with_relu6(wide_then_narrow(1e4)),
    ],
    ids=[
        "dead",
        "constant",
        "zero",
        "1e4",
        "1e-4",
        "1e30",
        "1e-30",
        "dead, ReLU6",
        "1e-4, ReLU6",
        "1e4, ReLU6",
    ],
)
def test_the_equalized_rung_alone_gives_a_model_that_agrees_or_a_sentence(
    quantize: Callable[..., Any],
    tmp_path: Path,
    given: Callable[[], Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other rungs hold on most of these before it is asked."""
    monkeypatch.setattr(
        ladder, "RUNGS", tuple(one for one in rungs.STAGES if one.name == "equalized")
    )
    floating = given()
    ran = quantize(floating, "--scheme", "per-tensor")
    if ran.code == 0:
        require_agreement(tmp_path, floating)


@pytest.mark.parametrize("given", [dead_channels, constant_activations, all_zero])
def test_ordinary_degenerate_layers_are_quantized(
    quantize: Callable[..., Any], given: Callable[[], Artifact]
) -> None:
    assert quantize(given()).code == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_named(
    quantize: Callable[..., Any], value: float
) -> None:
    first = weights()["first"].copy()
    first[2, 0, 1, 1] = value
    ran = quantize(changed(first=first))
    assert ran.code == 2
    assert "finite" in ran.err


# Graphs


def test_what_is_quantized_already_is_refused_with_or_without_metadata(
    quantize: Callable[..., Any], tmp_path: Path, small_file: Path
) -> None:
    assert quantize(small_file).code == 0
    made = tmp_path / "made.onnx"
    (tmp_path / "out.onnx").rename(made)
    assert "quantized already" in quantize(made).err
    foreign = onnx.load(made)
    del foreign.metadata_props[:]
    made.write_bytes(foreign.SerializeToString())
    own = small().require_preprocess()
    ran = quantize(
        made,
        "--size",
        own.size,
        "--resize",
        own.resize,
        "--crop-fraction",
        1,
        "--interpolation",
        own.interpolation,
    )
    assert ran.code == 2
    assert "quantis" in ran.err


def unfolded(folded: bool) -> onnx.ModelProto:
    """Without metadata: the small classifier, with a BatchNormalization after its first convolution unless `folded`."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    if not folded:
        relu = model.graph.node[1]
        random = np.random.default_rng(1)
        names = ["gamma", "beta", "mean", "variance"]
        ones = [
            random.uniform(0.8, 1.2, 12),
            random.normal(0, 0.05, 12),
            random.normal(0, 0.05, 12),
            random.uniform(0.8, 1.2, 12),
        ]
        model.graph.initializer.extend(
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in zip(names, ones, strict=True)
        )
        model.graph.node.insert(
            1, onnx.helper.make_node("BatchNormalization", ["a", *names], ["normal"])
        )
        model.graph.node[2].input[0] = "normal"
        assert relu.op_type == "Relu"
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("folded", [True, False])
def test_graphs_that_someone_folded_or_nobody_did(
    quantize: Callable[..., Any], tmp_path: Path, folded: bool
) -> None:
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(unfolded(folded).SerializeToString())
    own = small().require_preprocess()
    told = [
        "--size",
        own.size,
        "--resize",
        own.resize,
        "--crop-fraction",
        1,
        "--interpolation",
        own.interpolation,
    ]
    ran = quantize(foreign, *told, "--mean", *own.mean, "--std", *own.std, "--color", "RGB")
    assert ran.code == 0, ran.err
    assert "BatchNormalization" not in {
        node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node
    }
    require_agreement(tmp_path, replace(small(), model=unfolded(folded)))


# Calibration images


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/ with two images a class and test/ with twelve, of digits."""
    source = open_source("digits")
    for part, count in (("train", 2), ("test", 12)):
        data = source.join(part)
        for digit in range(10):
            folder = tmp_path / "data" / part / str(digit)
            folder.mkdir(parents=True)
            for index in [index for index, target in enumerate(data.targets) if target == digit][
                :count
            ]:
                data.load(data.keys[index]).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_fewer_images_than_asked_are_said(
    quantize: Callable[..., Any], tmp_path: Path, folders: Path
) -> None:
    ran = quantize(small(), "--report", tmp_path / "report.json", data=folders)
    assert ran.code == 0, ran.err
    assert "note: 15 calibration images, of 32 asked for" in ran.err
    assert '"images": 15' in (tmp_path / "report.json").read_text().replace("\n", "")
    require_agreement(tmp_path, small())


def test_images_all_alike(quantize: Callable[..., Any], tmp_path: Path, folders: Path) -> None:
    for path in (folders / "train").rglob("*.png"):
        Image.new("RGB", (8, 8), (127, 127, 127)).save(path)
    ran = quantize(small(), data=folders)
    if ran.code == 0:
        require_agreement(tmp_path, small(), 0.9)
    else:
        assert ran.code == 4


def test_images_of_other_classes(quantize: Callable[..., Any], folders: Path) -> None:
    (folders / "train" / "0").rename(folders / "train" / "cat")
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert "'cat'" in ran.err


def test_no_images(quantize: Callable[..., Any], tmp_path: Path, folders: Path) -> None:
    """Without a training part, a quarter of what there is sets the ranges; without anything, it is said."""
    for path in (folders / "train").rglob("*.png"):
        path.unlink()
    ran = quantize(small(), data=folders)
    assert (ran.code, "note: 30 calibration images, of 32 asked for" in ran.err) == (0, True)
    require_agreement(tmp_path, small())
    (tmp_path / "out.onnx").unlink()
    for path in (folders / "test").rglob("*.png"):
        path.unlink()
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert "no images" in ran.err


def test_broken_images(quantize: Callable[..., Any], folders: Path) -> None:
    for path in (folders / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert "cannot be read" in ran.err or "no calibration image could be read" in ran.err
