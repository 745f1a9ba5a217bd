"""QuantScheme: how a target represents numbers, as data (schemes.toml, or a person's own file).

Weights of 7 bits: on x86 without VNNI, kernels multiply uint8 by int8 and add two neighboring products in 16 bits (the
instruction VPMADDUBSW), which clips at 32 767. Weights in -64..64 keep 2 x 255 x 64 = 32 640 below that, so such a model means
the same on every host; tests/quant/test_scheme.py shows both on the engines themselves.
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
OPERATORS = ("Conv", "Gemm", "Add", "Mul", *POOLING, *DATA_MOVEMENT)  # what can be written as INT8
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Swish", "Gelu")
PEAKS = {
    8: 127,
    7: 64,
}  # largest weight by weight bits; 7 bits are -64..64, so that a pair of products fits 16 bits
# In the names of /proc/cpuinfo: instructions that add products of 8 bits in 32, which x86 needs not to saturate.
EXACT_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
X86 = frozenset({"x86_64", "AMD64", "i686"})
CLIPPING = frozenset({"openvino"})  # engines that saturate on such hosts as repzoo runs them
CAREFUL = {  # those that do with their default settings
    "onnxruntime": "this host has no VNNI, where ONNX Runtime's default sessions clip sums of 8-bit products. What is measured here "
    "is exact; get the same by the session option session.x64quantprecision = 1, or by --scheme ort-cpu-7bit",
}
MAX_FILE_BYTES = 2**16
CHOICES: dict[str, tuple[Any, ...]] = {
    "activation_type": ("uint8", "int8"),
    "activation_bits": (8,),
    "weight_bits": tuple(PEAKS),
    "ranges": RANGES,
    "escape": ("float", "int16"),
}


@dataclass(frozen=True)
class QuantScheme:
    """What a target wants. Activations have one scale for each tensor; weights are symmetric.

    engine                the engine whose numbers decide; "" where the target runs nowhere but on its board
    activation_type       uint8 | int8
    activation_symmetric  zero point in the middle (128 or 0), values within 127 of it; else any zero point
    weight_bits           8: -127..127; 7: -64..64
    per_channel           one weight scale for each output channel, else one for each tensor
    ranges                how an activation's range is chosen first: one of range_methods
    range_methods         every method that the target's own tool knows, out of minmax, percentile, mse, entropy
    quantized             ONNX operators that may compute on quantized values, out of OPERATORS
    fused                 activations that the target applies within the layer before, so no Q/DQ goes between, out of ACTIVATIONS;
                          Gelu, Swish and HardSwish also where several nodes spell them
    escape                what a layer that INT8 breaks may use instead: float | int16
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
        """Refuse what no writer could honor."""
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise InputError(
                    f"scheme {self.name}: {key} must be one of {allowed}; got {getattr(self, key)!r}"
                )
        for key, known in (("quantized", OPERATORS), ("fused", ACTIVATIONS)):
            for one in getattr(self, key):
                if one not in known:
                    raise InputError(
                        f"scheme {self.name}: {key} must be some of {', '.join(known)}; got {one!r}"
                    )
        strange = set(self.range_methods) - set(RANGES)
        if strange or self.ranges not in self.range_methods:
            raise InputError(
                f"scheme {self.name}: range_methods must be some of {RANGES} and hold ranges ({self.ranges!r}); "
                f"got {self.range_methods}"
            )

    @property
    def weight_max(self) -> int:
        """The largest magnitude of a stored weight."""
        return PEAKS[self.weight_bits]


@functools.cache
def schemes() -> dict[str, QuantScheme]:
    """The presets by name."""
    tables = tomllib.loads((files("repzoo.quant.network") / "schemes.toml").read_text("utf-8"))
    return {name: _made(name, table) for name, table in tables.items()}


def load_scheme(name: str) -> QuantScheme:
    """The preset called `name`, or the one table of the TOML file `name`.

    Raises:
        InputError: unknown (the nearest are offered), or a file that is no scheme.
    """
    if name in schemes():
        return schemes()[name]
    if Path(name).suffix == ".toml":
        return _from_file(Path(name))
    raise InputError(unknown("scheme", name, schemes()))


def default_scheme(engine_name: str) -> QuantScheme:
    """The preset of the engine called `engine_name` ("engine:option" too); ort-cpu for one that has none."""
    base = engine_name.partition(":")[0]
    return next((one for one in schemes().values() if one.engine == base), schemes()["ort-cpu"])


def adapt_to_host(
    wanted: QuantScheme, engine: Engine, facts: Mapping[str, Any]
) -> tuple[QuantScheme, str]:
    """(the scheme to use with `engine` on the host of `facts`, see measure.host; a remark, "" when there is nothing to say)."""
    if wanted.weight_bits < 8 or not saturates(facts):
        return wanted, ""
    base = engine.name.partition(":")[0]
    if base in CLIPPING:
        return replace(wanted, name=f"{wanted.name}, 7-bit weights", weight_bits=7), (
            f"this host has no VNNI, where {base} clips sums of 8-bit products: weights are kept to 7 bits, which is exact on every "
            "host. For a file of 8 bits, right for hosts with VNNI alone, quantize with --engine onnxruntime"
        )
    return wanted, CAREFUL.get(base, "")


def saturates(facts: Mapping[str, Any]) -> bool:
    """Whether U8S8 kernels clip pairs of products on the host of `facts` (its `machine` and `int8` flags)."""
    return facts["machine"] in X86 and not EXACT_FLAGS & set(facts["int8"])


def _from_file(path: Path) -> QuantScheme:
    try:
        tables = tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    if len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
        raise InputError(
            f"{path} must hold one table, such as [my-board]; it has {len(tables)} entries at the top"
        )
    return _made(*next(iter(tables.items())))


def _made(name: str, table: Mapping[str, Any]) -> QuantScheme:
    """A scheme from a table, whose values must have the types of the fields' defaults (a list stands for a tuple)."""
    known: dict[str, object] = {
        item.name: item.default for item in fields(QuantScheme) if item.default is not MISSING
    }
    values: dict[str, Any] = {"about": name}
    for key, value in table.items():
        given = tuple(value) if isinstance(value, list) else value
        wanted = str if key == "about" else type(known.get(key))
        if key != "about" and key not in known:
            raise InputError(f"scheme {name}: {unknown('key', key, ['about', *known])}")
        if type(given) is not wanted or (
            isinstance(given, tuple) and not all(isinstance(item, str) for item in given)
        ):
            raise InputError(
                f"scheme {name}: {key} must be {'a list of strings' if wanted is tuple else wanted.__name__}"
            )
        values[key] = given
    return QuantScheme(name=name, **values)
