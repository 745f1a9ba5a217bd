"""One streaming calibration pass: a histogram for each tensor, in memory that does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import classifier_input
from repzoo.engines import Engine
from repzoo.errors import InputError

BINS = 2048


class Histogram:
    """Counts of a tensor's values over a range that doubles when a value falls outside; bins keep their borders.

    low, high    the exact extremes seen
    edge         the bins span -edge..edge
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.edge, self.low, self.high, self.total = 0.0, np.inf, -np.inf, 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count `values`, finite float32 of any shape."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high, self.total = min(self.low, low), max(self.high, high), self.total + values.size
        self._widen(max(-low, high))
        if self.edge > 0:
            # In float64 the bins' borders are exact, so doubling never moves a value across one, and nothing overflows.
            self.counts += np.histogram(values.astype(np.float64), BINS, (-self.edge, self.edge))[0]
        else:
            self.counts[BINS // 2] += values.size

    def _widen(self, reach: float) -> None:
        if reach <= self.edge:
            return
        self.edge = self.edge or reach
        while self.edge < reach:
            halves = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([np.zeros(BINS // 4, np.int64), halves, np.zeros(BINS // 4, np.int64)])
            self.edge *= 2

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.edge / BINS) - self.edge, np.float64)


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[npt.NDArray[np.float32]], engine: Engine, threads: int
) -> dict[str, Histogram]:
    """Histograms of the named `tensors` of the float `model` over `batches` of inputs.

    Raises:
        InputError: no batch, or a tensor that is not finite (it is named).
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    source = classifier_input(model).name
    wanted = [name for name in tensors if name != source]
    del probed.graph.output[:]
    probed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted)
    session = engine.open(probed, threads)
    seen = {name: Histogram() for name in tensors}
    for inputs in batches:
        values = dict(zip(wanted, session.run_all(inputs), strict=True))
        if source in seen:
            values[source] = inputs
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise InputError(f"the tensor {name!r} is not finite on calibration images; the float model is broken there")
            seen[name].add(value)
    if any(histogram.total == 0 for histogram in seen.values()):
        raise InputError("no calibration image could be read; give --data with images of the kind the model will see")
    return seen
