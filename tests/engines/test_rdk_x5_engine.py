"""The engine rdk-x5 with a small program in the place of the vendor's runtime."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image
from tests.packs.toolchain import install_toolchain, write_program

from repzoo.artifact import Preprocess
from repzoo.data import nv12
from repzoo.data.preprocess import model_input, prepare
from repzoo.engines import engine
from repzoo.engines.pixels import pixels_of
from repzoo.engines.rdk_x5 import YUV, RdkX5, RdkX5Session, repeated
from repzoo.errors import InputError
from repzoo.vendors import worker

RUNTIME = """
import os, signal, sys, time
import numpy as np
class HB_ONNXRuntime:
    input_names = ["data"]
    def __init__(self, model_file):
        print("a line on stdout", flush=True)
    def run_direct(self, names, feeds):
        image = feeds["data"]
        assert image.dtype == np.int8
        if image[0, 0, 0, 0] == 127: os.kill(os.getpid(), signal.SIGSEGV)
        if image[0, 0, 0, 0] == 126: time.sleep(60)
        if image[0, 0, 0, 0] == 125: raise ValueError("odd image")
        return [image.astype(np.float32).mean((1, 2)).reshape(1, 1, 1, -1)]
"""
PREPROCESS = Preprocess(4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A quantized model that takes RGB, and a tool chain that runs it."""
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))
    programs = install_toolchain("rdk-x5")
    (tmp_path / "horizon_tc_ui.py").write_text(RUNTIME)
    script = f'PYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"'
    write_program(programs / "python", script)
    node = onnx.helper.make_node(
        "HzSQuantizedPreprocess", ["data"], ["y"], input_type="RGB_128"
    )
    tensor = onnx.helper.make_tensor_value_info("data", 3, [1, 4, 4, 3])
    path = tmp_path / "m_quantized_model.onnx"
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [tensor], [])), path
    )
    return path


def normalized(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = (pixels / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    planes: npt.NDArray[Any] = values.astype(np.float32).transpose(0, 3, 1, 2)
    return planes


def test_pixels_arrive_and_answers_come_back(opened: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (3, 4, 4, 3), np.uint8)
    session = RdkX5().open_pack(opened, PREPROCESS)
    logits = session.run(normalized(pixels))
    expected = (pixels.astype(np.float64) - 128).mean((1, 2))
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [(255, r"crashed \(SIGSEGV\)"), (254, "did not answer"), (253, "odd image")],
)
def test_a_runtime_that_fails_is_one_sentence(
    opened: Path, monkeypatch: pytest.MonkeyPatch, value: int, words: str
) -> None:
    session = RdkX5().open_pack(opened, PREPROCESS)
    monkeypatch.setattr(worker, "RUN_SECONDS", 0.5)
    monkeypatch.setattr(worker, "RUN_SECONDS_AN_IMAGE", 0.0)
    with pytest.raises(InputError, match=words):
        session.run(normalized(np.full((1, 4, 4, 3), value, np.uint8)))


def test_a_plain_model_is_refused_with_what_to_type() -> None:
    with pytest.raises(InputError, match="--compile, then give the folder PACK"):
        engine("rdk-x5").open(onnx.ModelProto())


def test_nv12_is_spread_over_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    buffer = nv12.from_rgb(pixels, "bt601-full")
    planes = repeated(buffer)
    np.testing.assert_array_equal(planes[..., :1], buffer[:, :4])
    matrix, origin = nv12.decoding("bt601-full")
    rgb = (planes - origin) @ matrix.T
    np.testing.assert_allclose(rgb, nv12.to_rgb(buffer, "bt601-full"), atol=1e-9)


@pytest.mark.parametrize("color", ["RGB", "GRAY"])
def test_pixels_are_those_that_were_normalized(color: Any) -> None:
    preprocess = replace(PREPROCESS, color=color)
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
    as_bytes = prepare(image, replace(preprocess, input="uint8"))
    inputs = prepare(image, preprocess)[None]
    np.testing.assert_array_equal(pixels_of(inputs, preprocess), as_bytes[None])


def test_colors_that_nv12_loses_are_known() -> None:
    workers: Any = None
    red_and_blue = np.zeros((1, 4, 4, 3), np.uint8)
    red_and_blue[:, :, ::2, 0] = red_and_blue[:, :, 1::2, 2] = 200
    inputs = model_input(red_and_blue, PREPROCESS)
    as_rgb = RdkX5Session(workers, PREPROCESS, "RGB_128", True)
    np.testing.assert_array_equal(as_rgb.carried(inputs), inputs)
    as_nv12 = RdkX5Session(workers, PREPROCESS, YUV, True)
    carried = pixels_of(as_nv12.carried(inputs), PREPROCESS).astype(int)
    # A pair of columns shares its color, and keeps its own luma.
    assert abs(carried - red_and_blue).max() > 50
    gray = np.full((1, 4, 4, 3), 77, np.uint8)
    same = as_nv12.carried(model_input(gray, PREPROCESS))
    assert (pixels_of(same, PREPROCESS) == 77).all()
