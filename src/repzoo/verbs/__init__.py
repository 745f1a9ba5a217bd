"""The verbs: what the command line and `import repzoo` offer. They hold no algorithms.

Each name is imported on first use, since a verb need not wait for what another imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# For type checkers and editors, which do not see what `__getattr__` imports.
if TYPE_CHECKING:
    from repzoo.measure.matching import Match
    from repzoo.report.charts import Chart
    from repzoo.verbs.benchmark_models import BenchOptions, benchmark
    from repzoo.verbs.convert_checkpoint import ConvertedCheckpoint, convert
    from repzoo.verbs.draw_chart import chart
    from repzoo.verbs.embed_camera_input import EmbeddedInput, embed_input
    from repzoo.verbs.evaluate_models import EvaluateOptions, Evaluation, evaluate
    from repzoo.verbs.export_model import ExportOptions, export
    from repzoo.verbs.fold_model import fold
    from repzoo.verbs.harden_model import HardenOptions, harden
    from repzoo.verbs.import_board_logs import (
        ImportedLogs,
        ImportOptions,
        import_logs,
    )
    from repzoo.verbs.lint_files import check_pack
    from repzoo.verbs.load_model import load
    from repzoo.verbs.match_models import MatchOptions, match
    from repzoo.verbs.measure_preprocessing import Mismatches, measure_mismatch
    from repzoo.verbs.pack_compilation import Compilation, compile_pack
    from repzoo.verbs.pack_model import Pack, PackOptions, pack
    from repzoo.verbs.predict_images import predict
    from repzoo.verbs.prediction import ClassProbability, Prediction
    from repzoo.verbs.public_artifact import Artifact
    from repzoo.verbs.push_model import Pushed, push
    from repzoo.verbs.quantize_model import QuantizeOptions, quantize
    from repzoo.verbs.render_demo import Demo, demo
    from repzoo.verbs.render_page import Page, page
    from repzoo.verbs.train_model import RecipeChanges, train
    from repzoo.verbs.vendor_toolchains import toolchains

__all__ = [
    "Artifact",
    "BenchOptions",
    "Chart",
    "ClassProbability",
    "Compilation",
    "ConvertedCheckpoint",
    "Demo",
    "EmbeddedInput",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "HardenOptions",
    "ImportOptions",
    "ImportedLogs",
    "Match",
    "MatchOptions",
    "Mismatches",
    "Pack",
    "PackOptions",
    "Page",
    "Prediction",
    "Pushed",
    "QuantizeOptions",
    "RecipeChanges",
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
    "pack",
    "page",
    "predict",
    "push",
    "quantize",
    "toolchains",
    "train",
]

# The module of each name.
_MODULES = {
    "Artifact": "public_artifact",
    "BenchOptions": "benchmark_models",
    "Chart": "draw_chart",
    "ClassProbability": "prediction",
    "Compilation": "pack_compilation",
    "ConvertedCheckpoint": "convert_checkpoint",
    "Demo": "render_demo",
    "EmbeddedInput": "embed_camera_input",
    "EvaluateOptions": "evaluate_models",
    "Evaluation": "evaluate_models",
    "ExportOptions": "export_model",
    "HardenOptions": "harden_model",
    "ImportOptions": "import_board_logs",
    "ImportedLogs": "import_board_logs",
    "Match": "match_models",
    "MatchOptions": "match_models",
    "Mismatches": "measure_preprocessing",
    "Pack": "pack_model",
    "PackOptions": "pack_model",
    "Page": "render_page",
    "Prediction": "prediction",
    "Pushed": "push_model",
    "QuantizeOptions": "quantize_model",
    "RecipeChanges": "train_model",
    "benchmark": "benchmark_models",
    "chart": "draw_chart",
    "check_pack": "lint_files",
    "compile_pack": "pack_compilation",
    "convert": "convert_checkpoint",
    "demo": "render_demo",
    "embed_input": "embed_camera_input",
    "evaluate": "evaluate_models",
    "export": "export_model",
    "fold": "fold_model",
    "harden": "harden_model",
    "import_logs": "import_board_logs",
    "load": "load_model",
    "match": "match_models",
    "measure_mismatch": "measure_preprocessing",
    "pack": "pack_model",
    "page": "render_page",
    "predict": "predict_images",
    "push": "push_model",
    "quantize": "quantize_model",
    "toolchains": "vendor_toolchains",
    "train": "train_model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'repzoo.verbs' has no attribute {name!r}")
    module = importlib.import_module(f"repzoo.verbs.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
