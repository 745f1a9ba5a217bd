"""Preprocess: how an image becomes the input tensor of a model, and whether a graph takes it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import onnx

from repzoo.errors import InputError
from repzoo.onnx_file import classifier_input
from repzoo.settings import between, setting, validate

MAX_SIDE = 4096  # pixels of a model's input
# Limit of mean, std and 1 / std: far beyond what images need, and far within float32.
_LARGEST = 1e6

# Element types of an input that takes normalized pixels, and of one that takes bytes. Engines
# convert float32 arrays to the narrower ones.
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
BYTES = (onnx.TensorProto.UINT8,)
CHANNELS = (1, 3)
# Fields of Preprocess that no graph states, and how an assumed value is put in words.
ASSUMABLE = {
    "mean": "mean of ImageNet",
    "std": "std of ImageNet",
    "resize": "resize {}",
    "crop_fraction": "crop fraction {:g}",
    "interpolation": "{} filter",
    "color": "{} order",
}

Resize = Literal["short", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR", "GRAY"]
Layout = Literal["NCHW", "NHWC"]
Size = int | tuple[int, int]  # the side of a square, or (height, width)
Input = Literal["float", "uint8", "nv12"]
Orientation = Literal["ignore", "apply"]
Yuv = Literal["bt601-full", "bt601-limited", "bt709-full", "bt709-limited"]
# Input fields of Preprocess that files leave out where they have these values. Most models do, and
# their files stay as they were before the field existed.
_INPUT_DEFAULTS = {
    "input": "float",
    "yuv": "bt601-full",
    "orientation": "ignore",
    "layout": "NCHW",
}


def parse_size(text: str) -> Size:
    """The size in a text: "224" is a square, "48x192" is 48 high and 192 wide.

    Raises:
        ValueError: neither of the two, or sides beyond MAX_SIDE.
    """
    match = re.fullmatch(r"(\d{1,9})(?:[xX](\d{1,9}))?", text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a size; expected pixels such as 224, or height x width such as "
            "48x192"
        )
    sides = [int(side) for side in match.groups() if side is not None]
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"{text!r} is not in the range of 1 to {MAX_SIDE} pixels")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def size_text(size: Size | Sequence[int]) -> str:
    """A size in words, height first: "224x224"."""
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"


# Of timm's data config, those that from_timm needs.
TIMM_FIELDS = ("input_size", "crop_pct", "interpolation", "mean", "std")
TIMM_RESIZES: dict[str, Resize] = {"center": "short", "squash": "squash"}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input tensor.

    `size` is the side of a square, or (height, width). `crop_fraction` is timm's `crop_pct`: the
    image is resized to `resize_to` and its center cropped, with torchvision's `Resize(int)`
    ("short") or `Resize((h, w))` ("squash"). `mean` and `std` are in the order of `color`. GRAY is
    one channel, the luma of ITU-R BT.601; its mean and std are the average of the three values, as
    in timm. The tensor of one batch is, by `input`:

    float  float32 [N, C, H, W] (NHWC: [N, H, W, C]): pixels scaled to 0..1, then (x - mean) / std
    uint8  uint8 [N, H, W, C]: the pixels; the graph does the arithmetic
    nv12   uint8 [N, H * 3 / 2, W, 1]: the luma rows, below them the interleaved chroma; the
           graph does the arithmetic
    """

    size: Size = setting(
        224,
        help="Input size in pixels: the side of a square, or HEIGHTxWIDTH.",
        range=between(1, MAX_SIDE),
        parse=parse_size,
    )
    resize: Resize = setting(
        "short",
        help="short: resize the short side to size / crop fraction; squash: both sides.",
    )
    crop_fraction: float = setting(
        0.875,
        help="Input size divided by the size after resizing.",
        range=between(0.05, 1),
    )
    interpolation: Interpolation = setting(
        "bilinear", help="Resampling filter, antialiased."
    )
    mean: tuple[float, float, float] = setting(
        (0.485, 0.456, 0.406),
        help="Mean of each channel, in units of 0..1.",
        range=between(-_LARGEST, _LARGEST),
    )
    std: tuple[float, float, float] = setting(
        (0.229, 0.224, 0.225),
        help="Standard deviation of each channel, in units of 0..1.",
        range=between(1 / _LARGEST, _LARGEST),
    )
    color: Color = setting(
        "RGB", help="Channels of the input tensor, in order; GRAY is one channel."
    )
    input: Input = setting(
        "float", help="Input tensor: normalized floats, uint8 pixels, or NV12."
    )
    yuv: Yuv = setting("bt601-full", help="Color matrix and range of NV12.")
    orientation: Orientation = setting(
        "ignore",
        help="EXIF orientation tag of an image: ignored as by torchvision and timm, or applied.",
    )
    layout: Layout = setting(
        "NCHW", help="Axes of a float input: channels first, or last (NHWC)."
    )

    def __post_init__(self) -> None:
        """Refuse values that no image could be prepared with."""
        validate(self, "preprocess")
        if self.height == self.width:
            # One value for one size: a pair of equal sides is the same square.
            object.__setattr__(self, "size", self.height)
        if self.input == "nv12" and (self.height % 2 or self.width % 2):
            raise InputError(
                "NV12 has one chroma value for 2x2 pixels, so its sides must be even; "
                f"got size {size_text(self.size)}"
            )
        if self.input == "nv12" and self.color == "GRAY":
            raise InputError("NV12 is a color format; take RGB or BGR for it, not GRAY")
        if self.input != "float" and self.layout != "NCHW":
            raise InputError(
                f"preprocess layout belongs to the input float; {self.input} has one layout only"
            )
        if self.input != "nv12" and self.yuv != "bt601-full":
            raise InputError(
                f"preprocess yuv belongs to the input nv12; got {self.yuv} for the input "
                f"{self.input}"
            )

    @property
    def height(self) -> int:
        """Height of the input, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Width of the input, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def channels(self) -> int:
        """Color channels of the input: 3, or 1 for GRAY."""
        return 1 if self.color == "GRAY" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Sides of one image's tensor."""
        if self.input == "nv12":
            return (self.height * 3 // 2, self.width, 1)
        if self.input == "uint8" or self.layout == "NHWC":
            return (self.height, self.width, self.channels)
        return (self.channels, self.height, self.width)

    @property
    def resize_to(self) -> Size:
        """Size in pixels before the crop: floor(size / crop_fraction), as timm computes it."""
        height = math.floor(self.height / self.crop_fraction)
        width = math.floor(self.width / self.crop_fraction)
        return height if height == width else (height, width)

    def sees_as(self, other: Self) -> bool:
        """Whether both prepare images alike.

        Pixels must be equal. Normalization must be equal too if neither graph does it.
        """
        names = ["size", "resize", "crop_fraction", "interpolation", "orientation"]
        if self.input == other.input == "float":
            names += ["mean", "std", "color"]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def document(self) -> dict[str, Any]:
        """Plain values for a file, without input fields that have their defaults."""
        values = dataclasses.asdict(self)
        return {
            key: value
            for key, value in values.items()
            if _INPUT_DEFAULTS.get(key) != value
        }

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Self:
        """Preprocessing as timm describes it, from `timm.data.resolve_model_data_config(model)`.

        Raises:
            InputError: no such description, or a value that is not accepted.
        """
        missing = [name for name in TIMM_FIELDS if name not in config]
        if missing:
            raise InputError(
                f"timm's data config has no {missing[0]!r}; give what "
                "timm.data.resolve_model_data_config(model) returns"
            )
        mode = config.get("crop_mode", "center")
        if mode not in TIMM_RESIZES:
            raise InputError(
                f"crop_mode {mode!r} of timm's data config is not supported; expected "
                f"{' or '.join(TIMM_RESIZES)}"
            )
        _, height, width = config["input_size"]
        return cls.from_mapping(
            {
                "size": height if height == width else (height, width),
                "resize": TIMM_RESIZES[mode],
                "crop_fraction": config["crop_pct"],
                "interpolation": config["interpolation"],
                "mean": config["mean"],
                "std": config["std"],
            }
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain JSON or TOML values.

        Raises:
            InputError: an unknown field, or a value of the wrong type.
        """
        # Files of pre-release versions spell it "colour".
        values = {
            "color" if key == "colour" else key: value for key, value in values.items()
        }
        known = sorted(item.name for item in dataclasses.fields(cls))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(
                f"unknown preprocess field {unknown[0]!r}; expected some of {', '.join(known)}"
            )
        fields: dict[str, Any] = dict(values)
        try:
            for key in {"mean", "std"} & fields.keys():
                fields[key] = tuple(map(float, fields[key]))
            size = fields.get("size")
            if isinstance(size, list):
                fields["size"] = tuple(size)
            elif isinstance(size, str) and "x" in size.lower():
                fields["size"] = parse_size(size)
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"preprocess values are of the wrong type: {error}"
            ) from None


def require_input_fits(
    model: onnx.ModelProto, preprocess: Preprocess, name: str
) -> None:
    """Refuse a preprocessing whose tensor the graph does not take.

    Otherwise each engine would fail with its own message, or broadcast.
    """
    tensor = classifier_input(model).type.tensor_type
    expected_types = FLOATS if preprocess.input == "float" else BYTES
    expected = preprocess.input_shape
    # Where the graph states no shape, any will do.
    sides = [dim.dim_value for dim in tensor.shape.dim][1:] or [0, 0, 0]
    pairs = list(zip(sides, expected, strict=True))
    is_type = tensor.elem_type in expected_types
    if is_type and all(side in (0, wanted) for side, wanted in pairs):
        return
    stated = preprocess_of_graph(model, preprocess.input)
    size = stated.get("size", preprocess.size)
    if is_type and replace(preprocess, size=size).input_shape == tuple(sides):
        raise InputError(
            f"{name} takes images of {size_text(size)} pixels (height x width), but its "
            f"preprocessing makes {size_text(preprocess.size)}; give "
            f"--size {size if isinstance(size, int) else size_text(size)}, or export it again"
        )
    element = _type_name(tensor.elem_type)
    expected_element = _type_name(expected_types[0])
    shape = ", ".join(str(side) if side else "?" for side in sides)
    expected_shape = ", ".join(map(str, expected))
    raise InputError(
        f"{name} takes {element} [N, {shape}], but its preprocessing makes {expected_element} "
        f"[N, {expected_shape}] ({preprocess.input}); give --input, --size, --color and --layout "
        "as the file wants them (repzoo embed-input changes what a file wants)"
    )


def _type_name(element: int) -> str:
    """The name of a type in TensorProto; of one that ONNX does not know, its number."""
    known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
    return known[element].name.lower() if element in known else f"type {element}"


def preprocess_of_graph(model: onnx.ModelProto, kind: str = "") -> dict[str, Any]:
    """The fields of Preprocess that the graph states: input, size, color and layout.

    kind  the input, where it is known; bytes of one channel may be a gray image or NV12

    A field that is open in the graph, or that has its default value, is left out.

    Raises:
        InputError: not a classifier.
    """
    tensor = classifier_input(model).type.tensor_type
    sides = tuple(dim.dim_value for dim in tensor.shape.dim)[1:]
    if len(sides) != 3:
        return {}
    stated: dict[str, Any] = {}
    if tensor.elem_type in BYTES:
        stated["input"] = kind or "uint8"
    if stated.get("input") == "nv12":
        rows, width, _ = sides
        height, channels = rows * 2 // 3, 3
    elif "input" in stated or is_channels_last(sides):
        height, width, channels = sides
    else:
        channels, height, width = sides
    if "input" not in stated and is_channels_last(sides):
        stated["layout"] = "NHWC"
    if channels == 1:
        stated["color"] = "GRAY"
    if height and width:
        stated["size"] = height if height == width else (height, width)
    return stated


def is_channels_last(sides: tuple[int, ...]) -> bool:
    """Whether the sides of a float image are [H, W, C]: only the last is a number of channels."""
    return sides[0] not in CHANNELS and sides[2] in CHANNELS
