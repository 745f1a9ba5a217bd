"""Schemes as data: the presets, a user's own file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from repzoo.errors import InputError
from repzoo.quant.network.scheme import (
    RANGE_METHODS,
    QuantScheme,
    default_scheme,
    load_scheme,
    schemes,
)


def test_each_engine_has_its_scheme() -> None:
    targets = [
        default_scheme(name).name
        for name in ("onnxruntime", "openvino", "openvino:CPU", "mnn", "reference")
    ]
    assert targets == ["ort-cpu", "openvino-cpu", "openvino-cpu", "mnn", "ort-cpu"]


def test_every_preset_is_complete() -> None:
    assert {"ort-cpu", "openvino-cpu", "mnn", "rdk-x5", "vastai", "per-tensor"} <= set(
        schemes()
    )
    for name, scheme in schemes().items():
        assert scheme.name == name
        assert scheme.about
        assert set(scheme.range_methods) <= set(RANGE_METHODS)
        assert {"Conv", "Gemm"} <= set(scheme.quantized)
    assert load_scheme("rdk-x5").escape == "int16"
    assert load_scheme("rdk") is load_scheme("rdk-x5")  # its older name
    assert not load_scheme("per-tensor").per_channel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nweight_bits = 4", "weight_bits must be one of 8, 7; got 4"),
        ("[a]\nescape = 'int32'", "escape must be one of"),
        ("[a]\nper_chanel = true", "did you mean per_channel"),
        ("[a]\nper_channel = 1", "per_channel must be bool"),
        ("[a]\nquantized = [1]", "quantized must be a list of strings"),
        ("[a]\nquantized = ['MatMul']", "quantized must be some of Conv, Gemm"),
        ("[a]\nfused = ['Softmax']", "fused must be some of Relu"),
        (
            "[a]\nranges = 'mse'\nrange_methods = ['minmax']",
            "ranges must be one of range_methods",
        ),
        ("[a]\ngelu_polynomial = true", "needs single_nodes = true"),
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


def test_a_scheme_without_an_engine_is_for_a_board() -> None:
    boards = [scheme.name for scheme in schemes().values() if scheme.runs_on_board]
    assert boards == [
        "rdk-x5",
        "vastai",
        "rknn",
        "rknn-layer",
        "sophgo",
        "hailo",
        "tensorrt",
        "qnn",
        "stm32n6",
    ]
