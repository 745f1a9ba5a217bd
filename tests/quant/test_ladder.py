"""The quantiser as a whole, on the embedded digits model and a real engine: what passes the gate, what does not, and why."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy
from repzoo.quant import gate as gating
from repzoo.quant import ladder, place, qdq
from repzoo.quant.gate import Budget, QuantReport
from repzoo.quant.scheme import scheme
from repzoo.zoo import embedded


@functools.cache
def deploy() -> Artifact:
    return verbs.fold(embedded.read("repghostnet_050.digits"))[0]


@functools.cache
def sets() -> tuple[Dataset, Dataset]:
    calibration, gate = open_source("digits").calibration_split(64, 0)
    return calibration, gate.subset(range(0, len(gate), 4))


def grey() -> Dataset:
    """Calibration images that say nothing of the images to come: each input is near zero, so the range is."""
    return replace(sets()[0].subset(range(16)), load=lambda _: Image.new("RGB", (8, 8), (127, 127, 127)), name="grey")


@functools.cache
def linear() -> Artifact:
    """The classifier of the nearest mean: one linear layer, so that no placement can avoid quantising its input."""
    train, preprocess = open_source("digits").join("train"), deploy().needing_preprocess()
    inputs = np.concatenate([one.inputs for one in batches(train, preprocess, 64, ReadReport())]).reshape(len(train), -1)
    means = np.stack([inputs[np.array(train.targets) == target].mean(0) for target in range(10)])
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 32, 32] data) => (float[N, 10] output)
        { flat = Flatten (data) output = Gemm <transB = 1> (flat, means, lengths) }"""
    model = onnx.parser.parse_model(text)
    tensors = {"means": means, "lengths": -(means**2).sum(1) / 2}
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items())
    return replace(deploy(), model=model, name="linear")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing decides nothing that is asserted here."""
    monkeypatch.setattr(gating, "BENCH_SECONDS", 0.02)


def quantize(
    calibration: Dataset, budget: Budget, name: str = "ort-cpu", artifact: Artifact | None = None
) -> tuple[Artifact, QuantReport]:
    return ladder.quantize(artifact or deploy(), calibration, sets()[1], engine("onnxruntime"), scheme(name), budget)


def test_a_good_model_passes_and_says_what_was_done() -> None:
    made, report = quantize(sets()[0], Budget(max_drop=1.0))
    assert made.form == "int8"
    assert made.labels == deploy().labels
    assert made.preprocess == deploy().preprocess
    assert [step.verb for step in made.steps][-1] == "quantize"
    assert made.steps[-1].input_sha256 == deploy().sha256
    assert made.steps[-1].settings["placement"] == report.chosen.placement
    assert report.chosen in report.rungs
    assert report.chosen.passes
    assert report.chosen.holds
    assert len(report.chosen.layers) >= 1
    assert report.record.values["drop"] == report.chosen.paired.values["drop"]
    assert report.record.artifact["sha256"] == made.sha256
    onnx.checker.check_model(made.model, full_check=True)
    runs = [accuracy.open_run(one, engine("onnxruntime"), 1) for one in (deploy(), made)]
    measured = accuracy.compare(*accuracy.evaluate(runs, sets()[1], ReadReport()))
    assert measured.values["drop"] == report.record.values["drop"]  # what is shipped is what was gated


def test_a_model_proven_broken_is_refused_with_the_numbers_and_the_way_out() -> None:
    with pytest.raises(
        GateError, match=r"loses \d+\.\d+ points.*180 images.*budget of 0\.3.*from output \(activation side.*--force"
    ):
        quantize(grey(), Budget(), artifact=linear())
    assert quantize(sets()[0], Budget(), artifact=linear())[1].chosen.passes  # the model itself is sound


def test_fewer_layers_may_save_what_bad_ranges_break(monkeypatch: pytest.MonkeyPatch) -> None:
    every = place.candidates(qdq.prepared(deploy().model))
    monkeypatch.setattr(place, "candidates", lambda _: [every[0], every[-1]])
    monkeypatch.setattr(ladder, "ESCAPES", (1,))
    _, report = quantize(grey(), Budget(max_drop=5.0))
    assert report.chosen.passes
    assert report.chosen.placement.startswith(every[-1].name)  # by the ranges of grey images everything in INT8 is lost


def test_force_passes_it_and_marks_it() -> None:
    made, report = quantize(grey(), Budget(force=True), artifact=linear())
    assert not report.chosen.passes
    assert report.warnings[0].startswith("forced: the drop of ")
    assert made.steps[-1].settings["force"] is True
    assert report.record.values["drop_low"] > 0.3


def test_too_few_images_to_exclude_a_drop_are_warned_about() -> None:
    few = sets()[1].subset(range(0, 180, 6))
    _, report = ladder.quantize(deploy(), sets()[0], few, engine("onnxruntime"), scheme("ort-cpu"), Budget(0.3))
    assert any(warning.startswith("30 images cannot exclude a drop of up to ") for warning in report.warnings)


def test_the_same_images_give_the_same_drops() -> None:
    first, second = (quantize(sets()[0], Budget(max_drop=1.0))[1] for _ in range(2))
    assert [rung.placement for rung in first.rungs] == [rung.placement for rung in second.rungs]
    assert [rung.paired.values for rung in first.rungs] == [rung.paired.values for rung in second.rungs]
    assert [rung.paired.samples for rung in first.rungs] == [rung.paired.samples for rung in second.rungs]


@pytest.mark.parametrize("name", ["per-tensor", "ort-minmax"])
def test_the_other_schemes_work_too(name: str) -> None:
    made, _ = quantize(sets()[0], Budget(max_drop=2.0), name)
    assert made.steps[-1].settings["scheme"]["name"] == name


def test_an_unreadable_gate_image_is_told() -> None:
    calibration, gate = sets()

    def load(key: str) -> Image.Image:
        if key == gate.keys[5]:
            raise UnreadableImage(f"{key} is broken")
        return gate.load(key)

    _, report = ladder.quantize(
        deploy(), calibration, replace(gate, load=load), engine("onnxruntime"), scheme("ort-cpu"), Budget(1.0)
    )
    assert f"left out: {gate.keys[5]} is broken" in report.warnings
    assert report.chosen.paired.values["n"] == len(gate) - 1


def test_only_a_folded_float_model_is_taken() -> None:
    train = embedded.read("repghostnet_050.digits")
    with pytest.raises(InputError, match=r"in train form.*repzoo fold"):
        ladder.quantize(train, *sets(), engine("onnxruntime"), scheme("ort-cpu"), Budget())
    made, _ = quantize(sets()[0], Budget(1.0))
    with pytest.raises(InputError, match="in int8 form"):
        ladder.quantize(made, *sets(), engine("onnxruntime"), scheme("ort-cpu"), Budget())


def test_a_model_without_layers_to_quantise_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 32, 32] data) => (float[N, 10] output)
        <float[10] ten = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
        { one = ReduceMean <axes = [1, 2, 3], keepdims = 1> (data) flat = Flatten (one) output = Mul (flat, ten) }"""
    bare = replace(deploy(), model=onnx.parser.parse_model(text))
    with pytest.raises(InputError, match="nothing to quantise"):
        ladder.quantize(bare, *sets(), engine("onnxruntime"), scheme("ort-cpu"), Budget())


