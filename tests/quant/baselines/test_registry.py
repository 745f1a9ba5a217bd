"""The recipes of others, through the real command line: measured and gated as ours, quiet, and leaving nothing behind."""

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

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import small

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.quant.baselines import registry as recipes

Run = Callable[..., Any]
NNCF = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="the baselines extra is not installed"
)
EVERY = [
    "ort-static",
    "ort-static-per-tensor",
    *(pytest.param(f"nncf-{name}", marks=NNCF) for name in ("default", "accuracy-control")),
]


def quantize(run: Run, file: Path, out: Path, *options: object) -> Any:
    return run(
        "quantize",
        file,
        "-o",
        out,
        "--data",
        "digits",
        "--images",
        48,
        "--max-drop",
        2,
        "--json",
        *options,
    )


def gate_inputs() -> npt.NDArray[np.float32]:
    data = open_source("digits").held_out()
    some = data.subset(range(0, len(data), 6))
    return np.concatenate(
        [one.inputs for one in batches(some, small().require_preprocess(), 64, ReadReport())]
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_goes_through_the_same_gate_and_report(
    run: Run, small_file: Path, tmp_path: Path, name: str
) -> None:
    folders, kind = set(Path(tempfile.gettempdir()).glob("repzoo-*")), logging.getLoggerClass()
    ran = quantize(run, small_file, tmp_path / "out.onnx", "--recipe", name)
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if not line.startswith("note: ")] == []
    assert ran.document["recipe"] == name
    assert len(ran.document["rungs"]) == 1
    made = Artifact.read(tmp_path / "out.onnx")
    assert (made.form, made.steps[-1].settings["recipe"]) == ("int8", name)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {
        node.op_type for node in made.model.graph.node
    }
    answers = [
        engine(one).open(made.model).run(gate_inputs()).argmax(1)
        for one in ("onnxruntime", "reference")
    ]
    assert np.mean(answers[0] == answers[1]) >= 0.98
    told = run(
        "evaluate", tmp_path / "out.onnx", "--data", "digits", "--against", small_file, "--json"
    )
    assert (
        told.document["paired"]["drop"] == ran.document["drop"]
    )  # what is written is what was gated
    assert set(Path(tempfile.gettempdir()).glob("repzoo-*")) <= folders
    assert logging.getLoggerClass() is kind


def test_per_tensor_has_one_scale_a_weight_and_per_channel_many(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    sizes = {}
    for name in ("ort-static", "ort-static-per-tensor"):
        quantize(run, small_file, tmp_path / f"{name}.onnx", "--recipe", name)
        model = onnx.load(tmp_path / f"{name}.onnx")
        sizes[name] = [
            list(item.dims) for item in model.graph.initializer if item.name == "second_scale"
        ]
    assert sizes == {"ort-static": [[16]], "ort-static-per-tensor": [[]]}


def test_an_unknown_recipe_offers_the_nearest(run: Run, small_file: Path, tmp_path: Path) -> None:
    ran = quantize(run, small_file, tmp_path / "out.onnx", "--recipe", "nncf-defalt")
    assert (ran.code, ran.out) == (2, "")
    assert "no recipe is called 'nncf-defalt'; did you mean nncf-default" in ran.err


def test_a_scheme_beside_anothers_recipe_is_refused(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    ran = quantize(
        run, small_file, tmp_path / "out.onnx", "--recipe", "ort-static", "--scheme", "per-tensor"
    )
    assert (ran.code, ran.out) == (2, "")
    assert "represents numbers in its own way; leave --scheme out" in ran.err


def test_a_missing_package_says_what_to_type(
    run: Run, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "repzoo.quant.baselines.nncf", raising=False)
    ran = quantize(run, small_file, tmp_path / "out.onnx", "--recipe", "nncf-default")
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'repzoo[baselines]'" in ran.err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", ["ort-static", pytest.param("nncf-default", marks=NNCF)])
def test_what_they_cannot_quantize_is_one_sentence_and_the_given_model_stays(name: str) -> None:
    model = small().model
    before = model.SerializeToString()
    wrong = recipes.QuantizerTask(
        model, [np.zeros((1, 3, 5, 5), np.float32)], lambda: iter(()), 0.3
    )
    with pytest.raises(InputError, match="cannot quantize this model: "):
        recipes.load_quantizer(name)(wrong)
    assert model.SerializeToString() == before


@NNCF
def test_nncf_has_nothing_to_report_with() -> None:
    """In a process of its own: where pytest is loaded, NNCF would be silent anyway."""
    code = """
import sys, repzoo.quant.baselines.nncf
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
assert isinstance(telemetry, NNCFTelemetryStub), telemetry
assert not any(name.startswith("openvino_telemetry") and module for name, module in sys.modules.items())
"""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("NNCF_CI", "NNCF_DEV")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
