"""Camera input: the graph takes bytes, and normalizes and converts colors itself.

    x[c] = sum over p of matrix[c, p] * (v[p] - origin[p])

v holds the values of a pixel's planes, x what the float model takes. This is put in front of the
graph as a Sub, then a Mul (if the matrix is diagonal) or a 1x1 convolution without bias. There it
is exact, whatever follows. The fold then merges what stays exact, borders included:

- all of it into a first convolution that does not pad;
- the matrix, but not the origin, into one that does: the zeros that it pads with mean `origin`;
- nothing if the first layer is no convolution, or if the input is read more than once.

A map of constants that corrects the borders would be exact too. But it costs an addition over the
output of the first convolution, 200,704 values for 16 channels at 224 pixels, where the Sub takes
150,528.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from repzoo.artifact import Preprocess
from repzoo.errors import InputError
from repzoo.graph.fold.engine import fold
from repzoo.graph.fold.prepare import require_float, require_opset
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.graph.tools.onnx_edit import (
    add_initializer,
    redirect_readers,
    tensor_names,
    unused_name,
)
from repzoo.onnx_file import classifier_input
from repzoo.protobuf_stream import clone

Float = npt.NDArray[np.float64]
OLDEST_OPSET = 11  # Resize as it is used here


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that takes bytes.

    model      the result
    prepended  the same with nothing merged
    summary    where the arithmetic went, as a clause
    folded     the record of the fold; None if nothing was to be merged
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
    """`model` (float32 [N, 3, H, W]) with the input that `preprocess` names.

    matrix  [3, 3], see above
    origin  [3]
    merge   False leaves the rest of the graph as it is, as for a training form

    Raises:
        InputError: quantized, older than opset 11, or the input is also the output.
    """
    _require_embeddable(model)
    source = classifier_input(model).name
    prepended = clone(model)
    graph = prepended.graph
    prefix = _Prefix(graph, tensor_names(graph))
    inner = prefix.unused(f"{source}_float")
    shifted = prefix.unused(f"{source}_shifted")
    redirect_readers(graph.node, source, inner)
    if preprocess.input == "uint8":
        planes = prefix.pixels(source)
    else:
        planes = prefix.nv12(source, preprocess.height, preprocess.width)
    prefix.affine(planes, matrix, origin, shifted, inner)
    _retype_input(graph, source, preprocess)
    nodes = [*prefix.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # The sizes that were stored belong to the old input.
    del graph.value_info[:]
    if not merge:
        summary = "in front of the graph, nothing merged"
        return EmbeddedModel(prepended, prepended, summary)
    folded = fold(prepended)
    summary = _summary(folded, inner, shifted)
    return EmbeddedModel(folded.model, prepended, summary, folded)


def _require_embeddable(model: onnx.ModelProto) -> None:
    """Refuse a graph in front of which nothing can be put."""
    require_float(model, "embed the input of the float model")
    require_opset(model, OLDEST_OPSET)
    outputs = [item.name for item in model.graph.output]
    if classifier_input(model).name in outputs:
        raise InputError(
            "the graph gives its input back as its output, which would then be bytes; export the "
            "graph with the outputs that its nodes compute"
        )


@dataclass
class _Prefix:
    """The nodes that come before the graph.

    names  of all tensors, which new ones must not take
    """

    graph: onnx.GraphProto
    names: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def unused(self, name: str) -> str:
        """`name`, with a number appended if a tensor of that name exists."""
        name = unused_name(name, self.names)
        self.names.add(name)
        return name

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """The name of a new initializer."""
        return add_initializer(self.graph, name, values, self.names)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        name = f"{output}_{kind}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=name, **attributes)
        )
        return output

    def pixels(self, source: str) -> str:
        """[N, H, W, 3] bytes to [N, 3, H, W] floats."""
        # The Cast comes first: some compilers take bytes only there.
        values = self._to_float(source)
        planes = self.unused(f"{source}_planes")
        return self.add("Transpose", [values], planes, perm=[0, 3, 1, 2])

    def nv12(self, source: str, height: int, width: int) -> str:
        """[N, H * 3 / 2, W, 1] bytes to [N, 3, H, W] floats Y, U, V.

        Each chroma value is repeated over its 2x2 pixels.
        """
        rows = height // 2
        columns = width // 2
        values = self._to_float(source)
        luma_rows = self._slice_rows(values, f"{source}_y", 0, height)
        luma = self._reshape(luma_rows, f"{source}_y", [0, 1, height, width])
        chroma_rows = self._slice_rows(values, f"{source}_uv", height, height + rows)
        chroma = self._reshape(chroma_rows, f"{source}_uv", [0, rows, columns, 2])
        planes = self.unused(f"{source}_uv_planes")
        chroma = self.add("Transpose", [chroma], planes, perm=[0, 3, 1, 2])
        wide = self._repeat_pixels(chroma, f"{source}_uv")
        return self.add("Concat", [luma, wide], self.unused(f"{source}_planes"), axis=1)

    def _repeat_pixels(self, chroma: str, name: str) -> str:
        """[N, C, H, W] to [N, C, 2H, 2W]."""
        scales = self.constant(f"{name}_scales", np.array([1, 1, 2, 2], np.float32))
        # Opset 11 demands a region of interest, which `nearest` does not read.
        roi = self.constant(f"{name}_roi", np.zeros(0, np.float32))
        return self.add(
            "Resize",
            [chroma, roi, scales],
            self.unused(f"{name}_wide"),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def affine(
        self, planes: str, matrix: Float, origin: Float, shifted: str, output: str
    ) -> None:
        """matrix @ (planes - origin); the difference is called `shifted`."""
        subtracted = self._float_constant(f"{output}_origin", origin, (1, 3, 1, 1))
        self.add("Sub", [planes, subtracted], shifted)
        diagonal = np.diag(matrix)
        is_diagonal = np.array_equal(matrix, np.diag(diagonal))
        if is_diagonal:
            scale = self._float_constant(f"{output}_scale", diagonal, (1, 3, 1, 1))
            self.add("Mul", [shifted, scale], output)
        else:
            kernel = self._float_constant(f"{output}_matrix", matrix, (3, 3, 1, 1))
            self.add("Conv", [shifted, kernel], output, kernel_shape=[1, 1])

    def _float_constant(
        self, name: str, values: Float, shape: tuple[int, int, int, int]
    ) -> str:
        return self.constant(name, values.astype(np.float32).reshape(shape))

    def _to_float(self, source: str) -> str:
        output = self.unused(f"{source}_cast")
        return self.add("Cast", [source], output, to=TensorProto.FLOAT)

    def _slice_rows(self, values: str, name: str, start: int, end: int) -> str:
        """Rows `start` to `end` of [N, rows, W, 1]."""
        limits = [
            self.constant(f"{name}_start", np.array([start])),
            self.constant(f"{name}_end", np.array([end])),
            self.constant(f"{name}_axis", np.array([1])),
        ]
        return self.add("Slice", [values, *limits], self.unused(f"{name}_rows"))

    def _reshape(self, values: str, name: str, shape: list[int]) -> str:
        """`values` in `shape`, under the name `name`; 0 keeps a side."""
        target = self.constant(f"{name}_shape", np.array(shape))
        return self.add("Reshape", [values, target], self.unused(name))


def _retype_input(graph: onnx.GraphProto, name: str, preprocess: Preprocess) -> None:
    """Give the input `name` its new type; the batch stays as it was."""
    for item in graph.input:
        if item.name != name:
            continue
        dims = item.type.tensor_type.shape.dim
        batch = (dims[0].dim_value or dims[0].dim_param) if dims else ""
        shape = [batch or "N", *preprocess.input_shape]
        item.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))


def _summary(folded: FoldResult, inner: str, shifted: str) -> str:
    """Where the arithmetic went, as a clause."""
    graph = folded.model.graph
    computed: set[str] = set()
    for node in graph.node:
        computed.update(node.output)
    if inner not in computed:
        if shifted not in computed:
            return "all of it merged into the first layer, which does not pad"
        return (
            "the matrix merged into the first layer; the origin subtracted before it, because it "
            "pads with zeros"
        )
    readers = set()
    for node in graph.node:
        if inner in node.input:
            readers.add(node.name or f"{node.op_type}({node.output[0]})")
    for refusal in folded.refusals:
        if refusal.node in readers:
            return f"in front of the graph, because {refusal.reason}"
    return (
        "in front of the graph, because its first layer is not one convolution that alone "
        "reads it"
    )
