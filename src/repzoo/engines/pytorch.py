"""PyTorch: `pytorch` runs an ONNX graph eagerly, operator by operator; `pytorch:compile` through torch.compile.

The ONNX graph becomes a torch.fx graph of the functions below, one for each operator, which is then a Python function of its
own. No library does this for our graphs: onnx2torch (1.5.15, the last, of 2024) knows neither Q/DQ nor the opsets above 16 for
several operators. What depends on constants alone is computed once.

INT8 models are computed as fake quantization: values are rounded to their 8-bit steps, multiplied and summed in float32. That is
the model's meaning to the last rounding, so accuracy is right; the latency says nothing about INT8.

torch.compile needs a C++ compiler, compiles at the first input of a shape (many seconds), and keeps what it compiled in its own
cache (TORCHINDUCTOR_CACHE_DIR, by default in the system's temporary folder). exact=True runs eagerly.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx
from torch.nn import functional

from repzoo.engines import Array
from repzoo.engines.signature import Signature, signature_of
from repzoo.errors import InputError

Ints = Sequence[int]


class PyTorch:
    """The `pytorch` engine. option: "compile"."""

    simulates_int8 = True

    def __init__(self, option: str = "") -> None:
        self.name = f"pytorch:{option}" if option else "pytorch"
        self._compiled = option == "compile"

    @staticmethod
    def options() -> list[str]:
        """`compile`: through torch.compile."""
        return ["compile"]

    def version(self) -> str:
        """The wheel's version."""
        return str(torch.__version__)

    def open(
        self, model: onnx.ModelProto, threads: int = 1, exact: bool = False, streams: int = 1
    ) -> PyTorchSession:
        """See `engines.Engine.open`."""
        module: Any = _module(model)
        if self._compiled and not exact:
            module = torch.compile(
                module, dynamic=False, options={"freezing": True, "compile_threads": 1}
            )
        return PyTorchSession(module, signature_of(model), threads, self.name)


class PyTorchSession:
    """A module in inference mode. torch.compile works at the first call for a shape, which no other call may overlap."""

    def __init__(self, module: Any, signature: Signature, threads: int, name: str) -> None:
        self._module, self._signature, self._threads, self._name = module, signature, threads, name
        self._lock, self._seen = threading.Lock(), set[tuple[int, ...]]()

    def run(self, inputs: Array) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        """See `engines.Session.run_all`."""
        self._signature.require(inputs, self._name)
        try:
            if inputs.shape in self._seen:
                return self._run(inputs)
            with self._lock:
                outputs = self._run(inputs)
            self._seen.add(inputs.shape)
            return outputs
        except (
            Exception
        ) as error:  # RuntimeError, IndexError, and whatever torch.compile's stages raise
            raise InputError(
                f"{self._name} cannot run this model on {list(inputs.shape)}: {_first_line(error)}"
            ) from None

    def _run(self, inputs: Array) -> list[Array]:
        """With this session's number of threads, which torch keeps for each calling thread."""
        before = torch.get_num_threads()
        if before != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                outputs = self._module(torch.from_numpy(np.ascontiguousarray(inputs)))
        finally:
            if before != self._threads:
                torch.set_num_threads(before)
        return [output.to(torch.float32).numpy() for output in outputs]


# --- the graph --------------------------------------------------------------------------------------------------------


def _module(model: onnx.ModelProto) -> fx.GraphModule:
    """`model` as a module that takes its input and returns the list of its outputs."""
    try:
        return _Builder(model).module()
    except InputError:
        raise
    except Exception as error:  # damaged attributes and constants, of whatever kind
        raise InputError(f"pytorch cannot compile this model: {_first_line(error)}") from None


def traced(model: onnx.ModelProto) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """`model` as a module that takes its input and returns the list of its outputs, and the node that makes each activation.

    Weights are buffers, read by get_attr nodes: who trains them replaces these (quant/finetune.py).

    Raises:
        InputError: an operator that is not known here.
    """
    builder = _Builder(model)
    module = builder.module()
    return module, builder.activations()


