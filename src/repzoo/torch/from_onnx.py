"""An ONNX graph as a torch.fx module, for the PyTorch engine and for fine-tuning.

Every operator becomes a call of a torch function (operators.py). What depends on constants alone is
computed once. No library does this for our graphs: onnx2torch (1.5.15, the last, of 2024) knows
neither Q/DQ nor the opsets above 16 for several operators.

INT8 models are computed as fake quantization: values are rounded to their 8-bit steps, multiplied
and summed in float32. That is what the model means, to the last rounding.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from repzoo.errors import InputError, first_line
from repzoo.onnx_file import STANDARD_DOMAINS, model_inputs, opset_of
from repzoo.torch.operators import OPERATORS
from repzoo.torch.windows import Window

FAILED = "pytorch cannot compile this model"


def build_module(model: onnx.ModelProto) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """`model` as a module, and the fx node of each activation by its ONNX name.

    The module takes the one input of the model and returns the list of its outputs. Weights are
    buffers that get_attr nodes read; who trains them replaces these nodes
    (quant/parameters/fake_quantization.py).

    Raises:
        InputError: an operator or an attribute is not known here, or the model is damaged.
    """
    try:
        builder = _Builder(model)
        return builder.build(), builder.activations()
    except InputError:
        raise
    except Exception as error:  # damaged attributes and constants, of whatever kind
        raise InputError(f"{FAILED}: {first_line(error)}") from None


class _Builder:
    """Builds the fx graph. `values` holds an fx node or a constant for each ONNX tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._values: dict[str, Any] = {"": None}  # an omitted input
        self._constants = 0
        self._opset = opset_of(model)

    def build(self) -> fx.GraphModule:
        """The module; to be called once."""
        for item in self._model.graph.initializer:
            self._values[item.name] = _tensor(item)
        first = model_inputs(self._model)[0]
        self._values[first.name] = self._graph.placeholder("inputs")
        for node in self._model.graph.node:
            self._add(node)
        names = [value.name for value in self._model.graph.output]
        self._graph.output([self._argument(self._value(name)) for name in names])
        return fx.GraphModule(self._root, self._graph).eval()

    def activations(self) -> dict[str, fx.Node]:
        """The fx node of each tensor that is no constant, by its ONNX name."""
        items = self._values.items()
        return {name: value for name, value in items if isinstance(value, fx.Node)}

    def _add(self, node: onnx.NodeProto) -> None:
        """Add the call of the torch function for `node`, or compute it where it is constant."""
        function = OPERATORS.get(node.op_type)
        if function is None or node.domain not in STANDARD_DOMAINS:
            raise InputError(f"{FAILED}: its engine knows no operator {node.op_type!r}")
        attributes = self._attributes(node, function)
        inputs = [self._value(name) for name in node.input]
        results = self._call(function, inputs, attributes, len(node.output))
        self._values.update(zip(node.output, results, strict=True))

    def _attributes(
        self, node: onnx.NodeProto, function: Callable[..., Any]
    ) -> dict[str, Any]:
        """The keyword arguments of `function` for `node`."""
        attributes: dict[str, Any] = {}
        for item in node.attribute:
            value = onnx.helper.get_attribute_value(item)
            if item.type == item.TENSOR:
                value = _tensor(value)
            attributes[item.name] = value
        accepted = _keywords(function)
        if "opset" in accepted:
            attributes["opset"] = self._opset
        if "outputs" in accepted:
            attributes["outputs"] = len(node.output)
        attributes.pop("training_mode", None)  # operators.py computes inference
        unknown = sorted(set(attributes) - accepted)
        if unknown:
            raise InputError(
                f"{FAILED}: {node.op_type} with {unknown[0]} is not implemented"
            )
        if accepted.issuperset(Window._fields):
            attributes["window"] = Window.pop_from(attributes)
        return attributes

    def _call(
        self,
        function: Callable[..., Any],
        inputs: list[Any],
        attributes: dict[str, Any],
        outputs: int,
    ) -> list[Any]:
        """The `outputs` of the call: fx nodes, or constants where all inputs are."""
        if not any(isinstance(value, fx.Node) for value in inputs):
            # Outside of inference mode, for a constant may become a weight that is trained.
            with torch.inference_mode(False), torch.no_grad():
                constant = function(*inputs, **attributes)
            return list(constant) if outputs > 1 else [constant]
        arguments = tuple(self._argument(value) for value in inputs)
        keywords = {key: self._argument(value) for key, value in attributes.items()}
        call = self._graph.call_function(function, arguments, keywords)
        if outputs == 1:
            return [call]
        items = []
        for index in range(outputs):
            items.append(self._graph.call_function(operator.getitem, (call, index)))
        return items

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise InputError(f"{FAILED}: nothing makes its value {name!r}")
        return self._values[name]

    def _argument(self, value: Any) -> Any:
        """A value as an fx argument. Constants become buffers."""
        # torch.compile sees through whole numbers only where they are a plain tuple.
        if not isinstance(value, Tensor):
            return value
        if value.dtype == torch.int64 and value.dim() <= 1:
            return tuple(value.tolist()) if value.dim() else int(value)
        self._constants += 1
        name = f"constant{self._constants}"
        self._root.register_buffer(name, value)
        return self._graph.get_attr(name)


def _keywords(function: Callable[..., Any]) -> set[str]:
    """The attributes that `function` takes. torch's own functions do not say, and take none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return set()
    names = {item.name for item in parameters if item.kind is item.KEYWORD_ONLY}
    if "window" in names:
        names.remove("window")
        names.update(Window._fields)
    return names


def _tensor(item: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(item)))
