"""ONNX Runtime: `onnxruntime` is its CPU execution provider,
`onnxruntime:CUDAExecutionProvider` and the like the others.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort

from repzoo import protobuf_stream as wire
from repzoo.engines import Array
from repzoo.errors import InputError

LARGE = 2**20  # bytes of a weight that is lent to a session, not copied into it


class OnnxRuntime:
    """The `onnxruntime` engine. option: an execution provider of `options`."""

    def __init__(self, option: str = "") -> None:
        self.name = f"onnxruntime:{option}" if option else "onnxruntime"
        self._provider = option or "CPUExecutionProvider"

    @staticmethod
    def options() -> list[str]:
        """The execution providers that this build of ONNX Runtime has."""
        return list(ort.get_available_providers())

    def version(self) -> str:
        """The wheel's version."""
        return str(ort.__version__)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> OnnxRuntimeSession:
        """See `engines.Engine.open`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL
        )
        options.enable_cpu_mem_arena = (
            not exact
        )  # it takes memory in powers of two, weights included
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0" if threads == 1 else "1"
        )
        options.add_session_config_entry(
            "session.x64quantprecision", "1"
        )  # else AVX2 without VNNI saturates at 16 bits
        try:
            held, lent = _lent(model, options) if exact else (model, [])
            session = ort.InferenceSession(
                held.SerializeToString(), options, providers=[self._provider]
            )
        except (
            Exception
        ) as error:  # onnxruntime raises a class of its own for each status code
            raise InputError(
                f"onnxruntime cannot compile this model: {_first_line(error)}"
            ) from None
        if (
            self._provider not in session.get_providers()
        ):  # it falls back to the CPU with no more than a log line
            raise InputError(
                f"{self.name} cannot start here (its libraries or its device are missing); use "
                "onnxruntime"
            )
        return OnnxRuntimeSession(session, lent)


class OnnxRuntimeSession:
    """A compiled model; ONNX Runtime's `run` is thread-safe."""

    def __init__(self, session: ort.InferenceSession, lent: list[ort.OrtValue]) -> None:
        self._session, self._lent = session, lent  # the session reads what it was lent
        self._input = session.get_inputs()[0].name

    def run(self, inputs: Array) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        """See `engines.Session.run_all`."""
        try:
            return [
                np.asarray(output, np.float32)
                for output in self._session.run(None, {self._input: inputs})
            ]
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run this model on {inputs.dtype} {inputs.shape}: "
                f"{_first_line(error)}"
            ) from None


def _lent(
    model: onnx.ModelProto, options: ort.SessionOptions
) -> tuple[onnx.ModelProto, list[ort.OrtValue]]:
    """`model` with its large weights outside, and these weights, which `options` lend: ONNX
    Runtime then takes no copy of them.

    As one message they would be in memory four times: in `model`, in its bytes, in what is
    parsed from these, in the session.
    """
    shell = wire.without(model, "graph")
    shell.graph.CopyFrom(wire.without(model.graph, "initializer"))
    lent = {}
    for item in model.graph.initializer:
        if (
            item.data_type == onnx.TensorProto.FLOAT
            and item.HasField("raw_data")
            and len(item.raw_data) >= LARGE
        ):
            values = onnx.numpy_helper.to_array(item)
            lent[item.name] = ort.OrtValue.ortvalue_from_numpy(values)
            hollow = shell.graph.initializer.add(
                name=item.name, dims=item.dims, data_type=item.data_type
            )
            hollow.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", "lent"),
                ("offset", "0"),
                ("length", str(values.nbytes)),
            ):
                hollow.external_data.add(key=key, value=value)
        else:
            shell.graph.initializer.append(item)
    options.add_external_initializers(list(lent), list(lent.values()))
    return shell, list(lent.values())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
