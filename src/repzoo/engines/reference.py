"""onnx's own reference evaluator: slow, plain NumPy, for truth and not for speed."""

from __future__ import annotations

import threading

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from repzoo.engines import Array
from repzoo.errors import InputError


class Reference:
    """The `reference` engine; it has no threads and no optimisations, so both settings are moot."""

    name = "reference"

    def version(self) -> str:
        """onnx's version."""
        return str(onnx.__version__)

    def open(self, model: onnx.ModelProto, threads: int = 1, exact: bool = False) -> ReferenceSession:  # noqa: ARG002
        """See `engines.Engine.open`."""
        try:
            return ReferenceSession(ReferenceEvaluator(model))
        except Exception as error:
            raise InputError(f"onnx's reference evaluator cannot run this model: {error}") from None


class ReferenceSession:
    """The evaluator behind a lock: it keeps state while it runs."""

    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self._evaluator, self._lock = evaluator, threading.Lock()

    def run(self, inputs: Array) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        """See `engines.Session.run_all`."""
        with self._lock:
            outputs = self._evaluator.run(None, {self._evaluator.input_names[0]: inputs})
        return [np.asarray(output, np.float32) for output in outputs]
