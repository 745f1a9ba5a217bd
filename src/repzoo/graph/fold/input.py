"""Input: a camera's or decoder's bytes straight into the graph, which then normalizes and
converts colors itself.

x[c] = sum over p of matrix[c, p] * (v[p] - origin[p])        v: the values of a pixel's planes;
x: what the float model takes

is put in front as Sub, then Mul (a diagonal) or a 1x1 convolution without bias. There it is
exact whatever follows. The fold's own rules (fold.py) then merge what stays exact, borders
included: all of it into a first convolution that does not pad; the matrix, but not the origin,
into one that does, because the zeros that it pads with mean `origin`; nothing where the first
layer is no convolution, or the input is read more than once. A constant map that corrects the
borders would be exact too, but adds over the convolution's output, 200,704 values for a stem of
16 channels at 224 pixels where Sub takes 150,528; wider stems, more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from repzoo.artifact import Preprocess
from repzoo.errors import InputError
from repzoo.graph.fold.engine import QUANTIZED, fold
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.onnx_file import classifier_input

Float = npt.NDArray[np.float64]
OLDEST_OPSET = 11  # Resize as it is used here


@dataclass(frozen=True)
class EmbeddedModel:
    """The `model` that takes bytes; `prepended` is the same with nothing merged; `said` tells
    where the arithmetic went.
    """

    model: onnx.ModelProto
    prepended: onnx.ModelProto
    summary: str
    folded: FoldResult | None = None


def embed(
    model: onnx.ModelProto,
    preprocess: Preprocess,
    matrix: Float,
    origin: Float,
    *,
    merge: bool = True,
) -> EmbeddedModel:
    """`model` (float32 [N, 3, H, W]) with the input that `preprocess` names, and matrix [3, 3],
    origin [3] in front.

    merge  False leaves the rest of the graph as it is, as for a training form

    Raises:
        InputError: quantized, older than opset 11, or the input is also the output.
    """
    _require_embeddable(model)
    source = classifier_input(model).name
    made = onnx.ModelProto()
    made.CopyFrom(model)
    front = _Front(made.graph, _names(made.graph))
    inner, shifted = front.fresh(f"{source}_float"), front.fresh(f"{source}_shifted")
    _rename(made.graph.node, source, inner)
    planes = (
        front.pixels(source)
        if preprocess.input == "uint8"
        else front.nv12(source, preprocess.size)
    )
    front.affine(planes, matrix, origin, shifted, inner)
    _put(made.graph, source, preprocess)
    nodes = [*front.nodes, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    del made.graph.value_info[:]
    if not merge:
        return EmbeddedModel(made, made, "in front of the graph, nothing merged")
    folded = fold(made)
    return EmbeddedModel(folded.model, made, _said(folded, inner, shifted), folded)


def _require_embeddable(model: onnx.ModelProto) -> None:
    kinds = {node.op_type for node in model.graph.node}
    if found := sorted(
        kind for kind in kinds if kind in QUANTIZED or kind.startswith("QLinear")
    ):
        raise InputError(
            f"the graph is quantized already (it holds {found[0]}); embed the input of the "
            "float model, then quantize"
        )
    opset = next(
        (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")),
        0,
    )
    if opset < OLDEST_OPSET:
        raise InputError(
            f"the graph is of opset {opset}; convert it to {OLDEST_OPSET} or later "
            "(onnx.version_converter)"
        )
    if classifier_input(model).name in {item.name for item in model.graph.output}:
        raise InputError(
            "the graph gives its input back as its output, so there is nothing to embed the "
            "input of"
        )


@dataclass
class _Front:
    """The nodes that come before the graph."""

    graph: onnx.GraphProto
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def fresh(self, name: str) -> str:
        made = next(
            one
            for one in (
                name,
                *(f"{name}_{number}" for number in range(len(self.taken) + 1)),
            )
            if one not in self.taken
        )
        self.taken.add(made)
        return made

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        name = self.fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(
                kind, inputs, [output], name=f"{output}_{kind}", **attributes
            )
        )
        return output

    def pixels(self, source: str) -> str:
        """[N, H, W, 3] bytes to [N, 3, H, W] floats.

        The Cast comes first: some compilers take bytes only there.
        """
        values = self.add(
            "Cast", [source], self.fresh(f"{source}_cast"), to=TensorProto.FLOAT
        )
        return self.add(
            "Transpose", [values], self.fresh(f"{source}_planes"), perm=[0, 3, 1, 2]
        )

    def nv12(self, source: str, size: int) -> str:
        """[N, H * 3 / 2, W, 1] bytes to [N, 3, H, W] floats Y, U, V, each chroma value repeated
        over its 2x2 pixels.
        """
        half = size // 2
        values = self.add(
            "Cast", [source], self.fresh(f"{source}_cast"), to=TensorProto.FLOAT
        )
        luma = self._rows(values, f"{source}_y", 0, size, [0, 1, size, size])
        chroma = self._rows(
            values, f"{source}_uv", size, size + half, [0, half, half, 2]
        )
        chroma = self.add(
            "Transpose", [chroma], self.fresh(f"{source}_uv_planes"), perm=[0, 3, 1, 2]
        )
        scales = self.constant(
            f"{source}_uv_scales", np.array([1, 1, 2, 2], np.float32)
        )
        nearest = {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
        # opset 11 demands a roi, which nearest does not read
        roi = self.constant(f"{source}_uv_roi", np.zeros(0, np.float32))
        wide = self.add(
            "Resize", [chroma, roi, scales], self.fresh(f"{source}_uv_wide"), **nearest
        )
        return self.add("Concat", [luma, wide], self.fresh(f"{source}_planes"), axis=1)

    def _rows(
        self, values: str, name: str, start: int, end: int, shape: list[int]
    ) -> str:
        limits = [
            self.constant(f"{name}_{word}", np.array([number]))
            for word, number in (("start", start), ("end", end), ("axis", 1))
        ]
        rows = self.add("Slice", [values, *limits], self.fresh(f"{name}_rows"))
        return self.add(
            "Reshape",
            [rows, self.constant(f"{name}_shape", np.array(shape))],
            self.fresh(name),
        )

    def affine(
        self, planes: str, matrix: Float, origin: Float, shifted: str, output: str
    ) -> None:
        subtracted = self.constant(
            f"{output}_origin", origin.astype(np.float32).reshape(1, 3, 1, 1)
        )
        self.add("Sub", [planes, subtracted], shifted)
        if np.array_equal(matrix, np.diag(np.diag(matrix))):
            scale = self.constant(
                f"{output}_scale",
                np.diag(matrix).astype(np.float32).reshape(1, 3, 1, 1),
            )
            self.add("Mul", [shifted, scale], output)
        else:
            kernel = self.constant(
                f"{output}_matrix", matrix.astype(np.float32).reshape(3, 3, 1, 1)
            )
            self.add("Conv", [shifted, kernel], output, kernel_shape=[1, 1])


def _put(graph: onnx.GraphProto, name: str, preprocess: Preprocess) -> None:
    """Give the input `name` its new type; the batch stays as it was."""
    place = next(index for index, item in enumerate(graph.input) if item.name == name)
    shape = graph.input[place].type.tensor_type.shape.dim
    batch = (shape[0].dim_value or shape[0].dim_param or "N") if shape else "N"
    made = helper.make_tensor_value_info(
        name, TensorProto.UINT8, [batch, *preprocess.input_shape]
    )
    graph.input[place].CopyFrom(made)


def _names(graph: onnx.GraphProto) -> set[str]:
    tensors = {item.name for item in (*graph.input, *graph.output)} | {
        item.name for item in graph.initializer
    }
    return tensors.union(*(node.output for node in graph.node))


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Every reader of `old` reads `new`, in subgraphs too, unless these have a tensor of their
    own that is called so.
    """
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        for item in node.attribute:
            for graph in (item.g, *item.graphs) if item.HasField("g") else item.graphs:
                if old not in _names(graph) - {value.name for value in graph.output}:
                    _rename(graph.node, old, new)


def _said(folded: FoldResult, inner: str, shifted: str) -> str:
    made = {name: node for node in folded.model.graph.node for name in node.output}
    if inner not in made:
        if shifted not in made:
            return "all of it merged into the first layer, which does not pad"
        return (
            "the matrix merged into the first layer; the origin subtracted before it, because it "
            "pads with zeros"
        )
    readers = {
        node.name or f"{node.op_type}({node.output[0]})"
        for node in folded.model.graph.node
        if inner in node.input
    }
    why = [one.reason for one in folded.refusals if one.node in readers]
    return "in front of the graph, because " + (
        why[0] if why else "its first layer is not one convolution that alone reads it"
    )
