"""Schemes as data, and the fact behind them: which hosts clip pairs of U8S8 products, and what
keeps a model exact there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.engines import Session, engine
from repzoo.errors import InputError, MissingExtra
from repzoo.measure.host import host
from repzoo.quant.network.scheme import (
    RANGES,
    WEIGHT_MAX,
    QuantScheme,
    adapt_to_host,
    default_scheme,
    load_scheme,
    saturates,
    schemes,
)

VNNI = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512_vnni"]}
AVX2 = {"machine": "x86_64", "int8": ["avx2"]}
AVX512 = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512bw"]}
ARM = {"machine": "aarch64", "int8": ["asimddp"]}


def worst_case(weight: int, kernel: int = 3) -> onnx.ModelProto:
    """A quantized convolution of 32 channels whose weights are all `weight` and whose input is
    255 everywhere.
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 32, 6, 6] data) => (float[1, 16] output) {{
            q = QuantizeLinear (data, one, zero)  d = DequantizeLinear (q, one, zero)
            w = DequantizeLinear <axis = 0> (weights, scales, zeros)
            c = Conv <pads = [{kernel // 2}, {kernel // 2}, {kernel // 2}, {kernel // 2}]> (d, w)
            cq = QuantizeLinear (c, out, zero)  cd = DequantizeLinear (cq, out, zero)
            p = GlobalAveragePool (cd)  output = Flatten (p) }}"""
    )
    tensors: dict[str, npt.NDArray[Any]] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weights": np.full((16, 32, kernel, kernel), weight, np.int8),
        "scales": np.ones(16, np.float32),
        "zeros": np.zeros(16, np.int8),
        "out": np.array(255 * weight * 32 * kernel**2 / 250, np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in tensors.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def error_of(model: onnx.ModelProto, name: str) -> float:
    """Largest difference between the engine and onnx's reference evaluator, relative to the
    largest output.
    """
    inputs = np.full((1, 32, 6, 6), 255, np.float32)
    truth, outputs = (
        engine(engine_name).open(model).run(inputs)
        for engine_name in ("reference", name)
    )
    return float(np.abs(outputs - truth).max() / np.abs(truth).max())


def clipping_host() -> None:
    if not saturates(host()):
        pytest.skip("this host adds products of 8 bits in 32, so U8S8 is exact here")


def default_session(
    model: onnx.ModelProto, inputs: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """What a person's own script would run."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"data": inputs})[0])


@pytest.mark.parametrize("kernel", [1, 3])
def test_default_sessions_of_onnxruntime_clip_where_the_host_lacks_vnni(
    kernel: int,
) -> None:
    """The warning of `for_host` is true, and 7 bits are its remedy."""
    clipping_host()
    for weight, clips in ((127, True), (65, True), (64, False)):
        model, inputs = (
            worst_case(weight, kernel),
            np.full((1, 32, 6, 6), 255, np.float32),
        )
        truth = engine("reference").open(model).run(inputs)
        assert (
            np.abs(default_session(model, inputs) - truth).max()
            > 1e-3 * np.abs(truth).max()
        ) == clips


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("weight", [127, 65])
def test_which_engines_clip_as_repzoo_runs_them(kernel: int, weight: int) -> None:
    clipping_host()
    assert error_of(worst_case(weight, kernel), "onnxruntime") < 1e-5
    if "openvino" not in installed_engines():
        pytest.skip("OpenVINO is not installed")
    assert (
        error_of(worst_case(weight, kernel), "openvino") > 1e-3
    )  # 127: 32 767 instead of 2 x 255 x 127 = 64 770


@pytest.mark.parametrize("kernel", [1, 3])
def test_seven_bits_are_exact_on_every_host(kernel: int) -> None:
    for name in installed_engines():
        assert error_of(worst_case(WEIGHT_MAX[7], kernel), name) < 1e-5, name


def installed_engines() -> list[str]:
    names = []
    for name in ("onnxruntime", "openvino"):
        try:
            names.append(engine(name).name)
        except MissingExtra:
            continue
    return names


class Named:
    """As much of an engine as `for_host` asks about."""

    def __init__(self, name: str) -> None:
        self.name = name

    def version(self) -> str:
        raise NotImplementedError

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> Session:
        raise NotImplementedError


def test_the_remedy_is_chosen_by_the_hosts_instructions_and_the_engine() -> None:
    wanted = load_scheme("openvino-cpu")
    assert [saturates(facts) for facts in (VNNI, AVX2, AVX512, ARM)] == [
        False,
        True,
        True,
        False,
    ]
    for facts in (VNNI, ARM):
        for name in ("openvino", "onnxruntime", "reference"):
            assert adapt_to_host(wanted, Named(name), facts) == (wanted, "")
    for name in ("openvino", "openvino:CPU"):
        used, remark = adapt_to_host(wanted, Named(name), AVX512)
        assert used == replace(
            wanted, weight_bits=7, name="openvino-cpu, 7-bit weights"
        )
        assert used.weight_max == 64
        assert "no VNNI" in remark
        assert adapt_to_host(used, Named(name), AVX2) == (used, "")
    kept, warned = adapt_to_host(load_scheme("ort-cpu"), Named("onnxruntime"), AVX2)
    assert kept.weight_max == 127
    assert "session.x64quantprecision = 1" in warned
    assert (
        adapt_to_host(load_scheme("ort-cpu-7bit"), Named("onnxruntime"), AVX2)[1] == ""
    )
    assert adapt_to_host(wanted, Named("reference"), AVX2) == (wanted, "")


def test_each_engine_has_its_scheme() -> None:
    targets = [
        default_scheme(name).name
        for name in ("onnxruntime", "openvino", "openvino:CPU", "mnn", "reference")
    ]
    assert targets == ["ort-cpu", "openvino-cpu", "openvino-cpu", "mnn", "ort-cpu"]


def test_every_preset_is_complete() -> None:
    assert {"ort-cpu", "openvino-cpu", "mnn", "rdk", "vastai", "per-tensor"} <= set(
        schemes()
    )
    for name, scheme in schemes().items():
        assert scheme.name == name
        assert scheme.about
        assert set(scheme.range_methods) <= set(RANGES)
        assert {"Conv", "Gemm"} <= set(scheme.quantized)
    assert load_scheme("rdk").escape == "int16"
    assert not load_scheme("per-tensor").per_channel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nweight_bits = 4", r"weight_bits must be one of \(8, 7\); got 4"),
        ("[a]\nescape = 'int32'", "escape must be one of"),
        ("[a]\nper_chanel = true", "did you mean per_channel"),
        ("[a]\nper_channel = 1", "per_channel must be bool"),
        ("[a]\nquantized = [1]", "quantized must be a list of strings"),
        ("[a]\nquantized = ['MatMul']", "quantized must be some of Conv, Gemm"),
        ("[a]\nfused = ['Softmax']", "fused must be some of Relu"),
        ("[a]\nranges = 'mse'\nrange_methods = ['minmax']", "hold ranges"),
        ("[a]\n[b]", "must hold one table"),
        ("a = 1", "must hold one table"),
        ("= 1", "is not TOML"),
    ],
)
def test_a_file_that_is_no_scheme_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_scheme(str(path))


def test_a_scheme_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[my-board]\nabout = 'mine'\nper_channel = false\nescape = 'int16'")
    assert load_scheme(str(path)) == QuantScheme(
        "my-board", "mine", per_channel=False, escape="int16"
    )
    with pytest.raises(InputError, match="does not exist"):
        load_scheme(str(tmp_path / "none.toml"))


def test_quantize_keeps_to_7_bits_where_the_engine_would_clip(
    trained: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host without VNNI, OpenVINO's own kernels clip: no weight may leave -64..64, and the
    person is told.
    """
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    plain = {**host(), "machine": "x86_64", "int8": ["avx2"]}
    monkeypatch.setattr("repzoo.verbs.quantize_model.host", lambda: plain)
    result = verbs.quantize(
        trained,
        "digits",
        engine="openvino",
        images=32,
        max_drop=100,
        search=0.0,
        force=True,
    )
    weights = [
        numpy_helper.to_array(item)
        for item in result.model.graph.initializer
        if item.data_type == onnx.TensorProto.INT8
    ]
    assert weights
    assert all(np.abs(values.astype(int)).max() <= 64 for values in weights)
    assert result.report is not None
    assert any("7 bits" in warning for warning in result.report.warnings)
