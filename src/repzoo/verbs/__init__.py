"""The verbs: what the command line and `import repzoo` offer. Each wires the layers below; none holds an algorithm."""

from repzoo.verbs.evaluating import EvaluateOptions, Evaluation, evaluate
from repzoo.verbs.inputs import EmbeddedInput, Mismatches, embed_input, measure_mismatch
from repzoo.verbs.loading import embedded_for, load
from repzoo.verbs.making import (
    ExportOptions,
    QuantizeOptions,
    convert,
    export,
    fold,
    quantize,
    trainer,
)
from repzoo.verbs.measuring import BenchOptions, Prediction, benchmark, first_images, predict

__all__ = [
    "BenchOptions",
    "EmbeddedInput",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "Mismatches",
    "Prediction",
    "QuantizeOptions",
    "benchmark",
    "convert",
    "embed_input",
    "embedded_for",
    "evaluate",
    "export",
    "first_images",
    "fold",
    "load",
    "measure_mismatch",
    "predict",
    "quantize",
    "trainer",
]
