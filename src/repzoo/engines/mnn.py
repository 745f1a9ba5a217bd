"""MNN on the CPU: what the RepGhost authors measured with. The ONNX file is converted to MNN's
own format first.

Conversion runs in a child process, with MNN's C extension `_tools` alone: the converter prints,
and it aborts on graphs that it cannot take, which must not end a sweep. `MNN.tools`, the Python
side of the same commands, reports usage to Alibaba and is never imported (see
repzoo/privacy.py). Converted models are kept in the cache by the hash of the model and MNN's
version.

*INT8.* Three ways were measured on the embedded digits model (300 images) against ONNX Runtime
on the same Q/DQ graph:

- MNN cannot import Q/DQ. With weights or activations quantized ("everything", "dense", even a
  single convolution) the converter aborts, or the model fails at its first convolution with a
  wrong shape.
- Q/DQ written out as the arithmetic that it means (Div, Round, Clip, Mul; weights as floats)
  always converts. 100.0 % (everything) and 99.3 % (dense) of the predictions are unchanged;
  logits differ by 0.024 of their standard deviation.
- MNN's own quantizer (`mnnquant`, KL, 128 calibration images, its int8 kernels): RepVGG-A0 at
  64 px keeps 77.3 % of the predictions and loses 5.3 points of Top-1 (n = 357), where our per-
  channel file keeps 97.1 % on ONNX Runtime, at 0.40 of MNN's float time (0.36 .. 0.48). On
  RepGhost 0.5x it ends with signal 11.

So this engine computes INT8 models as fake quantization in float32: right in accuracy, while
its latency says nothing about INT8 (`simulates_int8` tells whoever times it).

Threads. Every client thread has a module of its own. MNN's Python binding holds Python's lock
during a call, so that clients take turns all the same: several streams give no more images a
second than one.

MNN prints to stdout from C. While it loads a model and sees a shape for the first time, stdout
is turned to /dev/null.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from repzoo.engines import Array
from repzoo.engines.signature import signature_of
from repzoo.errors import InputError
from repzoo.privacy import unreported
from repzoo.storage import cached_file, sha256_of

CONVERSION_SECONDS = 600
CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv[1:]))"
_SILENCE = threading.RLock()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Send what C code prints to stdout nowhere."""
    with _SILENCE:
        sys.stdout.flush()
        kept = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).fflush(None)  # C's own buffer, else it is printed later
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)


with unreported(), _silent():
    import MNN


class Mnn:
    """The `mnn` engine."""

    name = "mnn"
    simulates_int8 = True

    def version(self) -> str:
        """The wheel's version."""
        return str(MNN.version())

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> MnnSession:
        """See `engines.Engine.open`; MNN has no switch for its optimizations, arithmetic is
        float32 in any case.
        """
        made = MnnSession(model, _converted(model), threads)
        made.warm()
        return made


class MnnSession:
    """A converted model; each client thread loads it once."""

    def __init__(self, model: onnx.ModelProto, path: Path, threads: int) -> None:
        self._signature, self._outputs = (
            signature_of(model),
            [item.name for item in model.graph.output],
        )
        self._path, self._threads, self._own = path, threads, threading.local()
        kinds = {
            np.dtype(np.float32): MNN.expr.float,
            np.dtype(np.uint8): MNN.expr.uint8,
        }
        if self._signature.dtype not in kinds:
            raise InputError(
                f"mnn cannot run this model: its input is {self._signature.dtype}, not float32 "
                "or uint8"
            )
        self._kind = kinds[self._signature.dtype]

    def warm(self) -> None:
        """Load the model in this thread, so that what cannot be loaded is said by `open`."""
        with _silent():
            self._module()

    def run(self, inputs: Array) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        """See `engines.Session.run_all`."""
        self._signature.require(inputs, "mnn")
        if inputs.shape in getattr(self._own, "shapes", ()):
            return self._run(inputs)
        with _silent():
            outputs = self._run(inputs)
        self._own.shapes = {*getattr(self._own, "shapes", ()), inputs.shape}
        return outputs

    def _run(self, inputs: Array) -> list[Array]:
        given = MNN.expr.const(
            np.ascontiguousarray(inputs), list(inputs.shape), MNN.expr.NCHW, self._kind
        )
        found = self._module().forward([given])
        if len(found) != len(self._outputs):
            raise InputError(
                f"mnn cannot run this model on {inputs.dtype} {list(inputs.shape)}: it computed "
                "no output"
            )
        return [_array(one) for one in found]

    def _module(self) -> Any:
        """The calling thread's module."""
        if not hasattr(self._own, "module"):
            settings = {"backend": 0, "numThread": self._threads, "precision": "high"}
            self._own.runtime = MNN.nn.create_runtime_manager((settings,))
            names = ([self._signature.name], self._outputs)
            try:
                self._own.module = MNN.nn.load_module_from_file(
                    str(self._path), *names, runtime_manager=self._own.runtime
                )
            except Exception as error:  # whatever the binding raises
                raise InputError(
                    f"mnn cannot load the converted model: {error}"
                ) from None
        return self._own.module


