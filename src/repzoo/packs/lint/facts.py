"""What the lint knows of the model that a configuration is for."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import InputError
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.onnx_file import class_count, model_inputs, opset_of


def sides_text(shape: Sequence[int]) -> str:
    """Sides such as 1x3x224x224, with ? for an open one."""
    return "x".join(str(side) if side else "?" for side in shape)


def fits(sides: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether stated sides are those of the model, whose open sides (0) take any."""
    if len(sides) != len(shape):
        return False
    pairs = zip(sides, shape, strict=True)
    return all(own in (0, side) for side, own in pairs)


@dataclass(frozen=True)
class ModelFacts:
    """A model, with what rules ask about it.

    Attributes:
        artifact: the model.
        shown: its file as messages name it.
    """

    artifact: Artifact
    shown: str

    @property
    def preprocess(self) -> Preprocess | None:
        """How its images are prepared; None where neither the file nor the user says."""
        return self.artifact.preprocess

    @property
    def graph(self) -> onnx.GraphProto:
        """The graph."""
        return self.artifact.model.graph

    @property
    def source(self) -> str:
        """Where the expected values come from, for messages."""
        return f"from the preprocessing of {self.shown}"

    @functools.cached_property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Sides of each input; 0 where a side is open."""
        shapes: dict[str, tuple[int, ...]] = {}
        for value in model_inputs(self.artifact.model):
            sides = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(side.dim_value for side in sides)
        return shapes

    @functools.cached_property
    def node_names(self) -> frozenset[str]:
        """Names of all nodes."""
        return frozenset(node.name for node in self.graph.node)

    @functools.cached_property
    def operators(self) -> Counter[str]:
        """How often each operator occurs."""
        return Counter(node.op_type for node in self.graph.node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return opset_of(self.artifact.model)

    @property
    def classes(self) -> int:
        """Number of outputs; 0 where it is open."""
        return class_count(self.artifact.model)

    @property
    def is_quantized(self) -> bool:
        """Whether the graph holds QuantizeLinear."""
        return "QuantizeLinear" in self.operators

    @functools.cached_property
    def makers(self) -> dict[str, onnx.NodeProto]:
        """The node that computes each tensor."""
        return {name: node for node in self.graph.node for name in node.output}

    @functools.cached_property
    def weights(self) -> dict[str, onnx.TensorProto]:
        """Constants of the graph by name, those of Constant nodes too."""
        constants = {item.name: item for item in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                for item in node.attribute:
                    if item.name == "value":
                        constants[node.output[0]] = item.t
        return constants

    @functools.cached_property
    def folded(self) -> FoldResult | None:
        """What the fold makes of it; None where it refuses the graph. Takes seconds."""
        try:
            return fold(self.artifact.model)
        except (InputError, ValueError):
            return None  # quantized, or not a graph that the fold reads

    def readers(self, tensor: str) -> Iterator[onnx.NodeProto]:
        """Nodes that read the tensor."""
        for node in self.graph.node:
            if tensor in node.input:
                yield node


@dataclass(frozen=True)
class Workspace:
    """Where a configuration stands.

    Attributes:
        folder: that paths in messages are relative to.
        model: facts of the model; None where there is none.
        is_pack: whether a manifest or numbered steps say that the folder should be complete.
        images: photographs prepared as the model wants them, float32 [C, H, W], pixels 0..255.
    """

    folder: Path
    model: ModelFacts | None = None
    is_pack: bool = False
    images: tuple[npt.NDArray[np.float32], ...] = ()

    @property
    def preprocess(self) -> Preprocess | None:
        """The model's preprocessing, where it is known."""
        return self.model.preprocess if self.model else None

    def shown(self, path: Path) -> str:
        """`path` as messages name it."""
        try:
            return str(path.relative_to(self.folder))
        except ValueError:
            return str(path)
