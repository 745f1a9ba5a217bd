"""NNCF on the ONNX graph: post-training quantization with its defaults, and with accuracy control.

Sources: NNCF's documents "Post-training Quantization" and "Post-training Quantization with Accuracy
Control". Its usage reports are off (see privacy.py). Its log lines and its progress on stdout are
off too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx

from repzoo.engines import Array
from repzoo.errors import InputError, first_line
from repzoo.privacy import unreported
from repzoo.protobuf_stream import clone
from repzoo.quant.baselines.onnxruntime import quiet
from repzoo.quant.baselines.registry import QuantizerTask

# Importing NNCF replaces the class of every logger that is made later; this puts it back.
_LOGGER_CLASS = logging.getLoggerClass()
try:
    with quiet(), unreported():
        import nncf
finally:
    logging.setLoggerClass(_LOGGER_CLASS)
nncf.set_log_level(logging.CRITICAL)


def default(task: QuantizerTask) -> onnx.ModelProto:
    """nncf.quantize with its defaults, on all calibration images."""
    with quiet(), _input_errors():
        quantized: onnx.ModelProto = nncf.quantize(
            clone(task.model), _calibration(task), subset_size=len(task.images)
        )
        return quantized


def accuracy_control(task: QuantizerTask) -> onnx.ModelProto:
    """nncf.quantize_with_accuracy_control on labeled images.

    Layers go back to float one by one until the drop is within the budget.
    """
    labeled = list(task.labeled())
    validator = _Validator(task.input_name)
    with quiet(), _input_errors():
        quantized: onnx.ModelProto = nncf.quantize_with_accuracy_control(
            clone(task.model),
            _calibration(task),
            nncf.Dataset(labeled, lambda item: {task.input_name: item[0]}),
            validator.validate,
            max_drop=max(0.0, task.max_drop / 100),
            subset_size=len(task.images),
        )
        return quantized


class _Validator:
    """Measures Top-1 for NNCF, which validates one model many times, an image at a time."""

    def __init__(self, input_name: str) -> None:
        self._input_name = input_name
        self._model: onnx.ModelProto | None = None
        self._session: Any = None

    def validate(
        self, model: onnx.ModelProto, items: Iterable[tuple[Array, int]]
    ) -> tuple[float, list[float]]:
        """(Top-1, 0..1; 1.0 or 0.0 for each of `items`, which are (image, right class))."""
        if self._model is not model:
            self._model = model
            self._session = _open_session(model)
        hits = []
        for image, target in items:
            logits = self._session.run(None, {self._input_name: image})[0]
            hits.append(float(np.argmax(logits) == target))
        return float(np.mean(hits)), hits


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """Turn whatever NNCF raises about a model into an InputError."""
    try:
        yield
    except Exception as error:  # NNCF raises many classes, its dependencies more
        raise InputError(
            f"NNCF cannot quantize this model: {first_line(error)}"
        ) from None


def _calibration(task: QuantizerTask) -> Any:
    """The calibration images as NNCF takes them."""
    return nncf.Dataset(list(task.images), lambda image: {task.input_name: image})


def _open_session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=providers
    )
