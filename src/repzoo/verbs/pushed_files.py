"""The files of a push as others get them: without paths of this machine, their hashes kept true.

A card holds the command that made it, and PyTorch's exporter writes the stack trace of each node
into the model. Where a file changes, so does its hash; the files that state it are changed too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from repzoo.artifact import MAX_MODEL_BYTES
from repzoo.errors import InputError
from repzoo.external_data import all_tensors, external_tensors
from repzoo.local_paths import LocalPaths
from repzoo.storage import read_bounded, sha256_of_file

TEXTS = (".json", ".jsonl", ".md", ".svg", ".html")
MAX_TEXT_BYTES = 2**28
MAX_HEADER_BYTES = 2**26
SHOWN_FILES = 6


@dataclass
class _Cleaning:
    """What was changed so far.

    hashes    new SHA-256 of a file by its old one
    replaced  how many paths were replaced, by file
    named     files that hold the user's name all the same
    """

    paths: LocalPaths
    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)


def without_local_paths(
    files: Mapping[str, Path], source: Path, folder: Path
) -> tuple[dict[str, Path], list[str]]:
    """(`files` as they are pushed, remarks on what was replaced).

    files   by their path in the repository
    source  folder or file that is pushed
    folder  empty; takes the files that had to be changed

    Raises:
        InputError: an .onnx file that cannot be read or whose weights are in another file, or a
            .safetensors file whose header holds a path.
    """
    parent = source.resolve() if source.is_dir() else source.resolve().parent
    cleaning = _Cleaning(LocalPaths([parent, parent.parent]), folder)
    cleaned: dict[str, Path] = {}
    for name in _by_hashes(files):
        cleaned[name] = _clean(name, files[name], cleaning)
    remarks: list[str] = []
    if cleaning.replaced:
        count = sum(cleaning.replaced.values())
        paths = "1 local path was" if count == 1 else f"{count} local paths were"
        remarks.append(
            f"{paths} replaced by file names, in {_listed(list(cleaning.replaced))}; the files "
            "here are unchanged"
        )
    if cleaning.named:
        remarks.append(
            f"the name of your account, {cleaning.paths.user!r}, is in "
            f"{_listed(cleaning.named)}; if it means you there, change it"
        )
    # In the order in which they were given.
    return {name: cleaned[name] for name in files}, remarks


def _by_hashes(files: Mapping[str, Path]) -> list[str]:
    """The names of `files`, each behind those whose hashes it states."""

    def rank(name: str) -> tuple[int, int]:
        path = files[name]
        if path.suffix not in TEXTS:
            # A model's history states the hashes of the models that it was made of.
            return 0, _count_of_steps(path) if path.suffix == ".onnx" else 0
        # Records and the certificate state hashes of models, cards those of all files.
        is_card = path.suffix not in (".json", ".jsonl") or path.stem == "card"
        return 1 + is_card, 0

    return sorted(files, key=rank)


def _clean(name: str, path: Path, cleaning: _Cleaning) -> Path:
    """The file at `path` as it is pushed: itself, or a copy that was changed."""
    if cleaning.paths.names_user_in(name):
        cleaning.named.append(name)
    if path.suffix == ".onnx":
        data = _clean_model(name, path, cleaning)
    elif path.suffix in TEXTS:
        data = _clean_text(name, path, cleaning)
    else:
        _require_clean_header(path, cleaning)
        return path
    if data is None:
        return path
    changed = cleaning.folder / name
    changed.write_bytes(data)
    cleaning.hashes[sha256_of_file(path)] = sha256_of_file(changed)
    return changed


def _clean_text(name: str, path: Path, cleaning: _Cleaning) -> bytes | None:
    """The changed bytes of a text; None where nothing had to be changed."""
    data = read_bounded(path, MAX_TEXT_BYTES)
    # Other bytes than UTF-8 pass unchanged.
    text = data.decode("utf-8", errors="surrogateescape")
    shorter, count = cleaning.paths.replace_in(text)
    if count:
        cleaning.replaced[name] = count
    if cleaning.paths.names_user_in(shorter) and name not in cleaning.named:
        cleaning.named.append(name)
    for old, new in cleaning.hashes.items():
        shorter = shorter.replace(old, new)
    changed = shorter.encode("utf-8", errors="surrogateescape")
    return None if changed == data else changed


def _clean_model(name: str, path: Path, cleaning: _Cleaning) -> bytes | None:
    """The changed bytes of a model; None where nothing had to be changed."""
    data = read_bounded(path, MAX_MODEL_BYTES)
    model = _parsed(path, data)
    if external_tensors(model):
        raise InputError(
            f"{path} keeps weights in another file, which is not pushed; repzoo fold writes a "
            "model as one file"
        )
    count = 0
    for message, key in _texts(model):
        text, replaced = cleaning.paths.replace_in(getattr(message, key))
        if replaced:
            setattr(message, key, text)
            count += replaced
    changed = data
    if count:
        cleaning.replaced[name] = count
        changed = model.SerializeToString(deterministic=True)
    for old, new in cleaning.hashes.items():
        # As long as the old one, so that every length in the file stays right.
        changed = changed.replace(old.encode(), new.encode())
    return None if changed == data else changed


def _parsed(path: Path, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(
            f"{path} is not a readable ONNX file (truncated, or another format); export it again"
        ) from None
    return model


def _texts(model: onnx.ModelProto) -> Iterator[tuple[Any, str]]:
    """(message, name of its field) of every text for people, and of every metadata value."""
    described: list[Any] = [model, *_graphs(model.graph), *model.functions]
    for graph in _graphs(model.graph):
        described += [*graph.input, *graph.output, *graph.value_info]
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    described += [*nodes, *all_tensors(model)]
    for message in described:
        yield message, "doc_string"
        for entry in message.metadata_props:
            yield entry, "value"


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    yield from _graphs(inner)


def _count_of_steps(path: Path) -> int:
    """The length of a model's history; 0 for what has none."""
    model = _parsed(path, read_bounded(path, MAX_MODEL_BYTES))
    for entry in model.metadata_props:
        if entry.key == "repzoo.steps":
            return entry.value.count('"verb"')
    return 0


def _require_clean_header(path: Path, cleaning: _Cleaning) -> None:
    """Refuse a .safetensors file whose header holds a path: the header's length is in the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MAX_HEADER_BYTES))
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path} is not a readable .safetensors file") from None
    if cleaning.paths.replace_in(json.dumps(metadata))[1]:
        raise InputError(
            f"the header of {path} holds paths of this machine; save it again without metadata"
        )


def _listed(names: list[str]) -> str:
    hidden = len(names) - SHOWN_FILES
    shown = ", ".join(names[:SHOWN_FILES])
    return f"{shown} and {hidden} more" if hidden > 0 else shown
