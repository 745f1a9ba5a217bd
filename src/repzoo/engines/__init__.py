"""Engines: what runs an artifact. One file each, found by name through ENGINES.

An engine is an object with `name`, `version()` and `open(model, threads)`; its Session has `run(inputs)`. All that repzoo
knows of a runtime is in that runtime's own file; tests/engines runs one contract suite against every one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.plugins import Plugin, PluginTable

Array = npt.NDArray[np.float32]


class Session(Protocol):
    """A compiled model. `run` may be called from several threads at once."""

    def run(self, inputs: Array) -> Array:
        """float32 [N, 3, H, W] to float32 [N, classes]."""

    def run_all(self, inputs: Array) -> list[Array]:
        """Every output of the model, in its order; for models that calibration has given more outputs."""


class Engine(Protocol):
    """A runtime."""

    name: str

    def version(self) -> str:
        """The runtime's own version."""

    def open(self, model: onnx.ModelProto, threads: int = 1, exact: bool = False) -> Session:
        """Compile `model` for `threads` threads; `exact` turns every graph optimisation off.

        Raises:
            InputError: the runtime cannot run the model; says why.
        """


ENGINES = PluginTable(
    "engine",
    "repzoo.engines",
    {
        "onnxruntime": Plugin("repzoo.engines.onnxruntime:OnnxRuntime"),
        "reference": Plugin("repzoo.engines.reference:Reference"),
    },
)


def engine(name: str) -> Engine:
    """The engine called `name`, ready to open models."""
    loaded: Engine = ENGINES.load(name)()
    return loaded
