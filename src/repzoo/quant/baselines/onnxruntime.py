"""ONNX Runtime's own static quantizer, as its documents recommend it for x86 (QDQ, U8S8, min-max).

Source: onnxruntime.ai, "Quantize ONNX models". The quantizers of NNCF are in nncf.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx

from repzoo.engines import Array
from repzoo.errors import InputError, first_line
from repzoo.protobuf_stream import clone
from repzoo.quant.baselines.registry import QuantizerTask


def ort_static(task: QuantizerTask) -> onnx.ModelProto:
    """ONNX Runtime's quantize_static: QDQ, min-max, weights per channel."""
    return _quantize_static(task, per_channel=True)


def ort_static_per_tensor(task: QuantizerTask) -> onnx.ModelProto:
    """The same with one scale for each weight tensor, which is its default."""
    return _quantize_static(task, per_channel=False)


def _quantize_static(task: QuantizerTask, per_channel: bool) -> onnx.ModelProto:
    with quiet():
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            """Feeds the calibration images of `task`."""

            def __init__(self) -> None:
                self._images = iter(task.images)

            def get_next(self) -> dict[str, Array] | None:
                """The next image by input name; None after the last."""
                image = next(self._images, None)
                return None if image is None else {task.input_name: image}

        with tempfile.TemporaryDirectory(prefix="repzoo-") as folder:
            target = Path(folder) / "int8.onnx"
            try:
                quantization.quantize_static(
                    clone(task.model),  # it changes the model that it is given
                    target,
                    Reader(),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=per_channel,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
            # It has no exception class of its own: anything may come out of a strange graph.
            except Exception as error:
                raise InputError(
                    f"ONNX Runtime's quantizer cannot quantize this model: {first_line(error)}"
                ) from None
            return onnx.load(target)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No output, warnings or log lines in this block."""
    level = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
