"""Strange models and data end in a sentence and exit 2 or 4, or in a model that works."""

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

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import small, small_training_form

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.quant.rewrites.stages import STAGES
from repzoo.quant.search import ladder

Run = Callable[..., Any]
Make = Callable[[], Artifact]
Arrays = dict[str, npt.NDArray[np.float32]]
FACTORS = {
    "1e4": 1e4,
    "1e-4": 1e-4,
    "1e15": 1e15,
    "1e-15": 1e-15,
    "1e30": 1e30,
    "1e-30": 1e-30,
}


@pytest.fixture
def quantize(run: Run, tmp_path: Path) -> Callable[..., Any]:
    """`quantize(artifact or file, *options)`.

    Checks that it ends with exit code 2 or 4, one sentence and no file, or with 0 and a file.
    """

    def quantize_file(
        model: Artifact | Path, *options: object, data: object = "digits"
    ) -> Any:
        source = tmp_path / "in.onnx"
        out = tmp_path / "out.onnx"
        source.write_bytes(
            model.read_bytes() if isinstance(model, Path) else model.to_bytes()
        )
        usual = ("--images", 32, "--max-drop", 3, "--search", 0)
        ran = run(
            "quantize", source, "-o", out, "--data", data, *usual, "--json", *options
        )
        assert ran.code in (0, 2, 4), ran.err
        assert "Traceback" not in ran.err
        assert out.exists() == (ran.code == 0)
        if ran.code:
            assert ran.out == ""
            *_, sentence = ran.err.splitlines()
            assert sentence.startswith("repzoo: ")
        return ran

    return quantize_file


def artifact_with(**arrays: npt.NDArray[np.floating[Any]]) -> Artifact:
    """The small classifier with other weights."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    for item in model.graph.initializer:
        if item.name in arrays:
            values = arrays[item.name].astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    return replace(small(), model=model)


def weights() -> Arrays:
    return {
        item.name: numpy_helper.to_array(item)
        for item in small().model.graph.initializer
    }


def agreement(quantized: Path, floating: Artifact, name: str) -> float:
    """Share of images on which both models predict the same class, on the engine called `name`."""
    data = open_source("digits").held_out()
    sample = data.subset(range(0, len(data), 4))
    read = batches(sample, small().require_preprocess(), 64, ReadReport())
    inputs = np.concatenate([batch.inputs for batch in read])
    runtime = engine(name)
    first = runtime.open(floating.model).run(inputs).argmax(1)
    second = runtime.open(Artifact.read(quantized).model).run(inputs).argmax(1)
    return float(np.mean(first == second))


def require_agreement(tmp_path: Path, floating: Artifact, least: float = 0.95) -> None:
    for name in ("onnxruntime", "reference"):
        assert agreement(tmp_path / "out.onnx", floating, name) >= least, name


# Weights and activations


def dead_channels() -> Artifact:
    first = weights()["first"].copy()
    first[::3] = 0
    return artifact_with(first=first)


def constant_activations() -> Artifact:
    return artifact_with(first=np.zeros_like(weights()["first"]))


def all_zero() -> Artifact:
    return artifact_with(
        **{name: np.zeros_like(value) for name, value in weights().items()}
    )


DEGENERATE = {"dead": dead_channels, "constant": constant_activations, "zero": all_zero}


def wide_then_narrow(factor: float) -> Make:
    """The same function, with activations in between that are `factor` times as large."""

    def make() -> Artifact:
        values = weights()
        first = values["first"] * np.float32(factor)
        second = values["second"] / np.float32(factor)
        return artifact_with(first=first, second=second)

    return make


def with_relu6(inner: Make) -> Make:
    """The same with ReLU6 for ReLU: another function where an activation exceeds 6."""

    def make() -> Artifact:
        model = onnx.ModelProto()
        model.CopyFrom(inner().model)
        for node in model.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Clip"
                node.input.extend(["zero", "six"])
        for name, bound in (("zero", 0), ("six", 6)):
            value = np.array(bound, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        return replace(small(), model=model)

    return make


STRANGE: dict[str, Make] = {
    **DEGENERATE,
    **{name: wide_then_narrow(factor) for name, factor in FACTORS.items()},
}
STRANGE_FOR_EQUALIZATION: dict[str, Make] = {
    **DEGENERATE,
    **{name: STRANGE[name] for name in ("1e4", "1e-4", "1e30", "1e-30")},
    "dead, ReLU6": with_relu6(dead_channels),
    "1e-4, ReLU6": with_relu6(wide_then_narrow(1e-4)),
    "1e4, ReLU6": with_relu6(wide_then_narrow(1e4)),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_unusual_weights_give_a_model_that_agrees_or_one_sentence(
    quantize: Callable[..., Any], tmp_path: Path, make: Make
) -> None:
    floating = make()
    ran = quantize(floating)
    if ran.code == 0:
        require_agreement(tmp_path, floating)


@pytest.mark.parametrize(
    "make", STRANGE_FOR_EQUALIZATION.values(), ids=STRANGE_FOR_EQUALIZATION
)
def test_the_equalized_stage_alone_gives_a_model_that_agrees_or_a_sentence(
    quantize: Callable[..., Any],
    tmp_path: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the stages before it hold on most of these."""
    equalized = tuple(stage for stage in STAGES if stage.name == "equalized")
    monkeypatch.setattr(ladder, "STAGES", equalized)
    floating = make()
    ran = quantize(floating, "--scheme", "per-tensor")
    if ran.code == 0:
        require_agreement(tmp_path, floating)


