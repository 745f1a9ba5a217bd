"""Compare the outputs of two graphs, against a bound that is measured.

The bound comes from the training form itself. Its weights are moved by one unit in the last place;
the largest change of an output, times SAFETY, is what its number type cannot tell apart. In a
network that amplifies rounding this bound may be wider than the outputs are spread. Then the
comparison says nothing, and the verdict is INCONCLUSIVE.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.errors import CertificateError

Outputs = npt.NDArray[Any]  # [n, classes]

# The weights move once, while a fold also reorders sums of up to some 10^4 terms in every layer.
SAFETY = 64.0
# Unit roundoffs of the largest output, 8 units in the last place: for networks too robust for a
# jitter to show.
FLOOR = 16.0


class Equality(enum.Enum):
    """What a comparison of two graphs shows.

    EQUAL         the outputs agree within a bound that other graphs do not keep
    DIFFERENT     an output differs by more than its bound
    INCONCLUSIVE  the outputs agree, but within a bound so wide that a graph with constant outputs
                  could keep it too
    """

    EQUAL = "equal"
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"

    def to_json(self) -> bool | None:
        """True, False, or None where the comparison cannot tell."""
        return {Equality.EQUAL: True, Equality.DIFFERENT: False}.get(self)


@dataclass(frozen=True)
class Comparison:
    """The outputs of two graphs on one group of inputs; numbers are in units of the outputs.

    error      the largest difference
    bound      the largest difference that rounding explains
    magnitude  the largest output
    spread     from the lowest to the highest output
    floor      the least bound for outputs of this magnitude
    agrees     for each image, whether Top-1 agrees; classes tied within the bound count as agreeing
    """

    error: float
    bound: float
    magnitude: float
    spread: float
    floor: float
    agrees: npt.NDArray[np.bool_]

    @property
    def ratio(self) -> float:
        """The error over its bound."""
        return ratio_of(self.error, self.bound)

    @property
    def equality(self) -> Equality:
        """The verdict.

        Some constant is within half the spread of all outputs, so a wider bound is no evidence.
        """
        if not self.error <= self.bound:
            return Equality.DIFFERENT
        if self.bound <= max(self.floor, self.spread / 2):
            return Equality.EQUAL
        return Equality.INCONCLUSIVE


@dataclass(frozen=True)
class GraphComparison:
    """The comparison of two graphs on all groups of inputs; numbers are in units of the outputs.

    equality        what it shows
    max_abs_error   the largest error, where it comes closest to its bound
    max_rel_error   the same over the largest output
    bound           the largest error that rounding explains there
    spread          from the lowest to the highest output there
    top1_agreement  share of images with the same Top-1; None if the graph is no classifier
    inputs          how many images, or groups of inputs, were compared
    """

    equality: Equality
    max_abs_error: float
    max_rel_error: float
    bound: float
    spread: float
    top1_agreement: float | None
    inputs: int

    @property
    def equal(self) -> bool | None:
        """True, False, or None where the comparison cannot tell."""
        return self.equality.to_json()

    def summary(self) -> str:
        """What was measured, in one clause."""
        if self.equality is Equality.INCONCLUSIVE:
            return (
                f"rounding alone may move an output by {self.bound:.2g}, "
                f"and all outputs lie within {self.spread:.2g}"
            )
        error = f"largest error {self.max_abs_error:.2g} (bound {self.bound:.2g})"
        if self.top1_agreement is None:
            return f"{error} on {self.inputs} groups of random inputs"
        agreement = f"{100 * self.top1_agreement:.4g} %"
        return f"{error}, Top-1 agreement {agreement} on {self.inputs} inputs"


def compare(
    expected: Outputs,
    actual: Outputs,
    jittered: Outputs,
    roundoff: float,
    has_classes: bool = True,
) -> Comparison:
    """Compare outputs of a graph with those that were `expected` of it.

    jittered     what the training form computes with each weight moved by one unit in the last
                 place
    roundoff     the unit roundoff of the coarsest number type among the weights
    has_classes  whether the outputs are [n, classes], so that a Top-1 can be compared

    Raises:
        CertificateError: an output overflows when the weights move.
    """
    magnitude = float(np.abs(expected).max())
    floor = FLOOR * roundoff * magnitude
    moved = float(np.abs(expected - jittered).max())
    bound = max(SAFETY * moved, floor)
    if not np.isfinite(bound):
        raise CertificateError(
            "an output overflows when a weight moves by one unit in the last place; "
            "check the weights of the model"
        )
    agrees = np.zeros(0, bool)
    if has_classes:
        agrees = _same_top1(expected, actual, bound)
    return Comparison(
        error=float(np.abs(expected - actual).max()),
        bound=bound,
        magnitude=magnitude,
        spread=float(expected.max()) - float(expected.min()),
        floor=floor,
        agrees=agrees,
    )


def combine(comparisons: Sequence[Comparison], inputs: int = 0) -> GraphComparison:
    """One verdict on all groups. It rests on the groups that can tell, where there are any.

    inputs  how many were compared, for a graph that is no classifier
    """
    telling = []
    for group in comparisons:
        if group.equality is not Equality.INCONCLUSIVE:
            telling.append(group)
    evidence = telling or comparisons
    worst = max(evidence, key=lambda group: group.ratio)
    agrees = np.concatenate([group.agrees for group in evidence])
    return GraphComparison(
        equality=worst.equality,
        max_abs_error=worst.error,
        max_rel_error=ratio_of(worst.error, worst.magnitude),
        bound=worst.bound,
        spread=worst.spread,
        top1_agreement=float(np.mean(agrees)) if agrees.size else None,
        inputs=len(agrees) or inputs,
    )


def ratio_of(part: float, whole: float) -> float:
    """`part` over `whole`; 0 where there is no part, infinite where there is no whole."""
    if not part:
        return 0.0
    return part / whole if whole else math.inf


def _same_top1(
    expected: Outputs,
    actual: Outputs,
    bound: float,
) -> npt.NDArray[np.bool_]:
    """For each image, whether the class that `actual` predicts was highest within the bound."""
    # An output of any rank may be compared; only [N, classes] has classes.
    rows = np.arange(len(expected))
    expected = expected.reshape(len(expected), -1)
    actual = actual.reshape(len(actual), -1)
    predicted = expected[rows, actual.argmax(1)]
    shortfall = expected.max(1) - predicted
    return np.asarray(shortfall <= bound)
