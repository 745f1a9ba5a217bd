"""Classify images on an RDK X5, prepared exactly as the model was trained and quantized.

This file runs on the board. It needs numpy, OpenCV, and the board's own runtime: hbm_runtime, or
hobot_dnn. The settings are in model.json, the names of the classes in labels.txt.

    Classifier(Config.read("model.json")).predict(read_image("cat.jpg"))

Images are resized with an antialiasing filter in the same integer arithmetic as Pillow, cropped in
the center, and converted to NV12 in full range BT.601, which is what `input_type_rt: nv12` means.
Do not use cv2.COLOR_BGR2YUV_I420: it makes the limited range of video, with paler colors.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

# BT.601 in full range: (Y, U, V) = MATRIX @ (R, G, B) + OFFSET, all in 0..255.
RED, BLUE = 0.299, 0.114
LUMA = np.array([RED, 1 - RED - BLUE, BLUE])
MATRIX = np.stack(
    [
        LUMA,
        (np.array([0, 0, 1]) - LUMA) / (2 * (1 - BLUE)),
        (np.array([1, 0, 0]) - LUMA) / (2 * (1 - RED)),
    ]
)
OFFSET = np.array([0.0, 128, 128])
PRECISION = 22  # bits of a filter's weights behind the point, as in Pillow
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Config:
    """How images are prepared, and where the files are.

    Attributes:
        model_path: the .bin.
        height, width: of the model's input, in pixels.
        resize: "short" keeps the aspect ratio, "squash" does not.
        resize_to: (height, width) that are covered before the center is cropped.
        interpolation: nearest, bilinear, bicubic or lanczos.
        orientation: "apply" turns images as their EXIF tag says, "ignore" does not.
        gray: the model takes luma only.
        pillow: the major version of Pillow that prepared the calibration images.
        probabilities: the model's outputs are probabilities already.
        labels: names of the classes; may be empty.
    """

    model_path: str
    height: int
    width: int
    resize: str
    resize_to: tuple[int, int]
    interpolation: str
    orientation: str
    gray: bool
    pillow: int
    probabilities: bool
    labels: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, labels: str | Path | None = None) -> Config:
        """The settings in model.json, with the lines of labels.txt as names of the classes."""
        path = Path(path)
        values = json.loads(path.read_text("utf-8"))
        model_path = path.parent / values.pop("model_path")
        values["resize_to"] = tuple(values["resize_to"])
        names: list[str] = []
        if labels is not None and Path(labels).is_file():
            names = Path(labels).read_text("utf-8").splitlines()
        return cls(model_path=str(model_path), labels=tuple(names), **values)

    def name(self, index: int) -> str:
        """The name of a class."""
        return self.labels[index] if index < len(self.labels) else f"class {index}"


class Classifier:
    """A compiled model with its preprocessing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._run = open_runtime(config.model_path)

    def set_scheduling_params(
        self, priority: int | None = None, bpu_cores: Sequence[int] | None = None
    ) -> None:
        """Pass a priority (0 to 255) and BPU cores on to hbm_runtime."""
        self._run.schedule(priority, bpu_cores)

    def pre_process(self, image: Bytes) -> Bytes:
        """BGR uint8 [H, W, 3] as the model's input; see `model_input`."""
        return model_input(image, self.config)

    def forward(self, tensor: Bytes) -> Float:
        """The outputs [classes] for one input."""
        return np.asarray(self._run(tensor), np.float64).reshape(-1)

    def post_process(self, outputs: Float, top: int = 5) -> list[tuple[int, float]]:
        """The `top` classes with their probabilities, best first."""
        return best_classes(outputs, self.config, top)

    def predict(self, image: Bytes, top: int = 5) -> list[tuple[int, float]]:
        """The `top` classes of a BGR image, with their probabilities."""
        return self.post_process(self.forward(self.pre_process(image)), top)

    def __call__(self, image: Bytes, top: int = 5) -> list[tuple[int, float]]:
        """As `predict`."""
        return self.predict(image, top)


def best_classes(
    outputs: Float, config: Config, top: int = 5
) -> list[tuple[int, float]]:
    """The `top` classes with their probabilities, best first, from outputs [classes]."""
    probabilities = outputs if config.probabilities else softmax(outputs)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(int(index), float(probabilities[index])) for index in order]


def softmax(outputs: Float) -> Float:
    """Probabilities from logits."""
    powers = np.exp(outputs - outputs.max())
    return np.asarray(powers / powers.sum())


def read_image(path: str | Path, orientation: str = "ignore") -> Bytes:
    """The pixels of an image file, BGR uint8 [H, W, 3].

    Raises:
        ValueError: it is no image that OpenCV reads.
    """
    cv2: Any = importlib.import_module("cv2")
    flags = cv2.IMREAD_COLOR
    if orientation == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f"{path} is no image that OpenCV reads")
    return np.asarray(image, np.uint8)


