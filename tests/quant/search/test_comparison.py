"""What is compared with float, by what the head means."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import sets, small

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.engines import engine
from repzoo.measure.results import PairedAccuracy
from repzoo.quant.search import messages
from repzoo.quant.search.comparison import FloatComparison

SCALE = 0.02  # brings the logits of the small model near 0


def with_ending(ending: str, weights: dict[str, np.ndarray]) -> Artifact:
    """The small model with more operators after its logits `z`."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    model.graph.node[-1].output[0] = "z"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 10] z) => (float[N, M] output) {{ {ending} }}"""
    model.graph.node.extend(onnx.parser.parse_model(text).graph.node)
    for name, value in weights.items():
        item = numpy_helper.from_array(value.astype(np.float32), name)
        model.graph.initializer.append(item)
    width = model.graph.output[0].type.tensor_type.shape.dim[1]
    width.dim_value = len(weights["shift"])
    return replace(small(), model=model, labels=())


@functools.cache
def multi_label(shift: float = 0.0) -> Artifact:
    """Each label holds on about half of the images, and on a few less with a positive `shift`."""
    logits = FloatComparison(small(), sets().gate, engine("onnxruntime"))
    (predictions,) = logits.predict([small()])
    assert predictions.logits is not None
    medians = np.median(predictions.logits, axis=0)
    ending = """t = Sub(z, shift)
        s = Mul(t, scale)
        output = Sigmoid(s)"""
    scale = np.array([SCALE])
    return with_ending(ending, {"shift": medians + shift / SCALE, "scale": scale})


def unlabeled(images: Dataset) -> Dataset:
    return replace(images, classes=(), targets=(0,) * len(images), labeled=False)


def compare(images: Dataset, first: Artifact, second: Artifact) -> PairedAccuracy:
    comparison = FloatComparison(first, images, engine("onnxruntime"))
    return comparison.compare(second).values


def test_labels_of_sigmoids_are_compared_one_by_one() -> None:
    images = unlabeled(sets().gate)
    paired = compare(images, multi_label(), multi_label(0.1))
    labels = paired.multi_label
    assert labels is not None
    assert labels.gained == 0
    assert labels.lost > 0
    assert paired.drop == pytest.approx(100 - labels.agreement)
    assert paired.same_prediction == pytest.approx(labels.agreement)
    assert labels.images_changed > 2 * labels.decisions_changed
    assert paired.top1 is None
    sentence = messages._about_head(paired)[0]
    assert "Sigmoid (multi-label)" in sentence
    assert "at 0.5" in sentence


def test_known_labels_give_mean_average_precision_and_top1() -> None:
    paired = compare(sets().gate, multi_label(), multi_label(0.1))
    assert paired.multi_label is not None
    precision = paired.multi_label.mean_average_precision
    assert precision is not None
    # A shift of all outputs changes no order, but many labels.
    assert precision.drop == pytest.approx(0, abs=0.5)
    assert paired.first_top1 == pytest.approx(paired.top1, abs=1)
    assert paired.multi_label.agreement < 99


def test_labels_that_never_hold_are_not_judged() -> None:
    model = multi_label(20.0)
    paired = compare(unlabeled(sets().gate), model, model)
    assert paired.unjudged is not None
    assert "no output is above 0.5" in paired.unjudged


def test_a_single_output_without_sigmoid_is_not_judged() -> None:
    ending = "t = Add(z, bias)\noutput = MatMul(t, shift)"
    weights = {"bias": np.zeros(10), "shift": np.arange(10.0)[:, None]}
    model = with_ending(ending, weights)
    model.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    paired = compare(unlabeled(sets().gate), model, model)
    assert paired.unjudged is not None
    assert "may be a logit" in paired.unjudged
    assert paired.logits_snr_db == pytest.approx(200)
    assert "cannot judge this head" in messages._about_head(paired)[0]


def test_classes_are_compared_by_the_best_one() -> None:
    paired = compare(sets().gate, small(), small())
    assert paired.multi_label is None
    assert paired.unjudged is None
    assert paired.first_top1 == paired.top1
    assert paired.top1 is not None
    assert paired.top1 > 80


def test_the_expected_drop_is_the_same_with_and_without_a_softmax() -> None:
    """In probabilities fewer changes would be expected: their errors vanish near 0 and 1."""
    scale = np.array([0.15])  # most images have a probability near 1
    shift = np.random.default_rng(0).normal(0, 0.3, 10)
    pairs = {}
    for ending in ("output = Identity(t)", "output = Softmax(t)"):
        body = f"s = Mul(z, scale)\nt = Sub(s, shift)\n{ending}"
        first = with_ending(body, {"shift": 0 * shift, "scale": scale})
        second = with_ending(body, {"shift": shift, "scale": scale})
        pairs[ending] = compare(sets().gate, first, second)
    plain, softmax = pairs.values()
    assert plain.expected is not None
    assert softmax.expected is not None
    assert plain.expected.changed > 0
    assert softmax.expected.changed == pytest.approx(plain.expected.changed, rel=0.01)
    assert softmax.expected.drop == pytest.approx(plain.expected.drop, rel=0.01)
    assert softmax.logits_snr_db == pytest.approx(plain.logits_snr_db, abs=0.1)
