"""`Calibrator.run`: forms of a model on a few images, a batch for each thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tests.small_model import sets, small

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.progress import silent
from repzoo.quant.calibration import calibrate
from repzoo.quant.search import calibrator as search
from repzoo.quant.search.calibrator import Calibrator

Array = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _needs_digits() -> None:
    pytest.importorskip(
        "sklearn", reason="the demo extra, with the digits, is not installed"
    )


def calibrator(threads: int, runner: Any = None) -> Calibrator:
    result = Calibrator(small(), runner or engine("onnxruntime"), silent)
    result.threads = threads
    return result


@pytest.mark.parametrize(
    ("threads", "sizes"), [(1, [16, 4]), (2, [10, 10]), (8, [3] * 6 + [2])]
)
def test_a_few_images_are_shared_by_all_threads(threads: int, sizes: list[int]) -> None:
    images = sets().calibration.subset(range(20))
    batches = calibrator(threads).prepare_sample("", images, small().model, ["a", "c"])
    assert [len(batch) for batch in batches] == sizes


def test_the_logits_are_in_the_order_of_the_images() -> None:
    model = small().model
    images = sets().calibration.subset(range(20))
    batches = calibrator(4).prepare_sample("", images, model, [])
    logits = calibrator(4).run(model, batches)
    session = engine("onnxruntime").open(model)
    expected = [session.run(image[None]) for image in np.concatenate(batches)]
    np.testing.assert_allclose(logits, np.concatenate(expected), rtol=1e-4, atol=1e-4)


class Breaking:
    """An engine and its session. The session refuses the batch that starts with a 2."""

    name = "breaking"

    def open(self, model: onnx.ModelProto, threads: int, streams: int) -> Breaking:
        assert (threads, streams) == (1, 3)
        return self

    def run_all(self, inputs: Array) -> list[Array]:
        if inputs[0, 0] == 2:
            raise InputError("the batch 2 does not fit")
        return [inputs]


def test_a_batch_that_fails_ends_the_run_with_its_error() -> None:
    batches = [np.full((1, 1), index, np.float32) for index in range(30)]
    with pytest.raises(InputError, match="the batch 2 does not fit"):
        calibrator(3, Breaking()).run(small().model, batches)
    good = [*batches[:2], *batches[3:]]
    logits = calibrator(3, Breaking()).run(small().model, good)
    np.testing.assert_array_equal(logits, np.concatenate(good))


def test_parts_of_a_large_model_are_observed_for_an_engine_that_needs_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The inputs of parts have no shapes, and OpenVINO compiles no convolution of such."""
    pytest.importorskip("openvino", reason="the engine is not installed")
    for module, name in ((search, "WHOLE_BYTES"), (calibrate, "WHOLE_BYTES")):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(calibrate, "PIECE_BYTES", 100)
    model = small().model
    images = sets().calibration.subset(range(20))
    tensors = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    assert len(tensors) > 1
    runs = []
    for name in ("onnxruntime", "openvino"):
        observing = Calibrator(small(), engine(name), silent)
        runs.append(observing.observe_again(model, tensors, [], images).histograms)
    for tensor in tensors:
        first, second = (run[tensor] for run in runs)
        np.testing.assert_array_equal(first.low, second.low)
        np.testing.assert_array_equal(first.high, second.high)
