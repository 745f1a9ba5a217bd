"""What the outputs of a graph mean: logits, one probability for each class, or labels of their own.

The last operator tells. A graph that ends in Softmax gives probabilities of classes that exclude
each other. One that ends in Sigmoid gives a probability for each label, and several labels may
hold for an image. A single Sigmoid decides between two classes. A graph without either gives
logits, whose softmax are the probabilities.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.errors import InputError
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.onnx_edit import nodes_by_output
from repzoo.graph.tools.skeleton import without_weights
from repzoo.onnx_file import opset_of

THRESHOLD = 0.5  # a label holds where its probability is above
# How far a row of probabilities may sum from 1: float16 and INT8 outputs round each of them.
SUM_TOLERANCE = 1e-3
# Below the smallest probability that float16 can hold. An output of 0 stands for any below.
SMALLEST_PROBABILITY = 1e-7
# Operators that move values, round them or bound them. None of them changes what they mean.
TRANSPARENT = {
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Dropout",
    "Flatten",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
}
FLOATS = {
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
}

Outputs = npt.NDArray[np.floating]
Probabilities = npt.NDArray[np.float64]


class HeadKind(enum.Enum):
    """What one row of outputs is.

    LOGITS   one logit for each class; classes exclude each other. Also the end in LogSoftmax,
             whose softmax is the same
    SOFTMAX  one probability for each class; they sum to 1
    SIGMOID  one probability for each label; several labels may hold for an image, or none
    BINARY   one probability, that of the second of two classes that exclude each other
    OTHER    not the head of a classifier; `Head.reason` says why
    """

    LOGITS = "logits"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    BINARY = "binary"
    OTHER = "other"


@dataclass(frozen=True)
class Head:
    """The head of one graph.

    classes  outputs of one image, of BINARY 2; 0 where the graph does not say
    reason   for OTHER: why it is no classifier's head, as a clause; "" otherwise
    """

    kind: HeadKind
    classes: int = 0
    reason: str = ""

    @property
    def is_multi_label(self) -> bool:
        """Whether each output is a label of its own, which holds above THRESHOLD."""
        return self.kind is HeadKind.SIGMOID

    def by_class(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`outputs` as float32 [n, classes]: the single one of BINARY becomes those of both."""
        if self.kind is HeadKind.BINARY and outputs.shape[1:] == (1,):
            return np.hstack([1 - outputs, outputs])
        return outputs

    def probabilities(self, outputs: Outputs) -> Probabilities:
        """Probabilities float64 [n, classes] from the graph's outputs [n, classes].

        Softmax is taken of logits only. Rows that are probabilities as they are stay so whatever
        the graph ends in: an average of several softmaxes, or a softmax that was written out as
        exponentials and their sum, has no Softmax at its end.

        Raises:
            InputError: the head is no classifier's.
        """
        values = np.asarray(outputs, np.float64)
        if self.kind is HeadKind.OTHER:
            raise InputError(f"these outputs are no classes: {self.reason}")
        if self.refine(values).kind is HeadKind.LOGITS:
            return _softmax(values)
        return values

    def refine(self, outputs: Outputs) -> Head:
        """This head, or SOFTMAX where every row of the float model's `outputs` sums to 1.

        The graph may have written a softmax out, or average several. The outputs of an INT8 model
        do not tell: rounding changes their sums.
        """
        values = np.asarray(outputs, np.float64)
        if self.kind is HeadKind.LOGITS and _are_probabilities(values):
            return replace(self, kind=HeadKind.SOFTMAX)
        return self

    def logits(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits float32 [n, classes] from the graph's outputs [n, classes], by the kind of head.

        Those of a softmax are known up to a constant of each image. A probability of 0 counts as
        SMALLEST_PROBABILITY, and one of 1 as that less than 1 where the head is a sigmoid. Outputs
        that are logits, or of a head that is no classifier's, stay as they are.
        """
        values = np.asarray(self.by_class(outputs), np.float64)
        if self.kind is HeadKind.SIGMOID:
            values = np.clip(values, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
            return np.asarray(np.log(values) - np.log1p(-values), np.float32)
        if self.kind in (HeadKind.SOFTMAX, HeadKind.BINARY):
            logarithms = np.log(np.maximum(values, SMALLEST_PROBABILITY))
            return np.asarray(logarithms, np.float32)
        return outputs


def find_head(model: onnx.ModelProto) -> Head:
    """The head of `model`, whatever model it is: one that is no classifier's is OTHER."""
    try:
        skeleton = without_weights(inline_functions(model))
    except InputError:
        skeleton = without_weights(model)
    outputs = skeleton.graph.output
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs)
        return _other(f"the graph has {len(outputs)} outputs ({names})")
    output = outputs[0]
    if output.type.tensor_type.elem_type not in FLOATS:
        return _other(f"the output {output.name} does not hold floating-point numbers")
    graph_walk = _GraphWalk(skeleton)
    shape = graph_walk.shapes.get(output.name)
    if shape is not None and not _is_row_per_image(shape):
        sides = ", ".join(str(side) if side else "?" for side in shape)
        return _other(f"the output {output.name} is [{sides}], not [N, classes]")
    classes = math.prod(shape[1:]) if shape else 0
    head = graph_walk.classify(output.name, classes)
    if head.kind is HeadKind.SIGMOID and classes == 1:
        return Head(HeadKind.BINARY, 2)
    if head.kind is HeadKind.LOGITS and classes == 1:
        return _other(
            "the only output has no Sigmoid, so it may be a logit or a measured quantity"
        )
    return head


