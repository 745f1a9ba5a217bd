"""Runs the float model over images: the one calibration pass, and smaller passes for diagnosis.

All statistics that any placement or stage may need are collected in one pass. A stage that only
rescales channels carries them along (rewrites/stages.py), so no stage needs a pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import engines
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches, map_in_order
from repzoo.data.dataset import Dataset
from repzoo.engines import DEFAULT_ENGINE, Engine, Session
from repzoo.engines.batches import run_padded
from repzoo.graph.tools.skeleton import initializer_bytes
from repzoo.measure.expected_drop import Margins
from repzoo.measure.host import host
from repzoo.onnx_file import fixed_batch
from repzoo.progress import Progress
from repzoo.quant.calibration.calibrate import (
    MAX_BATCH,
    PROBED_BYTES,
    WHOLE_BYTES,
    CalibrationStream,
    batch_size,
    collect_statistics,
    run_observers,
)
from repzoo.quant.calibration.observers import Observer
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.layers import Layer
from repzoo.quant.network.placement import Placement

Inputs = npt.NDArray[np.float32]  # prepared images [n, 3, H, W]


@dataclass(frozen=True)
class Calibration:
    """The result of the calibration pass.

    statistics  of every activation and layer that a placement may quantize
    images      those that could be read
    remarks     sentences on those that could not
    """

    statistics: Statistics
    images: Dataset
    remarks: list[str]


def observed_by(
    model: onnx.ModelProto, placements: Sequence[Placement]
) -> tuple[list[str], list[Layer]]:
    """(tensors, layers) whose statistics any of `placements` of `model` needs."""
    tensors: dict[str, None] = {}  # a set that keeps its order
    nodes: set[str] = set()
    for placement in placements:
        tensors |= dict.fromkeys(placement.tensors)
        nodes |= placement.nodes
    observed_layers = []
    for name, layer in layers.find_layers(model).items():
        if name in nodes:
            observed_layers.append(layer)
            tensors[layer.source] = None
    return list(tensors), observed_layers


@dataclass
class ImageReader:
    """Prepares the images of one pass, and keeps track of which could be read."""

    artifact: Artifact
    images: Dataset
    report: ReadReport = field(default_factory=ReadReport)
    indices: list[int] = field(default_factory=list)

    def read(self, size: int) -> Iterator[Inputs]:
        """Batches of at most `size` prepared images."""
        preprocess = self.artifact.require_preprocess()
        for batch in batches(self.images, preprocess, size, self.report):
            self.indices.extend(batch.indices)
            yield batch.inputs


class Calibrator:
    """Collects activation statistics of float graphs of `artifact`.

    ONNX Runtime computes them, the default engine: it returns the activations of a whole network
    fastest, and runs the parts of large models, whose inputs have no shapes. Others need these.
    """

    def __init__(self, artifact: Artifact, engine: Engine, progress: Progress) -> None:
        """`engine` is what the model is quantized for, on which `run` runs forms of it."""
        self.artifact = artifact
        self.engine = engine
        self._observing = engine
        if engine.name.partition(":")[0] != DEFAULT_ENGINE:
            self._observing = engines.engine(DEFAULT_ENGINE)
        self.progress = progress
        self.threads = int(host()["affinity"])

    def calibrate(
        self, model: onnx.ModelProto, images: Dataset, placements: Sequence[Placement]
    ) -> Calibration:
        """Statistics of `model` on `images` for all that any of `placements` quantizes.

        Raises:
            InputError: no image can be read, or activations are not finite.
        """
        tensors, observed_layers = observed_by(model, placements)
        reader = ImageReader(self.artifact, images)
        statistics = self.observe(model, tensors, observed_layers, reader, PROBED_BYTES)
        reader.report.check(images.name, len(images))
        return Calibration(
            statistics, images.subset(reader.indices), reader.report.sentences()
        )

    def observe_again(
        self,
        model: onnx.ModelProto,
        tensors: Sequence[str],
        observed_layers: Sequence[Layer],
        images: Dataset,
    ) -> Statistics:
        """Statistics of `tensors` and of the inputs of `observed_layers`, on other images."""
        # The statistics of the calibration pass are still in memory.
        room = PROBED_BYTES // 4
        return self.observe(
            model, tensors, observed_layers, ImageReader(self.artifact, images), room
        )

    def observe(
        self,
        model: onnx.ModelProto,
        tensors: Sequence[str],
        observed_layers: Sequence[Layer],
        reader: ImageReader,
        room: int,
    ) -> Statistics:
        """As `observe_again`; a batch's observed activations take at most about `room` bytes."""
        # The weights are in memory too: in the model and again in the session.
        if initializer_bytes(model) > WHOLE_BYTES:
            room //= 2
        observed = [*tensors, *(layer.source for layer in observed_layers)]
        inputs = reader.read(batch_size(model, observed, room))
        stream = CalibrationStream(inputs, len(reader.images), self.progress)
        return collect_statistics(
            model,
            list(tensors),
            list(observed_layers),
            stream,
            self._observing,
            self.threads,
        )

    def run_observers(
        self, model: onnx.ModelProto, observers: Sequence[Observer], reader: ImageReader
    ) -> Margins:
        """Show the images of `reader` to `observers` of tensors of `model`; the logits' margins."""
        observed = [observer.source for observer in observers]
        inputs = reader.read(batch_size(model, observed, PROBED_BYTES))
        stream = CalibrationStream(inputs, len(reader.images), self.progress)
        return run_observers(model, observers, stream, self._observing, self.threads)

    def prepare(self, phase: str, images: Dataset, size: int) -> Iterator[Inputs]:
        """The prepared `images`, `size` at a time; progress is shown under the name `phase`."""
        done = 0
        self.progress(phase, done, len(images))
        for inputs in ImageReader(self.artifact, images).read(size):
            yield inputs
            done += len(inputs)
            self.progress(phase, done, len(images))

    def prepare_sample(
        self,
        phase: str,
        images: Dataset,
        model: onnx.ModelProto,
        tensors: Iterable[str],
        limit: int = MAX_BATCH,
    ) -> list[Inputs]:
        """A few prepared `images` for `run`, which may run many forms of the float `model`.

        tensors  its activations that are quantized
        limit    images in a batch, at most
        """
        size = fixed_batch(model)
        if not size:
            # As many batches as threads: a thread without one would wait.
            share = math.ceil(len(images) / self.threads)
            size = min(batch_size(model, tensors), limit, share)
        return list(self.prepare(phase, images, size))

    def run(self, model: onnx.ModelProto, batches: Sequence[Inputs]) -> Inputs:
        """The logits [n, classes] of `model` on all `batches`."""
        (outputs,) = self.run_each([model], batches)
        return outputs

    def run_each(
        self, models: Iterable[onnx.ModelProto], batches: Sequence[Inputs]
    ) -> Iterator[Inputs]:
        """The logits [n, classes] of each of `models` on all `batches`."""

        def opened(model: onnx.ModelProto) -> tuple[Session, int]:
            # A batch for each thread: threads that share one wait for one another in every node.
            session = self.engine.open(model, 1, streams=self.threads)
            return session, fixed_batch(model)

        # Compiling takes one core: the next model is compiled while this one runs.
        for session, batch in map_in_order(opened, models, 1):
            run = partial(_logits, session, batch)
            yield np.concatenate(list(map_in_order(run, batches, self.threads)))


def _logits(session: Session, batch: int, inputs: Inputs) -> Inputs:
    return run_padded(session, inputs, batch)[0]