@pytest.mark.parametrize("make", DEGENERATE.values(), ids=DEGENERATE)
def test_ordinary_degenerate_layers_are_quantized(
    quantize: Callable[..., Any], make: Make
) -> None:
    assert quantize(make()).code == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_named(
    quantize: Callable[..., Any], value: float
) -> None:
    first = weights()["first"].copy()
    first[2, 0, 1, 1] = value
    ran = quantize(artifact_with(first=first))
    assert ran.code == 2
    assert "finite" in ran.err


# Graphs


def preprocessing() -> list[object]:
    """The small model's preprocessing as options, except for mean, std and color order."""
    own = small().require_preprocess()
    sizes = ["--size", own.size, "--resize", own.resize, "--crop-fraction", 1]
    return [*sizes, "--interpolation", own.interpolation]


def test_a_quantized_model_is_refused_with_or_without_metadata(
    quantize: Callable[..., Any], tmp_path: Path, small_file: Path
) -> None:
    assert quantize(small_file).code == 0
    quantized = tmp_path / "quantized.onnx"
    (tmp_path / "out.onnx").rename(quantized)
    assert "quantized already" in quantize(quantized).err
    foreign = onnx.load(quantized)
    del foreign.metadata_props[:]
    quantized.write_bytes(foreign.SerializeToString())
    ran = quantize(quantized, *preprocessing())
    assert ran.code == 2
    assert "quanti" in ran.err


@pytest.mark.parametrize("make", [small, small_training_form])
def test_foreign_graphs_are_quantized_whether_folded_or_not(
    quantize: Callable[..., Any], tmp_path: Path, make: Make
) -> None:
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(make().model.SerializeToString())
    own = small().require_preprocess()
    colors = ("--mean", *own.mean, "--std", *own.std, "--color", "RGB")
    ran = quantize(foreign, *preprocessing(), *colors)
    assert ran.code == 0, ran.err
    operators = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert "BatchNormalization" not in operators
    require_agreement(tmp_path, make())


# Calibration images


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Digits: train/ with two images per class, and test/ with twelve."""
    source = open_source("digits")
    for part, count in (("train", 2), ("test", 12)):
        data = source.join(part)
        for digit in range(10):
            folder = tmp_path / "data" / part / str(digit)
            folder.mkdir(parents=True)
            indices = [
                index for index, target in enumerate(data.targets) if target == digit
            ]
            for index in indices[:count]:
                data.load(data.keys[index]).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_fewer_images_than_requested_are_noted(
    quantize: Callable[..., Any], tmp_path: Path, folders: Path
) -> None:
    report = tmp_path / "report.json"
    ran = quantize(small(), "--report", report, data=folders)
    assert ran.code == 0, ran.err
    assert "note: 32 calibration images were requested, 15 are available" in ran.err
    assert '"images": 15' in report.read_text().replace("\n", "")
    require_agreement(tmp_path, small())


def test_identical_calibration_images_give_a_model_that_agrees_or_a_refusal(
    quantize: Callable[..., Any], tmp_path: Path, folders: Path
) -> None:
    for path in (folders / "train").rglob("*.png"):
        Image.new("RGB", (8, 8), (127, 127, 127)).save(path)
    ran = quantize(small(), data=folders)
    if ran.code == 0:
        require_agreement(tmp_path, small(), 0.9)
    else:
        assert ran.code == 4


def test_images_of_other_classes_are_refused(
    quantize: Callable[..., Any], folders: Path
) -> None:
    (folders / "train" / "0").rename(folders / "train" / "cat")
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert "'cat'" in ran.err


def test_without_training_images_a_quarter_of_the_others_calibrates(
    quantize: Callable[..., Any], tmp_path: Path, folders: Path
) -> None:
    for path in (folders / "train").rglob("*.png"):
        path.unlink()
    ran = quantize(small(), data=folders)
    assert ran.code == 0
    assert "note: 32 calibration images were requested, 30 are available" in ran.err
    require_agreement(tmp_path, small())


def test_a_data_folder_without_images_is_refused(
    quantize: Callable[..., Any], folders: Path
) -> None:
    for path in folders.rglob("*.png"):
        path.unlink()
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert "no images" in ran.err


def test_images_that_cannot_be_read_are_refused(
    quantize: Callable[..., Any], folders: Path
) -> None:
    for path in (folders / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    ran = quantize(small(), data=folders)
    assert ran.code == 2
    assert (
        "cannot be read" in ran.err or "no calibration image could be read" in ran.err
    )