def model_input(image: Bytes, config: Config) -> Bytes:
    """BGR uint8 [H, W, 3] as NV12 uint8 [1, height * 3 / 2, width, 1]; gray [1, height, width, 1].

    Raises:
        ValueError: an array of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected BGR pixels, uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}"
        )
    pixels = resize_and_crop(np.ascontiguousarray(image[..., ::-1]), config)
    if config.gray:
        return gray(pixels)[None, :, :, None]
    return nv12(pixels)[None, :, :, None]


def resize_and_crop(pixels: Bytes, config: Config) -> Bytes:
    """RGB uint8 [H, W, 3] in the size of the model's input."""
    height, width = resized_size(pixels.shape[0], pixels.shape[1], config)
    pixels = resize(pixels, height, width, config.interpolation, config.pillow)
    top = round((height - config.height) / 2)
    left = round((width - config.width) / 2)
    return pixels[top : top + config.height, left : left + config.width]


def resized_size(height: int, width: int, config: Config) -> tuple[int, int]:
    """(height, width) after resizing an image, before the crop."""
    rows, columns = config.resize_to
    if config.resize == "squash":
        return rows, columns
    if rows != columns:
        ratio = min(height / rows, width / columns)
        return max(round(height / ratio), rows), max(round(width / ratio), columns)
    if width <= height:
        return int(rows * height / width), rows
    return rows, int(rows * width / height)


def resize(
    pixels: Bytes, height: int, width: int, interpolation: str, pillow: int
) -> Bytes:
    """`pixels` [H, W, 3] with other sides, one after the other, as that version of Pillow does."""
    if interpolation == "nearest":
        rows = _nearest(pixels.shape[0], height)
        return pixels[rows][:, _nearest(pixels.shape[1], width)]
    axes = [1, 0]
    # Values are rounded in between, so the order counts. Pillow 13 begins with the height where
    # that takes away more than twice as many pixels. (Measured; earlier versions never do.)
    lost_rows, lost_columns = pixels.shape[0] - height, pixels.shape[1] - width
    if pillow >= 13 and lost_rows > max(2 * lost_columns, 0):
        axes = [0, 1]
    for axis in axes:
        target = width if axis else height
        if pixels.shape[axis] != target:
            moved = _resize_rows(pixels.swapaxes(0, axis), target, interpolation)
            pixels = moved.swapaxes(0, axis)
    return pixels


def _nearest(side: int, target: int) -> npt.NDArray[np.int64]:
    positions = np.floor((np.arange(target) + 0.5) * (side / target))
    nearest: npt.NDArray[np.int64] = np.minimum(positions, side - 1).astype(np.int64)
    return nearest


def _resize_rows(pixels: Bytes, target: int, interpolation: str) -> Bytes:
    """`pixels` [side, ...] with `target` rows, in fixed-point arithmetic."""
    starts, weights = filter_weights(pixels.shape[0], target, interpolation)
    sums = np.full((target, *pixels.shape[1:]), 1 << (PRECISION - 1), np.int64)
    for tap in range(weights.shape[1]):
        # Beyond the last row the weight is 0.
        rows = pixels[np.minimum(starts + tap, pixels.shape[0] - 1)]
        sums += rows * weights[:, tap, None, None]
    rounded: Bytes = np.clip(sums >> PRECISION, 0, 255).astype(np.uint8)
    return rounded


