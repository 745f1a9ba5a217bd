"""OpenVINO on any of its devices: `openvino` is the CPU, `openvino:GPU` and the like are others.

Streams. A client's call runs in the client's own thread on a free stream of `threads` threads.
With one stream, N clients wait for one another (measured: two clients, 1.0 times the rate of
one); with two, a single client takes 1.2 to 1.4 times as long (measured:
benchmarks/harness.py). So a session has as many streams as it was opened for, and no more than
cores / threads. Threads are not pinned to cores: every session would pin to the first ones, and
interleaved sessions of several engines would fight.

Shapes. A model with an open batch costs 15 to 20 % more than one with a fixed shape (layouts
and kernels are chosen late). The first shape that a session sees gets a model compiled for it,
all other shapes share one with open dimensions.

exact=True means float32 arithmetic (on some CPUs the default is bfloat16), accuracy mode, no
low-precision transformations (Q/DQ is then computed in float32 between its quantized values),
and no fused subgraphs. OpenVINO has no switch for the fusions that remain.

No model cache is kept on disk: CACHE_DIR stays unset. What was compiled lately is kept in memory,
exported (openvino_compiled.py), because a search opens the same files many times.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx

from repzoo.engines import Array, Feeds
from repzoo.engines.arithmetic import FLOAT32
from repzoo.engines.executed import LabeledModel
from repzoo.engines.openvino_compiled import CompiledModels
from repzoo.engines.openvino_profile import OpenVinoProfiler
from repzoo.engines.signature import Signature, require_one_input, signature_of
from repzoo.errors import InputError
from repzoo.privacy import unreported
from repzoo.processor import available_cores, is_kept_from_bfloat16

with unreported():
    import openvino as ov

# The bindings look up NumPy's types at their first call. Two threads that do so at once wait for
# each other forever (OpenVINO 2026.4.1: each holds what the other needs, Python's lock or theirs),
# so it is done here, where modules are imported one at a time.
ov.Type.f32.to_dtype()

# OpenVINO's names of the types that it may compute float32 models in.
ARITHMETIC = {"f32": FLOAT32, "bf16": "bfloat16", "f16": "float16"}
COUNTERS = {"PERF_COUNT": True}  # times each operator


class OpenVino:
    """The `openvino` engine. Its option is one of the devices of `options`."""

    def __init__(self, option: str = "") -> None:
        """`option` as in an engine name; "" for the CPU."""
        self.name = f"openvino:{option}" if option else "openvino"
        self._device = option or "CPU"

    @staticmethod
    def options() -> list[str]:
        """The devices that OpenVINO finds here, such as CPU and GPU."""
        return list(_core().available_devices)

    def version(self) -> str:
        """The release and the build."""
        return str(ov.get_version())

    def computes_bfloat16(self) -> bool:
        """See `engines.Engine`. Of CPUs, those with AVX512_BF16 or AMX."""
        listed = _core().get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        return "BF16" in listed

    def computes_float32_in(self) -> str:
        """See `engines.Engine`: bfloat16 on CPUs with AMX."""
        if self._device == "CPU" and is_kept_from_bfloat16():
            return FLOAT32
        try:
            hint = _core().get_property(self._device, "INFERENCE_PRECISION_HINT")
        except RuntimeError:
            return FLOAT32  # a device without this property has no other type
        return ARITHMETIC.get(hint.to_string(), FLOAT32)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> OpenVinoSession:
        """See `engines.Engine.open`."""
        require_one_input(model, self.name)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._device == "CPU":
            settings = _cpu_settings(threads, streams, exact)
        try:
            content = model.SerializeToString()
            graph = _core().read_model(content)
            _require_known_types(graph)
            compiler = _Compiler(graph, content, self._device, settings)
            return OpenVinoSession(compiler, signature_of(model))
        except RuntimeError as error:
            raise InputError(
                f"openvino cannot compile this model: {_reason(error)}"
            ) from None

    def profiler(
        self, model: onnx.ModelProto, inputs: Array, threads: int = 1
    ) -> OpenVinoProfiler:
        """See `engines.Engine`."""
        labeled = LabeledModel(model)
        settings: dict[str, Any] = {}
        if self._device == "CPU":
            settings = _cpu_settings(threads, streams=1, exact=False)
        try:
            graph = _core().read_model(labeled.model.SerializeToString())
            content = model.SerializeToString()  # as a session of `model` asks for it
            compiler = _Compiler(graph, content, self._device, settings)
            compiled = compiler.compile_with_counters(inputs.shape)
        except RuntimeError as error:
            raise InputError(
                f"openvino cannot profile this model: {_reason(error)}"
            ) from None
        return OpenVinoProfiler(compiled, labeled, inputs)


def _cpu_settings(threads: int, streams: int, exact: bool) -> dict[str, Any]:
    """OpenVINO's properties for the CPU; the reasons are at the top of this file."""
    streams = max(1, min(streams, available_cores() // threads))
    settings: dict[str, Any] = {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        "ENABLE_CPU_PINNING": False,
    }
    if is_kept_from_bfloat16():
        # OpenVINO would choose bfloat16 all the same, and emulate it: 10 times as slow.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if exact:
        settings |= {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "LP_TRANSFORMS_MODE": False,
            "SNIPPETS_MODE": "DISABLE",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
    return settings


def _require_known_types(graph: Any) -> None:
    """Refuse bfloat16: OpenVINO hands out its bits as if they were float16."""
    for port in (*graph.inputs, *graph.outputs):
        if port.element_type == ov.Type.bf16:
            raise InputError(
                "openvino cannot run this model: it takes or gives bfloat16, which OpenVINO "
                "misreads; export it in float32 or float16"
            )


class _Compiler:
    """Compiles one graph for the shapes that it is asked for.

    graph    OpenVINO's model
    content  the ONNX file that it was read from; nodes may have other names in `graph`
    """

    def __init__(
        self, graph: Any, content: bytes, device: str, settings: dict[str, Any]
    ) -> None:
        self._graph = graph
        self._device = device
        self._settings = settings
        self._digest = hashlib.blake2b(content).digest()
        self._open_shape = graph.inputs[0].partial_shape

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """Of the input, where the file fixes it."""
        is_static = self._open_shape.is_static
        return tuple(self._open_shape.to_shape()) if is_static else None

    def compile(self, shape: tuple[int, ...]) -> Any:
        """The compiled model for `shape`; () leaves its open sides open.

        Raises:
            RuntimeError: OpenVINO cannot compile it.
        """
        if self._device != "CPU":
            return self._compile(shape)
        return _compiled_models().get(
            self._key(shape), lambda: self._compile(shape), self._import
        )

    def compile_with_counters(self, shape: tuple[int, ...]) -> Any:
        """As `compile`, with a counter for each operator.

        It always compiles, since the graph's names may not be those of `content`; what `compile` is
        asked for later with the same content then needs no compiling.

        Raises:
            RuntimeError: OpenVINO cannot compile it.
        """
        if self._device != "CPU":
            self._settings = {**self._settings, **COUNTERS}
            return self._compile(shape)
        compiled = self._compile(shape)
        exported = _compiled_models().keep(self._key(shape), compiled)
        return _core().import_model(
            exported, self._device, {**self._settings, **COUNTERS}
        )

    def _key(self, shape: tuple[int, ...]) -> Hashable:
        return self._digest, shape, tuple(self._settings.items())

    def _compile(self, shape: tuple[int, ...]) -> Any:
        self._graph.reshape(list(shape) if shape else self._open_shape)
        return _core().compile_model(self._graph, self._device, self._settings)

    def _import(self, exported: bytes) -> Any:
        return _core().import_model(exported, self._device, self._settings)


class OpenVinoSession:
    """A model, compiled for the shapes that it is given. Each client thread has its own request."""

    def __init__(self, compiler: _Compiler, signature: Signature) -> None:
        """A fixed input shape is compiled at once."""
        self._compiler = compiler
        self._signature = signature
        # By input shape; () is the one with open dimensions.
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()
        if compiler.fixed_shape is not None:
            self._compile(compiler.fixed_shape)

    def run(self, inputs: Array | Feeds) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array | Feeds) -> list[Array]:
        """See `engines.Session.run_all`."""
        inputs = self._signature.accept(inputs, "openvino")
        requests = self._requests()
        if inputs.shape not in requests:
            requests[inputs.shape] = self._new_request(inputs.shape)
        try:
            outputs = requests[inputs.shape].infer([inputs], share_inputs=True)
        except RuntimeError as error:
            raise InputError(
                f"openvino cannot run this model on {inputs.dtype} {inputs.shape}: {_reason(error)}"
            ) from None
        return [np.asarray(output, np.float32) for output in outputs.values()]

    def _requests(self) -> dict[tuple[int, ...], Any]:
        """The calling thread's infer requests, by input shape."""
        if not hasattr(self._thread, "requests"):
            self._thread.requests = {}
        requests: dict[tuple[int, ...], Any] = self._thread.requests
        return requests

    def _new_request(self, shape: tuple[int, ...]) -> Any:
        """An infer request for `shape`, from a model that is compiled now where there is none."""
        with self._lock:
            if not self._compiled:
                self._compile(shape)
            elif shape not in self._compiled and () not in self._compiled:
                self._compile(())
        compiled = self._compiled.get(shape) or self._compiled[()]
        return compiled.create_infer_request()

    def _compile(self, shape: tuple[int, ...]) -> None:
        """Compile the model for `shape`; () leaves its open sides open."""
        try:
            self._compiled[shape] = self._compiler.compile(shape)
        except RuntimeError as error:
            raise InputError(
                f"openvino cannot compile this model: {_reason(error)}"
            ) from None


@functools.cache
def _core() -> Any:
    """OpenVINO's core. Reading its plugins and devices takes a while, so all sessions share one."""
    return ov.Core()


@functools.cache
def _compiled_models() -> CompiledModels:
    """What was compiled lately, by any engine of this process."""
    return CompiledModels()


def _reason(error: Exception) -> str:
    """The last line of the message: those before it name places in OpenVINO's own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
