"""MNN on the CPU, the engine that the RepGhost authors measured with.

MNN runs models in its own format, so the ONNX file is converted first.

*Conversion* runs in a child process, with MNN's C extension `_tools` alone: the converter
prints, and it aborts on graphs that it does not know, which must not end a sweep. `MNN.tools`,
the Python side of the same commands, reports usage to Alibaba and is never imported (see
repzoo/privacy.py). Converted models are kept in the cache by the hash of the model and MNN's
version.

*INT8.* Three ways were measured on the embedded digits model (300 images) against ONNX Runtime
on the same Q/DQ graph:

- MNN cannot import Q/DQ. With weights or activations quantized ("everything", "dense", even a
  single convolution) the converter aborts, or the model fails at its first convolution with a
  wrong shape.
- Q/DQ written out as the arithmetic that it means (Div, Round, Clip, Mul; weights as floats)
  always converts. 100.0 % (everything) and 99.3 % (dense) of the predictions are unchanged.
  Logits differ by 0.024 of their standard deviation.
- MNN's own quantizer (`mnnquant`, KL, 128 calibration images, its int8 kernels): RepVGG-A0 at
  64 px keeps 77.3 % of the predictions and loses 5.3 points of Top-1 (n = 357). Our
  per-channel file keeps 97.1 % on ONNX Runtime. Its time is 0.40 of MNN's float time
  (0.36 .. 0.48). On RepGhost 0.5x it ends with signal 11.

So this engine computes INT8 models as fake quantization in float32. Their accuracy is right;
their latency says nothing about INT8 (`simulates_int8`).

*Threads.* Every client thread has a module of its own. MNN's Python binding holds Python's
lock during a call, so clients take turns: several streams give no more images per second than
one.

MNN prints to stdout from C. While it loads a model, and while it runs a shape for the first
time, stdout is redirected to /dev/null.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from repzoo.engines import Array, Feeds
from repzoo.engines.signature import require_one_input, signature_of
from repzoo.errors import InputError
from repzoo.native_output import STDOUT, discarded
from repzoo.privacy import unreported
from repzoo.protobuf_stream import clone
from repzoo.storage import cached_file, sha256_of

CONVERSION_SECONDS = 600
CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv[1:]))"
CPU = 0  # MNN_FORWARD_CPU of MNNForwardType.h

with unreported(), discarded(STDOUT):
    import MNN


class Mnn:
    """The `mnn` engine."""

    name = "mnn"
    simulates_int8 = True

    def version(self) -> str:
        """The version of the wheel."""
        return str(MNN.version())

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> MnnSession:
        """See `engines.Engine.open`. `exact` changes nothing: arithmetic is always float32."""
        require_one_input(model, self.name)
        session = MnnSession(model, _convert(model), threads)
        session.load()
        return session


class MnnSession:
    """A converted model. Each client thread loads it once."""

    def __init__(self, model: onnx.ModelProto, path: Path, threads: int) -> None:
        """`path` is `model` in MNN's format.

        Raises:
            InputError: the input is neither float32 nor uint8.
        """
        self._signature = signature_of(model)
        self._outputs = [item.name for item in model.graph.output]
        self._path = path
        self._threads = threads
        self._thread = threading.local()
        types = {
            np.dtype(np.float32): MNN.expr.float,
            np.dtype(np.uint8): MNN.expr.uint8,
        }
        if self._signature.dtype not in types:
            raise InputError(
                f"mnn cannot run this model: its input is {self._signature.dtype}, not float32 "
                "or uint8"
            )
        self._type = types[self._signature.dtype]

    def load(self) -> None:
        """Load the model in this thread, so that `open` reports a model that cannot be loaded."""
        with discarded(STDOUT):
            self._module()

    def run(self, inputs: Array | Feeds) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array | Feeds) -> list[Array]:
        """See `engines.Session.run_all`."""
        inputs = self._signature.accept(inputs, "mnn")
        seen: set[tuple[int, ...]] = getattr(self._thread, "shapes", set())
        if inputs.shape in seen:
            return self._run(inputs)
        with discarded(STDOUT):
            outputs = self._run(inputs)
        self._thread.shapes = {*seen, inputs.shape}
        return outputs

    def _run(self, inputs: Array) -> list[Array]:
        data = np.ascontiguousarray(inputs)
        tensor = MNN.expr.const(data, list(inputs.shape), MNN.expr.NCHW, self._type)
        outputs = self._module().forward([tensor])
        # MNN reports a failed run by no outputs.
        if len(outputs) != len(self._outputs):
            raise InputError(
                f"mnn cannot run this model on {inputs.dtype} {list(inputs.shape)}: it computed "
                "no output"
            )
        return [_to_array(output) for output in outputs]

    def _module(self) -> Any:
        """The calling thread's module."""
        if not hasattr(self._thread, "module"):
            settings = {"backend": CPU, "numThread": self._threads, "precision": "high"}
            runtime = MNN.nn.create_runtime_manager((settings,))
            self._thread.runtime = runtime  # must live as long as the module
            try:
                self._thread.module = MNN.nn.load_module_from_file(
                    str(self._path),
                    [self._signature.name],
                    self._outputs,
                    runtime_manager=runtime,
                )
            # The binding raises whatever it likes.
            except Exception as error:
                raise InputError(
                    f"mnn cannot load the converted model: {error}"
                ) from None
        return self._thread.module


