"""INT8 on several engines up to the race: placements first, then accuracy where it could matter.

A ladder (ladder.py) takes its longest for accuracy. So placements are found on all engines, and a
short race tells how fast they are beside one another. Then the ladder of the fastest is climbed,
then of the next. One whose placement is slower, beyond noise, than INT8 that passes already could
change nothing, and is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from repzoo.artifact import Artifact
from repzoo.data.batches import map_in_order
from repzoo.data.dataset import QuantizationSplit
from repzoo.engines import DEFAULT_ENGINE, Engine
from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure.predictions import ModelPredictions
from repzoo.measure.race_result import Load, Objective
from repzoo.measure.stats import Interval
from repzoo.progress import Progress
from repzoo.quant.search.evaluator import Keep, free_memory
from repzoo.quant.search.gate import QuantReport, Refusal
from repzoo.quant.search.ladder import Ladder, Sharing, Target
from repzoo.quant.search.placement_race import CALLS, ROUNDS
from repzoo.quant.search.shared_calibration import share_calibration
from repzoo.quant.search.verdict import Budget

ALIKE = Interval(1.0, 1.0, 1.0)
# Two sessions of one file differ by up to 4 % in all rounds of a race alike (measure/latency.py).
SESSIONS_DIFFER = 1.05


@dataclass(frozen=True)
class Contest:
    """Who takes part in a race, and what decides it.

    targets          engines that compute INT8, each with its scheme
    float_only       engines that run the float model alone
    hands_out_float  whether float may win; else the best INT8 is written whatever it costs
    """

    targets: tuple[Target, ...]
    float_only: tuple[Engine, ...] = ()
    objective: Objective = "latency"
    hands_out_float: bool = True

    @property
    def load(self) -> Load:
        """How sessions are used while they are timed."""
        return self.targets[0].load


class Contender:
    """INT8 on one engine.

    artifact  the model, as far as it is made: without a `report` for timing alone; None where the
              engine has none
    speed     time of its placement over that of the first contender's
    problem   why the engine has none
    """

    def __init__(self, ladder: Ladder, is_probed: bool) -> None:
        """Find the placement; `is_probed`: see `Ladder.place`."""
        self.engine: Engine = ladder.target.engine
        self.artifact: Artifact | None = None
        self.placement: str | None = None
        self.speed = ALIKE
        self.report: QuantReport | None = None
        self.refusal: Refusal | None = None
        self.problem = ""
        self.profile: Sequence[ExecutedOperator] | None = None
        self.float_predictions: Sequence[ModelPredictions] = ()
        self._ladder: Ladder | None = ladder
        try:
            ladder.place(is_probed)
        except InputError as error:
            self._fail(str(error))
            return
        self.artifact = ladder.timing_model()
        self.placement = ladder.search.best.placement.name

    def climb(self, float_predictions: Sequence[ModelPredictions]) -> None:
        """Make it accurate; `float_predictions` of an earlier one, if there is one."""
        ladder = self._ladder
        assert ladder is not None
        ladder.know_float(float_predictions)
        try:
            self.artifact, self.report = ladder.climb()
        except Refusal as refusal:
            self.refusal = refusal
            self._fail("refused by the gate")
        except InputError as error:
            self._fail(str(error))
        else:
            self.placement = self.report.chosen.placement
            self.profile = ladder.profile
            self._rescale(ladder.search.best.relative_latency, self.report)
        self.float_predictions = ladder.float_predictions
        self.let_go()

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self.artifact = None
        self.placement = None

    def _rescale(self, placed: float, report: QuantReport) -> None:
        """Set the speed of what was chosen, where the placement's own was `placed`."""
        ratio = report.chosen.ratio
        if ratio is not None:
            change = ratio.ratio / placed
            self.speed = Interval(*(change * value for value in astuple(self.speed)))

    def let_go(self) -> None:
        """Free all that further candidates would need."""
        self._ladder = None
        free_memory()

    @property
    def passes(self) -> bool:
        """Whether there is INT8 that the gate lets pass."""
        return self.report is not None and self.report.passes

    def is_slower_than(self, other: Contender) -> bool:
        """Whether its placement is, beyond noise and what sessions of one file differ by."""
        return self.speed.low > SESSIONS_DIFFER * other.speed.high


def make_contenders(
    artifact: Artifact,
    split: QuantizationSplit,
    contest: Contest,
    budget: Budget,
    progress: Progress,
    keep: Callable[[Engine], Keep] | None,
) -> list[Contender]:
    """INT8 on each engine that computes it; of engines that could not win, for timing alone.

    keep  gives, for an engine, what is called with each candidate made for it. No engine is left
          out then, nor where size counts
    """
    contenders = _place_all(artifact, split, contest, budget, progress, keep)
    placed = [item for item in contenders if item.artifact is not None]
    _time_placements(placed, contest.load)
    is_selective = keep is None and contest.objective != "size"
    predictions: Sequence[ModelPredictions] = ()
    passing: list[Contender] = []
    for contender in sorted(placed, key=lambda item: item.speed.value):
        if is_selective and any(map(contender.is_slower_than, passing)):
            contender.let_go()
            continue
        contender.climb(predictions)
        predictions = predictions or contender.float_predictions
        if contender.passes:
            passing.append(contender)
    return contenders


def _place_all(
    artifact: Artifact,
    split: QuantizationSplit,
    contest: Contest,
    budget: Budget,
    progress: Progress,
    keep: Callable[[Engine], Keep] | None,
) -> list[Contender]:
    """INT8 on each engine, up to the fastest placement."""
    targets = contest.targets
    shared = share_calibration(
        artifact,
        split.calibration,
        [target.scheme for target in targets],
        targets[0].engine,
        progress,
    )
    contenders: list[Contender] = []
    for target in targets:
        runner = target.engine
        kept = keep(runner) if keep else None
        sharing = Sharing(shared, targets[0].engine, kept)
        ladder = Ladder(artifact, split, target, budget, progress, sharing)
        # The only engine there is may as well crash here.
        is_probed = len(targets) > 1 and runner.name != DEFAULT_ENGINE
        contenders.append(Contender(ladder, is_probed))
        free_memory()
    return contenders


def _time_placements(placed: Sequence[Contender], load: Load) -> None:
    """Set how fast each is beside the first, by a short race."""
    if len(placed) < 2:
        return

    def opened(contender: Contender) -> latency.Case:
        assert contender.artifact is not None
        return latency.case(
            contender.artifact, contender.engine, load.clients, load.threads
        )

    # An engine that fails now has a speed like the others', so that the reason will be found.
    with contextlib.suppress(InputError):
        cases = list(map_in_order(opened, placed))
        latency.race(cases, ROUNDS, CALLS)
        for contender, case in zip(placed[1:], cases[1:], strict=True):
            contender.speed = latency.race_ratio(case, cases[0])
