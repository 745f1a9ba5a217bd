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

from repzoo.engines import Array, Feeds
from repzoo.engines.signature import signature_of
from repzoo.errors import InputError, first_line
from repzoo.onnx_file import opset_of


class Reference:
    """The `reference` engine. It has no threads and no optimizations: settings change nothing."""

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
            evaluator = ReferenceEvaluator(model, new_ops=_older_ops(model))
        # Every operator's constructor raises what it likes.
        except Exception as error:
            raise InputError(
                f"onnx's reference evaluator cannot run this model: {first_line(error)}"
            ) from None
        return ReferenceSession(evaluator, model)


class QuantizeLinear(QuantizeLinear_19):
    """QuantizeLinear of opset 19, for older opsets.

    The evaluator has no older one. On uint8 and int8 it computes what opsets 10 and 13 specify.
    """

    op_schema = onnx.defs.get_schema("QuantizeLinear", 19)


class DequantizeLinear(DequantizeLinear_19):
    """DequantizeLinear of opset 19, for older opsets; see QuantizeLinear."""

    op_schema = onnx.defs.get_schema("DequantizeLinear", 19)


def _older_ops(model: onnx.ModelProto) -> list[type[OpRun]]:
    """The operators that the evaluator lacks for `model`'s opset."""
    return [QuantizeLinear, DequantizeLinear] if opset_of(model) < 19 else []


class ReferenceSession:
    """The evaluator behind a lock, since it keeps state while it runs."""

    def __init__(self, evaluator: ReferenceEvaluator, model: onnx.ModelProto) -> None:
        """`model` is the one that `evaluator` was made for."""
        self._evaluator = evaluator
        self._lock = threading.Lock()
        self._signature = signature_of(model)

    def run(self, inputs: Array | Feeds) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array | Feeds) -> list[Array]:
        """See `engines.Session.run_all`."""
        inputs = self._signature.accept(inputs, "reference")
        try:
            with self._lock:
                outputs: Any = self._evaluator.run(None, {self._signature.name: inputs})
        # Every operator's NumPy code raises what it likes.
        except Exception as error:
            raise InputError(
                f"onnx's reference evaluator cannot run {inputs.shape}: {first_line(error)}"
            ) from None
        return [np.asarray(output, np.float32) for output in outputs]
