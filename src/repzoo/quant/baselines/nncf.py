"""Recipes of NNCF on the ONNX graph itself: post-training quantization with its defaults, and with accuracy control.

Sources: nncf, "Post-training Quantization", "Post-training Quantization with Accuracy Control". Its reporting of usage is off (see
privacy.py), and so are its log lines, its progress on stdout, and its habit of replacing the class of every logger made later.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx

from repzoo.engines import Array
from repzoo.errors import InputError
from repzoo.privacy import unreported
from repzoo.quant.baselines.onnxruntime import copy_model, first_line, quiet
from repzoo.quant.baselines.registry import QuantizerTask

_LOGGER = logging.getLoggerClass()
try:
    with quiet(), unreported():
        import nncf
finally:
    logging.setLoggerClass(_LOGGER)
nncf.set_log_level(logging.CRITICAL)


def default(task: QuantizerTask) -> onnx.ModelProto:
    """nncf.quantize with its defaults, on all calibration images."""
    with quiet(), _refusals():
        made: onnx.ModelProto = nncf.quantize(
            copy_model(task.model), _images(task), subset_size=len(task.images)
        )
        return made


def accuracy_control(task: QuantizerTask) -> onnx.ModelProto:
    """nncf.quantize_with_accuracy_control: layers go back to float, one by one, until the budget holds on labeled images."""
    labeled = list(task.labeled())

    def validate(
        model: onnx.ModelProto, items: Iterable[tuple[Array, int]]
    ) -> tuple[float, list[float]]:
        if last[0] is not model:
            last[:] = [model, _session(model)]
        session = last[1]
        hits = [
            float(np.argmax(session.run(None, {task.input_name: image})[0]) == target)
            for image, target in items
        ]
        return float(np.mean(hits)), hits

    last: list[Any] = [None, None]  # NNCF validates one model many times, an image at a time
    with quiet(), _refusals():
        checked = nncf.Dataset(labeled, lambda item: {task.input_name: item[0]})
        made: onnx.ModelProto = nncf.quantize_with_accuracy_control(
            copy_model(task.model),
            _images(task),
            checked,
            validate,
            max_drop=max(0.0, task.max_drop / 100),
            subset_size=len(task.images),
        )
        return made


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What NNCF raises about a model becomes an InputError."""
    try:
        yield
    except Exception as error:  # whatever it meets in a graph
        raise InputError(f"NNCF cannot quantize this model: {first_line(error)}") from None


def _images(task: QuantizerTask) -> Any:
    return nncf.Dataset(list(task.images), lambda image: {task.input_name: image})


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
