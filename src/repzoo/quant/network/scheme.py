"""Quantization schemes: how a target represents numbers, as data (schemes.toml or a user's file).

Why 7-bit weights exist: on x86 without VNNI, kernels multiply uint8 by int8 and add two neighboring
products in 16 bits (the instruction VPMADDUBSW), which saturates at 32,767. Weights in -64..64 keep
2 * 255 * 64 = 32,640 below that. Such a model gives the same result on every host.
tests/quant/network/test_scheme.py shows both on the engines themselves.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.storage import read_bounded

RANGES = ("minmax", "percentile", "mse", "entropy")
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
DATA_MOVEMENT = ("Flatten", "Reshape", "Concat", "Split", "Transpose")
# Operators that can be written as INT8.
OPERATORS = ("Conv", "Gemm", "Add", "Mul", *POOLING, *DATA_MOVEMENT)
ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Swish",
    "Gelu",
)
# Largest magnitude of a weight by its bits.
WEIGHT_MAX = {8: 127, 7: 64}
# Names in /proc/cpuinfo of instructions that add 8-bit products in 32 bits.
EXACT_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
X86 = frozenset({"x86_64", "AMD64", "i686"})
# Engines that saturate on hosts without these instructions, as repzoo runs them.
SATURATING_ENGINES = frozenset({"openvino"})
# Engines that saturate there with their default settings only, and what to tell the user.
SATURATING_BY_DEFAULT = {
    "onnxruntime": "this host has no VNNI, where ONNX Runtime's default sessions saturate sums of "
    "8-bit products. What is measured here is exact; get the same by the session option "
    "session.x64quantprecision = 1, or by --scheme ort-cpu-7bit",
}
MAX_FILE_BYTES = 2**16
CHOICES: dict[str, tuple[Any, ...]] = {
    "activation_type": ("uint8", "int8"),
    "activation_bits": (8,),
    "weight_bits": tuple(WEIGHT_MAX),
    "ranges": RANGES,
    "escape": ("float", "int16"),
}


@dataclass(frozen=True)
class QuantScheme:
    """How a target represents numbers. Activations have per-tensor scales, weights are symmetric.

    engine                the engine that runs it; "" for a target that only its board runs
    activation_type       uint8 | int8
    activation_symmetric  zero point in the middle (128 or 0) and values within 127 of it, instead
                          of any zero point
    weight_bits           8: -127..127; 7: -64..64
    per_channel           one weight scale per output channel, else one per tensor
    ranges                how an activation's range is chosen first: one of range_methods
    range_methods         the methods of the target's own tool: minmax, percentile, mse, entropy
    quantized             ONNX operators that may run in INT8, out of OPERATORS
    fused                 activations that the target fuses into the layer before, out of
                          ACTIVATIONS. Gelu, Swish and HardSwish may also be composites
    escape                fallback of a layer that INT8 breaks: float | int16
    """

    name: str
    about: str
    engine: str = "onnxruntime"
    activation_type: str = "uint8"
    activation_symmetric: bool = False
    activation_bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    ranges: str = "mse"
    range_methods: tuple[str, ...] = RANGES
    quantized: tuple[str, ...] = ("Conv", "Gemm", "Add", *POOLING[:3], *DATA_MOVEMENT)
    fused: tuple[str, ...] = ("Relu", "Clip")
    escape: str = "float"

    def __post_init__(self) -> None:
        """Refuse values that cannot be written."""
        for key, allowed in CHOICES.items():
            value = getattr(self, key)
            if value not in allowed:
                raise InputError(
                    f"scheme {self.name}: {key} must be one of {allowed}; got {value!r}"
                )
        self._require_known("quantized", OPERATORS)
        self._require_known("fused", ACTIVATIONS)
        has_unknown = not set(self.range_methods) <= set(RANGES)
        if has_unknown or self.ranges not in self.range_methods:
            raise InputError(
                f"scheme {self.name}: range_methods must be some of {RANGES} and hold ranges "
                f"({self.ranges!r}); got {self.range_methods}"
            )

    def _require_known(self, key: str, known: tuple[str, ...]) -> None:
        for value in getattr(self, key):
            if value not in known:
                raise InputError(
                    f"scheme {self.name}: {key} must be some of {', '.join(known)}; got {value!r}"
                )

    @property
    def weight_max(self) -> int:
        """The largest magnitude of a stored weight."""
        return WEIGHT_MAX[self.weight_bits]


@functools.cache
def schemes() -> dict[str, QuantScheme]:
    """The presets by name."""
    tables = tomllib.loads(
        (files("repzoo.quant.network") / "schemes.toml").read_text("utf-8")
    )
    return {name: _from_table(name, table) for name, table in tables.items()}


def load_scheme(name: str) -> QuantScheme:
    """The preset `name`, or the one table of the TOML file `name`.

    Raises:
        InputError: an unknown name (similar ones are offered), or a file that is not a scheme.
    """
    if name in schemes():
        return schemes()[name]
    if Path(name).suffix == ".toml":
        return _from_file(Path(name))
    raise InputError(unknown("scheme", name, schemes()))


def default_scheme(engine_name: str) -> QuantScheme:
    """The preset of an engine ("engine" or "engine:option"); ort-cpu for one without a preset."""
    base = engine_name.partition(":")[0]
    for scheme in schemes().values():
        if scheme.engine == base:
            return scheme
    return schemes()["ort-cpu"]


def adapt_to_host(
    scheme: QuantScheme, engine: Engine, facts: Mapping[str, Any]
) -> tuple[QuantScheme, str]:
    """(the scheme to use with `engine` on this host, a remark for the user or "").

    facts  of the host, see measure.host
    """
    if scheme.weight_bits < 8 or not saturates(facts):
        return scheme, ""
    base = engine.name.partition(":")[0]
    if base not in SATURATING_ENGINES:
        return scheme, SATURATING_BY_DEFAULT.get(base, "")
    remark = (
        f"this host has no VNNI, where {base} saturates sums of 8-bit products: weights are kept "
        "to 7 bits, which is exact on every host. For a file of 8 bits, right for hosts with VNNI "
        "alone, quantize with --engine onnxruntime"
    )
    return replace(scheme, name=f"{scheme.name}, 7-bit weights", weight_bits=7), remark


def saturates(facts: Mapping[str, Any]) -> bool:
    """Whether U8S8 kernels saturate on the host of `facts` (its `machine` and `int8` flags)."""
    return facts["machine"] in X86 and not EXACT_FLAGS & set(facts["int8"])


def _from_file(path: Path) -> QuantScheme:
    try:
        tables = tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    if len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
        raise InputError(
            f"{path} must hold one table, such as [my-board]; it has {len(tables)} entries at the "
            "top"
        )
    return _from_table(*next(iter(tables.items())))


def _from_table(name: str, table: Mapping[str, Any]) -> QuantScheme:
    """A scheme from a TOML table. Values must have the types of the fields' defaults."""
    types: dict[str, type] = {"about": str}
    for item in fields(QuantScheme):
        if item.default is not MISSING:
            types[item.name] = type(item.default)
    values: dict[str, Any] = {"about": name}
    for key, value in table.items():
        if key not in types:
            raise InputError(f"scheme {name}: {unknown('key', key, list(types))}")
        expected = types[key]
        if expected is tuple and isinstance(value, list):
            value = tuple(value)
        are_strings = not isinstance(value, tuple) or all(
            isinstance(item, str) for item in value
        )
        if type(value) is not expected or not are_strings:
            kind = "a list of strings" if expected is tuple else expected.__name__
            raise InputError(f"scheme {name}: {key} must be {kind}")
        values[key] = value
    return QuantScheme(name=name, **values)
