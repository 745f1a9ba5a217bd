"""One calibration pass for the schemes of several engines.

Statistics are the float model's, whatever will run the INT8 model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.progress import Progress, silent
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.rewrites.hard_swish import with_gates
from repzoo.quant.search.calibrator import Calibration, Calibrator, observed_by
from repzoo.quant.search.evaluator import free_memory
from repzoo.quant.search.gate import require_folded


@dataclass(frozen=True)
class SharedCalibration:
    """One calibration pass for the schemes of several engines.

    model    the float graph, as `prepare_for_qdq` returns it
    seconds  that the pass took
    """

    model: onnx.ModelProto
    calibration: Calibration
    seconds: float

    def for_placements(
        self, model: onnx.ModelProto, starts: Sequence[Placement]
    ) -> Calibration:
        """What one scheme needs, whose starting placements are `starts`, of its form of the model.

        Nothing else: equalization weighs every tensor that has a histogram.
        """
        tensors, layers = observed_by(model, starts)
        statistics = self.calibration.statistics.restricted(tensors, layers)
        return replace(self.calibration, statistics=statistics)


def share_calibration(
    artifact: Artifact,
    images: Dataset,
    schemes: Sequence[QuantScheme],
    engine: Engine,
    progress: Progress = silent,
) -> SharedCalibration:
    """The statistics of the float `artifact` for all that any of `schemes` quantizes.

    Raises:
        InputError: see `Calibrator.calibrate`; or the model has no layer to quantize.
    """
    require_folded(artifact)
    started = time.perf_counter()
    model = qdq_writer.prepare_for_qdq(artifact.model)
    observed = model
    starts: list[Placement] = []
    for scheme in schemes:
        form = form_for(model, scheme)
        starts += starting_placements(artifact, PlacementSpace(form, scheme))
        if form is not model:
            observed = form  # it has all tensors of `model` and more
    free_memory()
    calibrator = Calibrator(artifact, engine, progress)
    calibration = calibrator.calibrate(observed, images, starts)
    free_memory()
    return SharedCalibration(model, calibration, time.perf_counter() - started)


def form_for(model: onnx.ModelProto, scheme: QuantScheme) -> onnx.ModelProto:
    """`model` with the nodes that `scheme` can quantize in place of equal ones that it cannot."""
    return with_gates(model) if "HardSigmoid" in scheme.quantized else model


def starting_placements(artifact: Artifact, space: PlacementSpace) -> list[Placement]:
    """Where the search of `artifact` starts.

    Raises:
        InputError: the model has no layer to quantize.
    """
    starts = space.starting_placements()
    if not starts:
        raise InputError(
            f"{artifact.name} has no convolution or linear layer with constant weights, so there "
            "is nothing to quantize"
        )
    return starts