def filter_weights(
    side: int, target: int, interpolation: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(first source row [target], weights [target, taps]) of a filter, as integers.

    Where the image shrinks, the filter is as wide as the source rows of one target row.
    """
    support, shape = FILTERS[interpolation]
    scale = side / target
    stretch = max(scale, 1.0)
    taps = math.ceil(support * stretch) * 2 + 1
    starts = np.zeros(target, np.int64)
    weights = np.zeros((target, taps), np.int64)
    for index in range(target):
        center = (index + 0.5) * scale
        low = max(int(center - support * stretch + 0.5), 0)
        high = min(int(center + support * stretch + 0.5), side)
        values = [
            shape((row - center + 0.5) * (1 / stretch)) for row in range(low, high)
        ]
        total = sum(values)
        starts[index] = low
        for tap, value in enumerate(values):
            share = value / total * (1 << PRECISION)
            weights[index, tap] = int(share + math.copysign(0.5, share))
    return starts, weights


def _bilinear(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


# Half the width of each filter where the image does not shrink, and its shape.
FILTERS: Mapping[str, tuple[float, Callable[[float], float]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}


def nv12(pixels: Bytes) -> Bytes:
    """RGB uint8 [H, W, 3], H and W even, as NV12 uint8 [H * 3 / 2, W]."""
    height, width, _ = pixels.shape
    planes = pixels.astype(np.float64) @ MATRIX.T + OFFSET
    blocks = planes[..., 1:].reshape(height // 2, 2, width // 2, 2, 2)
    chroma = blocks.mean((1, 3)).reshape(height // 2, width)
    rows = np.concatenate([planes[..., 0], chroma])
    rounded: Bytes = np.clip(np.rint(rows), 0, 255).astype(np.uint8)
    return rounded


def gray(pixels: Bytes) -> Bytes:
    """RGB uint8 [H, W, 3] as luma uint8 [H, W], in Pillow's fixed point."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    return np.asarray(
        (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16, np.uint8
    )


class Runtime:
    """One of the board's runtimes with a model; called with an input, it returns the outputs."""

    def __call__(self, tensor: Bytes) -> Any:
        """The outputs for one input."""
        raise NotImplementedError

    def schedule(self, priority: int | None, bpu_cores: Sequence[int] | None) -> None:
        """Set what the runtime can be told; hobot_dnn can be told nothing."""


class HbmRuntime(Runtime):
    """hbm_runtime, as the board's newer system images have it."""

    def __init__(self, module: Any, path: str) -> None:
        self._model = module.HB_HBMRuntime(path)
        self._name = self._model.model_names[0]
        self._input = self._model.input_names[self._name][0]
        self._output = self._model.output_names[self._name][0]

    def __call__(self, tensor: Bytes) -> Any:
        """The outputs for one input."""
        results = self._model.run({self._name: {self._input: tensor}})
        return results[self._name][self._output]

    def schedule(self, priority: int | None, bpu_cores: Sequence[int] | None) -> None:
        """Set the priority and the cores of the model."""
        values: dict[str, Any] = {}
        if priority is not None:
            values["priority"] = {self._name: priority}
        if bpu_cores is not None:
            values["bpu_cores"] = {self._name: list(bpu_cores)}
        if values:
            self._model.set_scheduling_params(**values)


class HobotDnn(Runtime):
    """hobot_dnn.pyeasy_dnn, or the same module from PyPI: hobot_dnn_rdkx5."""

    def __init__(self, module: Any, path: str) -> None:
        self._model = module.load(path)[0]

    def __call__(self, tensor: Bytes) -> Any:
        """The outputs for one input."""
        return self._model.forward(tensor.reshape(-1))[0].buffer


RUNTIMES: tuple[tuple[str, Callable[[Any, str], Runtime]], ...] = (
    ("hbm_runtime", HbmRuntime),
    ("hobot_dnn.pyeasy_dnn", HobotDnn),
    ("hobot_dnn_rdkx5.pyeasy_dnn", HobotDnn),
)


def open_runtime(path: str) -> Runtime:
    """The first runtime that the board has, with the model at `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no runtime.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is not there; build it with 02_build.sh on a PC and copy it to the board"
        )
    for name, runtime in RUNTIMES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return runtime(module, path)
    names = ", ".join(name.partition(".")[0] for name, _ in RUNTIMES)
    raise ImportError(f"none of {names} is installed; this program runs on the board")


def image_paths(folder: str | Path) -> Iterator[Path]:
    """The images below `folder`, sorted by path."""
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def result_lines(
    path: str | Path, best: Sequence[tuple[int, float]], config: Config
) -> str:
    """A line for each class of `best`, as `repzoo evaluate --result` reads it."""
    lines: list[str] = []
    for rank, (index, probability) in enumerate(best, 1):
        name = " ".join(config.name(index).split())
        lines.append(
            f"{path}: Relay top-{rank} id: {index}, prob: {probability:.8f}, "
            f"class name: {name}\n"
        )
    return "".join(lines)


def draw(image: Bytes, best: Sequence[tuple[int, float]], config: Config) -> Bytes:
    """A copy of a BGR image with the best classes written on it."""
    cv2: Any = importlib.import_module("cv2")
    picture = image.copy()
    size = max(min(image.shape[:2]) / 500, 0.4)
    font = cv2.FONT_HERSHEY_SIMPLEX
    for row, (index, probability) in enumerate(best, 1):
        text = f"{config.name(index)}: {100 * probability:.1f} %"
        place = (int(10 * size), int(32 * size * row))
        # A dark outline keeps the text readable on bright pictures.
        for color, thickness in (((0, 0, 0), 4 * size), ((255, 255, 255), 1.5 * size)):
            width = max(round(thickness), 1)
            cv2.putText(picture, text, place, font, size, color, width, cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
