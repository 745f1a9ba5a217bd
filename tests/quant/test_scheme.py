"""Schemes as data, and the fact behind them: which hosts clip pairs of U8S8 products, and what keeps a model exact there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.quant.scheme import RANGES, QuantScheme, for_host, saturating, scheme, schemes

VNNI = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512_vnni"]}
AVX2 = {"machine": "x86_64", "int8": ["avx2"]}
AVX512 = {"machine": "x86_64", "int8": ["avx2", "avx512f", "avx512bw"]}
ARM = {"machine": "aarch64", "int8": ["asimddp"]}


def worst_case(weight: int, stored_as: str, kernel: int = 3) -> onnx.ModelProto:
    """A quantised convolution of 32 channels whose weights are all `weight` and whose input is 255 everywhere."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 32, 6, 6] data) => (float[1, 16] output) {{
            q = QuantizeLinear (data, one, zero)  d = DequantizeLinear (q, one, zero)
            w = DequantizeLinear <axis = 0> (weights, scales, zeros)
            c = Conv <pads = [{kernel // 2}, {kernel // 2}, {kernel // 2}, {kernel // 2}]> (d, w)
            cq = QuantizeLinear (c, out, zero)  cd = DequantizeLinear (cq, out, zero)
            p = GlobalAveragePool (cd)  output = Flatten (p) }}"""
    )
    kind, middle = (np.int8, 0) if stored_as == "int8" else (np.uint8, 128)
    tensors: dict[str, np.ndarray] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weights": np.full((16, 32, kernel, kernel), weight + middle, kind),
        "scales": np.ones(16, np.float32),
        "zeros": np.full(16, middle, kind),
        "out": np.array(255 * weight * 32 * kernel**2 / 250, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def error_of(model: onnx.ModelProto, name: str) -> float:
    """Largest difference between the engine and onnx's reference evaluator, relative to the largest output."""
    inputs = np.full((1, 32, 6, 6), 255, np.float32)
    truth, found = (engine(one).open(model).run(inputs) for one in ("reference", name))
    return float(np.abs(found - truth).max() / np.abs(truth).max())


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    try:
        engine(name)
    except InputError as error:
        pytest.skip(str(error))
    return name


@pytest.mark.parametrize("kernel", [1, 3])
def test_u8s8_clips_pairs_of_products_where_the_host_lacks_vnni(engine_name: str, kernel: int) -> None:
    if not saturating(host()):
        pytest.skip("this host adds products of 8 bits in 32, so U8S8 is exact here")
    assert error_of(worst_case(127, "int8", kernel), engine_name) > 0.4  # 32 767 instead of 2 x 255 x 127 = 64 770


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("weight", "stored_as"), [(64, "int8"), (127, "uint8")])
def test_the_remedies_agree_with_the_reference_on_every_host(engine_name: str, weight: int, stored_as: str, kernel: int) -> None:
    assert error_of(worst_case(weight, stored_as, kernel), engine_name) < 1e-5


def test_one_more_than_seven_bits_clips_again(engine_name: str) -> None:
    """The mutant of PEAKS: 65 does not fit, so 64 is the most."""
    if not saturating(host()):
        pytest.skip("this host adds products of 8 bits in 32, so U8S8 is exact here")
    assert 2 * 255 * 64 <= 2**15 - 1 < 2 * 255 * 65
    assert error_of(worst_case(65, "int8"), engine_name) > 1e-3


def test_the_remedy_is_chosen_by_the_hosts_instructions() -> None:
    wanted = scheme("ort-cpu")
    assert [saturating(facts) for facts in (VNNI, AVX2, AVX512, ARM)] == [False, True, True, False]
    for facts in (VNNI, ARM):
        assert for_host(wanted, facts) == (wanted, "")
    used, remark = for_host(wanted, AVX2)
    assert (used.name, used.weight_peak) == ("ort-cpu-7bit", 64)
    assert "no VNNI" in remark
    assert for_host(used, AVX2) == (used, "")
    kept, warned = for_host(scheme("ort-cpu-8bit"), AVX512)
    assert kept.weight_peak == 127
    assert "may saturate here" in warned


def test_every_preset_is_whole_and_every_remedy_exact() -> None:
    assert {"ort-cpu", "openvino-cpu", "mnn", "rdk", "vastai", "per-tensor"} <= set(schemes())
    for name, one in schemes().items():
        assert one.name == name
        assert one.about
        assert set(one.range_methods) <= set(RANGES)
        assert {"Conv", "Gemm"} <= set(one.quantised)
        if one.remedy:
            other = scheme(one.remedy)
            assert not other.saturates
            assert other.per_channel == one.per_channel
            assert replace(other, name=name, about=one.about, weight_bits=8, saturates=True, remedy=one.remedy) == one
    assert scheme("rdk").escape == "int16"
    assert not scheme("per-tensor").per_channel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nweight_bits = 4", r"weight_bits must be one of \(8, 7\); got 4"),
        ("[a]\nescape = 'int32'", "escape must be one of"),
        ("[a]\nper_chanel = true", "did you mean per_channel"),
        ("[a]\nper_channel = 1", "per_channel must be bool"),
        ("[a]\nquantised = [1]", "quantised must be a list of strings"),
        ("[a]\nranges = 'mse'\nrange_methods = ['minmax']", "hold ranges"),
        ("[a]\n[b]", "must hold one table"),
        ("a = 1", "must hold one table"),
        ("= 1", "is not TOML"),
    ],
)
def test_a_file_that_is_no_scheme_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        scheme(str(path))


def test_a_scheme_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[my-board]\nabout = 'mine'\nper_channel = false\nescape = 'int16'")
    assert scheme(str(path)) == QuantScheme("my-board", "mine", per_channel=False, escape="int16")
    with pytest.raises(InputError, match="does not exist"):
        scheme(str(tmp_path / "none.toml"))
