"""The layers that carry weights, seen as matrices: what every correction works on.

A Conv or Gemm is y[g] = rows[g] @ column[g] + bias for each group g: `rows` [G, O/G, K] are its weights and a column [G, K] is
what one output position reads, K = input channels of the group x kernel positions ("im2col").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
KINDS = frozenset({"Conv", "Gemm"})


@dataclass(frozen=True)
class Layer:
    """One Conv or Gemm with constant weights.

    name        its output, which names it everywhere
    source      the activation it reads
    weight      initializer [O, C/G, *kernel], for a Gemm [O, C], or [C, O] when `turned`
    bias        initializer, or ""
    kernel      (1, 1) for a Gemm; strides, dilations and pads (begin then end) go with it
    shape       of `weight`
    """

    name: str
    op: str
    source: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    auto_pad: str = "NOTSET"
    transposed: bool = False

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def in_channels(self) -> int:
        """Input channels, of all groups."""
        return self.shape[0] if self.transposed else self.shape[1] * self.groups

    @property
    def fan_in(self) -> int:
        """K: weights that one output reads."""
        return self.in_channels // self.groups * int(np.prod(self.kernel))

    def to_rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Weights of the initializer's shape as [G, O/G, K]."""
        turned = values.T if self.transposed else values
        return turned.reshape(self.groups, self.out_channels // self.groups, self.fan_in)

    def from_rows(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of `rows`."""
        flat = rows.reshape(self.out_channels, -1)
        return np.ascontiguousarray(flat.T) if self.transposed else flat.reshape(self.shape)

    def per_column(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[G, K], or [C], a number for each input channel -> [G, K], one for each column entry."""
        return np.repeat(values.reshape(self.groups, -1), int(np.prod(self.kernel)), axis=1)


def find_layers(model: onnx.ModelProto) -> dict[str, Layer]:
    """Every plain Conv or Gemm of constant float weights and bias, by output name, in graph order.

    Plain: a Gemm with alpha = beta = 1 and its input not transposed; a Conv over two spatial axes.
    """
    shapes = {
        item.name: tuple(item.dims)
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
    }
    found = (_layer(node, shapes) for node in model.graph.node if node.op_type in KINDS)
    return {one.name: one for one in found if one is not None}


def _layer(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if any(name not in shapes for name in node.input[1:] if name) or node.input[0] in shapes:
        return None
    shape = shapes[node.input[1]]
    ends = (
        node.output[0],
        node.op_type,
        node.input[0],
        node.input[1],
        node.input[2] if len(node.input) > 2 else "",
    )
    if node.op_type == "Gemm":
        plain = given.get("alpha", 1.0) == 1.0 == given.get("beta", 1.0) and not given.get(
            "transA", 0
        )
        return Layer(*ends, shape, transposed=not given.get("transB", 0)) if plain else None
    if len(shape) != 4:
        return None
    fields: dict[str, Any] = {
        name: tuple(given[name]) for name in ("strides", "dilations", "pads") if name in given
    }
    auto = given.get("auto_pad", b"NOTSET").decode()
    return Layer(*ends, shape, given.get("group", 1), shape[2:], auto_pad=auto, **fields)


def initializer_arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Initializers by name."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def weight_rows(one: Layer, values: Mapping[str, npt.NDArray[Any]]) -> Float:
    """float64 rows [G, O/G, K]."""
    return np.asarray(one.to_rows(values[one.weight]), np.float64)


def bias_vector(one: Layer, values: Mapping[str, npt.NDArray[Any]]) -> Float:
    """float64 [O]; zeros where the layer has no bias."""
    held = values[one.bias].astype(np.float64).reshape(-1) if one.bias else np.zeros(1)
    return np.array(np.broadcast_to(held, (one.out_channels,)))


def sample_positions(
    one: Layer, activation: Images, count: int, random: np.random.Generator
) -> Ids | None:
    """`count` output positions of each image of `activation`, flat [N, count]; None where that is all of them.

    They are drawn once, and turned by a random number for each image: as even as drawing for each, and cheap for many layers.
    """
    total = output_positions(one, activation.shape[2:])
    if count >= total:
        return None
    turns = random.integers(total, size=(len(activation), 1))
    return np.asarray((random.choice(total, count, replace=False) + turns) % total)


def im2col(one: Layer, activation: Images, outputs: Ids | None) -> npt.NDArray[np.float32]:
    """What the layer reads at the output positions `outputs` of each image (see `drawn`): float32 [G, K, N R].

    activation  float32 [N, C, H, W], or [N, C] for a Gemm
    """
    if activation.ndim == 2:
        return activation.T[None]
    if outputs is None:
        outputs = np.tile(
            np.arange(output_positions(one, activation.shape[2:])), (len(activation), 1)
        )
    places, inside = _read_at(one, activation.shape[2:], outputs)
    flat = activation.reshape(*activation.shape[:2], -1)
    taken = np.empty((flat.shape[1], *places.shape), np.float32)
    for image, values in enumerate(flat):
        taken[:, :, image] = values.take(places[:, image], axis=1)
    if not inside.all():
        taken *= inside
    return taken.reshape(one.groups, one.fan_in, -1)


def _read_at(one: Layer, size: tuple[int, ...], outputs: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """(places in a flat activation that the taps read for the flat output positions `outputs` [N, R], [taps, N, R]; which are not
    padding).

    Places are looked up one by one: of an image a few positions are wanted, and a padded copy of it would cost more than they do.
    """
    sides = _output_sides(one, size)
    coordinates = []
    for axis, at in enumerate((outputs // sides[1], outputs % sides[1])):
        taps = np.arange(one.kernel[axis]) * one.dilations[axis] - _padding(one, size)[axis][0]
        coordinates.append(taps[:, None, None] + at * one.strides[axis])
    down, along = coordinates[0][:, None], coordinates[1][None]
    inside = (down >= 0) & (down < size[0]) & (along >= 0) & (along < size[1])
    places = np.where(inside, down * size[1] + along, 0)
    return places.reshape(-1, *outputs.shape), inside.reshape(-1, *outputs.shape)


def output_positions(one: Layer, size: tuple[int, ...]) -> int:
    """Output positions of an image whose activation has spatial `size`."""
    return int(np.prod(_output_sides(one, size))) if size else 1


def _output_sides(one: Layer, size: tuple[int, ...]) -> list[int]:
    """Height and width of the output."""
    padded = [side + sum(pair) for side, pair in zip(size, _padding(one, size), strict=True)]
    spans = [(k - 1) * d + 1 for k, d in zip(one.kernel, one.dilations, strict=True)]
    return [(p - span) // s + 1 for p, span, s in zip(padded, spans, one.strides, strict=True)]


def _padding(one: Layer, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis; source: ONNX operator Conv, attribute auto_pad."""
    if one.auto_pad == "VALID":
        return [(0, 0), (0, 0)]
    if one.auto_pad == "NOTSET":
        return list(zip(one.pads[:2], one.pads[2:], strict=True))
    totals = [
        max(0, (-(-side // s) - 1) * s + (k - 1) * d + 1 - side)
        for side, s, k, d in zip(size, one.strides, one.kernel, one.dilations, strict=True)
    ]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if one.auto_pad == "SAME_UPPER" else [(after, before) for before, after in halves]
