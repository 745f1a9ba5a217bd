"""Artifact: one ONNX file that is the whole truth of a model.

Preprocessing, labels and the history of steps live in the file's metadata (`ModelProto.metadata_props`), so that no verb
needs a side file. Keys: `repzoo.preprocess`, `repzoo.labels`, `repzoo.steps`, `repzoo.certificate`, each a JSON text.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import onnx
from google.protobuf.message import DecodeError

from repzoo.errors import InputError
from repzoo.protobuf_stream import chunks
from repzoo.settings import between, setting, validate
from repzoo.storage import read_bounded, sha256_of, write_atomically

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit for one message
MAX_SIDE = 4096  # pixels of a model's input
MAX_DEPTH = 64  # of a metadata document
_PREFIX = "repzoo."
_LARGEST = 1e6  # of mean, std and 1 / std: far beyond what images need, and far within float32

Resize = Literal["short", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Color = Literal["RGB", "BGR"]
Form = Literal["train", "deploy", "int8"]
Input = Literal["float", "uint8", "nv12"]
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
        "short", help="short: resize the short side to size / crop fraction; squash: both sides."
    )
    crop_fraction: float = setting(
        0.875, help="Input size divided by the size after resizing.", range=between(0.05, 1)
    )
    interpolation: Interpolation = setting("bilinear", help="Resampling filter, antialiased.")
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
    input: Input = setting("float", help="Input tensor: normalized floats, uint8 pixels, or NV12.")
    yuv: Yuv = setting("bt601-full", help="Color matrix and range of NV12.")

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
        """Whether both make the same of an image: the same pixels, and where neither graph does the arithmetic, the same numbers."""
        names = ["size", "resize", "crop_fraction", "interpolation"]
        if self.input == other.input == "float":
            names += ["mean", "std", "color"]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def document(self) -> dict[str, Any]:
        """Plain values for a file, the newer fields only where they say something: files written before them stay the same."""
        usual = {"input": "float", "yuv": "bt601-full"}
        return {
            key: value for key, value in dataclasses.asdict(self).items() if usual.get(key) != value
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain JSON/TOML values; an unknown or ill-typed field is an InputError."""
        # Files of pre-release versions spell it "colour".
        values = {"color" if key == "colour" else key: value for key, value in values.items()}
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(
                f"unknown preprocess field {unknown[0]!r}; expected some of {', '.join(sorted(known))}"
            )
        try:
            fields: dict[str, Any] = {
                key: tuple(map(float, value)) if key in ("mean", "std") else value
                for key, value in values.items()
            }
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise InputError(f"preprocess values are of the wrong type: {error}") from None


