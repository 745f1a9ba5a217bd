"""ONNX Runtime. `onnxruntime` is its CPU execution provider, the default.

`onnxruntime:CUDAExecutionProvider` and the like are its others.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import onnx
import onnx.numpy_helper
import onnxruntime as ort

from repzoo import protobuf_stream as wire
from repzoo.engines import Array, Feeds
from repzoo.engines.limits import (
    LOOP_SECONDS,
    LOOPS,
    VALUE_SIZED,
    VALUE_SIZED_BYTES,
    available_memory,
    memory_limit,
    operators_in,
)
from repzoo.engines.onnxruntime_profile import OnnxRuntimeProfiler
from repzoo.engines.signature import Signature, describe, numbers, signature_of
from repzoo.errors import InputError, first_line
from repzoo.graph.tools.skeleton import initializer_bytes
from repzoo.processor import sums_saturate_here

ONLY_FATAL = 4  # of ONNX Runtime's log severities
# Its own messages go to stderr, beside our sentence that says the same.
ort.set_default_logger_severity(ONLY_FATAL)
# Bytes from which on a weight is shared with a session instead of copied into it.
SHARED_WEIGHT_BYTES = 2**20
MAX_MESSAGE = 2**31 - 2**24  # bytes of weights that protobuf writes in one message


class OnnxRuntime:
    """The `onnxruntime` engine. Its option is one of the execution providers of `options`."""

    def __init__(self, option: str = "", exact_products: bool = True) -> None:
        """`option` as in an engine name; "" for the CPU.

        exact_products  add 8-bit products without saturation on x86 without VNNI too. Elsewhere
                        they never saturate, and this changes nothing.
        """
        self.name = f"onnxruntime:{option}" if option else "onnxruntime"
        self._option = option
        self._exact_products = exact_products
        self._provider = option or "CPUExecutionProvider"

    def with_default_precision(self) -> OnnxRuntime:
        """This engine as others run it, by ONNX Runtime's default session options."""
        return OnnxRuntime(self._option, exact_products=False)

    @staticmethod
    def options() -> list[str]:
        """The execution providers of this build of ONNX Runtime."""
        return list(ort.get_available_providers())

    def version(self) -> str:
        """The version of the wheel."""
        return str(ort.__version__)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> OnnxRuntimeSession:
        """See `engines.Engine.open`."""
        options = _session_options(threads, exact, self._exact_products)
        operators = operators_in(model)
        shared: list[ort.OrtValue] = []
        # ONNX Runtime raises a class of its own for each status code.
        try:
            if exact or initializer_bytes(model) > MAX_MESSAGE:
                model, shared = _share_weights(model, options)
            # Compiling computes what depends on constants alone.
            with memory_limit(_limit_for(operators)):
                session = ort.InferenceSession(
                    model.SerializeToString(), options, providers=[self._provider]
                )
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot compile this model: {_reason(error)}"
            ) from None
        # It falls back to the CPU with no more than a log line.
        if self._provider not in session.get_providers():
            raise InputError(
                f"{self.name} cannot start here (its libraries or its device are missing); use "
                "onnxruntime"
            )
        return OnnxRuntimeSession(session, signature_of(model), shared, operators)

    def profiler(
        self, model: onnx.ModelProto, inputs: Array, threads: int = 1
    ) -> OnnxRuntimeProfiler:
        """See `engines.Engine`."""
        options = _session_options(threads, False, self._exact_products)
        try:
            return OnnxRuntimeProfiler(model, options, self._provider, inputs)
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot profile this model: {_reason(error)}"
            ) from None


