"""INT8 on several engines up to the race: placements first, then accuracy where it could matter.

A ladder (ladder.py) takes its longest for accuracy. So placements are found on all engines, and a
short race tells how fast they are beside one another. Then the ladder of the fastest is climbed,
then of the next. One whose placement is slower, beyond noise, than INT8 that passes already could
change nothing, and is left out. It enters the race of engines all the same, by a model that is for
timing alone. Where that race contradicts the short one, its ladder is climbed after all.

No engine is left out where the user wants the frontier of all candidates, or another objective than
latency, which is what the short race measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from repzoo.artifact import Artifact
from repzoo.data.batches import map_in_order
from repzoo.data.dataset import QuantizationSplit
from repzoo.engines import DEFAULT_ENGINE, Engine
from repzoo.engines.executed import ExecutedOperator
from repzoo.errors import InputError
from repzoo.measure import latency
from repzoo.measure import system_noise as noise
from repzoo.measure.race_result import Load, Objective, RaceEntry
from repzoo.measure.stats import Interval
from repzoo.progress import Progress
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import Keep, free_memory
from repzoo.quant.search.gate import QuantReport, Refusal
from repzoo.quant.search.ladder import Ladder, Sharing, Target
from repzoo.quant.search.placement_race import CALLS, ROUNDS
from repzoo.quant.search.placement_search import TimedPlacement
from repzoo.quant.search.shared_calibration import share_calibration
from repzoo.quant.search.verdict import Budget

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

    artifact   the model; None where the engine has none, or it is not made yet
    placement  its name, where there is a model
    report     on `artifact`; None for a model that is for timing alone
    refusal    what the gate said, where it refused
    problem    why the engine has no INT8; "" for none
    profile    see Ladder
    speed      time of its fastest placement, or of what was chosen instead, over that of the first
               placement in the short race; None where that is not known
    ladder     None once nothing more will come of it
    """

    def __init__(self, ladder: Ladder) -> None:
        self.engine: Engine = ladder.target.engine
        self.artifact: Artifact | None = None
        self.placement: str | None = None
        self.report: QuantReport | None = None
        self.refusal: Refusal | None = None
        self.problem = ""
        self.profile: Sequence[ExecutedOperator] | None = None
        self.speed: Interval | None = None
        self.ladder: Ladder | None = ladder

    def place(self, probe_first: bool) -> None:
        """Find the fastest placement; `probe_first`: see `Ladder.place`."""
        assert self.ladder is not None
        try:
            self.ladder.place(probe_first)
        except InputError as error:
            self._fail(str(error))

    def make_timing_model(self) -> Artifact:
        """Take the model of the placement, for timing alone."""
        assert self.ladder is not None
        self.artifact = self.ladder.timing_model()
        self.placement = self.ladder.search.best.placement.name
        return self.artifact

    def climb(self, known: Sequence[FloatComparison]) -> Sequence[FloatComparison]:
        """Make INT8 accurate. Takes and returns comparisons that know what float predicts."""
        ladder = self.ladder
        assert ladder is not None
        self.artifact = None
        ladder.know_float(known)
        try:
            self.artifact, self.report = ladder.climb()
        except Refusal as refusal:
            # Its traceback would keep the ladder.
            self.refusal = refusal.with_traceback(None)
            self._fail("refused by the gate")
        except InputError as error:
            self._fail(str(error))
        else:
            self.placement = self.report.chosen.placement
            self.profile = ladder.profile
            self._rescale(ladder.search.best, self.report)
        comparisons = ladder.comparisons
        del ladder
        self.let_go()
        return comparisons

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self.artifact = None
        self.placement = None
        self.let_go()

    def _rescale(self, placed: TimedPlacement, report: QuantReport) -> None:
        """Slow down where something slower than `placed` was chosen for its accuracy."""
        ratio = report.chosen.ratio
        if ratio is None or self.speed is None:
            return
        # What looks faster only now is noise.
        change = max(1.0, ratio.ratio / placed.relative_latency)
        self.speed = Interval(*(change * value for value in astuple(self.speed)))

    def let_go(self) -> None:
        """Free all that further candidates would need."""
        self.ladder = None
        free_memory()

    @property
    def passes(self) -> bool:
        """Whether there is INT8 that the gate lets pass."""
        return self.report is not None and self.report.passes

    def is_slower_than(self, other: Contender) -> bool:
        """Whether it is, beyond noise and what sessions of one file differ by."""
        if self.speed is None or other.speed is None:
            return False
        return self.speed.low > SESSIONS_DIFFER * other.speed.high


