"""The calibration data of a pack, normalized as its configuration says: what the tool feeds to the
model, float32 [images, 3, height, width], or channels last where the configuration says so.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Float = npt.NDArray[np.float32]
RKNN = ("mean_values", "std_values", "quant_img_RGB2BGR")


def rdk_x5(folder: Path) -> Float:
    text = (folder / "net.yaml").read_text()
    mean, scale = (
        np.array(re.findall(rf"{key}: '([^']*)'", text)[0].split(), np.float64)
        for key in ("mean_value", "scale_value")
    )
    (data,) = re.findall(r"cal_data_dir: '([^']*)'", text)
    files = sorted((folder / data).iterdir())
    pixels = np.stack([np.fromfile(path, np.float32) for path in files])
    if "input_layout_train: 'NHWC'" in text:
        pixels = pixels.reshape(-1, 16, 16, 3)
        return normalized(pixels, mean, 1 / scale, "NHWC")
    pixels = pixels.reshape(-1, 3, 16, 16)
    return np.asarray((pixels - mean[:, None, None]) * scale[:, None, None], np.float32)


def rknn(folder: Path) -> Float:
    values: dict[str, Any] = {}
    for node in ast.walk(ast.parse((folder / "convert.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg in RKNN:
            values[node.arg] = ast.literal_eval(node.value)
    assert values["quant_img_RGB2BGR"] is False
    names = (folder / "dataset.txt").read_text().split()
    pixels = np.stack([image(folder / name) for name in names])
    return normalized(pixels, values["mean_values"][0], values["std_values"][0])


def sophgo(folder: Path) -> Float:
    words = shlex.split((folder / "01_check.sh").read_text(), comments=True)
    mean, scale = (
        np.array(words[words.index(option) + 1].split(","), float)
        for option in ("--mean", "--scale")
    )
    assert words[words.index("--pixel_format") + 1] == "rgb"
    layout = words[words.index("--channel_format") + 1].upper()
    files = sorted((folder / "calibration").iterdir())
    pixels = np.stack([image(path) for path in files])
    return normalized(pixels, mean, 1 / scale, layout)


def hailo(folder: Path) -> Float:
    text = (folder / "net.alls").read_text()
    found = re.search(r"= normalization\(\[(.*?)\], \[(.*?)\]\)", text)
    assert found is not None
    mean, std = (np.array(part.split(","), float) for part in found.groups())
    pixels = np.load(folder / "calibration.npy")
    assert pixels.dtype == np.uint8
    return normalized(pixels, mean, std)


def qdq(folder: Path) -> Float:
    inputs: Float = np.load(folder / "inputs.npy")
    if (folder / "config.json").exists():
        np.testing.assert_allclose(axera(folder), inputs, rtol=0, atol=2e-6)
    return inputs


def axera(folder: Path) -> Float:
    document = json.loads((folder / "config.json").read_text())
    (settings,) = document["quant"]["input_configs"]
    images = []
    with tarfile.open(folder / settings["calibration_dataset"]) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            images.append(np.asarray(Image.open(io.BytesIO(file.read()))))
    (processor,) = document["input_processors"]
    return normalized(
        np.stack(images),
        settings["calibration_mean"],
        settings["calibration_std"],
        processor["tensor_layout"],
    )


def image(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened)


def normalized(
    pixels: npt.NDArray[Any], mean: Any, std: Any, layout: str = "NCHW"
) -> Float:
    """(pixels - mean) / std of [n, height, width, 3], in the order of axes `layout`."""
    values = (pixels - np.asarray(mean)) / np.asarray(std)
    axes = (0, 1, 2, 3) if layout == "NHWC" else (0, 3, 1, 2)
    return np.asarray(values.transpose(axes), np.float32)


READERS: dict[str, Callable[[Path], Float]] = {
    "rdk-x5": rdk_x5,
    "rknn": rknn,
    "sophgo": sophgo,
    "hailo": hailo,
    "qdq": qdq,
}