@dataclass(frozen=True)
class Step:
    """One verb in an artifact's history: what was done, by which version, with what settings, to which input."""

    verb: str
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse what a damaged file may say: the history is shown and written again."""
        texts = (self.verb, self.version, self.input_sha256)
        if not all(isinstance(text, str) for text in texts) or not isinstance(
            self.settings, Mapping
        ):
            raise InputError(f"a step has a verb, a version, settings and a hash; got {self}")


@dataclass(frozen=True)
class Artifact:
    """A classifier in ONNX with what is needed to use it. Treat `model` as read-only: verbs return new artifacts.

    preprocess  None for a foreign file that does not say; verbs that read images then ask for it
    labels      class names in the order of the outputs; empty when unknown
    extras      other JSON documents kept in the metadata, such as the certificate
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
        """Read an ONNX file, repzoo's own or anyone's.

        Raises:
            InputError: absent, too large, truncated, not ONNX, external weights, rejected by the ONNX checker, not a
                classifier, damaged metadata, or labels that are not one for each output.
        """
        path = Path(path)
        return cls.from_bytes(read_bounded(path, MAX_MODEL_BYTES), name=path.stem, where=str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str, where: str = "the model") -> Artifact:
        """As `read`, from bytes in memory; `where` names them in errors."""
        problem = _checkers_problem(
            data
        )  # before parsing: the checker's own copy of the weights is then gone again
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError:
            raise InputError(
                f"{where} is not a readable ONNX file (truncated, or another format); export it again"
            ) from None
        if not model.graph.node:
            raise InputError(f"{where} holds no ONNX graph; give a file made by an ONNX exporter")
        _refuse_external_data(model, where)
        _refuse_names_of_bytes(model, where)
        if problem:
            raise InputError(f"{where} is not valid ONNX: {problem}")
        try:
            classifier_input(model)
        except InputError as error:
            raise InputError(f"{where} is {error}") from None
        made = cls(model, name, sha256=sha256_of(data), **_metadata_of(model, where))
        if made.labels and made.num_classes not in (0, len(made.labels)):
            raise InputError(
                f"{where} has {len(made.labels)} labels for {made.num_classes} outputs; export it again"
            )
        return made

    def to_bytes(self) -> bytes:
        """The ONNX file as bytes, metadata included; byte-identical for equal artifacts."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The bytes of `to_bytes` in pieces, so that large models need no second copy in memory."""
        kept = [
            (item.key, item.value)
            for item in self.model.metadata_props
            if not item.key.startswith(_PREFIX)
        ]
        own = ((_PREFIX + key, _dumps(value)) for key, value in self._documents().items())
        entries = [
            onnx.StringStringEntryProto(key=key, value=value) for key, value in (*kept, *own)
        ]
        return chunks(self.model, metadata_props=entries)

    def save(self, path: str | Path) -> Self:
        """Write to `path` in one rename and return the artifact with its file's name and hash."""
        path = Path(path)
        write_atomically(path, self.chunks())
        return replace(self, name=path.stem, sha256=sha256_of(self.chunks()))

    def then(self, model: onnx.ModelProto, step: Step, **extras: Any) -> Self:
        """The artifact that `step` makes of this one: new graph, same contract, longer history."""
        step = replace(step, input_sha256=self.sha256)
        made = replace(
            self,
            model=model,
            steps=(*self.steps, step),
            extras={**self.extras, **extras},
            sha256="",
        )
        return replace(made, sha256=sha256_of(made.chunks()))

    @property
    def form(self) -> Form:
        """int8 when it holds QuantizeLinear, train when a BatchNormalization is left, else deploy."""
        kinds = {node.op_type for node in self.model.graph.node}
        if "QuantizeLinear" in kinds:
            return "int8"
        return "train" if "BatchNormalization" in kinds else "deploy"

    @property
    def opset(self) -> int:
        """Version of the default ONNX operator set."""
        return next(
            (item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")), 0
        )

    @property
    def input_name(self) -> str:
        """Name of the one input that is not an initializer."""
        return classifier_input(self.model).name

    @property
    def num_classes(self) -> int:
        """Width of the output [N, classes]; 0 when the file does not say."""
        dims = self.model.graph.output[0].type.tensor_type.shape.dim
        return int(dims[1].dim_value) if len(dims) == 2 else 0

    def require_preprocess(self) -> Preprocess:
        """The preprocessing, or an InputError that says which options to give."""
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


def classifier_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The single image input of a classifier.

    Raises:
        InputError: not one input of rank 4, or not one output [N, classes].
    """
    weights = {item.name for item in model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [
        item for item in model.graph.input if item.name not in weights
    ]
    ranks = [_rank(item) for item in (*inputs, *model.graph.output)]
    if (
        len(inputs) != 1
        or len(model.graph.output) != 1
        or ranks[0] not in (4, None)
        or ranks[1] not in (2, None)
    ):
        shapes = ", ".join(
            f"{item.name} of rank {rank}"
            for item, rank in zip((*inputs, *model.graph.output), ranks, strict=True)
        )
        raise InputError(
            f"not a classifier: expected one input [N, 3, H, W] and one output [N, classes]; got {shapes}"
        )
    return inputs[0]


def _require_input_fits(model: onnx.ModelProto, preprocess: Preprocess, name: str) -> None:
    """The graph must take what the preprocessing makes; otherwise every engine would fail in words of its own, or broadcast."""
    tensor = classifier_input(model).type.tensor_type
    wanted, element = preprocess.input_shape, _ELEMENTS[preprocess.input]
    dims = [dim.dim_value for dim in tensor.shape.dim][1:] or [0] * 3
    if tensor.elem_type == element and all(
        dim in (0, side) for dim, side in zip(dims, wanted, strict=True)
    ):
        return
    if tensor.elem_type == element and dims[0] in (0, 3) and preprocess.input == "float":
        raise InputError(
            f"{name} takes images of {dims[2]}x{dims[1]} pixels, but is said to be given {preprocess.size}x{preprocess.size}; "
            f"give --size {dims[1]}, or export it again"
        )
    got, made = (
        onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        onnx.TensorProto.DataType.Name(element).lower(),
    )
    shown = ", ".join(str(dim) if dim else "?" for dim in dims)
    raise InputError(
        f"{name} takes {got} [N, {shown}], but its preprocessing makes {made} [N, {', '.join(map(str, wanted))}] ({preprocess.input}); "
        "give --input and --size as the file wants them (repzoo embed-input changes what a file wants)"
    )


def _rank(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    return len(tensor.shape.dim) if tensor.HasField("shape") else None


def _checkers_problem(data: bytes) -> str:
    """The first line of what the ONNX checker has against `data`, or ""."""
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, UnicodeDecodeError, ValueError, RuntimeError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _refuse_external_data(model: onnx.ModelProto, where: str) -> None:
    if any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer):
        raise InputError(
            f"{where} keeps its weights in another file; save it as one file (onnx.save without external data)"
        )


def _refuse_names_of_bytes(model: onnx.ModelProto, where: str) -> None:
    """protobuf reads text that is not UTF-8 as bytes without a word; they would fail somewhere deep in the work."""
    graph = model.graph
    named: list[Any] = [*graph.input, *graph.output, *graph.initializer, *graph.value_info]
    values = [item.name for item in named]
    nodes = [
        name
        for node in graph.node
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output)
    ]
    entries = [text for item in model.metadata_props for text in (item.key, item.value)]
    titles = [
        model.producer_name,
        model.producer_version,
        model.domain,
        model.doc_string,
        graph.name,
        graph.doc_string,
    ]
    if any(isinstance(text, bytes) for text in (*values, *nodes, *entries, *titles)):
        raise InputError(
            f"{where} holds a name that is not UTF-8 text, so it is damaged; export it again"
        )


def _metadata_of(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    documents = _documents_in(model, where)
    preprocess, labels, steps = (
        documents.pop(key, default)
        for key, default in (("preprocess", None), ("labels", []), ("steps", []))
    )
    if (
        not isinstance(labels, list)
        or not all(isinstance(label, str) for label in labels)
        or not isinstance(steps, list)
    ):
        raise InputError(f"{where} has repzoo metadata of the wrong shape; export it again")
    try:
        return {
            "preprocess": None if preprocess is None else Preprocess.from_mapping(preprocess),
            "labels": tuple(labels),
            "steps": tuple(Step(**step) for step in steps),
            "extras": documents,
        }
    except (TypeError, AttributeError):
        raise InputError(
            f"{where} has repzoo metadata of the wrong shape; export it again"
        ) from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _documents_in(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for item in model.metadata_props:
        try:
            if item.key.startswith(_PREFIX):
                documents[item.key.removeprefix(_PREFIX)] = _loads(item.value)
        except (
            ValueError,
            RecursionError,
        ):  # ValueError is the root of JSON's and of UTF-8's errors
            raise InputError(f"{where} has damaged metadata; export it again") from None
    return documents


def _loads(text: str) -> Any:
    """The JSON value of `text`; deeper than any of repzoo's documents is a ValueError, for it could not be written again."""
    value = json.loads(text)
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [item for one in layer for item in _inside(one)]
        if not layer:
            return value
    raise ValueError


def _inside(value: Any) -> list[Any]:
    return (
        list(value.values())
        if isinstance(value, dict)
        else value
        if isinstance(value, list)
        else []
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