def _to_array(value: Any) -> Array:
    """MNN's tensor as float32, its axes as in the ONNX graph."""
    if value.data_format == MNN.expr.NC4HW4:  # channels in blocks of four
        value = MNN.expr.convert(value, MNN.expr.NCHW)
    return np.array(value.read(), np.float32).reshape(value.shape)


def _convert(model: onnx.ModelProto) -> Path:
    """The model in MNN's format: from the cache, or converted now."""
    data = _without_qdq(model).SerializeToString(deterministic=True)

    def write(path: Path) -> None:
        """Convert `data` to the file `path`."""
        source = path.with_suffix(".onnx")
        source.write_bytes(data)
        try:
            process = _run_converter(source, path)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"mnn cannot compile this model: its converter took over {CONVERSION_SECONDS} s"
            ) from None
        finally:
            source.unlink(missing_ok=True)
        if process.returncode or not path.stat().st_size:
            raise InputError(f"mnn cannot compile this model: {_complaint(process)}")

    key = sha256_of(data + MNN.version().encode())
    return cached_file("mnn", f"{key}.mnn", write)


def _run_converter(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Convert the ONNX file `source` to `target`, in a child process."""
    arguments = ["mnnconvert", "-f", "ONNX", "--bizCode", "repzoo"]
    arguments += ["--modelFile", str(source), "--MNNModel", str(target)]
    return subprocess.run(
        [sys.executable, "-c", CONVERT, *arguments],
        capture_output=True,
        text=True,
        timeout=CONVERSION_SECONDS,
        check=False,
    )


def _complaint(process: subprocess.CompletedProcess[str]) -> str:
    """The last line that the converter printed, or how it ended."""
    if process.returncode < 0:
        return f"its converter crashed (signal {-process.returncode})"
    printed = process.stdout + process.stderr
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1] if lines else f"its converter failed (exit {process.returncode})"


def _without_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with each QuantizeLinear and DequantizeLinear written as float arithmetic.

    A quantized value is kept as a float without its zero point:
    q = clip(round(x / scale), low - zero, high - zero), x' = q * scale.
    """
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & {"QuantizeLinear", "DequantizeLinear"}:
        return model
    changed = clone(model)
    graph = changed.graph
    constants = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            nodes += _quantize_nodes(graph, node, constants)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weights = _dequantized_weights(node, constants)
            graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        elif node.op_type == "DequantizeLinear":
            nodes.append(helper.make_node("Mul", node.input[:2], node.output[:1]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _quantize_nodes(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Div, Round and Clip for a QuantizeLinear. The bounds become initializers of `graph`."""
    scale = _constant(node, 1, constants)
    zero = np.asarray(np.uint8(0))
    if len(node.input) > 2:
        zero = _constant(node, 2, constants)
    if scale.size != 1:
        raise InputError(
            "mnn cannot compile this model: an activation's scale is not one number"
        )
    name = node.output[0]
    limits = np.iinfo(zero.dtype)
    bounds = {"low": limits.min - int(zero), "high": limits.max - int(zero)}
    for suffix, bound in bounds.items():
        value = np.asarray(bound, np.float32)
        graph.initializer.append(numpy_helper.from_array(value, f"{name}.{suffix}"))
    clipped = [f"{name}.round", f"{name}.low", f"{name}.high"]
    return [
        helper.make_node("Div", node.input[:2], [f"{name}.steps"]),
        helper.make_node("Round", [f"{name}.steps"], [f"{name}.round"]),
        helper.make_node("Clip", clipped, [name]),
    ]


def _constant(
    node: onnx.NodeProto, index: int, constants: dict[str, onnx.TensorProto]
) -> Array:
    """The value of an input that must be an initializer."""
    name = node.input[index]
    if name not in constants:
        raise InputError(
            "mnn cannot compile this model: an activation's scale is computed"
        )
    return numpy_helper.to_array(constants[name])


def _dequantized_weights(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> Array:
    """The float32 weights that a DequantizeLinear of an initializer gives."""
    values = numpy_helper.to_array(constants[node.input[0]])
    scale = _constant(node, 1, constants)
    zero = np.zeros_like(scale)
    if len(node.input) > 2:
        zero = _constant(node, 2, constants).astype(np.float32)
    if scale.size > 1:  # one scale for each channel of `axis`
        shape = [1] * values.ndim
        shape[_axis(node)] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape)
    weights = (values.astype(np.float32) - zero) * scale
    return np.asarray(weights, np.float32)


def _axis(node: onnx.NodeProto) -> int:
    """The axis of per-channel scales of Q/DQ; the ONNX specification's default is 1."""
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    return 1
