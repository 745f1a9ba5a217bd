"""Real components: EfficientNet-Lite0 with its ImageNet weights on photographs, through every engine.

Every fourth of the 1,000 photographs: Top-1 of so many varies by 2 points (one standard deviation), what engines differ by does not.
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

FAST = (
    "onnxruntime",
    "openvino",
    "mnn",
)  # the others take minutes for 1,000 images; they are held to PyTorch's logits below
FEW = {"reference": 2}
EVERY = 4
PUBLISHED = 88.0  # of PyTorch on all 1,000 images, percent

pytestmark = pytest.mark.timeout(900)  # half a minute on two free cores


def sample() -> Dataset:
    return lite0.sample().subset(range(0, 1000, EVERY))


def inputs_of(count: int) -> Array:
    some = lite0.sample().subset(range(0, 1000, 1000 // count))
    return np.concatenate(
        [batch.inputs for batch in batches(some, lite0.PREPROCESS, 32, ReadReport())]
    )


@pytest.fixture(scope="module")
def logits() -> Mapping[str, Array]:
    """Each fast engine's logits [250, 1000] of the folded model; every photograph is decoded once, 40 are held at a time."""
    folded = verbs.fold(lite0.artifact()).model
    sessions = {}
    for name in FAST:
        try:
            sessions[name] = engine(name).open(folded, 2)
        except MissingExtra:
            continue
    found: dict[str, list[Array]] = {name: [] for name in sessions}
    for batch in batches(sample(), lite0.PREPROCESS, 40, ReadReport()):
        for name, session in sessions.items():
            found[name].append(session.run(batch.inputs))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("name", FAST)
def test_top1_is_pytorchs(logits: Mapping[str, Array], name: str) -> None:
    if name not in logits:
        pytest.skip(f"{name} is not installed")
    labels, data = lite0.artifact().labels, sample()
    targets = [labels.index(data.classes[target]) for target in data.targets]
    assert len(targets) == 250
    assert 100 * np.mean(logits[name].argmax(1) == targets) == pytest.approx(PUBLISHED, abs=4)
    assert np.mean(logits[name].argmax(1) == logits["onnxruntime"].argmax(1)) >= 0.995


@pytest.mark.parametrize("name", ENGINES.names())
def test_logits_agree_with_pytorchs(name: str) -> None:
    module, inputs = lite0.module(), inputs_of(FEW.get(name, 20))
    import torch

    with torch.inference_mode():
        expected = module(torch.from_numpy(inputs)).numpy()
    try:
        runner = engine(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    found = runner.open(lite0.artifact().model, 2).run(inputs)
    assert np.abs(found - expected).max() <= 1e-3 * np.ptp(expected)


def test_every_key_is_renamed_to_one_of_its_own() -> None:
    """Mutant: two keys swapped between blocks of one shape would still load; the logits above would not agree."""
    assert lite0.timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert lite0.timm_name("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"
    assert lite0.timm_name("_bn1.bias") == "bn2.bias"
    with pytest.raises(KeyError):
        lite0.timm_name("_blocks.0._expand_conv.weight")
