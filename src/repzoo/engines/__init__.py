"""Engines: what runs an artifact. One file each, found by name through ENGINES.

An engine is an object with `name`, `version()` and `open(model, threads)`; its Session has
`run(inputs)`. All that repzoo knows of a runtime is in that runtime's own file;
tests/contracts/test_engine.py runs one suite against every one.

A name may carry an option after a colon: `onnxruntime:CUDAExecutionProvider`, `openvino:GPU`,
`pytorch:compile`. An engine that has options is a class with a static method `options()`, the
list of those that work here, and takes one as its only argument.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt
import onnx

from repzoo.errors import InputError
from repzoo.plugins import Plugin, PluginTable

Array = npt.NDArray[
    Any
]  # float32, or uint8 where it is the input of a model that takes bytes


class Session(Protocol):
    """A compiled model. `run` may be called from several threads at once."""

    def run(self, inputs: Array) -> Array:
        """float32 [N, 3, H, W], or uint8 as Preprocess.input says, to float32 [N, classes]."""

    def run_all(self, inputs: Array) -> list[Array]:
        """Every output of the model, in its order; for models that calibration has given more
        outputs.
        """


class Engine(Protocol):
    """A runtime.

    One that computes INT8 models in float arithmetic, so that their latency is no INT8 latency,
    says so by an attribute `simulates_int8 = True`.
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
        """Compile `model`; `exact` turns every graph optimization off.

        threads  of each call; streams: how many clients will call at once, which a runtime may
                 need to know to let them

        Raises:
            InputError: the runtime cannot run the model; says why.
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


def engine(name: str) -> Engine:
    """The engine called `name`, ready to open models; "engine:option" chooses an option by its
    beginning, in any case.

    Raises:
        InputError: no such engine, or no such option: says which there are.
        MissingExtra: the runtime is not installed.
    """
    base, colon, option = name.partition(":")
    kind = ENGINES.load(base)
    loaded: Engine = kind(_option(base, option, options(base))) if colon else kind()
    return loaded


def options(name: str) -> list[str]:
    """What may follow `name` and a colon on this machine; empty for an engine without options."""
    listed: list[str] = getattr(ENGINES.load(name), "options", list)()
    return listed


def _option(base: str, asked: str, known: list[str]) -> str:
    same = [one for one in known if one.casefold() == asked.casefold()]
    alike = same or [
        one for one in known if asked and one.casefold().startswith(asked.casefold())
    ]
    if len(alike) == 1:
        return alike[0]
    have = f"this machine has {', '.join(known)}" if known else "it takes none"
    raise InputError(f"the engine {base!r} has no option {asked!r}; {have}")
