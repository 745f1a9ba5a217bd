"""EfficientNet-Lite0 with its ImageNet weights on photographs, on every engine.

PyTorch predicts 59 of the 63 photographs used right: one of every sixteen. Its two largest logits
are at least 0.46 apart, so engines, which differ by thousandths, predict the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pytest
from tests import lite0
from tests.tolerance import relative

from repzoo import verbs
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import ENGINES, Array, engine
from repzoo.errors import MissingExtra

# The others are slow. All are compared with PyTorch's logits on fewer images.
FAST = ("onnxruntime", "openvino", "mnn")
LOGITS_IMAGES = {"reference": 2}  # by engine, where fewer than 8
STRIDE = 16
PYTORCH_CORRECT = 59

pytestmark = pytest.mark.timeout(900)  # some seconds on a free core


def sample() -> Dataset:
    return lite0.sample().subset(range(0, 1000, STRIDE))


@functools.cache
def prepared_images() -> Array:
    images = lite0.sample().subset(range(0, 1000, 125))
    read = batches(images, lite0.PREPROCESS, 8, ReadReport())
    return np.concatenate([batch.inputs for batch in read])


@functools.cache
def logits_of_pytorch() -> Array:
    import torch

    with torch.inference_mode():
        output: Array = lite0.module()(torch.from_numpy(prepared_images())).numpy()
    return output


@pytest.fixture(scope="module")
def logits() -> Mapping[str, Array]:
    """The folded model's logits [63, 1000] on each fast engine; each photograph decoded once."""
    folded = verbs.fold(lite0.artifact()).model
    sessions = {}
    for name in FAST:
        try:
            sessions[name] = engine(name).open(folded, 2)
        except MissingExtra:
            continue
    parts: dict[str, list[Array]] = {name: [] for name in sessions}
    for batch in batches(sample(), lite0.PREPROCESS, 32, ReadReport()):
        for name, session in sessions.items():
            parts[name].append(session.run(batch.inputs))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def test_top1_equals_that_of_pytorch(logits: Mapping[str, Array]) -> None:
    labels = lite0.artifact().labels
    data = sample()
    targets = [labels.index(data.classes[target]) for target in data.targets]
    for name, values in logits.items():
        predictions = values.argmax(1)
        # Another JPEG decoder may move a photograph over the edge.
        assert abs(np.count_nonzero(predictions == targets) - PYTORCH_CORRECT) <= 1
        np.testing.assert_array_equal(
            predictions, logits["onnxruntime"].argmax(1), name
        )


RUN_MODELS = [name for name in ENGINES.names() if name not in ("rdk-x5", "rknn")]


@pytest.mark.parametrize("name", RUN_MODELS)
def test_logits_agree_with_those_of_pytorch(name: str) -> None:
    artifact = lite0.artifact()
    try:
        runner = engine(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    count = LOGITS_IMAGES.get(name, 8)
    logits = runner.open(artifact.model, 2).run(prepared_images()[:count])
    expected = logits_of_pytorch()[:count]
    limit = relative(runner, 1e-3) * np.ptp(expected)
    assert np.abs(logits - expected).max() <= limit


def test_every_key_is_renamed_to_its_own() -> None:
    """Two keys swapped between blocks of one shape would load too; the logits would not agree."""
    assert (
        lite0.timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    )
    assert (
        lite0.timm_name("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"
    )
    assert lite0.timm_name("_bn1.bias") == "bn2.bias"
    with pytest.raises(KeyError):
        lite0.timm_name("_blocks.0._expand_conv.weight")