class _GraphWalk:
    """Looks backwards from an output for the operator that gives it its meaning.

    shapes  of the tensors whose rank is known; an unknown side is 0
    """

    def __init__(self, skeleton: onnx.ModelProto) -> None:
        self.shapes = _shapes(skeleton)
        self._nodes = nodes_by_output(skeleton.graph)
        self._opset = opset_of(skeleton)

    def classify(self, name: str, classes: int) -> Head:
        """The head whose outputs are the tensor `name`."""
        node = self._nodes.get(name)
        while node is not None and node.op_type in TRANSPARENT:
            node = self._nodes.get(node.input[0])
        if node is None:
            return Head(HeadKind.LOGITS, classes)
        if node.op_type == "Softmax":
            if self._covers_row(node):
                return Head(HeadKind.SOFTMAX, classes)
            return _other("its Softmax normalizes groups of outputs, not all classes")
        if node.op_type in ("Sigmoid", "HardSigmoid"):
            return Head(HeadKind.SIGMOID, classes)
        if node.op_type == "Concat":
            return self._classify_parts(node.input, classes)
        return Head(HeadKind.LOGITS, classes)

    def _classify_parts(self, names: Iterable[str], classes: int) -> Head:
        """The head whose outputs are the tensors `names` side by side."""
        kinds = {self.classify(name, classes).kind for name in names}
        if len(kinds) == 1 and HeadKind.SOFTMAX not in kinds:
            return Head(kinds.pop(), classes)
        return _other("several heads stand side by side in one output")

    def _covers_row(self, softmax: onnx.NodeProto) -> bool:
        """Whether a Softmax normalizes all outputs of an image together, as far as is known.

        Source: ONNX operators Softmax-1 (all axes from `axis`, 1 by default) and Softmax-13 (one
        axis, the last by default). For [N, C] both mean the same.
        """
        shape = self.shapes.get(softmax.output[0])
        if shape is None or len(shape) <= 2 or not all(shape[1:]):
            return True
        covers_later_axes = self._opset < 13
        axis = 1 if covers_later_axes else -1
        for item in softmax.attribute:
            if item.name == "axis":
                axis = item.i
        normalized = shape[axis:] if covers_later_axes else [shape[axis]]
        return math.prod(normalized) == math.prod(shape[1:])


def _shapes(skeleton: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of all tensors whose rank ONNX's shape inference finds."""
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton).graph
    except onnx.shape_inference.InferenceError:
        graph = skeleton.graph  # what the file itself states is enough for most heads
    shapes = {}
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sides = [max(0, dim.dim_value) for dim in tensor.shape.dim]
            shapes[value.name] = sides
    return shapes


def _is_row_per_image(shape: list[int]) -> bool:
    """Whether `shape` is [N, C], or [N, C] with axes of one element."""
    if len(shape) <= 2:
        return len(shape) == 2
    longer = [side for side in shape[1:] if side != 1]
    return len(longer) <= 1


def _are_probabilities(values: Probabilities) -> bool:
    """Whether every row is nonnegative and sums to 1."""
    deviations = np.abs(values.sum(axis=1) - 1)
    return bool((values >= 0).all() and (deviations <= SUM_TOLERANCE).all())


def _softmax(logits: Probabilities) -> Probabilities:
    # Without the largest logit of each row, no exponential overflows.
    largest = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - largest)
    total = exponentials.sum(axis=1, keepdims=True)
    return np.asarray(exponentials / total)


def _other(reason: str) -> Head:
    return Head(HeadKind.OTHER, reason=reason)
