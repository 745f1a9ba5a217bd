"""Which hosts saturate pairs of U8S8 products, and what keeps a model exact there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tests.small_model import small

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess
from repzoo.data.dataset import Dataset
from repzoo.engines import Session, engine
from repzoo.errors import MissingExtra
from repzoo.measure.host import host
from repzoo.quant.network.host_arithmetic import adapt_to_host, saturates
from repzoo.quant.network.scheme import WEIGHT_MAX, load_scheme
from repzoo.quant.search.default_sessions import saturation_remark

VNNI = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512_vnni"]}
AVX2 = {"machine": "x86_64", "int8": ["avx2"]}
AVX512 = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512bw"]}
ARM = {"machine": "aarch64", "int8": ["asimddp"]}


def worst_case(weight: int, kernel: int = 3, channels: int = 32) -> onnx.ModelProto:
    """A quantized convolution of `channels` channels whose weights are all `weight` and whose input is
    255 everywhere.
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, {channels}, 6, 6] data) => (float[1, 16] output) {{
            q = QuantizeLinear (data, one, zero)  d = DequantizeLinear (q, one, zero)
            w = DequantizeLinear <axis = 0> (weights, scales, zeros)
            c = Conv <pads = [{kernel // 2}, {kernel // 2}, {kernel // 2}, {kernel // 2}]> (d, w)
            cq = QuantizeLinear (c, out, zero)  cd = DequantizeLinear (cq, out, zero)
            p = GlobalAveragePool (cd)  output = Flatten (p) }}"""
    )
    tensors: dict[str, npt.NDArray[Any]] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weights": np.full((16, channels, kernel, kernel), weight, np.int8),
        "scales": np.ones(16, np.float32),
        "zeros": np.zeros(16, np.int8),
        "out": np.array(255 * weight * channels * kernel**2 / 250, np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in tensors.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def reads_images(model: onnx.ModelProto) -> Artifact:
    """`model`, whose input has 36 channels, as a classifier of images [1, 3, 6, 6] of 0..255."""
    repeated = onnx.helper.make_node("Concat", ["image"] * 12, ["data"], axis=1)
    model.graph.node.insert(0, repeated)
    image = onnx.helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, [1, 3, 6, 6]
    )
    model.graph.input[0].CopyFrom(image)
    bytes_as_floats = Preprocess(
        6,
        "squash",
        1.0,
        "bilinear",
        (0.0, 0.0, 0.0),
        (1 / 255, 1 / 255, 1 / 255),
        "RGB",
    )
    labels = tuple(str(index) for index in range(16))
    return Artifact(model, "worst case", bytes_as_floats, labels, ())


WHITE = Dataset(
    "white", ("0",), ("a",), (0,), lambda _: Image.new("RGB", (6, 6), "white")
)


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


def saturating_host() -> None:
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
    """The warning of `saturation_remark` is true, and 7 bits are its remedy."""
    saturating_host()
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
    saturating_host()
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
    """As much of an engine as `adapt_to_host` asks about."""

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
        # A named scheme of 8 bits would be wrong there.
        assert adapt_to_host(wanted, Named(name), AVX2, is_named=True)[0] == used
    assert adapt_to_host(wanted, Named("reference"), AVX2) == (wanted, "")


def test_sessions_that_are_exact_but_slower_get_8_bits_by_name_only() -> None:
    scheme = load_scheme("ort-cpu")
    runner = Named("onnxruntime")
    used, remark = adapt_to_host(scheme, runner, AVX2)
    assert used == replace(scheme, weight_bits=7, name="ort-cpu, 7-bit weights")
    assert "--scheme ort-cpu" in remark
    assert adapt_to_host(scheme, runner, AVX2, is_named=True) == (scheme, "")
    assert adapt_to_host(scheme, runner, VNNI) == (scheme, "")
    narrow = load_scheme("ort-cpu-7bit")
    assert adapt_to_host(narrow, runner, AVX2) == (narrow, "")


def test_a_scheme_for_a_board_does_not_depend_on_this_host() -> None:
    for name in ("rdk-x5", "vastai"):
        scheme = load_scheme(name)
        for runner in ("openvino", "onnxruntime"):
            assert adapt_to_host(scheme, Named(runner), AVX2) == (scheme, "")


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("weight", [127, 64])
def test_the_remark_on_default_sessions_is_made_where_they_change_outputs(
    weight: int, batch: int
) -> None:
    """The images have 255 everywhere: 2 * 255 * 127 saturates at 16 bits, 2 * 255 * 64 does not."""
    saturating_host()
    model = reads_images(worst_case(weight, channels=36))
    if batch:  # torch's exporter fixes it by default
        model.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    runner = engine("onnxruntime")
    remark = saturation_remark(model, WHITE, runner, AVX2)
    assert ("session.x64quantprecision = 1" in remark) == (weight == 127)
    assert saturation_remark(model, WHITE, runner, VNNI) == ""
    assert saturation_remark(model, WHITE, engine("reference"), AVX2) == ""


def quantized_without_vnni(
    monkeypatch: pytest.MonkeyPatch, **options: Any
) -> verbs.Artifact:
    """A small network in INT8, as on a host without VNNI."""
    without_vnni = {**host(), **AVX2}
    monkeypatch.setattr("repzoo.verbs.quantize_targets.host", lambda: without_vnni)
    return verbs.quantize(
        small(), "digits", images=32, search=0.0, force=True, **options
    )


def largest_weight(int8: verbs.Artifact) -> int:
    weights = []
    for item in int8.model.graph.initializer:
        if item.data_type == onnx.TensorProto.INT8:
            weights.append(numpy_helper.to_array(item))
    assert weights
    return int(max(np.abs(values.astype(int)).max() for values in weights))


@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_quantize_keeps_to_7_bits_where_the_engine_would_saturate(
    runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VNNI: no weight leaves -64..64, and one remark says so."""
    pytest.importorskip(runner, reason=f"the {runner} extra is not installed")
    int8 = quantized_without_vnni(monkeypatch, engine=runner)
    assert largest_weight(int8) <= 64
    assert int8.report is not None
    remarks = [text for text in int8.report.warnings if "VNNI" in text]
    assert len(remarks) == 1
    assert "7 bits" in remarks[0]


def test_quantize_writes_8_bits_where_the_scheme_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int8 = quantized_without_vnni(monkeypatch, engine="onnxruntime", scheme="ort-cpu")
    assert largest_weight(int8) > 64


@pytest.mark.parametrize("scheme", ["rdk-x5", "vastai"])
def test_a_scheme_for_a_board_places_all_that_the_board_runs(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is fastest here: everything is in INT8, and nothing is said of this host."""
    without_vnni = {**host(), **AVX2}
    monkeypatch.setattr("repzoo.verbs.quantize_model.host", lambda: without_vnni)
    int8 = verbs.quantize(
        small(), "digits", scheme=scheme, images=32, search=5.0, force=True
    )
    producers = {node.output[0]: node.op_type for node in int8.model.graph.node}
    for node in int8.model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert producers[node.input[0]] == "DequantizeLinear"
            assert producers[node.input[1]] == "DequantizeLinear"
    assert int8.report is not None
    assert int8.report.chosen.placement == "everything"
    assert not [text for text in int8.report.warnings if "VNNI" in text]
