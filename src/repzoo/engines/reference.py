"""onnx's own reference evaluator: slow, plain NumPy, for truth and not for speed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19
from onnx.reference.ops.op_quantize_linear import QuantizeLinear_19

from repzoo.engines import Array
from repzoo.engines.signature import signature_of
from repzoo.errors import InputError


class Reference:
    """The `reference` engine; it has no threads and no optimizations, so both settings are moot."""

    name = "reference"
    simulates_int8 = True

    def version(self) -> str:
        """onnx's version."""
        return str(onnx.__version__)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> ReferenceSession:
        """See `engines.Engine.open`."""
        try:
            return ReferenceSession(
                ReferenceEvaluator(model, new_ops=_older_ops(model)), model
            )
        except Exception as error:  # whatever an operator's constructor raises
            raise InputError(
                f"onnx's reference evaluator cannot run this model: {_first_line(error)}"
            ) from None


class QuantizeLinear(QuantizeLinear_19):
    """Opset 19's, which on uint8 and int8 does what opsets 10 and 13 say; the evaluator has
    none of those.
    """

    op_schema = onnx.defs.get_schema("QuantizeLinear", 19)


class DequantizeLinear(DequantizeLinear_19):
    """As QuantizeLinear."""

    op_schema = onnx.defs.get_schema("DequantizeLinear", 19)


def _older_ops(model: onnx.ModelProto) -> list[type[OpRun]]:
    opset = next(
        (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")),
        0,
    )
    return [QuantizeLinear, DequantizeLinear] if opset < 19 else []


class ReferenceSession:
    """The evaluator behind a lock: it keeps state while it runs. It does not check shapes, so
    this does.
    """

    def __init__(self, evaluator: ReferenceEvaluator, model: onnx.ModelProto) -> None:
        self._evaluator, self._lock, self._signature = (
            evaluator,
            threading.Lock(),
            signature_of(model),
        )

    def run(self, inputs: Array) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        """See `engines.Session.run_all`."""
        self._signature.require(inputs, "reference")
        try:
            with self._lock:
                outputs: Any = self._evaluator.run(None, {self._signature.name: inputs})
        except Exception as error:  # whatever an operator's NumPy code raises
            raise InputError(
                f"onnx's reference evaluator cannot run {inputs.shape}: {_first_line(error)}"
            ) from None
        return [np.asarray(output, np.float32) for output in outputs]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