class Contenders:
    """INT8 on all engines of a contest.

    all  in the order of the contest's targets
    """

    def __init__(
        self,
        artifact: Artifact,
        split: QuantizationSplit,
        contest: Contest,
        budget: Budget,
        progress: Progress,
        keep: Callable[[Engine], Keep] | None,
    ) -> None:
        """Find the fastest placement on each engine; for `keep` see `engine_race.quantize`."""
        targets = contest.targets
        self._load = contest.load
        self._leaves_out = keep is None and contest.objective == "latency"
        self._known: Sequence[FloatComparison] = ()
        shared = share_calibration(
            artifact,
            split.calibration,
            [target.scheme for target in targets],
            targets[0].engine,
            progress,
        )
        self.all: list[Contender] = []
        for target in targets:
            runner = target.engine
            sharing = Sharing(shared, targets[0].engine, keep(runner) if keep else None)
            contender = Contender(
                Ladder(artifact, split, target, budget, progress, sharing)
            )
            # Where there is one engine alone, a crash of it loses nothing that others have made.
            contender.place(
                probe_first=len(targets) > 1 and runner.name != DEFAULT_ENGINE
            )
            self.all.append(contender)
            free_memory()

    def climb(self) -> None:
        """Make INT8 accurate on each engine, but for those that could not win."""
        placed = [item for item in self.all if not item.problem]
        if self._leaves_out and len(placed) > 1:
            _time_placements(placed, self._load)
            placed.sort(key=lambda item: item.speed.value if item.speed else 0.0)
        passing: list[Contender] = []
        for contender in placed:
            if not any(map(contender.is_slower_than, passing)):
                self._climb(contender)
            if contender.passes:
                passing.append(contender)

    def climb_missed(self, entries: Sequence[RaceEntry]) -> bool:
        """Climb what was left out although the race shows that it could win; whether anything was.

        entries  of the race, for each of `all`
        """
        passing: list[RaceEntry] = []
        for contender, entry in zip(self.all, entries, strict=True):
            if contender.passes and entry.is_timed:
                passing.append(entry)
        missed: list[Contender] = []
        for contender, entry in zip(self.all, entries, strict=True):
            if contender.ladder is not None and _could_win(entry, passing):
                missed.append(contender)
        for contender in missed:
            self._climb(contender)
        return bool(missed)

    def _climb(self, contender: Contender) -> None:
        comparisons = contender.climb(self._known)
        self._known = self._known or comparisons

    def let_go(self) -> None:
        """Free what the ladders hold that were left out."""
        for contender in self.all:
            contender.let_go()


def _could_win(entry: RaceEntry, passing: Sequence[RaceEntry]) -> bool:
    """Whether `entry` is faster than all of `passing`: the short race found it slower."""
    if not entry.is_timed:
        return not passing
    assert entry.ratio is not None
    for other in passing:
        assert other.ratio is not None
        if entry.ratio >= other.ratio:
            return False
    return True


def _time_placements(placed: Sequence[Contender], load: Load) -> None:
    """Set how fast each is beside the first, by a short race.

    On a busy machine, or where an engine fails, none is known.
    """

    def opened(contender: Contender) -> latency.Case:
        model = contender.make_timing_model()
        return latency.case(model, contender.engine, load.clients, load.threads)

    before = noise.read_counters()
    try:
        cases = list(map_in_order(opened, placed))
        latency.race(cases, ROUNDS, CALLS)
    except InputError:
        return
    # It holds engines up unequally, in all rounds alike.
    others = noise.between(before, noise.read_counters())["used_by_others"]
    if others is not None and others > noise.OTHERS:
        return
    for contender, case in zip(placed, cases, strict=True):
        contender.speed = latency.race_ratio(case, cases[0])
