"""Hosts whose INT8 kernels saturate, and what keeps a model exact there.

On x86 without VNNI, kernels multiply uint8 by int8 and add two neighboring products in 16 bits
(the instruction VPMADDUBSW). With 8-bit weights the sum reaches 2 * 255 * 127 = 64,770 and
saturates at 32,767. Weights in -64..64 keep 2 * 255 * 64 = 32,640 below that. Such a model of
7-bit weights gives the same result on every host. tests/quant/network/test_host_arithmetic.py
shows both on the engines themselves.

ONNX Runtime has sessions that are exact with weights of 8 bits too, and repzoo opens those. There
RepViT-m0.9 and FasterNet-T0 take 12 to 19 % longer than with weights of 7 bits (224 pixels, one
thread, AVX2). So 7 bits are the default there as well, and 8 bits are for whoever names the scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from repzoo.engines import Engine
from repzoo.processor import sums_saturate
from repzoo.quant.network.scheme import QuantScheme
from repzoo.remark import Remark

# Engines that saturate on hosts without these instructions, as repzoo runs them, and those that are
# exact there but slower.
SATURATING_ENGINES = frozenset({"openvino"})
SLOW_ENGINES = frozenset({"onnxruntime"})


def adapt_to_host(
    scheme: QuantScheme,
    engine: Engine,
    facts: Mapping[str, Any],
    is_named: bool = False,
) -> tuple[QuantScheme, str]:
    """(the scheme to use with `engine` on this host, a remark for the user or "").

    `facts` of the host are those of measure.host. A scheme for a board stays as it is. So does one
    that the user named (`is_named`), if `engine` can compute it exactly.
    """
    base = engine.name.partition(":")[0]
    adapted = SATURATING_ENGINES if is_named else SATURATING_ENGINES | SLOW_ENGINES
    if scheme.weight_bits < 8 or base not in adapted:
        return scheme, ""
    if scheme.runs_on_board or not saturates(facts):
        return scheme, ""
    remark = Remark(
        "this host has no VNNI, where {engine} saturates sums of 8-bit products: weights are kept "
        "to 7 bits, which is exact on every host. For weights of 8 bits, which take longer on such "
        "hosts or saturate, quantize with --engine onnxruntime --scheme ort-cpu",
        engine=base,
    )
    name = f"{scheme.name}, 7-bit weights"
    return replace(scheme, name=name, weight_bits=7), remark


def saturates(facts: Mapping[str, Any]) -> bool:
    """Whether U8S8 kernels saturate on the host of `facts` (its `machine` and `int8` flags)."""
    return sums_saturate(facts["machine"], facts["int8"])
