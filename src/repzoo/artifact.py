"""Artifact: a classifier as one ONNX file with everything needed to use it.

Preprocessing, labels and the history of steps live in the file's metadata
(`ModelProto.metadata_props`), so that no command needs a side file. Keys: `repzoo.preprocess`,
`repzoo.labels`, `repzoo.steps`, `repzoo.certificate`; each value is a JSON text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import onnx

from repzoo import onnx_file
from repzoo.errors import InputError
from repzoo.onnx_file import class_count, classifier_input
from repzoo.protobuf_stream import chunks
from repzoo.settings import between, setting, validate
from repzoo.storage import json_text, read_bounded, sha256_of, write_atomically

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit for one message
MAX_SIDE = 4096  # pixels of a model's input
_PREFIX = "repzoo."
# Limit of mean, std and 1 / std: far beyond what images need, and far within float32.
_LARGEST = 1e6

Resize = Literal["short", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR"]
Form = Literal["train", "deploy", "int8"]
Input = Literal["float", "uint8", "nv12"]
Orientation = Literal["ignore", "apply"]
Yuv = Literal["bt601-full", "bt601-limited", "bt709-full", "bt709-limited"]
_ELEMENTS = {
    "float": onnx.TensorProto.FLOAT,
    "uint8": onnx.TensorProto.UINT8,
    "nv12": onnx.TensorProto.UINT8,
}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input tensor.

    `crop_fraction` is timm's `crop_pct`: the image is resized to `resize_to` and its center
    cropped, with torchvision's `Resize(int)` ("short") or `Resize((h, w))` ("squash").
    `mean` and `std` are in the order of `color`. The tensor of one batch is, by `input`:

    float  float32 [N, 3, H, W]: pixels scaled to 0..1, then (x - mean) / std
    uint8  uint8 [N, H, W, 3]: the pixels; the graph does the arithmetic
    nv12   uint8 [N, H * 3 / 2, W, 1]: the luma rows, below them the interleaved chroma; the
           graph does the arithmetic
    """

    size: int = setting(
        224, help="Side of the square input, in pixels.", range=between(1, MAX_SIDE)
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
    color: Color = setting("RGB", help="Channel order of the input tensor.")
    input: Input = setting(
        "float", help="Input tensor: normalized floats, uint8 pixels, or NV12."
    )
    yuv: Yuv = setting("bt601-full", help="Color matrix and range of NV12.")
    orientation: Orientation = setting(
        "ignore",
        help="EXIF orientation tag of an image: ignored as by torchvision and timm, or applied.",
    )

    def __post_init__(self) -> None:
        """Refuse values that no image could be prepared with."""
        validate(self, "preprocess")
        if self.input == "nv12" and self.size % 2:
            raise InputError(
                "NV12 has one chroma value for 2x2 pixels, so its sides must be even; "
                f"got size {self.size}"
            )
        if self.input != "nv12" and self.yuv != "bt601-full":
            raise InputError(
                f"preprocess yuv belongs to the input nv12; got {self.yuv} for the input "
                f"{self.input}"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Sides of one image's tensor."""
        size = self.size
        return {
            "float": (3, size, size),
            "uint8": (size, size, 3),
            "nv12": (size * 3 // 2, size, 1),
        }[self.input]

    @property
    def resize_to(self) -> int:
        """Side in pixels before the crop: floor(size / crop_fraction), as timm computes it."""
        return math.floor(self.size / self.crop_fraction)

    def sees_as(self, other: Self) -> bool:
        """Whether both prepare images alike.

        Pixels must be equal. Normalization must be equal too if neither graph does it.
        """
        names = ["size", "resize", "crop_fraction", "interpolation", "orientation"]
        if self.input == other.input == "float":
            names += ["mean", "std", "color"]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def document(self) -> dict[str, Any]:
        """Plain values for a file, without the later fields that have their defaults."""
        # Float inputs are the rule; leaving these out keeps the files of such models unchanged.
        defaults = {"input": "float", "yuv": "bt601-full", "orientation": "ignore"}
        values = dataclasses.asdict(self)
        return {
            key: value for key, value in values.items() if defaults.get(key) != value
        }

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
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"preprocess values are of the wrong type: {error}"
            ) from None


@dataclass(frozen=True)
class Step:
    """One entry of an artifact's history.

    verb          what was done, such as "fold"
    version       of repzoo
    settings      options that the result depends on
    input_sha256  hash of the artifact that it was done to
    """

    verb: str
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse values of a damaged file: the history is shown and written again."""
        texts = (self.verb, self.version, self.input_sha256)
        are_texts = all(isinstance(text, str) for text in texts)
        if not are_texts or not isinstance(self.settings, Mapping):
            raise InputError(
                f"a step has a verb, a version, settings and a hash; got {self}"
            )


@dataclass(frozen=True)
class Artifact:
    """A classifier in ONNX with everything needed to use it.

    Treat `model` as read-only: every operation returns a new artifact.

    preprocess  None for a file from elsewhere without repzoo metadata
    labels      class names in the order of the outputs; empty if unknown
    steps       history, oldest first
    extras      other JSON documents in the metadata, such as the certificate
    sha256      of the file's bytes; "" if it was not read from or written to a file
    """

    model: onnx.ModelProto
    name: str
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def read(cls, path: str | Path) -> Artifact:
        """Read an ONNX file made by repzoo or by any other tool.

        Raises:
            InputError: absent, too large, truncated, not ONNX, external weights, rejected by the
                ONNX checker, not a classifier, damaged metadata, or not one label per output.
        """
        path = Path(path)
        return cls.from_bytes(
            read_bounded(path, MAX_MODEL_BYTES), name=path.stem, where=str(path)
        )

    @classmethod
    def from_bytes(cls, data: bytes, name: str, where: str = "the model") -> Artifact:
        """Like `read`, from bytes in memory. `where` names them in errors."""
        model = onnx_file.parse(data, where)
        artifact = cls(
            model, name, sha256=sha256_of(data), **_metadata_of(model, where)
        )
        if artifact.labels and artifact.num_classes not in (0, len(artifact.labels)):
            raise InputError(
                f"{where} has {len(artifact.labels)} labels for {artifact.num_classes} outputs; "
                "export it again"
            )
        return artifact

    def to_bytes(self) -> bytes:
        """The ONNX file as bytes, with metadata. Equal artifacts give identical bytes."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The bytes of `to_bytes` in pieces: large models need no second copy in memory."""
        entries: list[onnx.StringStringEntryProto] = []
        for item in self.model.metadata_props:
            if not item.key.startswith(_PREFIX):
                entries.append(
                    onnx.StringStringEntryProto(key=item.key, value=item.value)
                )
        for key, value in self._documents().items():
            text = json_text(value, ensure_ascii=False, sort_keys=True)
            entries.append(onnx.StringStringEntryProto(key=_PREFIX + key, value=text))
        return chunks(self.model, metadata_props=entries)

    def save(self, path: str | Path) -> Self:
        """Write to `path` in one rename. Returns the artifact with the file's name and hash."""
        path = Path(path)
        write_atomically(path, self.chunks())
        return replace(self, name=path.stem, sha256=sha256_of(self.chunks()))

    def then(self, model: onnx.ModelProto, step: Step, **extras: Any) -> Self:
        """The artifact with a new graph and `step` added to its history."""
        step = replace(step, input_sha256=self.sha256)
        changed = replace(
            self,
            model=model,
            steps=(*self.steps, step),
            extras={**self.extras, **extras},
            sha256="",
        )
        return replace(changed, sha256=sha256_of(changed.chunks()))

    @property
    def form(self) -> Form:
        """int8 if it holds QuantizeLinear, train if a BatchNormalization is left, else deploy."""
        kinds = {node.op_type for node in self.model.graph.node}
        if "QuantizeLinear" in kinds:
            return "int8"
        return "train" if "BatchNormalization" in kinds else "deploy"

    @property
    def opset(self) -> int:
        """Version of the default ONNX operator set."""
        return onnx_file.opset_of(self.model)

    @property
    def input_name(self) -> str:
        """Name of the one input that is not an initializer."""
        return classifier_input(self.model).name

    @property
    def num_classes(self) -> int:
        """Width of the output [N, classes] or [N, classes, 1, 1]; 0 if the file does not say."""
        return class_count(self.model)

    def require_preprocess(self) -> Preprocess:
        """The preprocessing.

        Raises:
            InputError: the file does not say (the error names the options to give), or the graph
                takes another tensor than the preprocessing makes.
        """
        if self.preprocess is None:
            raise InputError(
                f"{self.name} does not say how its input is made (no repzoo metadata); give "
                "--size --resize --crop-fraction --interpolation --mean --std --color --input --yuv"
            )
        _require_input_fits(self.model, self.preprocess, self.name)
        return self.preprocess

    def _documents(self) -> dict[str, Any]:
        documents: dict[str, Any] = {}
        if self.preprocess is not None:
            documents["preprocess"] = self.preprocess.document()
        if self.labels:
            documents["labels"] = list(self.labels)
        if self.steps:
            documents["steps"] = [dataclasses.asdict(step) for step in self.steps]
        return {**documents, **self.extras}


def _require_input_fits(
    model: onnx.ModelProto, preprocess: Preprocess, name: str
) -> None:
    """Refuse a preprocessing whose tensor the graph does not take.

    Otherwise each engine would fail with its own message, or broadcast.
    """
    tensor = classifier_input(model).type.tensor_type
    expected_type = _ELEMENTS[preprocess.input]
    expected = preprocess.input_shape
    sides = [dim.dim_value for dim in tensor.shape.dim][1:] or [0, 0, 0]
    pairs = zip(sides, expected, strict=True)
    fits = all(side in (0, wanted) for side, wanted in pairs)
    if tensor.elem_type == expected_type and fits:
        return
    is_image = tensor.elem_type == expected_type and sides[0] in (0, 3)
    if is_image and preprocess.input == "float":
        size = preprocess.size
        raise InputError(
            f"{name} takes images of {sides[2]}x{sides[1]} pixels, but is said to be given "
            f"{size}x{size}; give --size {sides[1]}, or export it again"
        )
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    expected_element = onnx.TensorProto.DataType.Name(expected_type).lower()
    shape = ", ".join(str(side) if side else "?" for side in sides)
    expected_shape = ", ".join(map(str, expected))
    raise InputError(
        f"{name} takes {element} [N, {shape}], but its preprocessing makes {expected_element} "
        f"[N, {expected_shape}] ({preprocess.input}); give --input and --size as the file wants "
        "them (repzoo embed-input changes what a file wants)"
    )


def _metadata_of(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Constructor arguments of the artifact from the file's metadata."""
    documents = onnx_file.documents(model, _PREFIX, where)
    preprocess = documents.pop("preprocess", None)
    labels = documents.pop("labels", [])
    steps = documents.pop("steps", [])
    wrong_shape = InputError(
        f"{where} has repzoo metadata of the wrong shape; export it again"
    )
    if not isinstance(labels, list) or not isinstance(steps, list):
        raise wrong_shape
    if not all(isinstance(label, str) for label in labels):
        raise wrong_shape
    try:
        return {
            "preprocess": None
            if preprocess is None
            else Preprocess.from_mapping(preprocess),
            "labels": tuple(labels),
            "steps": tuple(Step(**step) for step in steps),
            "extras": documents,
        }
    except (TypeError, AttributeError):
        raise wrong_shape from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
