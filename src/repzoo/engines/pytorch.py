"""The PyTorch engine: `pytorch` runs eagerly, `pytorch:compile` through torch.compile.

The graph becomes a torch.fx module first (torch/from_onnx.py). INT8 models are computed as fake
quantization, so accuracy is right, and the latency says nothing about INT8.

torch.compile needs a C++ compiler, compiles at the first input of a shape (many seconds), and keeps
what it compiled in its own cache (TORCHINDUCTOR_CACHE_DIR, by default in the system's temporary
folder). exact=True runs eagerly.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
import torch

from repzoo.engines import Array, Feeds
from repzoo.engines.signature import Signature, require_one_input, signature_of
from repzoo.errors import InputError, first_line
from repzoo.torch.from_onnx import build_module


class PyTorch:
    """The `pytorch` engine; its one option is "compile"."""

    simulates_int8 = True

    def __init__(self, option: str = "") -> None:
        """`option` as in an engine name: "pytorch:compile"."""
        self.name = f"pytorch:{option}" if option else "pytorch"
        self._compiles = option == "compile"

    @staticmethod
    def options() -> list[str]:
        """`compile`: through torch.compile."""
        return ["compile"]

    def version(self) -> str:
        """The version of the wheel."""
        return str(torch.__version__)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> PyTorchSession:
        """See `engines.Engine.open`."""
        require_one_input(model, self.name)
        signature = signature_of(model)
        module: Any
        module, _ = build_module(model)
        if self._compiles and not exact:
            options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
            module = torch.compile(module, dynamic=False, options=options)
        return PyTorchSession(module, signature, threads, self.name)


class PyTorchSession:
    """A module in inference mode.

    torch.compile works at the first call for a shape, and no other call may overlap that one.
    """

    def __init__(
        self, module: Any, signature: Signature, threads: int, name: str
    ) -> None:
        """`module` takes one tensor and returns a list of tensors."""
        self._module = module
        self._signature = signature
        self._threads = threads
        self._name = name
        self._lock = threading.Lock()
        self._seen_shapes: set[tuple[int, ...]] = set()

    def run(self, inputs: Array | Feeds) -> Array:
        """See `engines.Session.run`."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Array | Feeds) -> list[Array]:
        """See `engines.Session.run_all`."""
        inputs = self._signature.accept(inputs, self._name)
        try:
            if inputs.shape in self._seen_shapes:
                return self._run(inputs)
            with self._lock:
                outputs = self._run(inputs)
            self._seen_shapes.add(inputs.shape)
            return outputs
        # RuntimeError, IndexError, and whatever torch.compile raises.
        except Exception as error:
            raise InputError(
                f"{self._name} cannot run this model on {list(inputs.shape)}: {first_line(error)}"
            ) from None

    def _run(self, inputs: Array) -> list[Array]:
        # torch keeps the number of threads for each calling thread, so it is set and restored here.
        before = torch.get_num_threads()
        if before != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                outputs = self._module(torch.from_numpy(np.ascontiguousarray(inputs)))
        finally:
            if before != self._threads:
                torch.set_num_threads(before)
        return [output.to(torch.float32).numpy() for output in outputs]
