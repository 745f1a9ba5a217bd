"""ONNX Runtime adds 8-bit products exactly where it would saturate, and is left alone elsewhere."""

from __future__ import annotations

import platform

import pytest

from repzoo import processor
from repzoo.engines import onnxruntime

AVX2 = "fpu avx2"
VNNI = "fpu avx2 avx512f avx512bw avx512_vnni"
AMX = f"{VNNI} amx_int8"


@pytest.mark.parametrize(
    ("machine", "flags", "exact_products", "setting"),
    [
        ("x86_64", AVX2, True, "1"),
        ("x86_64", AVX2, False, "0"),
        ("x86_64", VNNI, True, "0"),
        ("x86_64", AMX, True, "0"),
        ("aarch64", "asimddp", True, "0"),
    ],
)
def test_the_exact_setting_is_for_processors_that_saturate(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    flags: str,
    exact_products: bool,
    setting: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "cpuinfo", lambda: {"flags": flags})
    options = onnxruntime._session_options(1, False, exact_products)
    assert options.get_session_config_entry("session.x64quantprecision") == setting
