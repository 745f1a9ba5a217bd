"""Other quantizers through the command line: measured and judged as ours, quiet, no traces left."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import small

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.quant.baselines import registry

Run = Callable[..., Any]
NNCF = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None,
    reason="the baselines extra is not installed",
)
QUANTIZERS = [
    "ort-static",
    "ort-static-per-tensor",
    pytest.param("nncf-default", marks=NNCF),
    pytest.param("nncf-accuracy-control", marks=NNCF),
]


def quantize(run: Run, file: Path, out: Path, *options: object) -> Any:
    data = ("--data", "digits", "--images", 48, "--max-drop", 2)
    return run("quantize", file, "-o", out, *data, "--json", *options)


def gate_inputs() -> npt.NDArray[np.float32]:
    data = open_source("digits").held_out()
    sample = data.subset(range(0, len(data), 6))
    read = batches(sample, small().require_preprocess(), 64, ReadReport())
    return np.concatenate([batch.inputs for batch in read])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_goes_through_the_same_gate_and_report(
    run: Run, small_file: Path, tmp_path: Path, name: str
) -> None:
    folders = set(Path(tempfile.gettempdir()).glob("repzoo-*"))
    logger_class = logging.getLoggerClass()
    out = tmp_path / "out.onnx"
    ran = quantize(run, small_file, out, "--recipe", name)
    assert ran.code == 0
    assert all(line.startswith(("data: ", "note: ")) for line in ran.err.splitlines())
    assert ran.document["recipe"] == name
    assert len(ran.document["rungs"]) == 1
    quantized = Artifact.read(out)
    assert (quantized.form, quantized.steps[-1].settings["recipe"]) == ("int8", name)
    operators = {node.op_type for node in quantized.model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    predictions = [
        engine(engine_name).open(quantized.model).run(gate_inputs()).argmax(1)
        for engine_name in ("onnxruntime", "reference")
    ]
    assert np.mean(predictions[0] == predictions[1]) >= 0.98
    evaluated = run(
        "evaluate", out, "--data", "digits", "--against", small_file, "--json"
    )
    # The file that is written is the one that the gate measured.
    assert evaluated.document["paired"]["drop"] == ran.document["drop"]
    assert set(Path(tempfile.gettempdir()).glob("repzoo-*")) <= folders
    assert logging.getLoggerClass() is logger_class


def test_per_tensor_weights_have_one_scale_and_per_channel_weights_many(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    shapes = {}
    for name in ("ort-static", "ort-static-per-tensor"):
        out = tmp_path / f"{name}.onnx"
        quantize(run, small_file, out, "--recipe", name)
        tensors = {item.name: item for item in onnx.load(out).graph.initializer}
        shapes[name] = list(tensors["second_scale"].dims)
    assert shapes == {"ort-static": [16], "ort-static-per-tensor": []}


def test_an_unknown_quantizer_offers_the_nearest(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    ran = quantize(run, small_file, tmp_path / "out.onnx", "--recipe", "nncf-defalt")
    assert (ran.code, ran.out) == (2, "")
    assert "no recipe is called 'nncf-defalt'; did you mean nncf-default" in ran.err


def test_a_scheme_with_another_quantizer_is_refused(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    options = ("--recipe", "ort-static", "--scheme", "per-tensor")
    ran = quantize(run, small_file, tmp_path / "out.onnx", *options)
    assert (ran.code, ran.out) == (2, "")
    assert "has a number format of its own; leave out the scheme per-tensor" in ran.err


def test_a_missing_package_says_what_to_type(
    run: Run, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "repzoo.quant.baselines.nncf", raising=False)
    out = tmp_path / "out.onnx"
    ran = quantize(run, small_file, out, "--recipe", "nncf-default")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'repzoo[baselines]'" in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["ort-static", pytest.param("nncf-default", marks=NNCF)]
)
def test_a_model_they_cannot_quantize_is_one_sentence_and_stays_unchanged(
    name: str,
) -> None:
    model = small().model
    before = model.SerializeToString()
    images = [
        np.zeros((1, 3, 5, 5), np.float32)
    ]  # of a size that the model does not take
    task = registry.QuantizerTask(model, images, lambda: iter(()), 0.3)
    with pytest.raises(InputError, match="cannot quantize this model: "):
        registry.load_quantizer(name)(task)
    assert model.SerializeToString() == before


@NNCF
def test_nncf_reports_no_usage() -> None:
    """In a process of its own: where pytest is loaded, NNCF is silent anyway."""
    code = """
import sys, repzoo.quant.baselines.nncf
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
assert isinstance(telemetry, NNCFTelemetryStub), telemetry
loaded = [name for name, module in sys.modules.items() if module]
assert not any(name.startswith("openvino_telemetry") for name in loaded)
"""
    silencing = ("NNCF_CI", "NNCF_DEV")
    environment = {
        key: value for key, value in os.environ.items() if key not in silencing
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
