"""Quantization schemes: how a target represents numbers, as data (schemes.toml, or a user's)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.storage import read_bounded

RANGE_METHODS = ("minmax", "percentile", "mse", "entropy", "typical")
POOLING = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
DATA_MOVEMENT = ("Flatten", "Reshape", "Concat", "Split", "Transpose")
# Operators whose results are some of their inputs' values.
MOVES = frozenset({*DATA_MOVEMENT, "MaxPool"})
# Operators that can be written as INT8.
OPERATORS = (
    "Conv",
    "Gemm",
    "Add",
    "Mul",
    "Sigmoid",
    "HardSigmoid",
    *POOLING,
    *DATA_MOVEMENT,
)
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
# Largest magnitude of a weight by its bits. Why 7 bits exist: see host_arithmetic.py.
WEIGHT_MAX = {8: 127, 7: 64}
MAX_FILE_BYTES = 2**16  # of a user's scheme: a larger file is something else
# Accepted values of the fields that take one of a few.
CHOICES: dict[str, tuple[Any, ...]] = {
    "activation_type": ("uint8", "int8"),
    "activation_bits": (8,),
    "weight_bits": tuple(WEIGHT_MAX),
    "ranges": RANGE_METHODS,
    "escape": ("float", "int16"),
    "weight_rule": ("largest", "minmax", "power-of-two"),
}
# Accepted elements of the fields that take several.
ELEMENTS: dict[str, tuple[str, ...]] = {
    "range_methods": RANGE_METHODS,
    "searched_ranges": RANGE_METHODS,
    "quantized": OPERATORS,
    "fused": ACTIVATIONS,
}


@dataclass(frozen=True)
class QuantScheme:
    """How a target represents numbers. Activations have per-tensor scales, weights are symmetric.

    Attributes:
        name: the preset's, or the TOML table's.
        about: one line for `repzoo list` and reports.
        engine: the engine that runs it; "" for a target that only its board runs.
        activation_type: uint8 | int8.
        activation_symmetric: the zero point is in the middle (128 of uint8, 0 of int8) and stored
            values are within 127 of it. False: any zero point.
        signed_activations: instead, no activation has a zero point, where timing shows that the
            engine is faster so: int8 with -127..127 where values are negative, else uint8.
        activation_bits: 8.
        weight_bits: 8: -127..127; 7: -64..64.
        per_channel: one weight scale per output channel, else one per tensor.
        ranges: how the ladder's first stage chooses activation ranges: one of range_methods.
        range_methods: those of the target's own tool, which later stages choose from: some of
            minmax, percentile, mse, entropy, typical.
        searched_ranges: the methods that the tool's default flow tries on the whole model, of which
            it keeps the best; none: it always chooses ranges as `ranges` says.
        quantized: ONNX operators that may run in INT8, out of OPERATORS. With Sigmoid and Mul,
            SiLU and other composites of these alone do too, with 8 bits between them. With
            HardSigmoid and Mul, HardSwish does.
        fused: activations that the target fuses into the layer before, out of ACTIVATIONS. Gelu,
            Swish and HardSwish may also be composites.
        output_pairs: an INT8 operator needs a Q/DQ pair behind it too. False: the target computes
            it in INT8 and writes float where no INT8 operator reads the result.
        single_nodes: GELU must be one node (opset 20) where it stands between Q/DQ pairs, since the
            target does not recognize it in several nodes there.
        gelu_polynomial: GELU is written as a polynomial (parameters/gelu_polynomial.py) where
            timing shows that the engine computes it faster. Needs single_nodes.
        gemm_convolution: an INT8 Gemm is written as a 1x1 convolution, where timing shows that the
            engine computes it faster (parameters/gemm_convolution.py).
        escape: fallback of a layer that INT8 breaks: float | int16.
        weight_rule: how the target's own tool rounds the weights of a float file: largest | minmax
            | power-of-two (see parameters/weight_grid.py). `harden` puts weights on that grid.
        opset, ir_version: the newest ONNX opset and IR version that the tool takes; 0: any.
        batch: images at a time that the tool wants in the file; 0: any number.
        aliases: other names of the preset.
    """

    name: str
    about: str
    engine: str = "onnxruntime"
    activation_type: str = "uint8"
    activation_symmetric: bool = False
    signed_activations: bool = False
    activation_bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    ranges: str = "mse"
    range_methods: tuple[str, ...] = RANGE_METHODS
    searched_ranges: tuple[str, ...] = ()
    quantized: tuple[str, ...] = (
        "Conv",
        "Gemm",
        "Add",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        *DATA_MOVEMENT,
    )
    fused: tuple[str, ...] = ("Relu", "Clip")
    output_pairs: bool = True
    single_nodes: bool = False
    gelu_polynomial: bool = False
    gemm_convolution: bool = False
    escape: str = "float"
    weight_rule: str = "largest"
    opset: int = 0
    ir_version: int = 0
    batch: int = 0
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that cannot be written."""
        for key, allowed in CHOICES.items():
            value = getattr(self, key)
            if value not in allowed:
                self._refuse(f"{key} must be one of {_listed(allowed)}", value)
        for key, known in ELEMENTS.items():
            for value in getattr(self, key):
                if value not in known:
                    self._refuse(f"{key} must be some of {_listed(known)}", value)
        if self.ranges not in self.range_methods:
            methods = _listed(self.range_methods)
            self._refuse(
                f"ranges must be one of range_methods ({methods})", self.ranges
            )

        if self.gelu_polynomial and not self.single_nodes:
            self._refuse("gelu_polynomial needs single_nodes = true", False)

    def _refuse(self, requirement: str, value: object) -> NoReturn:
        raise InputError(f"scheme {self.name}: {requirement}; got {value!r}")

    def is_symmetric(self, lowest: float) -> bool:
        """Whether the range of an activation whose least value is `lowest` is -r..r."""
        return self.activation_symmetric or (self.signed_activations and lowest < 0)

    @property
    def weight_max(self) -> int:
        """The largest magnitude of a stored weight."""
        return WEIGHT_MAX[self.weight_bits]

    @property
    def runs_on_board(self) -> bool:
        """Whether only a board runs it. Latencies on this host then say nothing about it."""
        return not self.engine


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


