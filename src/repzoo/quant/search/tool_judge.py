"""Chooses among candidates in a vendor's own quantizer, where it runs on this machine.

A simulation is not the tool itself (tool_search.py). Here every candidate goes through the tool's
default flow, and its own quantized model predicts images that calibrate nothing. Among the
candidates is the model as it was folded: what is chosen is then never worse than the tool without
repzoo, on these images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from repzoo.artifact import Artifact
from repzoo.progress import Progress
from repzoo.quant.search.tool_search import ToolChoice


@dataclass(frozen=True)
class ToolFigures:
    """What the tool's quantized model predicts, against the float model on the same pixels.

    Attributes:
        images: number of them.
        same_prediction: share of predictions that stay, in percent.
        snr_db: of the logits.
    """

    images: int
    same_prediction: float
    snr_db: float


class ToolJudge(Protocol):
    """A vendor's own quantizer."""

    def compare(self, candidate: Artifact, first_image: str) -> ToolFigures:
        """What the tool makes of `candidate`.

        first_image  key of the calibration image that the tool sees first; "" for any

        Raises:
            InputError: the tool fails, crashes or hangs.
        """


@dataclass(frozen=True)
class ToolTrial:
    """One candidate in the tool.

    Attributes:
        stage: of its weights, as `ToolChoice.stage_name`.
        figures: of the tool's quantized model.
        seconds: that this took.
    """

    stage: str
    figures: ToolFigures
    seconds: float


class ToolComparison:
    """Gives candidates to the tool, and picks the best.

    trials  the measurements of all, in the order in which they were tried
    """

    def __init__(
        self,
        judge: ToolJudge,
        as_file: Callable[[ToolChoice], Artifact],
        progress: Progress,
    ) -> None:
        """`as_file` gives the file that would be written of a choice."""
        self._judge = judge
        self._as_file = as_file
        self._progress = progress
        self.trials: list[ToolTrial] = []

    def pick(self, choices: Sequence[ToolChoice]) -> ToolChoice:
        """The best of `choices` and of the folded model as it is, which the first stands for."""
        # What the tool makes of it is what rounding to nearest makes of it, but for the ranges of
        # activations: the tool chooses them before it rounds weights.
        best = replace(choices[0], as_it_is=True)
        best_trial = self._try(best)
        for choice in choices:
            trial = self._try(choice)
            if trial.figures.snr_db > best_trial.figures.snr_db:
                best, best_trial = choice, trial
        return best

    def _try(self, choice: ToolChoice) -> ToolTrial:
        started = time.perf_counter()
        figures = self._judge.compare(self._as_file(choice), choice.first_image)
        seconds = round(time.perf_counter() - started, 1)
        trial = ToolTrial(choice.stage_name, figures, seconds)
        self.trials.append(trial)
        line = (
            f"in the tool, {trial.stage}: {figures.same_prediction:.1f} % of the predictions "
            f"unchanged, {figures.snr_db:.1f} dB, {seconds:.0f} s"
        )
        self._progress(line, 1, 1)
        return trial
