"""repzoo: fold, quantize and measure light CNN classifiers, with proof.

    import repzoo

    model = repzoo.load("my.onnx", size=224)
    folded = repzoo.fold(model)
    int8 = repzoo.quantize(folded, "photos/", max_drop=0.5)
    int8.save("int8.onnx")

Every name of `__all__` is imported on first use: `import repzoo` is fast and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from repzoo.privacy import silence_onnxruntime

__version__ = "0.1.0"
# Before anything below imports ONNX Runtime, which starts to report as it is imported.
silence_onnxruntime()

# For type checkers and editors, which do not see what `__getattr__` imports.
if TYPE_CHECKING:
    from repzoo import torch
    from repzoo.artifact import Preprocess, Step
    from repzoo.data.dataset import Dataset, DataSource
    from repzoo.data.source import open_source
    from repzoo.errors import (
        CertificateError,
        GateError,
        InputError,
        MissingExtra,
        RepzooError,
    )
    from repzoo.training.options import TrainOptions
    from repzoo.verbs import (
        Artifact,
        BenchOptions,
        Chart,
        ClassProbability,
        Compilation,
        ConvertedCheckpoint,
        Demo,
        EmbeddedInput,
        EvaluateOptions,
        Evaluation,
        ExportOptions,
        HardenOptions,
        ImportedLogs,
        ImportOptions,
        Match,
        MatchOptions,
        Mismatches,
        Pack,
        PackOptions,
        Page,
        Prediction,
        Pushed,
        QuantizeOptions,
        RecipeChanges,
        benchmark,
        chart,
        check_pack,
        compile_pack,
        convert,
        demo,
        embed_input,
        evaluate,
        export,
        fold,
        harden,
        import_logs,
        load,
        match,
        measure_mismatch,
        pack,
        page,
        predict,
        push,
        quantize,
        toolchains,
        train,
    )
    from repzoo.zoo.naming import CheckpointOptions

__all__ = [
    "Artifact",
    "BenchOptions",
    "CertificateError",
    "Chart",
    "CheckpointOptions",
    "ClassProbability",
    "Compilation",
    "ConvertedCheckpoint",
    "DataSource",
    "Dataset",
    "Demo",
    "EmbeddedInput",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "GateError",
    "HardenOptions",
    "ImportOptions",
    "ImportedLogs",
    "InputError",
    "Match",
    "MatchOptions",
    "Mismatches",
    "MissingExtra",
    "Pack",
    "PackOptions",
    "Page",
    "Prediction",
    "Preprocess",
    "Pushed",
    "QuantizeOptions",
    "RecipeChanges",
    "RepzooError",
    "Step",
    "TrainOptions",
    "__version__",
    "benchmark",
    "chart",
    "check_pack",
    "compile_pack",
    "convert",
    "demo",
    "embed_input",
    "evaluate",
    "export",
    "fold",
    "harden",
    "import_logs",
    "load",
    "match",
    "measure_mismatch",
    "open_source",
    "pack",
    "page",
    "predict",
    "push",
    "quantize",
    "toolchains",
    "torch",
    "train",
]
# The modules of the names that are not in repzoo.verbs.
_MODULES = {
    "CertificateError": "repzoo.errors",
    "CheckpointOptions": "repzoo.zoo.naming",
    "DataSource": "repzoo.data.dataset",
    "Dataset": "repzoo.data.dataset",
    "GateError": "repzoo.errors",
    "InputError": "repzoo.errors",
    "MissingExtra": "repzoo.errors",
    "Preprocess": "repzoo.artifact",
    "RepzooError": "repzoo.errors",
    "Step": "repzoo.artifact",
    "TrainOptions": "repzoo.training.options",
    "open_source": "repzoo.data.source",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        # With `name` and `obj` Python offers the nearest name: "Did you mean: 'quantize'?"
        raise AttributeError(
            f"module 'repzoo' has no attribute {name!r}",
            name=name,
            obj=sys.modules[__name__],
        )
    if name == "torch":
        return importlib.import_module("repzoo.torch")
    return getattr(importlib.import_module(_MODULES.get(name, "repzoo.verbs")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