class _Builder:
    """Draws the fx graph. `values` maps an ONNX name to an fx node, or to a constant (a tensor)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model, self._graph, self._root = model, fx.Graph(), torch.nn.Module()
        self._values: dict[str, Any] = {"": None}
        self._constants = 0
        self._opset = next(
            (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0
        )

    def module(self) -> fx.GraphModule:
        for item in self._model.graph.initializer:
            self._values[item.name] = _tensor(item)
        self._values[signature_of(self._model).name] = self._graph.placeholder("inputs")
        for node in self._model.graph.node:
            self._draw(node)
        self._graph.output(
            [self._argument(self._known(item.name)) for item in self._model.graph.output]
        )
        return fx.GraphModule(self._root, self._graph).eval()

    def activations(self) -> dict[str, fx.Node]:
        return {name: value for name, value in self._values.items() if isinstance(value, fx.Node)}

    def _draw(self, node: onnx.NodeProto) -> None:
        function = OPERATORS.get(node.op_type)
        if function is None or node.domain not in ("", "ai.onnx"):
            raise InputError(
                f"pytorch cannot compile this model: its engine knows no operator {node.op_type!r}"
            )
        settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        settings = {
            key: _tensor(item) if isinstance(item, onnx.TensorProto) else item
            for key, item in settings.items()
        }
        known = _settings(function)
        if "opset" in known:
            settings["opset"] = self._opset
        if "outputs" in known:
            settings["outputs"] = len(node.output)
        if strange := set(settings) - set(known) - {"training_mode"}:
            raise InputError(
                f"pytorch cannot compile this model: {node.op_type} with {sorted(strange)[0]} is not implemented"
            )
        settings.pop("training_mode", None)
        if known.issuperset(Window._fields):
            settings["window"] = Window.taken_from(settings)
        self._apply(node, function, [self._known(name) for name in node.input], settings)

    def _apply(
        self,
        node: onnx.NodeProto,
        function: Callable[..., Any],
        inputs: list[Any],
        settings: dict[str, Any],
    ) -> None:
        if any(isinstance(value, fx.Node) for value in inputs):
            settings = {key: self._argument(value) for key, value in settings.items()}
            found: Any = self._graph.call_function(
                function, tuple(map(self._argument, inputs)), settings
            )
            several: Any = (
                [self._part(found, at) for at in range(len(node.output))]
                if len(node.output) > 1
                else [found]
            )
        else:
            with torch.inference_mode(False), torch.no_grad():
                found = function(*inputs, **settings)
            several = found if len(node.output) > 1 else [found]
        self._values.update(zip(node.output, several, strict=True))

    def _part(self, found: fx.Node, index: int) -> fx.Node:
        return self._graph.call_function(operator.getitem, (found, index))

    def _known(self, name: str) -> Any:
        if name not in self._values:
            raise InputError(f"pytorch cannot compile this model: nothing makes its value {name!r}")
        return self._values[name]

    def _argument(self, value: Any) -> Any:
        """Whole numbers (shapes, axes) become a plain tuple that torch.compile sees through, other constants buffers."""
        if not isinstance(value, Tensor):
            return value
        if value.dtype == torch.int64 and value.dim() <= 1:
            return tuple(value.tolist()) if value.dim() else int(value)
        self._constants += 1
        name = f"constant{self._constants}"
        self._root.register_buffer(name, value)
        return self._graph.get_attr(name)


def _settings(function: Callable[..., Any]) -> set[str]:
    """The attributes that `function` takes; torch's own functions tell nothing and take none."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:
        return set()
    names = {one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY}
    return names - {"window"} | set(Window._fields) if "window" in names else names