class OnnxRuntimeSession:
    """A compiled model. ONNX Runtime's `run` is thread-safe."""

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        shared: list[ort.OrtValue],
        operators: set[str],
    ) -> None:
        """`shared` are the weights that `session` reads but does not own."""
        self._session = session
        self._shared = shared  # must live as long as the session
        self._signature = signature
        self._operators = operators
        self._is_value_sized = bool(operators & VALUE_SIZED)
        self._seen_shapes: set[tuple[tuple[int, ...], ...]] = set()

    def run(self, inputs: Array | Feeds) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array | Feeds) -> list[Array]:
        """See `engines.Session.run_all`."""
        try:
            feeds = self._signature.feeds(inputs)
            shapes = tuple(array.shape for array in feeds.values())
            # Later runs of a shape need what its first run needed: see engines/limits.py.
            if shapes in self._seen_shapes and not self._is_value_sized:
                return self._run(feeds)
            with memory_limit(_limit_for(self._operators)):
                outputs = self._run(feeds)
            self._seen_shapes.add(shapes)
            return outputs
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run this model on {describe(inputs)}: {_reason(error)}"
            ) from None

    def _run(self, feeds: Feeds) -> list[Array]:
        if self._operators & LOOPS:
            outputs = self._run_with_deadline(feeds)
        else:
            outputs = self._session.run(None, feeds)
        return [numbers(output) for output in outputs]

    def _run_with_deadline(self, feeds: Feeds) -> Sequence[Any]:
        """The outputs of a graph that may loop for ever; it is ended after LOOP_SECONDS."""
        options = ort.RunOptions()
        options.log_severity_level = ONLY_FATAL
        timer = threading.Timer(LOOP_SECONDS, _terminate, [options])
        timer.start()
        try:
            outputs: Sequence[Any] = self._session.run(None, feeds, options)
        finally:
            timer.cancel()
        return outputs


def _terminate(options: ort.RunOptions) -> None:
    """End a run; ONNX Runtime looks before each node, in every turn of a Loop."""
    options.terminate = True


def _limit_for(operators: set[str]) -> int:
    """Bytes that one compilation or run may ask for; 0 for no limit."""
    available = available_memory()
    if operators & VALUE_SIZED and available:
        return min(VALUE_SIZED_BYTES, available)
    return available


def _reason(error: Exception) -> str:
    """Why a run failed, in words where ONNX Runtime's own would not help."""
    text = first_line(error)
    if "terminate flag" in text:
        return f"a Loop or Scan in it did not end within {LOOP_SECONDS:g} s"
    if isinstance(error, MemoryError) or "llocat" in text:
        return "it needs more memory than there is; check the sizes in its graph"
    return text


def _session_options(
    threads: int, exact: bool, exact_products: bool
) -> ort.SessionOptions:
    """For the arguments see `Engine.open` and `OnnxRuntime`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_FATAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL
    if exact:
        options.graph_optimization_level = level.ORT_DISABLE_ALL
        # The arena takes memory in powers of two, weights included.
        options.enable_cpu_mem_arena = False
    # Waiting threads that spin would take the cores of other sessions.
    spins = "0" if threads == 1 else "1"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    # Without this, AVX2 kernels without VNNI saturate sums of 8-bit products at 16 bits. With it,
    # ONNX Runtime 1.31 leaves AMX unused, and INT8 takes 1.3 to 1.7 times as long.
    precision = "1" if exact_products and sums_saturate_here() else "0"
    options.add_session_config_entry("session.x64quantprecision", precision)
    return options


def _share_weights(
    model: onnx.ModelProto, options: ort.SessionOptions
) -> tuple[onnx.ModelProto, list[ort.OrtValue]]:
    """(`model` with references instead of its large weights, these weights).

    As one message they would be in memory four times: in `model`, in its bytes, in what is
    parsed from these, and in the session. This way ONNX Runtime takes no copy.
    """
    shell = wire.without(model, "graph")
    shell.graph.CopyFrom(wire.without(model.graph, "initializer"))
    shared: dict[str, ort.OrtValue] = {}
    for weight in model.graph.initializer:
        if not _is_worth_sharing(weight):
            shell.graph.initializer.append(weight)
            continue
        values = onnx.numpy_helper.to_array(weight)
        shared[weight.name] = ort.OrtValue.ortvalue_from_numpy(values)
        _add_reference(shell.graph, weight, values.nbytes)
    options.add_external_initializers(list(shared), list(shared.values()))
    return shell, list(shared.values())


def _is_worth_sharing(weight: onnx.TensorProto) -> bool:
    """Whether a weight is large, and its bytes are those that a session reads: raw float32."""
    if weight.data_type != onnx.TensorProto.FLOAT or not weight.HasField("raw_data"):
        return False
    return len(weight.raw_data) >= SHARED_WEIGHT_BYTES


def _add_reference(graph: onnx.GraphProto, weight: onnx.TensorProto, size: int) -> None:
    """Add an initializer without data. ONNX Runtime finds the data by name, not by location."""
    reference = graph.initializer.add(
        name=weight.name, dims=weight.dims, data_type=weight.data_type
    )
    reference.data_location = onnx.TensorProto.EXTERNAL
    where = {"location": "shared", "offset": "0", "length": str(size)}
    for key, value in where.items():
        reference.external_data.add(key=key, value=value)
