"""QuantScheme: how numbers are represented, as data. One preset for each target."""

from __future__ import annotations

from dataclasses import dataclass

from repzoo.errors import InputError
from repzoo.plugins import unknown


@dataclass(frozen=True)
class QuantScheme:
    """What a target wants.

    activation_bits, weight_bits  8; activations are asymmetric uint8, weights symmetric int8 in -127..127
    per_channel                   one weight scale for each output channel, else one for each tensor
    ranges                        how an activation's range is chosen: minmax | percentile | mse (see ranges.py)
    """

    name: str
    about: str
    activation_bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    ranges: str = "mse"


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantScheme("ort-cpu", "ONNX Runtime on x86 with VNNI or on Arm: U8S8, weights per channel"),
        QuantScheme("per-tensor", "one scale for each weight tensor, as several boards want", per_channel=False),
        QuantScheme("ort-minmax", "as ort-cpu with min-max ranges, the usual default elsewhere", ranges="minmax"),
    )
}


def scheme(name: str) -> QuantScheme:
    """The preset called `name`, or an InputError that offers the nearest."""
    if name not in SCHEMES:
        raise InputError(unknown("scheme", name, SCHEMES))
    return SCHEMES[name]