def _tensor(item: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(item)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- the operators: tensors first, then attributes by their ONNX names -------------------------------------------------


def _ints(value: Any) -> list[int]:
    """A shape, axes or sizes, given as a constant or computed by the graph."""
    return [
        int(one)
        for one in (
            value.tolist()
            if isinstance(value, Tensor)
            else [value]
            if isinstance(value, int)
            else value
        )
    ]


class Window(NamedTuple):
    """Where a kernel lands: the attributes that Conv and the pools share, one number an axis, `pads` all begins before all ends."""

    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: bytes = b"NOTSET"

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> Window:
        """The window in a node's attributes, which it leaves there no more."""
        kernel, strides, pads = (
            tuple(settings.pop(key, ())) for key in ("kernel_shape", "strides", "pads")
        )
        return cls(kernel, strides, pads, settings.pop("auto_pad", b"NOTSET"))

    def over(self, kernel: Ints) -> Window:
        """This window for a `kernel` of that size, ONNX's defaults filled in."""
        axes = len(kernel)
        return Window(
            tuple(kernel),
            self.strides or (1,) * axes,
            self.pads or (0,) * (2 * axes),
            self.auto_pad,
        )

    @property
    def same(self) -> bool:
        """Whether the padding follows from the input's size: the output is ceil(input / stride)."""
        return self.auto_pad in (b"SAME_UPPER", b"SAME_LOWER")

    @property
    def border(self) -> tuple[int, ...] | None:
        """The padding of each axis where it is known and the same on both sides, as torch's own operators take it."""
        before, after = self.pads[: len(self.kernel_shape)], self.pads[len(self.kernel_shape) :]
        return before if before == after and not self.same else None

    def padded(self, x: Tensor, dilations: Ints, fill: float) -> Tensor:
        """`x` within the border of `fill` that the window asks for."""
        pads, axes = (
            self._same(x.shape[2:], dilations) if self.same else self.pads,
            len(self.kernel_shape),
        )
        if not any(pads):
            return x
        return functional.pad(
            x,
            [one for axis in reversed(range(axes)) for one in (pads[axis], pads[axis + axes])],
            value=fill,
        )

    def _same(self, lengths: Ints, dilations: Ints) -> Ints:
        spans = [
            (kernel - 1) * step + 1
            for kernel, step in zip(self.kernel_shape, dilations, strict=True)
        ]
        totals = [
            max(0, (-(-length // stride) - 1) * stride + span - length)
            for length, stride, span in zip(lengths, self.strides, spans, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return [*less, *more] if self.auto_pad == b"SAME_UPPER" else [*more, *less]


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    window: Window,
    dilations: Ints = (),
    group: int = 1,
) -> Tensor:
    axes = w.dim() - 2
    window, steps = window.over(w.shape[2:]), tuple(dilations or [1] * axes)
    if (border := window.border) is None:
        x, border = window.padded(x, steps, 0.0), (0,) * axes
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]
    return convolve(x, w, b, window.strides, border, steps, group)


def max_pool(
    x: Tensor, *, window: Window, dilations: Ints = (), ceil_mode: int = 0, storage_order: int = 0
) -> Tensor:
    window, steps = (
        window.over(window.kernel_shape),
        tuple(dilations or [1] * len(window.kernel_shape)),
    )
    x = window.padded(x, steps, -torch.inf)
    return functional.max_pool2d(x, window.kernel_shape, window.strides, 0, steps, bool(ceil_mode))


def average_pool(
    x: Tensor, *, window: Window, ceil_mode: int = 0, count_include_pad: int = 0
) -> Tensor:
    window, steps = window.over(window.kernel_shape), [1] * len(window.kernel_shape)
    if (border := window.border) is not None:
        return functional.avg_pool2d(
            x, window.kernel_shape, window.strides, border, bool(ceil_mode), bool(count_include_pad)
        )

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(
            window.padded(values, steps, 0.0),
            window.kernel_shape,
            window.strides,
            0,
            bool(ceil_mode),
        )

    return mean(x) if count_include_pad else mean(x) / mean(torch.ones_like(x[:1, :1]))


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
         transB: int = 0) -> Tensor:  # fmt: skip
    a, b = (a.mT if transA else a), (b.mT if transB else b)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def batch_normalization(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
                        momentum: float = 0.9) -> Tensor:  # fmt: skip
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _reducing(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(
        x: Tensor,
        given: Any = None,
        *,
        axes: Ints = (),
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = _ints(given if given is not None else axes)
        if not chosen and noop_with_empty_axes:
            return x
        return reduce(x, dim=chosen or list(range(x.dim())), keepdim=bool(keepdims))

    return reduced


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, *, min: float | None = None,
         max: float | None = None) -> Tensor:  # fmt: skip
    low, high = (min if low is None else low), (max if high is None else high)  # type: ignore[assignment]
    low = torch.as_tensor(low, dtype=x.dtype) if low is not None else None
    high = torch.as_tensor(high, dtype=x.dtype) if high is not None else None
    return x if low is None and high is None else torch.clamp(x, low, high)


def _span(x: Tensor, scale: Tensor, axis: int) -> list[int]:
    """The shape in which one scale, or one for each index of `axis`, meets `x`."""
    return (
        [-1 if one == axis % x.dim() else 1 for one in range(x.dim())] if scale.numel() > 1 else []
    )


def quantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, saturate: int = 1
) -> Tensor:
    kind = zero.dtype if zero is not None else torch.uint8
    reach, shape = torch.iinfo(kind), _span(x, scale, axis)
    offset = zero.reshape(shape).to(torch.float32) if zero is not None else 0.0
    return torch.clamp(torch.round(x / scale.reshape(shape)) + offset, reach.min, reach.max).to(
        kind
    )


def dequantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    shape = _span(x, scale, axis)
    centerd = x.to(torch.float32) - (
        zero.reshape(shape).to(torch.float32) if zero is not None else 0.0
    )
    return centerd * scale.reshape(shape)


def reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    return x.reshape(
        [x.shape[at] if one == 0 and not allowzero else one for at, one in enumerate(_ints(shape))]
    )


def split(
    x: Tensor,
    given: Any = None,
    *,
    axis: int = 0,
    split: Ints = (),
    num_outputs: int = 0,
    outputs: int = 1,
) -> Any:
    sizes = _ints(given if given is not None else split)
    if not sizes:
        count, whole = num_outputs or outputs, x.shape[axis]
        each = -(-whole // count)
        sizes = [min(each, whole - each * at) for at in range(count)]
    parts = torch.split(x, sizes, axis)
    return parts if outputs > 1 else parts[0]


def slices(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    starts, ends = _ints(starts), _ints(ends)
    chosen = _ints(axes) if axes is not None else range(len(starts))
    for start, end, axis, step in zip(
        starts, ends, chosen, _ints(steps) if steps is not None else [1] * len(starts), strict=True
    ):
        index = range(x.shape[axis])[start:end:step]
        x = (
            x.index_select(axis, torch.tensor(list(index)))
            if step != 1
            else x.narrow(axis, index.start, len(index))
        )
    return x


def pad(
    x: Tensor,
    given: Any = None,
    value: Any = None,
    axes: Any = None,
    *,
    pads: Ints = (),
    mode: bytes = b"constant",
) -> Tensor:
    amounts = _ints(given if given is not None else pads)
    chosen = [one % x.dim() for one in (_ints(axes) if axes is not None else range(x.dim()))]
    both = {axis: (amounts[at], amounts[at + len(chosen)]) for at, axis in enumerate(chosen)}
    order = [one for axis in reversed(range(x.dim())) for one in both.get(axis, (0, 0))]
    while len(order) > 2 and order[-2:] == [0, 0]:
        order = order[:-2]
    kind = {
        b"constant": "constant",
        b"reflect": "reflect",
        b"edge": "replicate",
        b"wrap": "circular",
    }[mode]
    return functional.pad(
        x, order, kind, float(value) if kind == "constant" and value is not None else None
    )


def resize(x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, *, mode: bytes = b"nearest",
           coordinate_transformation_mode: bytes = b"half_pixel", nearest_mode: bytes = b"round_prefer_floor") -> Tensor:  # fmt: skip
    """Enlarging by whole factors, each pixel repeated, as NV12's chroma needs; every other kind is refused."""
    size = (
        _ints(sizes)
        if sizes is not None
        else [round(float(a) * b) for a, b in zip(scales, x.shape, strict=True)]
    )
    exact = all(new % old == 0 for new, old in zip(size, x.shape, strict=True)) and list(
        size[:2]
    ) == list(x.shape[:2])
    repeats = (coordinate_transformation_mode, nearest_mode) != (
        b"half_pixel",
        b"ceil",
    ) and mode == b"nearest"
    if not exact or not repeats or x.dim() != 4:
        raise InputError(
            f"Resize ({mode.decode()}) of {list(x.shape)} to {size} is not implemented; use another engine"
        )
    return x.repeat_interleave(size[2] // x.shape[2], 2).repeat_interleave(size[3] // x.shape[3], 3)


def softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        return torch.softmax(x, -1 if axis is None else axis)
    axis = 1 if axis is None else axis  # before opset 13: over everything from `axis` on
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(to))).dtype)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(int(np.prod(x.shape[:axis])), -1) if axis != 1 else x.flatten(1)


def squeeze(x: Tensor, given: Any = None, *, axes: Ints = ()) -> Tensor:
    chosen = _ints(given if given is not None else axes)
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


def unsqueeze(x: Tensor, given: Any = None, *, axes: Ints = ()) -> Tensor:
    chosen = _ints(given if given is not None else axes)
    for axis in sorted(one % (x.dim() + len(chosen)) for one in chosen):
        x = x.unsqueeze(axis)
    return x


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    chosen = torch.as_tensor(indices) % x.shape[axis]
    axis %= x.dim()
    # a list: a single index of a vector leaves no dimension at all
    return x.index_select(axis, chosen.reshape(-1)).reshape(
        [*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]]
    )


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape[start:end]))


