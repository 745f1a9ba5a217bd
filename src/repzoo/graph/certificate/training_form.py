"""The training form, as the proof looks up what a folded node replaces."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from repzoo.graph.certificate.attributes import text
from repzoo.graph.certificate.evaluation import Evaluated, Evaluation
from repzoo.graph.certificate.folded_node import weight_of
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.known_values import KnownValues, Shape, read_known_values
from repzoo.graph.certificate.probes import PROBES, probe_shape
from repzoo.graph.certificate.window import Array
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.skeleton import without_weights

OPEN_SIDE = 3  # length of a probe along a side that is open


@dataclass(frozen=True)
class TrainingForm:
    """A training form, read for any batch size and, where sizes are values, for one image.

    index    for any batch size
    known    what is known for any batch size
    model    the graph, functions inlined
    """

    index: TensorIndex
    known: KnownValues
    model: onnx.ModelProto

    @classmethod
    def of(cls, model: onnx.ModelProto) -> TrainingForm:
        """The training form `model`, with or without functions of its own."""
        model = inline_functions(model)
        known = read_known_values(model)
        index = TensorIndex.of(model.graph, known, _cast_input_types(model))
        return cls(index, known, model)

    @functools.cached_property
    def _known_for_one(self) -> KnownValues:
        return read_known_values(self.model, batch=1)

    @functools.cached_property
    def _index_for_one(self) -> TensorIndex:
        """The index for one image. A computed size is a constant there."""
        known = self._known_for_one
        # An alias must hold for any batch size.
        known = KnownValues(known.values, known.shapes, self.known.aliases)
        return TensorIndex.of(self.model.graph, known, self.index.types)

    @functools.cached_property
    def _has_scatter(self) -> bool:
        """Whether a node writes by index, so that sizes are values: one image stands for all."""
        return _contains_scatter(self.model.graph.node)

    @functools.cached_property
    def _image_shapes(self) -> Mapping[str, Shape]:
        """Shapes of tensors on whose height and width a padding or a write depends."""
        if self._has_scatter:
            known = self._known_for_one.shapes
        elif any(_pads_by_size(node) for node in self.model.graph.node):
            known = self.known.shapes
        else:
            return {}
        shapes = {}
        for name, shape in known.items():
            # What a graph writes by index depends on the batch size too.
            fixed = shape if self._has_scatter else shape[2:]
            if len(shape) == 4 and all(fixed):
                shapes[name] = shape
        return shapes

    def index_for(self, node: onnx.NodeProto) -> TensorIndex:
        """The reading in which to look for what the folded `node` replaces."""
        if node.op_type == "MatMul" or self._has_scatter:
            return self._index_for_one
        return self.index

    def probe_shape(self, node: onnx.NodeProto, new: TensorIndex) -> Shape | None:
        """The shape of one probe of the folded `node`; None if it is no fold or of unknown size.

        Raises:
            UnknownExpression: it is no convolution that a fold writes.
        """
        weight = weight_of(node, new)
        if weight is None:
            return None
        if node.op_type == "MatMul":
            source = self._index_for_one.resolve(node.input[0])
            *rows, _ = self._known_for_one.shapes.get(source) or (1, 0, 0)
            rows = [side or OPEN_SIDE for side in rows]
            return (*rows, weight.shape[1])
        source = self.index.resolve(node.input[0])
        target = self.index.resolve(node.output[0])
        image = self._image_shapes.get(source)
        if self._has_scatter and self._is_scattered(source, target):
            return image
        return probe_shape(node, weight, image)

    def evaluate(
        self,
        node: onnx.NodeProto,
        probes: Array,
        casts: Mapping[str, int],
        absolute: bool = False,
    ) -> Evaluated:
        """What the folded `node` replaces, on `probes`. See Evaluation for `casts`, `absolute`."""
        index = self.index_for(node)
        source = index.resolve(node.input[0])
        target = index.resolve(node.output[0])
        # In the reading for one image, the probes go in one at a time.
        parts = 1 if index is self.index else len(PROBES)
        results = []
        for part in np.split(probes, parts):
            evaluation = Evaluation(index, {source: part}, casts, absolute)
            results.append(evaluation.evaluate(target))
        values = np.concatenate([result.values for result in results])
        return Evaluated(values, results[0].roundings)

    def _is_scattered(self, source: str, target: str) -> bool:
        """Whether a node between two tensors writes by index."""
        return _contains_scatter(self._index_for_one.between(source, target))


def _contains_scatter(nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(node.op_type == "ScatterND" for node in nodes)


def _pads_by_size(node: onnx.NodeProto) -> bool:
    """Whether the padding of `node` follows from the size of its input."""
    return text(node, "auto_pad", "NOTSET").startswith("SAME")


def _cast_input_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the tensors that Cast nodes read, where ONNX can infer them."""
    names = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    if not names:
        return {}
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    types = {}
    for item in (*graph.input, *graph.value_info):
        if item.name in names:
            types[item.name] = item.type.tensor_type.elem_type
    return types
