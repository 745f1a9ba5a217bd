"""Engines: the runtimes that run a model. One file each, found by name through ENGINES.

Everything that repzoo knows about a runtime is in that runtime's file, or in a third party's
package. What an engine must and may have is in the protocols `Engine` and `Session`.
tests/contracts/test_engine.py runs one suite against every engine that is installed.

A name may have an option after a colon: `onnxruntime:CUDAExecutionProvider`, `openvino:GPU`,
`pytorch:compile`.

signature  what a model takes, and whether an array fits; for every engine to use
executed   what a runtime executes for a graph, operator by operator
batches    runs of fewer images than the batch that a file fixes
pixels     what was normalized, for models that normalize by themselves
limits     bounds on memory and time, for ONNX Runtime
probe      one run in a child process, which may crash or hang
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy.typing as npt
import onnx

from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.plugins import Plugin, PluginTable
from repzoo.preprocessing import Preprocess

# float32, or uint8 for the input of a model that takes bytes.
Array = npt.NDArray[Any]
# The arrays of a graph with several inputs, by name.
Feeds = Mapping[str, Array]


class Session(Protocol):
    """A compiled model. It may be called from several threads at once, with any batch size.

    Both methods raise an InputError of one line for inputs that do not fit, and live on.
    """

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
    """A runtime. ENGINES holds its class, which is called without arguments.

    Some classes have more than the protocol demands:

    simulates_int8            True for an engine that computes INT8 models in float arithmetic: its
                              accuracies are right, its latencies say nothing about INT8
    options()                 static; the options that work on this machine, as a list of names. The
                              class is then also called with one of them as its only argument
    with_default_precision()  the engine as others run it, where repzoo opens sessions with settings
                              that make sums of 8-bit products exact
    computes_bfloat16()       whether this machine has bfloat16 arithmetic that the engine uses
    computes_float32_in()     the type that float32 models are computed in here, in sessions that
                              are not exact: "float32", as by all without this method, or another

    profiler(model, inputs, threads)      a Profiler of `model`
    open_pack(path, preprocess, streams)  see PackEngine

    name  as in ENGINES, with the option where there is one: "openvino:GPU"
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


class Profiler(Protocol):
    """A compiled model that tells what the runtime executes for it. It runs once.

    Compiling is apart from running: several may be compiled at once, and then run alone.
    """

    def run(self, runs: int) -> list[ExecutedOperator]:
        """The operators in their order, each with the shortest of its times in `runs` runs.

        Raises:
            InputError: the runtime cannot run the model; the message says why.
        """


class PackEngine(Engine, Protocol):
    """An engine that runs what a vendor's tool chain compiled, and nothing else.

    Its `open` refuses every model. Sessions may have `carried(inputs)`: the inputs as they reach
    the model, where a camera's format loses colors.
    """

    def open_pack(
        self, path: Path, preprocess: Preprocess, streams: int = 1
    ) -> Session:
        """Open a compiled model.

        path        of the vendor's quantized model
        preprocess  of the pack's float model
        streams     clients that will call at once

        Raises:
            InputError: the tool chain is not installed or cannot run the file.
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
        "rdk-x5": Plugin("repzoo.engines.rdk_x5:RdkX5"),
        "rknn": Plugin("repzoo.engines.rknn:Rknn"),
    },
)


@dataclass(frozen=True)
class _SlowImport:
    """What is known of an engine before its runtime is imported, which takes seconds.

    package  of the runtime, for its version
    options  as the engine's own `options()` lists them
    """

    package: str
    options: tuple[str, ...]


_SLOW_IMPORTS = {"pytorch": _SlowImport("torch", options=("compile",))}


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
    slow = _SLOW_IMPORTS.get(name)
    if slow and slow.package not in sys.modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(slow.package)
            return EngineStatus(name, version, slow.options)
    try:
        return EngineStatus(name, engine(name).version(), tuple(options(name)))
    except InputError as error:
        return EngineStatus(name, problem=str(error))


def profiler(
    runner: Engine, model: onnx.ModelProto, inputs: Array | Feeds, threads: int = 1
) -> Profiler | None:
    """The profiler of `model` on `runner`; None where there is none, or none for this model.

    threads  of the session that it profiles
    """
    open_profiler = getattr(runner, "profiler", None)
    if open_profiler is None:
        return None
    with contextlib.suppress(InputError):
        opened: Profiler = open_profiler(model, inputs, threads)
        return opened
    return None


def engine(name: str) -> Engine:
    """The engine called `name`, ready to open models.

    name  "engine" or "engine:option". The beginning of an option is enough, in any case

    Raises:
        InputError: no such engine or option; the message lists the known ones.
        MissingExtra: the runtime is not installed.
    """
    base, colon, text = name.partition(":")
    engine_class = ENGINES.load(base)
    arguments = []
    if colon:
        arguments.append(_find_option(base, text, options(base)))
    instance: Engine = engine_class(*arguments)
    return instance


def runs_packs(runner: Engine) -> TypeGuard[PackEngine]:
    """Whether an engine runs what a vendor's tool chain compiled, and nothing else."""
    return hasattr(runner, "open_pack")


def options(name: str) -> list[str]:
    """What may follow `name` and a colon on this machine; empty for an engine without options."""
    engine_class = ENGINES.load(name)
    if not hasattr(engine_class, "options"):
        return []
    listed: list[str] = engine_class.options()
    return listed


def _find_option(base: str, text: str, known: list[str]) -> str:
    """The option that is called `text`, or the only one that begins with it."""
    wanted = text.casefold()
    longer: list[str] = []
    for option in known:
        if option.casefold() == wanted:
            return option
        if option.casefold().startswith(wanted):
            longer.append(option)
    # Every option begins with an empty text.
    if wanted and len(longer) == 1:
        return longer[0]
    available = "it takes none"
    if known:
        available = f"this machine has {', '.join(known)}"
    raise InputError(f"the engine {base!r} has no option {text!r}; {available}")