def constant(*, value: Any = None, value_float: Any = None, value_floats: Any = None, value_int: Any = None,
             value_ints: Any = None) -> Tensor:  # fmt: skip
    given = next(
        one for one in (value, value_float, value_floats, value_int, value_ints) if one is not None
    )
    return given if isinstance(given, Tensor) else torch.tensor(given)


def constant_of_shape(shape: Any, *, value: Any = None) -> Tensor:
    return (
        (torch.zeros(1) if value is None else torch.as_tensor(value).reshape(1))
        .expand(_ints(shape))
        .clone()
    )


def concat(*parts: Any, axis: int) -> Tensor:
    return torch.cat(
        [one if isinstance(one, Tensor) else torch.tensor(_ints(one)) for one in parts], axis
    )


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def variadic(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return variadic


def _binary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda a, b: function(torch.as_tensor(a), torch.as_tensor(b))


def _division(a: Any, b: Any) -> Tensor:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _binary(torch.add), "Sub": _binary(torch.sub), "Mul": _binary(torch.mul), "Div": _division, "Pow": _binary(torch.pow),
    "Min": _folded(torch.minimum), "Max": _folded(torch.maximum), "Sum": _folded(torch.add), "MatMul": torch.matmul,
    "Equal": _binary(torch.eq), "Greater": _binary(torch.gt), "Less": _binary(torch.lt), "Where": torch.where,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Abs": torch.abs, "Ceil": torch.ceil, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log,
    "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sqrt": torch.sqrt, "Tanh": torch.tanh, "Softplus": functional.softplus, "Identity": lambda x: x,
    "Dropout": lambda x, *_, ratio=0.5, seed=0: x,
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": functional.hardswish, "Elu": lambda x, *, alpha=1.0: functional.elu(x, alpha),
    "LeakyRelu": lambda x, *, alpha=0.01: functional.leaky_relu(x, alpha),
    "Gelu": lambda x, *, approximate=b"none": functional.gelu(x, approximate=approximate.decode()),
    "Softmax": softmax, "Clip": clip, "Cast": cast, "Constant": constant,
    "ConstantOfShape": constant_of_shape, "Shape": shape_of, "Expand": lambda x, to: x * torch.ones(
        _ints(to), dtype=x.dtype),
    "Conv": conv, "Gemm": gemm, "BatchNormalization": batch_normalization, "LayerNormalization": layer_normalization,
    "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.dim())), keepdim=True),
    "ReduceMean": _reducing(torch.mean), "ReduceSum": _reducing(torch.sum), "ReduceMax": _reducing(torch.amax),
    "ReduceMin": _reducing(torch.amin),
    "Flatten": flatten, "Reshape": reshape, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Concat": concat, "Split": split,
    "Slice": slices, "Gather": gather, "Pad": pad, "Resize": resize,
    "Transpose": lambda x, *, perm=(): x.permute(tuple(perm) or tuple(reversed(range(x.dim())))),
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear,
}  # fmt: skip