@functools.cache
def schemes() -> dict[str, QuantScheme]:
    """The presets by name."""
    resource = files("repzoo.quant.network") / "schemes.toml"
    tables = tomllib.loads(resource.read_text("utf-8"))
    presets: dict[str, QuantScheme] = {}
    for name, table in tables.items():
        presets[name] = _from_table(name, table)
    return presets


def find_preset(name: str) -> QuantScheme | None:
    """The preset with this name or alias; None if there is none."""
    for scheme in schemes().values():
        if name in (scheme.name, *scheme.aliases):
            return scheme
    return None


def load_scheme(name: str) -> QuantScheme:
    """The preset `name`, or the one table of the TOML file `name`.

    Raises:
        InputError: an unknown name (similar ones are offered), or a file that is not a scheme.
    """
    preset = find_preset(name)
    if preset is not None:
        return preset
    if Path(name).suffix == ".toml":
        return _from_file(Path(name))
    raise InputError(unknown("scheme", name, schemes()))


def default_scheme(engine_name: str) -> QuantScheme:
    """The first preset of an engine ("engine" or "engine:option"); ort-cpu for one without any."""
    base = engine_name.partition(":")[0]
    for scheme in schemes().values():
        if scheme.engine == base:
            return scheme
    return schemes()["ort-cpu"]


def _from_file(path: Path) -> QuantScheme:
    try:
        text = read_bounded(path, MAX_FILE_BYTES).decode()
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    entries = list(tables.items())
    if len(entries) != 1 or not isinstance(entries[0][1], dict):
        raise InputError(
            f"{path} must hold one table, such as [my-board]; it has {len(entries)} entries at the "
            "top"
        )
    name, table = entries[0]
    return _from_table(name, table)


def _from_table(name: str, table: Mapping[str, Any]) -> QuantScheme:
    """A scheme from a TOML table. Values must have the types of the fields' defaults."""
    types = _field_types()
    values: dict[str, Any] = {"about": name}
    for key, value in table.items():
        if key not in types:
            reason = unknown("key", key, list(types))
            raise InputError(f"scheme {name}: {reason}")
        where = f"scheme {name}: {key}"
        values[key] = _converted(value, types[key], where)
    return QuantScheme(name=name, **values)


def _field_types() -> dict[str, type]:
    """The type of each key that a table may have."""
    types: dict[str, type] = {"about": str}
    for item in fields(QuantScheme):
        if item.default is not MISSING:
            types[item.name] = type(item.default)
    return types


def _converted(
    value: Any,
    expected: type,
    where: str,
) -> Any:
    """`value` of a TOML file as `expected`, the type of a field. `where` names it in errors."""
    if expected is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise InputError(f"{where} must be a list of strings; got {value!r}")
    # not isinstance: True is no number of bits
    if type(value) is not expected:
        raise InputError(f"{where} must be {expected.__name__}; got {value!r}")
    return value
