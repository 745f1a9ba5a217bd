"""Checkpoints as the authors' own code names them, filled by rule, and the logits that their
own code computed from them.

The rule draws each tensor from its name, so that a wrong name, order or shape gives other logits.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

FIXTURES = (
    Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "checkpoints"
)
State = dict[str, npt.NDArray[Any]]


def fixture(name: str) -> dict[str, Any]:
    path = FIXTURES / f"{name}.json"
    if not path.is_file():
        pytest.skip(
            "the checkpoint fixtures are not beside this checkout (../shared/fixtures)"
        )
    return dict(json.loads(path.read_text(encoding="utf-8")))


def fill(shapes: Mapping[str, Iterable[int]], gain: float) -> State:
    """The fill rule of the fixtures."""
    return {key: _draw(key, tuple(shape), gain) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...], gain: float) -> npt.NDArray[Any]:
    random = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = 0.1 * random.standard_normal(shape)
    elif len(shape) > 1:
        value = random.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = random.uniform(0.7, 1.3, shape)
    else:
        value = 0.1 * random.standard_normal(shape)
    return np.asarray(value, np.float32)


def inputs(shape: Iterable[int], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)


def repvgg_name(name: str) -> str:
    """timm's name of a RepVGG tensor as the authors write it."""
    name = re.sub(
        r"^stages\.(\d+)", lambda match: f"stage{int(match[1]) + 1}", name
    ).replace("stem.", "stage0.")
    name = (
        name.replace("conv_kxk", "rbr_dense")
        .replace("conv_1x1", "rbr_1x1")
        .replace(".identity.", ".rbr_identity.")
    )
    return (
        name.replace("reparam_conv", "rbr_reparam")
        .replace("attn.fc1", "se.down")
        .replace("attn.fc2", "se.up")
        .replace("head.fc", "linear")
    )


def repvggplus_name(name: str) -> str:
    """timm's name as RepVGGplus-L2pse has it: its third stage is cut in two after twelve blocks."""

    def stage(match: re.Match[str]) -> str:
        number, block = int(match[1]) + 1, int(match[2])
        part = ("_first", "_second")[block // 12] if number == 3 else ""
        return f"stage{number}{part}.blocks.{block % 12 if number == 3 else block}"

    return repvgg_name(re.sub(r"^stages\.(\d+)\.(\d+)", stage, name)).replace(
        ".se.", ".post_se."
    )


def fasternet_name(name: str) -> str:
    name = re.sub(
        r"^stages\.(\d)\.blocks",
        lambda match: f"stages.{2 * int(match[1])}.blocks",
        name,
    )
    name = re.sub(
        r"^stages\.(\d)\.downsample",
        lambda match: f"stages.{2 * int(match[1]) - 1}",
        name,
    )
    return name.replace("conv_head", "avgpool_pre_head.1").replace("classifier", "head")


def repvit_name(names: Iterable[str]) -> Callable[[str], str]:
    """The THU names; blocks are numbered through in the order in which the network runs them."""
    pattern = re.compile(
        r"^stages\.\d+\.(?:downsample\.pre_block|downsample|blocks\.\d+)"
    )
    blocks: list[str] = []
    for name in names:
        if (match := pattern.match(name)) and match[0] not in blocks:
            blocks.append(match[0])
    numbers = {block: index for index, block in enumerate(blocks, 1)}

    def rename(name: str) -> str:
        if not (match := pattern.match(name)):
            name = name.replace("stem.conv1", "features.0.0").replace(
                "stem.conv2", "features.0.2"
            )
            name = name.replace("head.head_dist", "classifier.classifier_dist").replace(
                "head.head", "classifier.classifier"
            )
            return re.sub(r"^head\.", "classifier.", name)
        rest = name[match.end() + 1 :]
        rest = (
            rest.replace("spatial_downsample", "token_mixer.0")
            .replace("channel_downsample", "token_mixer.2")
            .replace("ffn", "channel_mixer")
        )
        rest = re.sub(r"^token_mixer\.(?=conv|bn|weight|bias)", "token_mixer.0.", rest)
        rest = re.sub(
            r"^channel_mixer\.conv([12])",
            lambda part: f"channel_mixer.m.{2 * int(part[1]) - 2}",
            rest,
        )
        return (
            f"features.{numbers[match[0]]}.{rest.replace('se.fc', 'token_mixer.1.fc')}"
        )

    return rename


def mmpretrain_name(name: str) -> str:
    name = re.sub(
        r"^stages\.(\d+)", lambda match: f"backbone.stage_{int(match[1]) + 1}", name
    ).replace("stem.", "backbone.stem.")
    name = re.sub(r"\.attn\.fc([12])", r".se_layer.conv\1.conv", name)
    name = (
        name.replace("conv_kxk", "branch_3x3")
        .replace("conv_1x1", "branch_1x1")
        .replace(".bn.", ".norm.")
    )
    return name.replace(".identity.", ".branch_norm.").replace(
        "reparam_conv", "branch_reparam"
    )


def paddle(state: Mapping[str, npt.NDArray[Any]]) -> State:
    """As PaddleClas saves an official state: other names of statistics, no counters, linear
    layers [in, out].
    """
    kept = {
        key: value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    renamed = {
        key.replace("running_mean", "_mean").replace("running_var", "_variance"): value
        for key, value in kept.items()
    }
    return {
        key: np.ascontiguousarray(value.T) if value.ndim == 2 else value
        for key, value in renamed.items()
    }
