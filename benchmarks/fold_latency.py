"""Latency of repzoo's fold over that of timm's own reparameterization, engine by engine.

    python -m benchmarks.fold_latency [MODEL ...] [--engine onnxruntime,openvino,mnn]
        [--seconds 4] [--results results/fold_latency.jsonl] [--work FOLDER] [--build]

MODEL is a name of the catalog, or of any model of timm (default: four of the catalog). Both files
come from one module with random weights: timm's by `reparameterize_model` and torch's exporter,
which fuses BatchNorms; repzoo's by its own export of the training form and its fold. They run with
one thread and batch 1 in the same interleaved rounds. A ratio below 1 means that repzoo's is
faster. Each line is also appended to the results.

--work keeps the files in a folder and uses those that are there. With --build they are only made,
so that a quiet machine is needed for the timing alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.models import build, by_repzoo, by_timm
from repzoo import verbs
from repzoo.measure import record
from repzoo.measure.results import LatencyRatio
from repzoo.verbs.public_artifact import Artifact as PublicArtifact

MODELS = ("repvgg_a0", "repghostnet_100", "repvit_m0_9", "fasternet_t0")
ENGINES = "onnxruntime,openvino,mnn"


def pair(name: str, folder: Path) -> list[PublicArtifact]:
    """Both files of a model, from `folder` where they are there already."""
    paths = [folder / f"{name}.timm.onnx", folder / f"{name}.repzoo.onnx"]
    if not all(path.is_file() for path in paths):
        module, preprocess = build(name)
        folder.mkdir(parents=True, exist_ok=True)
        PublicArtifact.wrap(by_timm(name, module, preprocess)).save(paths[0])
        ours = by_repzoo(name, module, preprocess)
        replace(ours, name=f"{name} by repzoo").save(paths[1])
    # A loaded file is called after its path; the table looks for these names.
    names = (f"{name} by timm", f"{name} by repzoo")
    loaded = zip(paths, names, strict=True)
    return [replace(verbs.load(path), name=new) for path, new in loaded]


def compare(
    files: list[PublicArtifact], engines: tuple[str, ...], seconds: float, path: Path
) -> None:
    """Time both files of one model on all engines; print and store the ratios."""
    name = files[0].name.removesuffix(" by timm")
    for engine in engines:
        result = verbs.benchmark(files, engine=engine, seconds=seconds)
        # Of the rounds only the ratio is kept, to keep the file small.
        record.append(path, result.ratios)
        times = [item.values.p50_ms for item in result.records]
        for item in result.ratios:
            print(_line(name, engine, item.values, times), flush=True)
        for left_out in result.left_out:
            print(f"{name:28} {engine:12} left out: {left_out.reason}", flush=True)


def _line(name: str, engine: str, values: LatencyRatio, times: list[float]) -> str:
    shown = " -> ".join(f"{value:.2f}" for value in times)
    interval = f"({values.ratio_low:.3f} to {values.ratio_high:.3f})"
    return f"{name:28} {engine:12} {shown:>16} ms  {values.ratio:.3f} {interval}"


def main() -> None:
    """Read the arguments; compare one model after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--engine", default=ENGINES)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--results", type=Path, default=Path("results/fold_latency.jsonl")
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            files = pair(name, options.work or Path(temporary))
            if not options.build:
                engines = tuple(options.engine.split(","))
                compare(files, engines, options.seconds, options.results)


if __name__ == "__main__":
    main()
