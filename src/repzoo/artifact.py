"""Artifact: a classifier as one ONNX file with everything needed to use it.

Preprocessing, labels and the history of steps live in the file's metadata
(`ModelProto.metadata_props`), so that no command needs a side file. Keys: `repzoo.preprocess`,
`repzoo.labels`, `repzoo.steps`, `repzoo.certificate`; each value is a JSON text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import onnx

from repzoo import onnx_file
from repzoo.errors import InputError
from repzoo.external_data import digest_with, split_weights
from repzoo.onnx_file import class_count, classifier_input
from repzoo.preprocessing import (
    ASSUMABLE,
    Color,
    Input,
    Interpolation,
    Layout,
    Orientation,
    Preprocess,
    Resize,
    Size,
    Yuv,
    preprocess_of_graph,
    require_input_fits,
    size_text,
)
from repzoo.protobuf_stream import chunks
from repzoo.storage import json_text, read_bounded, sha256_of, write_together

__all__ = [
    "MAX_MODEL_BYTES",
    "Artifact",
    "Color",
    "Form",
    "Input",
    "Interpolation",
    "Layout",
    "Orientation",
    "Preprocess",
    "Resize",
    "Size",
    "Step",
    "Yuv",
    "preprocess_of_graph",
    "size_text",
]

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit for one message
_PREFIX = "repzoo."
Form = Literal["train", "deploy", "int8", "fp16", "bf16"]


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
    assumed     fields of `preprocess` that neither the file nor the user stated
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
    assumed: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Artifact:
        """Read an ONNX file made by repzoo or by any other tool.

        Raises:
            InputError: absent, too large, truncated, not ONNX, external weights that are absent or
                outside of its folder, rejected by the ONNX checker, damaged metadata, or not one
                label per output.
        """
        path = Path(path)
        data = read_bounded(path, MAX_MODEL_BYTES)
        return cls._from_file(data, path.stem, str(path), path)

    @classmethod
    def from_bytes(cls, data: bytes, name: str, where: str = "the model") -> Artifact:
        """Like `read`, from bytes in memory. `where` names them in errors."""
        return cls._from_file(data, name, where, None)

    @classmethod
    def _from_file(
        cls, data: bytes, name: str, where: str, path: Path | None
    ) -> Artifact:
        """The artifact in `data`, the bytes of the file `path` if there is one."""
        parsed = onnx_file.parse(data, where, path)
        sha256 = digest_with(data, parsed.data_files)
        metadata = _metadata_of(parsed.model, where)
        artifact = cls(parsed.model, name, sha256=sha256, **metadata)
        labels = len(artifact.labels)
        if labels and not labels_fit(labels, artifact.num_classes):
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
        return self._chunks_of(self.model)

    def _chunks_of(self, model: onnx.ModelProto) -> Iterator[bytes]:
        """The bytes of `model` with the metadata of this artifact."""
        entries: list[onnx.StringStringEntryProto] = []
        for item in self.model.metadata_props:
            if not item.key.startswith(_PREFIX):
                entries.append(
                    onnx.StringStringEntryProto(key=item.key, value=item.value)
                )
        for key, value in self._documents().items():
            text = json_text(value, ensure_ascii=False, sort_keys=True)
            entries.append(onnx.StringStringEntryProto(key=_PREFIX + key, value=text))
        return chunks(model, metadata_props=entries)

    def files(self, path: Path) -> list[tuple[Path, Iterable[bytes]]]:
        """What `save` writes: the file `path`, and a data file beside it for over 2 GB.

        protobuf cannot read a larger message, so the weights then go to `path` + ".data".
        """
        weights = sum(item.ByteSize() for item in self.model.graph.initializer)
        is_small = weights < MAX_MODEL_BYTES // 2  # the rest of a file is far smaller
        if is_small or sum(map(len, self.chunks())) <= MAX_MODEL_BYTES:
            return [(path, self.chunks())]
        data_path = path.with_name(path.name + ".data")
        shell, parts = split_weights(self.model, data_path.name)
        return [(path, self._chunks_of(shell)), (data_path, parts)]

    def save(self, path: str | Path) -> Self:
        """Write to `path` in one rename. Returns the artifact with the file's name and hash."""
        path = Path(path)
        files = self.files(path)
        write_together(files)
        # The pieces are made again: to keep them would hold a second copy of the weights.
        digest = sha256_of(piece for _, pieces in self.files(path) for piece in pieces)
        return replace(self, name=path.stem, sha256=digest)

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
        """What the graph shows.

        int8 if it holds QuantizeLinear, train if a BatchNormalization is left, fp16 or bf16 if a
        layer's weights are in that type, else deploy.
        """
        # From the graph, since files of other tools have no history.
        kinds = {node.op_type for node in self.model.graph.node}
        if "QuantizeLinear" in kinds:
            return "int8"
        if "BatchNormalization" in kinds:
            return "train"
        half = onnx_file.half_precision(self.model)
        return half or "deploy"

    @property
    def opset(self) -> int:
        """Version of the default ONNX operator set."""
        return onnx_file.opset_of(self.model)

    @property
    def input_name(self) -> str:
        """Name of the one input that is not an initializer.

        Raises:
            InputError: not a classifier.
        """
        return self._input().name

    def _input(self) -> onnx.ValueInfoProto:
        try:
            return classifier_input(self.model)
        except InputError as error:
            raise InputError(f"{self.name} is {error}") from None

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
        self._input()  # raises for a graph that is not a classifier
        require_input_fits(self.model, self.preprocess, self.name)
        return self.preprocess

    def _documents(self) -> dict[str, Any]:
        documents: dict[str, Any] = {}
        if self.preprocess is not None:
            documents["preprocess"] = self.preprocess.document()
        if self.assumed:
            documents["assumed"] = list(self.assumed)
        if self.labels:
            documents["labels"] = list(self.labels)
        if self.steps:
            documents["steps"] = [dataclasses.asdict(step) for step in self.steps]
        return {**documents, **self.extras}


def labels_fit(labels: int, outputs: int) -> bool:
    """Whether that many `labels` can name that many `outputs`; 0: their number is unknown.

    A single output may be the probability of the second of two classes.
    """
    return outputs in (0, labels) or (outputs, labels) == (1, 2)


def _metadata_of(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Constructor arguments of the artifact from the file's metadata."""
    documents = onnx_file.documents(model, _PREFIX, where)
    preprocess = documents.pop("preprocess", None)
    labels = documents.pop("labels", [])
    steps = documents.pop("steps", [])
    assumed = documents.pop("assumed", [])
    wrong_shape = InputError(
        f"{where} has repzoo metadata of the wrong shape; export it again"
    )
    if not isinstance(labels, list) or not isinstance(steps, list):
        raise wrong_shape
    if not all(isinstance(label, str) for label in labels):
        raise wrong_shape
    if not isinstance(assumed, list) or not set(map(str, assumed)) <= ASSUMABLE.keys():
        raise wrong_shape
    try:
        return {
            "preprocess": None
            if preprocess is None
            else Preprocess.from_mapping(preprocess),
            "labels": tuple(labels),
            "steps": tuple(Step(**step) for step in steps),
            "assumed": tuple(map(str, assumed)),
            "extras": documents,
        }
    # Where a step or the preprocessing is no JSON object.
    except (TypeError, AttributeError):
        raise wrong_shape from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
