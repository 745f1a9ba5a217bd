"""Builds QDQ artifacts: a stage and a placement become a quantized model.

Computing parameters is the slow part. A build on another placement therefore takes over what the
first one computed, where that is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.data.dataset import Dataset
from repzoo.protobuf_stream import clone
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import activation_ranges, compute
from repzoo.quant.parameters.activation_ranges import ChosenRanges
from repzoo.quant.parameters.compute import (
    Corrections,
    QuantizationPlan,
    RoundedWeights,
)
from repzoo.quant.rewrites.stages import STAGES, FloatModel, Rewrite, Stage
from repzoo.quant.search.calibrator import Calibrator, Inputs
from repzoo.quant.search.rewrite_cache import RewriteCache

FINETUNE_BATCH = 32  # images that are prepared at once
RangesKey = tuple[tuple[Rewrite, ...], Placement, str, QuantScheme]
RoundedKey = tuple[tuple[Rewrite, ...], bool]


@dataclass(frozen=True)
class Build:
    """A quantized model with the stage, the parameters and the scheme that it was built from."""

    artifact: Artifact
    stage: Stage
    plan: QuantizationPlan
    scheme: QuantScheme


class Builder:
    """Builds the quantized forms of one folded float `artifact` under one scheme."""

    def __init__(
        self,
        artifact: Artifact,
        space: PlacementSpace,
        scheme: QuantScheme,
        cache: RewriteCache,
    ) -> None:
        self.artifact = artifact
        self.space = space
        self.scheme = scheme
        self.cache = cache
        # The ranges that were chosen last. Consecutive stages often differ in rounding only.
        self._ranges_key: RangesKey | None = None
        self._ranges: ChosenRanges = {}
        # Likewise the weights that were rounded last.
        self._rounded_key: RoundedKey | None = None
        self._rounded: RoundedWeights = {}

    def build(self, stage: Stage, placement: Placement) -> Build:
        """The model that `stage` makes with Q/DQ pairs at `placement`."""
        float_model = self.cache.get(stage)
        corrections = self._corrections(stage)
        key = (stage.rewrites, placement, corrections.range_method, self.scheme)
        if key != self._ranges_key:
            self._ranges = activation_ranges.choose_ranges(
                float_model.model,
                placement,
                float_model.statistics,
                self.scheme,
                corrections.range_method,
            )
            self._ranges_key = key
        rounded_key = (stage.rewrites, corrections.gptq)
        if rounded_key != self._rounded_key:
            self._rounded = {}
            self._rounded_key = rounded_key
        plan = compute.compute_parameters(
            float_model.model,
            placement,
            float_model.statistics,
            self.scheme,
            corrections,
            self._ranges,
            self._rounded,
        )
        return self._write(stage, plan, placement)

    def build_from(self, origin: Build, placement: Placement) -> Build:
        """The same stage as `origin` on another placement, reusing its parameters where possible.

        The parameters of a layer do not depend on where other layers run. So leaving layers in
        float changes no other number. Parameters are computed anew where `origin` lacks some, and
        where tensors take 16 bits, but for the rounding of weights.
        """
        float_model = self.cache.get(origin.stage)
        if not _has_parameters(origin.plan, float_model, placement):
            return self.build(origin.stage, placement)
        plan = _restrict(origin.plan, float_model.model, placement)
        return self._write(origin.stage, plan, placement)

    def finetune(
        self,
        origin: Build,
        placement: Placement,
        epochs: int,
        images: Dataset,
        calibrator: Calibrator,
    ) -> Build:
        """`origin` after distillation from the float model on `images`; needs torch.

        placement  that of `origin`
        """
        # Not at the top: the core installs and runs without torch.
        from repzoo.quant.parameters import finetune

        def epoch_images(epoch: int) -> Iterator[Inputs]:
            order = np.random.default_rng(epoch).permutation(len(images)).tolist()
            shuffled = images.subset(order)
            return calibrator.prepare(
                f"images of epoch {epoch + 1}", shuffled, FINETUNE_BATCH
            )

        plan = finetune.distill(
            self.cache.get(origin.stage).model,
            origin.plan,
            self.scheme,
            finetune.DistillationImages(len(images), epoch_images),
            finetune.FinetuneOptions(epochs),
            calibrator.progress,
        )
        return self._write(origin.stage, plan, placement)

    def _write(
        self, stage: Stage, plan: QuantizationPlan, placement: Placement
    ) -> Build:
        model = compute.write_qdq(plan, placement, self.scheme)
        artifact = self.artifact.then(model, Step("quantize", __version__))
        return Build(artifact, stage, plan, self.scheme)

    def _corrections(self, stage: Stage) -> Corrections:
        """The corrections of `stage`; on the first stage, ranges as the scheme asks for them.

        Later stages may choose ranges by any method that the scheme's target can represent.
        """
        if stage is STAGES[0] and self.scheme.ranges != "mse":
            return replace(stage.corrections, range_method=self.scheme.ranges)
        return stage.corrections


def _has_parameters(
    plan: QuantizationPlan, float_model: FloatModel, placement: Placement
) -> bool:
    """Whether `plan` has the parameters of all that `placement` quantizes, in 8 bits."""
    if placement.int16_tensors:
        return False
    quantized_layers = placement.nodes & layers.find_layers(float_model.model).keys()
    if not quantized_layers <= plan.weights.keys():
        return False
    return set(placement.quantized) <= plan.activations.keys()


def _restrict(
    plan: QuantizationPlan, float_model: onnx.ModelProto, placement: Placement
) -> QuantizationPlan:
    """`plan` with only what `placement` quantizes; layers in float get their own bias back."""
    weights = {
        name: weight for name, weight in plan.weights.items() if name in placement.nodes
    }
    to_float = plan.weights.keys() - weights.keys()
    float_inputs = {node.output[0]: node.input for node in float_model.graph.node}
    model = clone(plan.model)
    for node in model.graph.node:
        name = node.output[0]
        # Bias correction made up for rounding that no longer happens in this layer.
        if name in to_float:
            node.input[:] = float_inputs[name]
    activations = {name: plan.activations[name] for name in placement.quantized}
    return replace(
        plan,
        model=model,
        weights=weights,
        activations=activations,
        moved=dict(placement.moved),
    )
