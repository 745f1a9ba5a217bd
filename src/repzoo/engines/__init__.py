"""Engines: the runtimes that run a model. One file each, found by name through ENGINES.

An engine is an object with `name`, `version()` and `open(model, threads)`. Its Session has
`run(inputs)`. Everything that repzoo knows about a runtime is in that runtime's file.
tests/contracts/test_engine.py runs one suite against every engine.

A name may have an option after a colon: `onnxruntime:CUDAExecutionProvider`, `openvino:GPU`,
`pytorch:compile`. The class of such an engine has a static method `options()`, which lists the
options that work on this machine, and takes one of them as its only argument.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import onnx

from repzoo.errors import InputError
from repzoo.plugins import Plugin, PluginTable

# float32, or uint8 for the input of a model that takes bytes.
Array = npt.NDArray[Any]
# The arrays of a graph with several inputs, by name.
Feeds = Mapping[str, Array]


class Session(Protocol):
    """A compiled model. `run` may be called from several threads at once."""

    # Any, and not Array | Feeds: an engine of a third party may take single arrays only.
    def run(self, inputs: Any) -> Array:
        """float32 [N, 3, H, W], or uint8 as Preprocess.input says, to float32 [N, classes].

        Of a graph with several inputs, Feeds to its first output.
        """

    def run_all(self, inputs: Any) -> list[Array]:
        """All outputs of the model as float32, in their order. Calibration adds outputs.

        An output that is no tensor of numbers is empty.
        """


class Engine(Protocol):
    """A runtime.

    An engine that computes INT8 models in float arithmetic has the attribute
    `simulates_int8 = True`: its accuracies are right, its latencies say nothing about INT8.
    """

    name: str

    def version(self) -> str:
        """The runtime's own version."""

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> Session:
        """Compile `model`.

        threads  of each call
        exact    without graph optimizations, for comparisons with other runtimes
        streams  clients that will call at once; some runtimes must know this beforehand

        Raises:
            InputError: the runtime cannot run the model; the message says why.
        """


DEFAULT_ENGINE = "onnxruntime"
ENGINES = PluginTable(
    "engine",
    "repzoo.engines",
    {
        "onnxruntime": Plugin("repzoo.engines.onnxruntime:OnnxRuntime"),
        "mnn": Plugin("repzoo.engines.mnn:Mnn", "mnn"),
        "openvino": Plugin("repzoo.engines.openvino:OpenVino", "openvino"),
        "pytorch": Plugin("repzoo.engines.pytorch:PyTorch", "torch"),
        "reference": Plugin("repzoo.engines.reference:Reference"),
    },
)


# Engines whose runtime takes seconds to import: its package, and the engine's options.
_SLOW_IMPORTS = {"pytorch": ("torch", ["compile"])}


@dataclass(frozen=True)
class EngineStatus:
    """An engine as `repzoo engines` lists it.

    options  what may follow its name and a colon on this machine
    problem  why it cannot be used, with what to type; "" for one that can
    """

    name: str
    version: str = ""
    options: tuple[str, ...] = ()
    problem: str = ""


def statuses() -> list[EngineStatus]:
    """The status of every known engine. Runtimes that are slow to import are not imported."""
    return [_status(name) for name in ENGINES.names()]


def _status(name: str) -> EngineStatus:
    package, known_options = _SLOW_IMPORTS.get(name, ("", []))
    if package and package not in sys.modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            return EngineStatus(name, version, tuple(known_options))
    try:
        return EngineStatus(name, engine(name).version(), tuple(options(name)))
    except InputError as error:
        return EngineStatus(name, problem=str(error))


def engine(name: str) -> Engine:
    """The engine called `name`, ready to open models.

    name  "engine" or "engine:option". The beginning of an option is enough, in any case

    Raises:
        InputError: no such engine or option; the message lists the known ones.
        MissingExtra: the runtime is not installed.
    """
    base, colon, option = name.partition(":")
    engine_class = ENGINES.load(base)
    if not colon:
        plain: Engine = engine_class()
        return plain
    with_option: Engine = engine_class(_find_option(base, option, options(base)))
    return with_option


def options(name: str) -> list[str]:
    """What may follow `name` and a colon on this machine; empty for an engine without options."""
    list_options = getattr(ENGINES.load(name), "options", list)
    listed: list[str] = list_options()
    return listed


def _find_option(base: str, text: str, known: list[str]) -> str:
    """The option that is called `text`, or the only one that begins with it."""
    wanted = text.casefold()
    matches = [option for option in known if option.casefold() == wanted]
    if wanted and not matches:
        matches = [item for item in known if item.casefold().startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    available = "it takes none"
    if known:
        available = f"this machine has {', '.join(known)}"
    raise InputError(f"the engine {base!r} has no option {text!r}; {available}")
