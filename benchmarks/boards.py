"""The models of D-Robotics' public tables, compiled for the RDK X5.

    python -m benchmarks.boards [MODEL ...] [--minutes 30] [--results results/boards.jsonl]
        [--work FOLDER]
    python -m benchmarks.boards --table

Each model is exported at 224 pixels, folded, packed for `rdk-x5` and compiled by `repzoo pack
--compile`'s own code. Its Records hold what the compiler estimates and the model's costs. Models
whose Records are there are not compiled again.

The weights and the statistics of BatchNorm are random. Where a node runs, and how long the
compiler expects it to take, follows from shapes and operators alone. So there is no accuracy here,
one calibration image is enough, and the YAML asks for `calibration_type: max`, which searches
nothing.

Variants beside the folded models:

    training form  with its branches and BatchNorms, as the vendor's script exports RepGhost
    int16          the two nodes of a GELU that the vendor's YAML keeps in int16
    folded, O3     compiled at `optimize_level: O3`, as the vendor does. All others are at O2

The published figures are those of the catalog; report/compiled_boards.py writes the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.source import open_source
from repzoo.errors import InputError
from repzoo.graph.tools.cost import count
from repzoo.measure import record
from repzoo.measure.board import BoardLatency, BoardSimilarity
from repzoo.measure.record import Record, identity_of
from repzoo.packs.pack import PackJob, open_target, write_pack
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search.harden import as_target_takes_it
from repzoo.report import compiled_boards
from repzoo.report.compiled_boards import FOLDED, INT16, O3, TRAINING
from repzoo.storage import make_folder

TARGET = "rdk-x5"
SIZE = 224
SEED = 0
NICENESS = 19  # the compiler takes minutes of all cores
# FasterNet_T0_config.yaml of D-Robotics' model zoo.
GELU = (
    "/stages/stages.0/blocks/blocks.0/mlp/mlp.3/Conv",
    "/stages/stages.0/blocks/blocks.0/mlp/mlp.2/Mul_1",
)


@dataclass(frozen=True)
class Case:
    """One row: a model of the catalog in one variant."""

    model: str
    variant: str = FOLDED

    @property
    def name(self) -> str:
        """Of files and log lines."""
        return f"{self.model}-{self.variant}".replace(", ", "-").replace(" ", "-")

    @property
    def level(self) -> str:
        """Of the compiler's optimization, as its configuration has it."""
        return "O3" if self.variant == O3 else "O2"


# Compiled beside the folded model.
VARIANTS = {"repghostnet_100": TRAINING, "fasternet_t0": INT16}
# Whether the vendor's level changes an estimate: one model of each family.
AT_VENDORS_LEVEL = ("repghostnet_100", "fasternet_t0", "repvgg_a0", "repvit_m0_9")


def all_cases() -> list[Case]:
    """Every row, the fastest models first: an interrupted run then has some of each family."""
    cases: list[Case] = []
    for model in compiled_boards.published_models():
        cases.append(Case(model))
        if model in VARIANTS:
            cases.append(Case(model, VARIANTS[model]))
    for model in AT_VENDORS_LEVEL:
        cases.append(Case(model, O3))
    return cases


