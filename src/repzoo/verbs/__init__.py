"""The verbs: what the command line and `import repzoo` offer. They hold no algorithms."""

from repzoo.verbs.benchmark_models import BenchOptions, benchmark
from repzoo.verbs.convert_checkpoint import ConvertedCheckpoint, convert
from repzoo.verbs.embed_camera_input import EmbeddedInput, embed_input
from repzoo.verbs.evaluate_models import EvaluateOptions, Evaluation, evaluate
from repzoo.verbs.export_model import ExportOptions, export
from repzoo.verbs.fold_model import fold
from repzoo.verbs.load_model import load
from repzoo.verbs.measure_preprocessing import Mismatches, measure_mismatch
from repzoo.verbs.predict_images import predict
from repzoo.verbs.prediction import ClassProbability, Prediction
from repzoo.verbs.public_artifact import Artifact
from repzoo.verbs.quantize_model import QuantizeOptions, quantize
from repzoo.verbs.train_model import RecipeChanges, train

__all__ = [
    "Artifact",
    "BenchOptions",
    "ClassProbability",
    "ConvertedCheckpoint",
    "EmbeddedInput",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "Mismatches",
    "Prediction",
    "QuantizeOptions",
    "RecipeChanges",
    "benchmark",
    "convert",
    "embed_input",
    "evaluate",
    "export",
    "fold",
    "load",
    "measure_mismatch",
    "predict",
    "quantize",
    "train",
]
