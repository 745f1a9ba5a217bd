"""repzoo: from a light classifier's training form to a proven INT8 model.

The verbs of `repzoo.verbs` are here by name, imported on first use: `repzoo.load`, `repzoo.fold`, `repzoo.quantize`, ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from repzoo.privacy import silence_onnxruntime

__version__ = "0.1.0"
silence_onnxruntime()

if TYPE_CHECKING:
    from repzoo.data.source import open_source
    from repzoo.verbs import benchmark, evaluate, export, fold, load, predict, quantize

__all__ = ["benchmark", "evaluate", "export", "fold", "load", "open_source", "predict", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'repzoo' has no attribute {name!r}")
    return getattr(
        importlib.import_module("repzoo.data.source" if name == "open_source" else "repzoo.verbs"),
        name,
    )