def test_unknown_schemes_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean ort-cpu"):
        scheme("ort-gpu")


def test_no_worse_than_onnxruntimes_own_quantiser(tmp_path: Path) -> None:
    """Theirs: static, QDQ, per channel, min-max, on the same images."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime import quantization as theirs

    calibration, gate = sets()
    made, report = quantize(calibration, Budget(max_drop=5.0))

    class Reader(theirs.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[npt.NDArray[np.float32]] = (
                one.inputs for one in batches(calibration, deploy().needing_preprocess(), 32, ReadReport())
            )

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            found = next(self._batches, None)
            return None if found is None else {deploy().input_name: found}

    source, target = tmp_path / "float.onnx", tmp_path / "theirs.onnx"
    source.write_bytes(deploy().to_bytes())
    theirs.quantize_static(source, target, Reader(), quant_format=theirs.QuantFormat.QDQ, per_channel=True)
    their_artifact = replace(made, model=onnx.load(target), name="theirs")
    runs = [accuracy.open_run(one, engine("onnxruntime"), 1) for one in (deploy(), made, their_artifact)]
    reference, ours, other = accuracy.evaluate(runs, gate, ReadReport())
    our_drop, their_drop = (accuracy.compare(reference, one).values["drop"] for one in (ours, other))
    assert our_drop == report.record.values["drop"]
    assert our_drop <= their_drop + 1
