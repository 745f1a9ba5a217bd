"""The accuracy budget of a quantized model, and the verdict on one that was compared with float.

`Budget.judge` is the only place that turns a paired comparison into a `Verdict`. The ladder reads
the verdict to decide whether to go on, the gate to decide whether to write the file.

A few hundred labeled images cannot tell a drop of 0.3 points from none. So a counted drop is
allowed one standard deviation of chance, and where the logits are known the expected drop and the
expected share of changed predictions decide (measure/expected_drop.py).

Without labels the float model's predictions take the place of labels. The drop is then the share
of predictions that changed, which is the most that Top-1 can have lost. Many changed predictions
were wrong before, so CHANGED_ALLOWED points more than the budget are accepted.

Where each output is a label of its own, the share of labels that changed is judged in the same way,
and the drop of mean average precision where the images have labels. Of outputs that are neither
classes nor labels only the error is known: such a model is never refused, and the report says so.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from repzoo.measure.results import (
    LabelAgreement,
    MeanAveragePrecision,
    PairedAccuracy,
)

# Percent of predictions that must stay the float model's own for a candidate to hold.
# Being strict costs little: trying a further stage takes seconds and no latency.
UNCHANGED = 99.0
# Percent of unchanged predictions from which on no layer leaves INT8 to gain more: that costs
# latency.
ENOUGH = 95.0
# Points beyond the budget by which predictions may change on images without labels.
CHANGED_ALLOWED = 100 - ENOUGH
# dB of signal over noise at which outputs of unknown meaning count as unchanged, and as good
# enough: an error of 3 % and of 10 % of what differs between images.
UNJUDGED_HOLDS_DB = 30.0
UNJUDGED_ENOUGH_DB = 20.0


class Verdict(enum.IntEnum):
    """How good a quantized model is, measured against float and a budget; from worst to best.

    REFUSED  the drop is proven above the budget: its whole 95 % interval lies above. Such a model
             is not written unless the user forces it.
    UNCLEAR  the drop as measured is above the budget, but the interval reaches down to it
    WITHIN   the drop is within the budget, with one standard deviation of chance allowed
    ENOUGH   within the budget, and at least 95 % of predictions are unchanged: nothing that costs
             latency is tried
    HOLDS    within the budget, and at least 99 % of predictions are unchanged, both also as
             expected on new images: no further stage is tried
    """

    REFUSED = 0
    UNCLEAR = 1
    WITHIN = 2
    ENOUGH = 3
    HOLDS = 4

    @property
    def passes(self) -> bool:
        """Whether the model may be written without force."""
        return self > Verdict.REFUSED


@dataclass(frozen=True)
class Budget:
    """What a quantized model may lose.

    max_drop  points of Top-1, float minus INT8
    force     write a refused model all the same; its metadata then says why it was refused
    """

    max_drop: float = 0.3
    force: bool = False

    def judge(self, paired: PairedAccuracy) -> Verdict:
        """The verdict on a model whose comparison with float, image by image, is `paired`."""
        if paired.unjudged is not None:
            return _judge_error(paired.logits_snr_db or 0.0)
        labels = paired.multi_label
        if labels is not None and labels.mean_average_precision is not None:
            return min(
                self._judge_predictions(paired),
                self._judge_labels(labels, labels.mean_average_precision),
            )
        return self._judge_predictions(paired)

    def _judge_labels(
        self, labels: LabelAgreement, precision: MeanAveragePrecision
    ) -> Verdict:
        """The verdict on labels that are known: by their precision, then by what changed."""
        changed_low = 100 - labels.agreement_high
        if precision.drop_low > self.max_drop:
            return Verdict.REFUSED
        if changed_low > self.max_drop + CHANGED_ALLOWED:
            return Verdict.REFUSED
        # Half the interval stands for one standard deviation of chance.
        if (precision.drop + precision.drop_low) / 2 > self.max_drop:
            return Verdict.UNCLEAR
        if labels.agreement >= UNCHANGED:
            return Verdict.HOLDS
        if labels.agreement >= ENOUGH:
            return Verdict.ENOUGH
        return Verdict.WITHIN

    def _judge_predictions(self, paired: PairedAccuracy) -> Verdict:
        if self._is_refused(paired):
            return Verdict.REFUSED
        if not self._is_within(paired):
            return Verdict.UNCLEAR
        if self._holds(paired):
            return Verdict.HOLDS
        if paired.same_prediction >= ENOUGH:
            return Verdict.ENOUGH
        return Verdict.WITHIN

    def _is_refused(self, paired: PairedAccuracy) -> bool:
        allowed = self.max_drop
        if paired.labeled is False:
            allowed += CHANGED_ALLOWED
        return paired.drop_low > allowed

    def _is_within(self, paired: PairedAccuracy) -> bool:
        """Whether the counted and the expected drop, each less its error, are within the budget."""
        if paired.labeled is False:
            return True  # no drop is known; `_is_refused` limits how many predictions may change
        # One image of 256 is already more than 0.3 points. Each changed answer is lost or gained,
        # so their sum has a standard deviation of sqrt(lost + gained).
        chance = 100 * math.sqrt(paired.discordant) / paired.n
        if paired.drop - chance > self.max_drop:
            return False
        expected = paired.expected
        return expected is None or expected.drop - expected.drop_error <= self.max_drop

    def _holds(self, paired: PairedAccuracy) -> bool:
        """Whether almost no prediction changed, and almost none is expected to on new images."""
        changed_limit = 100 - UNCHANGED
        changed = 100 - paired.same_prediction
        expected = paired.expected
        if expected is None:
            return changed <= changed_limit
        chance = math.sqrt(100 * changed / paired.n)
        if expected.changed > changed_limit or changed - chance > changed_limit:
            return False
        if paired.labeled is False:
            return True
        # Only a changed prediction can be lost, so the expected changes bound the expected drop.
        expected_drop = min(expected.changed, expected.drop + expected.drop_error)
        return expected_drop <= self.max_drop


def _judge_error(snr_db: float) -> Verdict:
    """The verdict on outputs of which only the signal-to-noise ratio is known."""
    if snr_db >= UNJUDGED_HOLDS_DB:
        return Verdict.HOLDS
    if snr_db >= UNJUDGED_ENOUGH_DB:
        return Verdict.ENOUGH
    return Verdict.UNCLEAR
