"""Whether a log is of a given ONNX model: inputs, outputs and names of nodes are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.onnx_file import model_inputs
from repzoo.remark import Remark
from repzoo.vendors.logs.hb_mapper import HbMapperLog
from repzoo.vendors.logs.hb_reports import QuantInfo
from repzoo.vendors.logs.hrt_model_exec import HrtLog
from repzoo.vendors.logs.reading import VendorLog
from repzoo.vendors.logs.rknn import RknnLog
from repzoo.vendors.logs.sophgo import SophgoLog

Shape = tuple[int, ...]
# Tools fuse, split and add nodes; of the right model most names are still found.
KNOWN_SHARE = 0.5
# Shorter ends of names, such as "Conv", are found in any model.
MIN_END = 8


@dataclass(frozen=True)
class _Names:
    """What a log says of its model: its file, names of nodes or tensors, shapes by name."""

    file: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[tuple[str, Shape], ...] = ()
    outputs: tuple[tuple[str, Shape], ...] = ()


def require_same_model(log: VendorLog, model: Artifact) -> list[str]:
    """Refuse a log whose names or shapes are not those of `model`.

    A log that says neither, such as that of `hrt_model_exec perf`, is taken for the model's. So is
    one whose names cannot be compared, since the model's nodes have none. Then a remark says so,
    unless the log has a file of the model's name.

    Raises:
        InputError: says what differs.
    """
    read = _READERS.get(type(log.content))
    names = read(log.content) if read else _Names()
    sides = (
        ("input", names.inputs, model_inputs(model.model)),
        ("output", names.outputs, list(model.model.graph.output)),
    )
    for side, stated, values in sides:
        own = [(value.name, _shape(value)) for value in values]
        if stated and not _agree(stated, own):
            raise InputError(
                f"{log.path.name} is of another model: its {side} is {_text(stated)}, that of "
                f"{model.name} is {_text(own)}; give --model the ONNX that was compiled"
            )
    has_known_names = _require_known_names(log, names.nodes, model)
    is_compared = has_known_names or names.inputs or names.outputs
    if is_compared or _letters(model.name) in _letters(names.file):
        return []
    return [
        Remark(
            "{log} does not say that it is of {model}; it was taken for it",
            log=log.path.name,
            model=model.name,
        )
    ]


def output_names(model: onnx.ModelProto) -> list[str]:
    """The names of the graph's outputs."""
    return [value.name for value in model.graph.output]


def _require_known_names(
    log: VendorLog, stated: Sequence[str], model: Artifact
) -> bool:
    """Whether there were names to compare; those of another model are refused."""
    graph = model.model.graph
    # Any two models may share these, such as "data" and "output".
    common = {value.name for value in (*graph.input, *graph.output)}
    names = [name for name in stated if not _is_known(name, common)]
    known = {node.name for node in graph.node if node.name}
    for node in graph.node:
        known.update(node.output)
    shared = [name for name in names if _is_known(name, known)]
    # Where nodes have no names of their own, tools number them in their own way.
    has_names = any(node.name for node in graph.node)
    if not names or not has_names:
        return False
    if len(shared) >= KNOWN_SHARE * len(names):
        return True
    unknown = next(name for name in names if not _is_known(name, known))
    raise InputError(
        f"{log.path.name} is of another model: of its {len(names)} nodes {model.name} has "
        f"{len(shared)}; {unknown[:80]!r} is not among them; give --model the ONNX that "
        "was compiled"
    )


def _letters(name: str) -> str:
    """Letters and digits of a name: packs put others in place of the rest, and sizes behind."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _is_known(name: str, known: Iterable[str]) -> bool:
    if name in known:
        return True
    if name.startswith("..."):
        end = name[3:]
        return len(end) >= MIN_END and any(own.endswith(end) for own in known)
    # Sophgo and RKNN append the operator or the number format to a tensor's name.
    parts = name.split("_")
    heads = ("_".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return any(head in known for head in heads)


def _agree(
    stated: Sequence[tuple[str, Shape]], own: Sequence[tuple[str, Shape]]
) -> bool:
    shapes = dict(own)
    if {name for name, _ in stated} != shapes.keys():
        return False
    return all(_fits(shape, shapes[name]) for name, shape in stated)


def _fits(stated: Shape, own: Shape) -> bool:
    """Whether two shapes may be of one tensor. A board adds ones at the end, and may turn NHWC."""
    if not stated or not own or 0 in stated or 0 in own:
        return True
    return _without_ones(stated) == _without_ones(own)


def _without_ones(shape: Shape) -> Shape:
    return tuple(sorted(size for size in shape if size != 1))


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _text(tensors: Sequence[tuple[str, Shape]]) -> str:
    shown = []
    for name, shape in tensors[:3]:
        sizes = "x".join(str(size or "?") for size in shape)
        shown.append(f"{name[:40]!r} {sizes}")
    return ", ".join(shown)


def _of_hb_mapper(log: HbMapperLog) -> _Names:
    # hb_mapper adds nodes in front and behind; theirs are no names of the model.
    nodes = [node.name for node in log.nodes if not node.name.startswith("HZ_")]
    return _Names(
        nodes=tuple(nodes),
        inputs=tuple((tensor.name, tensor.shape) for tensor in log.inputs),
        outputs=tuple((tensor.name, tensor.shape) for tensor in log.outputs),
    )


def _of_quant_info(info: QuantInfo) -> _Names:
    nodes = [node.name for node in info.nodes if not node.name.startswith("HZ_")]
    return _Names(nodes=tuple(nodes))


def _of_hrt(log: HrtLog) -> _Names:
    return _Names(
        file=log.model,
        inputs=tuple((tensor.name, tensor.shape) for tensor in log.inputs),
        outputs=tuple((tensor.name, tensor.shape) for tensor in log.outputs),
    )


def _of_rknn(log: RknnLog) -> _Names:
    return _Names(nodes=tuple(layer.name for layer in log.layers))


def _of_sophgo(log: SophgoLog) -> _Names:
    names = [row.name for row in log.thresholds]
    for comparison in log.comparisons:
        names += [tensor.name for tensor in comparison.tensors]
    file = log.launches[0].network if log.launches else ""
    return _Names(file=file, nodes=tuple(names))


_READERS: dict[type, Callable[[Any], _Names]] = {
    HbMapperLog: _of_hb_mapper,
    QuantInfo: _of_quant_info,
    HrtLog: _of_hrt,
    RknnLog: _of_rknn,
    SophgoLog: _of_sophgo,
}