def with_random_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with random scales, biases, means and variances in each BatchNorm.

    A new network has 0 and 1 there, which a tool could leave out as doing nothing.
    """
    result = clone(model)
    tensors = {item.name: item for item in result.graph.initializer}
    random = np.random.default_rng(SEED)
    for node in result.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        scale, bias, mean, variance = (tensors[name] for name in node.input[1:5])
        for tensor, low, high in (
            (scale, 0.8, 1.2),
            (bias, -0.2, 0.2),
            (mean, -0.2, 0.2),
            (variance, 0.8, 1.2),
        ):
            values = random.uniform(low, high, list(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


def prepare(case: Case) -> Artifact:
    """The model of `case` as the target takes it."""
    artifact: Artifact = verbs.export(
        case.model, size=SIZE, seed=SEED, dynamic_batch=False
    )
    artifact = replace(artifact, model=with_random_statistics(artifact.model))
    if case.variant != TRAINING:
        artifact = verbs.fold(verbs.Artifact.wrap(artifact))
    model = as_target_takes_it(artifact.model, load_scheme(TARGET))
    return replace(artifact, model=model)


def write_case(case: Case, folder: Path) -> Artifact:
    """Write the pack of `case` into `folder`; the model in it."""
    artifact = prepare(case)
    digits = open_source("digits").join("train")
    fallback = GELU if case.variant == INT16 else ()
    job = PackJob(artifact, digits.subset([0]), fallback=fallback)
    write_pack(open_target(TARGET), job, folder)
    path = folder / f"{case.model}.yaml"
    text = path.read_text("utf-8")
    for old, new in (
        ("calibration_type: 'default'", "calibration_type: 'max'"),
        ("optimize_level: 'O3'", f"optimize_level: '{case.level}'"),
    ):
        if old not in text:
            raise InputError(f"{path} has no {old}, which this program replaces")
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    return artifact


def compile_case(case: Case, options: argparse.Namespace) -> list[Record[Any]]:
    """The Records of one case."""
    folder = make_folder(options.work) / case.name
    shutil.rmtree(folder, ignore_errors=True)
    artifact = write_case(case, folder)
    started = time.perf_counter()
    compilation = verbs.compile_pack(folder, minutes=options.minutes)
    seconds = time.perf_counter() - started
    cpu: list[str] = []
    estimates: list[Record[Any]] = []
    for row in compilation.records:
        if isinstance(row.values, BoardLatency):
            estimates.append(row)
        # Its cosines say nothing of random weights.
        if isinstance(row.values, BoardSimilarity):
            cpu = [node.op for node in row.values.nodes if node.device == "CPU"]
    if not estimates:
        raise InputError(f"{folder}: the compiler printed no estimate")
    data = {"weights": "random", "seed": SEED, "optimize_level": case.level}
    identity = {**identity_of(artifact), "variant": case.variant}
    samples = {"cpu_operators": sorted(cpu), "compile_seconds": round(seconds)}
    rows: list[Record[Any]] = []
    for row in estimates:
        rows.append(
            replace(
                row,
                artifact={**row.artifact, "variant": case.variant},
                data={**row.data, **data},
                samples=samples,
            )
        )
    cost = Record(identity, count(artifact), data=data)
    return [*rows, cost]


def append_case(case: Case, options: argparse.Namespace) -> None:
    """Append the Records of `case`, and print a line."""
    try:
        rows = compile_case(case, options)
    except InputError as error:
        print(f"{case.name}: {error}", flush=True)
        return
    record.append(options.results, rows)
    values, samples = rows[0].values, rows[0].samples
    print(
        f"{case.name}: {values.latency_ms} ms, {values.fps} FPS, "
        f"{values.accelerator_nodes} nodes on BPU, {values.cpu_nodes} on CPU "
        f"{samples['cpu_operators']} ({samples['compile_seconds']} s)",
        flush=True,
    )
    # Hundreds of megabytes.
    shutil.rmtree(options.work / case.name)


def chosen_cases(names: list[str]) -> list[Case]:
    """The cases of the models called `names`; all without any."""
    cases = all_cases()
    unknown = set(names) - {case.model for case in cases}
    if unknown:
        raise SystemExit(
            f"D-Robotics published no figures of {min(unknown)}; choose among "
            f"{', '.join(compiled_boards.published_models())}"
        )
    return [case for case in cases if not names or case.model in names]


def main() -> None:
    """Compile the models whose Records are missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=30.0, help="for each model")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--work", type=Path, default=Path("runs/boards"))
    parser.add_argument("--results", type=Path, default=Path("results/boards.jsonl"))
    options = parser.parse_args()
    if not options.table:
        os.nice(NICENESS)
        for case in chosen_cases(options.models):
            if (case.model, case.variant) not in compiled_boards.rows_of(
                known(options.results)
            ):
                append_case(case, options)
    print("\n".join(compiled_boards.table(known(options.results))))


def known(path: Path) -> list[Record[Any]]:
    """The Records in `path`; none where it is not there yet."""
    return record.read(path) if path.exists() else []


if __name__ == "__main__":
    main()