def _array(value: Any) -> Array:
    if value.data_format == MNN.expr.NC4HW4:
        value = MNN.expr.convert(value, MNN.expr.NCHW)
    return np.array(value.read(), np.float32).reshape(value.shape)


def _converted(model: onnx.ModelProto) -> Path:
    """The file in MNN's format, made when the cache lacks it."""
    data = _without_qdq(model).SerializeToString(deterministic=True)

    def convert(path: Path) -> None:
        source = path.with_suffix(".onnx")
        source.write_bytes(data)
        arguments = [
            "mnnconvert",
            "-f",
            "ONNX",
            "--modelFile",
            str(source),
            "--MNNModel",
            str(path),
            "--bizCode",
            "repzoo",
        ]
        try:
            ran = subprocess.run(
                [sys.executable, "-c", CONVERT, *arguments],
                capture_output=True,
                text=True,
                timeout=CONVERSION_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InputError(
                f"mnn cannot compile this model: its converter took over {CONVERSION_SECONDS} s"
            ) from None
        finally:
            source.unlink(missing_ok=True)
        if ran.returncode or not path.stat().st_size:
            raise InputError(f"mnn cannot compile this model: {_complaint(ran)}")

    return cached_file(
        "mnn", f"{sha256_of(data + MNN.version().encode())}.mnn", convert
    )


def _complaint(ran: subprocess.CompletedProcess[str]) -> str:
    """What its converter said last, or how it ended."""
    if ran.returncode < 0:
        return f"its converter crashed (signal {-ran.returncode})"
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    return (
        lines[-1].strip() if lines else f"its converter gave up (exit {ran.returncode})"
    )


def _without_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with each QuantizeLinear and DequantizeLinear written as the float arithmetic
    that it stands for.

    A quantized value is kept as a float without its zero point: q = clip(round(x / scale), low
    - zero, high - zero), x' = q * scale.
    """
    if not any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for node in model.graph.node
    ):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {item.name: item for item in made.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            nodes += _quantizing(made.graph, node, constants)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            made.graph.initializer.append(
                numpy_helper.from_array(_weights(node, constants), node.output[0])
            )
        elif node.op_type == "DequantizeLinear":
            nodes.append(helper.make_node("Mul", node.input[:2], node.output[:1]))
        else:
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _quantizing(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    known = [
        numpy_helper.to_array(constants[name]) if name in constants else None
        for name in node.input[1:3]
    ]
    scale, zero = known[0], known[1] if len(known) > 1 else np.uint8(0)
    if scale is None or zero is None or scale.size != 1:
        raise InputError(
            "mnn cannot compile this model: an activation's scale is computed, or is not one number"
        )
    reach, name = np.iinfo(zero.dtype), node.output[0]
    low, high = (np.float32(end - int(zero)) for end in (reach.min, reach.max))
    for suffix, value in (("low", low), ("high", high)):
        graph.initializer.append(
            numpy_helper.from_array(np.asarray(value), f"{name}.{suffix}")
        )
    return [
        helper.make_node("Div", node.input[:2], [f"{name}.steps"]),
        helper.make_node("Round", [f"{name}.steps"], [f"{name}.round"]),
        helper.make_node(
            "Clip", [f"{name}.round", f"{name}.low", f"{name}.high"], [name]
        ),
    ]


def _weights(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Array:
    values = numpy_helper.to_array(constants[node.input[0]])
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    scale = numpy_helper.to_array(constants[node.input[1]])
    shape = (
        [-1 if one == axis % values.ndim else 1 for one in range(values.ndim)]
        if scale.size > 1
        else []
    )
    zero = (
        numpy_helper.to_array(constants[node.input[2]])
        .astype(np.float32)
        .reshape(shape)
        if len(node.input) > 2
        else 0
    )
    return np.asarray(
        (values.astype(np.float32) - zero) * scale.reshape(shape), np.float32
    )
