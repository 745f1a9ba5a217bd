"""Which operators of a float model float16 spoils, from one calibration pass, and why.

Three things can go wrong. A value beyond 65504 becomes infinite. A sum that is accumulated in
float16 overflows, or loses its small terms. A weight far below 1 loses its digits or becomes 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.graph.tools.half_precision import FLOAT16, HalfPlan, name_of, plan_half
from repzoo.quant.calibration.float16_observers import (
    RangeObserver,
    SumObserver,
    sum_observers,
)
from repzoo.quant.calibration.float16_sums import noise_db
from repzoo.quant.calibration.observers import Observer
from repzoo.remark import Remark

# New images reach further than those of calibration.
HEADROOM = 2.0
# Signal-to-noise ratio of an operator's result from which on float16 is no worse than 8 bits: of
# INT8 models that hold, layers have 30 to 45 dB.
NOISE_DB = 40.0
NOISELESS_DB = 200.0
SMALLEST_NORMAL = 2.0**-14  # of float16; numbers below lose digits
SMALLEST = 2.0**-24  # positive number of float16; up to half of it becomes 0
# Their constants are bounds, which float16 may cut off at its own.
BOUNDED = frozenset({"Clip", "Max", "Min"})

Cause = Literal["overflow", "noise", "unsupported", "accuracy"]


@dataclass(frozen=True)
class KeptOperator:
    """An operator that stays in float32.

    node    by its first output
    op      its type
    cause   overflow: of its values. noise: of its sums or weights. unsupported: it has no float16
            form. accuracy: without it the model loses too much
    reason  a sentence
    """

    node: str
    op: str
    cause: Cause
    reason: str

    def to_json(self) -> dict[str, str]:
        """A JSON object."""
        return {
            "node": self.node,
            "op": self.op,
            "cause": self.cause,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class RoundedWeights:
    """What rounding to float16 does to the weights of operators that compute in it.

    weights    other than 0
    subnormal  of them below 6.1e-5, where float16 has fewer digits, and some hardware has 0
    zeroed     of them that become 0
    """

    weights: int
    subnormal: int
    zeroed: int


@dataclass(frozen=True)
class Float16Analysis:
    """What float16 does to a network.

    kept     operators that overflow, that lose too much, or that have no float16 form
    ranked   all others that compute in float16, noisiest first
    weights  of these others
    """

    kept: tuple[KeptOperator, ...]
    ranked: tuple[str, ...]
    weights: RoundedWeights

    def because(self, *causes: Cause) -> tuple[KeptOperator, ...]:
        """Those of `kept` with one of `causes`."""
        return tuple(item for item in self.kept if item.cause in causes)


class Float16Observers:
    """The observers of one calibration pass, and the analysis of what they saw."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.plan: HalfPlan = plan_half(model)
        self.ranges = {
            name: RangeObserver(name) for name in _observable(model, self.plan)
        }
        self.sums: list[SumObserver] = []
        for observer in sum_observers(model):
            if observer.source in self.ranges and observer.node in self.plan.inputs:
                self.sums.append(observer)

    def all(self) -> list[Observer]:
        """Every observer."""
        return [*self.ranges.values(), *self.sums]

    def analyze(self) -> Float16Analysis:
        """The analysis, after the pass."""
        constants = {item.name: item for item in self.model.graph.initializer}
        sums = {observer.node: observer for observer in self.sums}
        kept: list[KeptOperator] = []
        noise: dict[str, float] = {}
        for node in self.model.graph.node:
            name = name_of(node)
            if name in self.plan.unsupported:
                reason = self.plan.unsupported[name]
                kept.append(KeptOperator(name, node.op_type, "unsupported", reason))
            if name not in self.plan.inputs:
                continue
            # One reason is enough, and what overflows has no noise to speak of.
            overflow = self._overflow(node, constants)
            if overflow:
                kept.append(KeptOperator(name, node.op_type, "overflow", overflow))
                continue
            ratio, loss = self._loss(node, sums.get(name), constants)
            noise[name] = min(ratio, self._rounding(node))
            if ratio < NOISE_DB:
                kept.append(KeptOperator(name, node.op_type, "noise", loss))
        names = {item.node for item in kept}
        ranked = sorted(
            (name for name in noise if name not in names), key=noise.__getitem__
        )
        weights = _rounded(self._constants_of(set(ranked), constants))
        return Float16Analysis(tuple(kept), tuple(ranked), weights)

    def _constants_of(
        self, nodes: Collection[str], constants: Mapping[str, onnx.TensorProto]
    ) -> list[onnx.TensorProto]:
        """What `nodes` read of `constants`, each once."""
        read: dict[str, None] = {}
        for node in self.model.graph.node:
            if name_of(node) in nodes:
                read.update(dict.fromkeys(node.input))
        return [constants[name] for name in read if name in constants]

    def _overflow(
        self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
    ) -> str:
        """Why `node` overflows in float16; "" if it does not."""
        for name in node.output:
            if self._is_out_of_range(name):
                return Remark(
                    "its output reaches {largest:.3g}; float16 ends at 65504",
                    largest=self.ranges[name].largest,
                )
        for name in node.input:
            if self._is_out_of_range(name):
                return Remark(
                    "its input {name} reaches {largest:.3g}; float16 ends at 65504",
                    name=name,
                    largest=self.ranges[name].largest,
                )
            if name in constants and node.op_type not in BOUNDED:
                largest = _largest(constants[name])
                if largest > FLOAT16.largest:
                    return Remark(
                        "its constant {name} reaches {largest:.3g}; float16 ends at 65504",
                        name=name,
                        largest=largest,
                    )
        return ""

    def _is_out_of_range(self, name: str) -> bool:
        known = self.ranges.get(name)
        return known is not None and known.largest * HEADROOM > FLOAT16.largest

    def _loss(
        self,
        node: onnx.NodeProto,
        sums: SumObserver | None,
        constants: Mapping[str, onnx.TensorProto],
    ) -> tuple[float, str]:
        """(signal-to-noise ratio of the constants or sums of `node`, the lower one; a sentence)."""
        worst, reason = NOISELESS_DB, ""
        for name in node.input:
            if name in constants and node.op_type not in BOUNDED:
                ratio = _weight_noise_db(constants[name])
                if ratio < worst:
                    worst, reason = ratio, _about_constant(name, ratio)
        if sums is not None and sums.noise_db < worst:
            worst, reason = sums.noise_db, _about_sums(sums)
        return worst, reason

    def _rounding(self, node: onnx.NodeProto) -> float:
        """Signal-to-noise ratio of the noisiest channel that `node` gives, once it is rounded.

        A channel that float16 rounds to 0 may not matter, so this alone keeps no operator.
        """
        ratios = [
            self.ranges[name].noise_db for name in node.output if name in self.ranges
        ]
        return min(ratios, default=NOISELESS_DB)


