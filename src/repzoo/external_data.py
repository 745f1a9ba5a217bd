"""Weights that an ONNX file keeps in files beside it, such as `m.onnx.data`.

torch's exporter writes them so by default, and protobuf holds no more than 2 GB in one message. A
tensor names its file by a path from the model's folder, an offset and a length in bytes.

Source: onnx.proto, TensorProto.external_data; ONNX, "External Data" (docs/ExternalData.md).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnx

from repzoo.errors import InputError
from repzoo.protobuf_stream import clone, without

MAX_DATA_BYTES = 2**34  # of all external weights of one model
BLOCK = 2**22  # bytes that are hashed at a time
LEAST_BYTES = 1024  # smaller weights stay in the model: shape inference may read them


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors whose values are in another file, those of subgraphs and functions included."""
    external = onnx.TensorProto.EXTERNAL
    return [item for item in all_tensors(model) if item.data_location == external]


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the model stores, wherever it stands."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)
    for training in model.training_info:
        yield from _tensors_of_graph(training.initialization)
        yield from _tensors_of_graph(training.algorithm)


def load_external(model: onnx.ModelProto, folder: Path, where: str) -> list[Path]:
    """Read all external weights into `model`, in place. Returns their files, sorted by name.

    Raises:
        InputError: a file that is absent or not within `folder`, or that is too short; a tensor
            whose length does not fit its shape; more than MAX_DATA_BYTES in all.
    """
    tensors = external_tensors(model)
    places = [_Place(item, folder, where) for item in tensors]
    total = sum(place.length for place in places)
    if total > MAX_DATA_BYTES:
        raise InputError(
            f"{where} names {total:,} bytes of external weights; at most {MAX_DATA_BYTES:,} are "
            "accepted"
        )
    for item, place in zip(tensors, places, strict=True):
        with _open(place.path, where) as file:
            item.raw_data = place.read(file)
        item.ClearField("data_location")
        del item.external_data[:]
    return sorted({place.path for place in places})


def digest_with(data: bytes, files: Iterable[Path]) -> str:
    """Hex SHA-256 of a model's bytes followed by those of its data files, as `cat` joins them."""
    digest = hashlib.sha256(data)
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def split_weights(
    model: onnx.ModelProto, location: str
) -> tuple[onnx.ModelProto, list[bytes]]:
    """(`model` with its large initializers in the file `location`, the parts of that file).

    `model` stays as it is; the parts are its own bytes, not copies.
    """
    shell = without(model, "graph")
    shell.graph.CopyFrom(without(model.graph, "initializer"))
    parts: list[bytes] = []
    offset = 0
    for item in model.graph.initializer:
        if len(item.raw_data) < LEAST_BYTES:
            shell.graph.initializer.append(clone(item))
            continue
        hollow = without(item, "raw_data")
        hollow.data_location = onnx.TensorProto.EXTERNAL
        length = len(item.raw_data)
        values = {"location": location, "offset": str(offset), "length": str(length)}
        for key, value in values.items():
            hollow.external_data.add(key=key, value=value)
        shell.graph.initializer.append(hollow)
        parts.append(item.raw_data)
        offset += length
    return shell, parts


class _Place:
    """Where one tensor's values are: a file, an offset and a length in bytes."""

    def __init__(self, tensor: onnx.TensorProto, folder: Path, where: str) -> None:
        entries = {item.key: item.value for item in tensor.external_data}
        self._what = f"{where}: the weight {tensor.name!r}"
        location = entries.get("location", "")
        self.path = _path_within(folder, location, self._what)
        self.offset = self._number(entries.get("offset", "0"), "offset")
        self.length = _byte_size(tensor, self._what)
        stated = entries.get("length")
        if stated is not None and self._number(stated, "length") != self.length:
            raise InputError(
                f"{self._what} has {self.length:,} bytes by its shape, but {stated} by its "
                "external data; export it again"
            )

    def read(self, file: BinaryIO) -> bytes:
        """The values.

        Raises:
            InputError: the file ends before them.
        """
        size = os.fstat(file.fileno()).st_size
        if self.offset + self.length > size:
            raise InputError(
                f"{self._what} ends at byte {self.offset + self.length:,} of {self.path.name}, "
                f"which has {size:,}; it is truncated or of another model: copy it again"
            )
        file.seek(self.offset)
        return file.read(self.length)

    def _number(self, text: str, key: str) -> int:
        # 19 digits hold the size of any file; int() has its own error for very long texts.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise InputError(
                f"{self._what} has the {key} {text[:40]!r} in its external data, which is no "
                "number of bytes; export it again"
            )
        return int(text)


def _path_within(folder: Path, location: str, what: str) -> Path:
    """The file `location` in `folder`; links and `..` that lead out of it are refused."""
    parts = PurePosixPath(location).parts
    is_plain = bool(parts) and not {"..", "/"} & set(parts) and "\\" not in location
    path = folder / location
    try:
        is_inside = is_plain and path.resolve().is_relative_to(folder.resolve())
        is_file = is_inside and path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        is_inside = is_file = False
    if not is_inside:
        raise InputError(
            f"{what} is in {location[:200]!r}, which is not within the model's own folder; put "
            "the file beside the model, or save the model as one file"
        )
    if not is_file:
        raise InputError(
            f"{what} is in {location!r}, but {path} does not exist; copy it beside the model"
        )
    return path


def _byte_size(tensor: onnx.TensorProto, what: str) -> int:
    """Bytes of the values as raw data.

    Raises:
        InputError: a negative side, or a type that has no such form.
    """
    if any(side < 0 for side in tensor.dims):
        raise InputError(
            f"{what} has the shape {list(tensor.dims)}; export the model again"
        )
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        dtype = None
    if dtype is None or dtype.hasobject:
        raise InputError(
            f"{what} is of a type that cannot be in another file; export the model again"
        )
    elements = math.prod(tensor.dims)
    # NumPy has a whole byte for each of these elements; ONNX packs them.
    bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
    return -(-elements * bits.get(dtype.name, 8 * dtype.itemsize) // 8)


def _open(path: Path, where: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path}, with weights of {where}, cannot be read: {error.strerror}"
        ) from None


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for item in node.attribute:
            if item.HasField("t"):
                yield item.t
            yield from item.tensors
            sparse = [*item.sparse_tensors]
            if item.HasField("sparse_tensor"):
                sparse.append(item.sparse_tensor)
            for entry in sparse:
                yield entry.values
                yield entry.indices
            if item.HasField("g"):
                yield from _tensors_of_graph(item.g)
            for graph in item.graphs:
                yield from _tensors_of_graph(graph)
