"""EfficientNet-Lite0 with its ImageNet weights on photographs, on every engine.

Every fourth of 1,000 photographs is used. Top-1 of 250 images has a standard deviation of 2 points;
engines compared on the same images have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from tests import lite0

from repzoo import verbs
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import ENGINES, Array, engine
from repzoo.errors import MissingExtra

# The others take minutes for 250 images. They are compared with PyTorch's logits on fewer.
FAST = ("onnxruntime", "openvino", "mnn")
LOGITS_IMAGES = {"reference": 2}  # by engine, where fewer than 20
STRIDE = 4
PYTORCH_TOP1 = 88.0  # percent, on all 1,000 images

pytestmark = pytest.mark.timeout(900)  # half a minute on two free cores


def sample() -> Dataset:
    return lite0.sample().subset(range(0, 1000, STRIDE))


def prepared_images(count: int) -> Array:
    images = lite0.sample().subset(range(0, 1000, 1000 // count))
    read = batches(images, lite0.PREPROCESS, 32, ReadReport())
    return np.concatenate([batch.inputs for batch in read])


@pytest.fixture(scope="module")
def logits() -> Mapping[str, Array]:
    """The folded model's logits [250, 1000] on each fast engine.

    Every photograph is decoded once, and 40 are held at a time.
    """
    folded = verbs.fold(lite0.artifact()).model
    sessions = {}
    for name in FAST:
        try:
            sessions[name] = engine(name).open(folded, 2)
        except MissingExtra:
            continue
    parts: dict[str, list[Array]] = {name: [] for name in sessions}
    for batch in batches(sample(), lite0.PREPROCESS, 40, ReadReport()):
        for name, session in sessions.items():
            parts[name].append(session.run(batch.inputs))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@pytest.mark.parametrize("name", FAST)
def test_top1_equals_that_of_pytorch(logits: Mapping[str, Array], name: str) -> None:
    if name not in logits:
        pytest.skip(f"{name} is not installed")
    labels = lite0.artifact().labels
    data = sample()
    targets = [labels.index(data.classes[target]) for target in data.targets]
    assert len(targets) == 250
    predictions = logits[name].argmax(1)
    assert 100 * np.mean(predictions == targets) == pytest.approx(PYTORCH_TOP1, abs=4)
    assert np.mean(predictions == logits["onnxruntime"].argmax(1)) >= 0.995


RUN_MODELS = [name for name in ENGINES.names() if name not in ("rdk-x5", "rknn")]


@pytest.mark.parametrize("name", RUN_MODELS)
def test_logits_agree_with_those_of_pytorch(name: str) -> None:
    module = lite0.module()
    inputs = prepared_images(LOGITS_IMAGES.get(name, 20))
    import torch

    with torch.inference_mode():
        expected = module(torch.from_numpy(inputs)).numpy()
    try:
        runner = engine(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    logits = runner.open(lite0.artifact().model, 2).run(inputs)
    assert np.abs(logits - expected).max() <= 1e-3 * np.ptp(expected)


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
