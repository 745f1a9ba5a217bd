"""Verbs that measure a model: evaluate, benchmark, predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.data.folder import load_image
from repzoo.data.preprocess import prepare
from repzoo.engines import DEFAULT_ENGINE, engine
from repzoo.errors import InputError
from repzoo.measure import accuracy, sweep
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.measure.results import Scenario
from repzoo.progress import Progress, silent

if (
    TYPE_CHECKING
):  # onnx-ir takes a quarter of a second to import: only the verbs that rewrite graphs pay for it
    pass

CERTIFIED_IMAGES = 16


@dataclass(frozen=True)
class BenchOptions:
    """Settings of `benchmark`: every combination is timed for `seconds` a case.

    scenario  closed-loop, or MLPerf's single-stream, multi-stream, offline (see measure.latency)
    threads   of a session; streams: client threads that call it; batch: images a call, empty: what the scenario is used with
    """

    engine: tuple[str, ...] = (DEFAULT_ENGINE,)
    scenario: tuple[Scenario, ...] = ("closed-loop",)
    threads: tuple[int, ...] = (1,)
    streams: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = ()
    seconds: float = 2.0


def benchmark(
    artifacts: Sequence[Artifact],
    options: BenchOptions | None = None,
    progress: Progress = silent,
    keep: Callable[[Sequence[Record[Any]]], None] = lambda _: None,
) -> sweep.SweepResult:
    """Every file on every engine, interleaved, one setting after the other; ratios against the first case of each setting.

    keep  is given the Records of each setting as it ends

    Raises:
        InputError: nothing could be measured (what fails beside others is left out, with the reason), or an unknown engine.
    """
    options = options or BenchOptions()
    settings = sweep.settings(options.scenario, options.threads, options.streams, options.batch)
    return sweep.run(artifacts, options.engine, settings, options.seconds, progress, keep)


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image: (class name, probability 0..1), best first."""

    image: str
    best: tuple[tuple[str, float], ...]


def predict(
    artifact: Artifact, images: Sequence[Path], top: int = 5, engine_name: str = DEFAULT_ENGINE
) -> list[Prediction]:
    """Softmax probabilities of the `top` classes of each image file.

    Raises:
        InputError: a missing or broken image, or a model without preprocessing.
    """
    preprocess = artifact.require_preprocess()
    session = engine(engine_name).open(artifact.model, host()["affinity"])
    found = []
    for path in images:
        if not path.is_file():
            raise InputError(f"the image {path} does not exist; check the path")
        logits = session.run(prepare(load_image(path), preprocess)[None])[0]
        shares = _softmax(logits)
        order = accuracy.best_classes(logits[None], top)[0]
        found.append(
            Prediction(
                str(path),
                tuple((_label(artifact, int(index)), float(shares[index])) for index in order),
            )
        )
    return found


def first_images(
    data: Dataset, preprocess: Preprocess, count: int = CERTIFIED_IMAGES
) -> npt.NDArray[Any]:
    """Up to `count` prepared images of `data`, [n, ...] of its input type, for a certificate."""
    some = data.subset(range(min(count, len(data))))
    read = [batch.inputs for batch in batches(some, preprocess, count, ReadReport())]
    return np.concatenate(read) if read else np.empty((0, *preprocess.input_shape), np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(shifted / shifted.sum())


def _label(artifact: Artifact, index: int) -> str:
    return artifact.labels[index] if index < len(artifact.labels) else str(index)
