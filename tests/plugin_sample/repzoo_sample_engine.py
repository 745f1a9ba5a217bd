"""Engines on onnx's reference evaluator: one works, and has options; one takes the process
down; one does so for INT8 alone; one never returns.
"""

from __future__ import annotations

import os
import time

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.float32]


class Sample:
    """Sums each image's channels with the reference evaluator; "sample:twice" doubles the
    logits.
    """

    def __init__(self, option: str = "") -> None:
        self.name = f"sample:{option}" if option else "sample"
        self._factor = np.float32(2 if option else 1)

    @staticmethod
    def options() -> list[str]:
        return ["twice"]

    def version(self) -> str:
        return "9.9"

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> SampleSession:
        return SampleSession(
            ReferenceEvaluator(model), model.graph.input[0].name, self._factor
        )


class SampleSession:
    def __init__(
        self, evaluator: ReferenceEvaluator, name: str, factor: np.float32
    ) -> None:
        self._evaluator, self._name, self._factor = evaluator, name, factor

    def run(self, inputs: Array) -> Array:
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array) -> list[Array]:
        return [
            self._factor * np.asarray(output)
            for output in self._evaluator.run(None, {self._name: inputs})
        ]


class Abort(Sample):
    """Aborts the process while it opens a model, as a runtime with a defect does."""

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> SampleSession:
        os.abort()


class AbortInt8(Sample):
    """Runs float models, and aborts the process while it opens one in INT8."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "sample-abort-int8"

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> SampleSession:
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            os.abort()
        return super().open(model, threads, exact, streams)


class Hang(Sample):
    """Never finishes opening."""

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> SampleSession:
        time.sleep(600)
        return super().open(model, threads, exact, streams)