def _observable(model: onnx.ModelProto, plan: HalfPlan) -> list[str]:
    """Float32 tensors that nodes in float16 read or give."""
    used: dict[str, None] = {}
    for node in model.graph.node:
        if name_of(node) in plan.inputs:
            used.update(dict.fromkeys([*node.input, *node.output]))
    return [name for name in used if name in plan.floats]


def _about_constant(name: str, ratio: float) -> Remark:
    return Remark(
        "its constant {name} keeps {ratio:.0f} dB: float16 has few digits below 6e-5, and none "
        "below 6e-8",
        name=name,
        ratio=ratio,
    )


def _about_sums(sums: SumObserver) -> Remark:
    if np.isfinite(sums.noise_db):
        return Remark(
            "its sums of {terms} terms keep {ratio:.0f} dB where they are accumulated in float16",
            terms=sums.terms,
            ratio=sums.noise_db,
        )
    return Remark(
        "its sums of {terms} terms overflow where they are accumulated in float16",
        terms=sums.terms,
    )


def _floats_of(item: onnx.TensorProto) -> npt.NDArray[Any]:
    """The finite values of a float32 constant; none of any other."""
    if item.data_type != onnx.TensorProto.FLOAT:
        return np.zeros(0, np.float32)
    values = numpy_helper.to_array(item)
    return np.asarray(values[np.isfinite(values)])


def _largest(item: onnx.TensorProto) -> float:
    return float(np.abs(_floats_of(item)).max(initial=0))


def _weight_noise_db(item: onnx.TensorProto) -> float:
    """The signal-to-noise ratio of a rounded constant."""
    values = _floats_of(item)
    if not values.any():
        return NOISELESS_DB
    return noise_db(values, FLOAT16.round(values))


def _rounded(constants: Iterable[onnx.TensorProto]) -> RoundedWeights:
    weights = subnormal = zeroed = 0
    for item in constants:
        sizes = np.abs(_floats_of(item))
        weights += int((sizes > 0).sum())
        subnormal += int(((sizes > 0) & (sizes < SMALLEST_NORMAL)).sum())
        zeroed += int(((sizes > 0) & (sizes <= SMALLEST / 2)).sum())
    return RoundedWeights(weights, subnormal, zeroed)


def names_of(operators: Sequence[KeptOperator]) -> frozenset[str]:
    """The nodes of `operators`."""
    return frozenset(item.node for item in operators)
