"""What `quantize` makes INT8 models for: engines and schemes by its options, and their race."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repzoo import engines
from repzoo.artifact import Artifact
from repzoo.data.dataset import QuantizationSplit
from repzoo.engines import DEFAULT_ENGINE, Engine
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.measure.race_result import Load
from repzoo.progress import Progress
from repzoo.quant.baselines import registry as baselines
from repzoo.quant.network.host_arithmetic import adapt_to_host
from repzoo.quant.network.scheme import default_scheme, load_scheme
from repzoo.quant.search import engine_race, ladder
from repzoo.quant.search.contenders import Contest
from repzoo.quant.search.default_sessions import saturation_remark
from repzoo.quant.search.engine_race import AUTO, RaceResult
from repzoo.quant.search.frontier import CandidateStore, frontier
from repzoo.quant.search.gate import QuantReport
from repzoo.quant.search.verdict import Budget
from repzoo.remark import Remark
from repzoo.storage import new_folder

if TYPE_CHECKING:  # it imports this module
    from repzoo.verbs.quantize_model import QuantizeOptions


def own_engine(options: QuantizeOptions) -> str:
    """The engine's name, where there is no choice of several."""
    return DEFAULT_ENGINE if options.engine == AUTO else options.engine


def is_race(options: QuantizeOptions) -> bool:
    """Whether engines and forms are timed against each other.

    A scheme is one engine's number format, and other quantizers make one model.
    """
    if options.precision != "int8" or options.recipe != baselines.OWN:
        return False
    is_choice = options.engine == AUTO and not options.scheme
    return is_choice or options.pareto is not None


def hold_race(
    model: Artifact,
    split: QuantizationSplit,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[Artifact, QuantReport]:
    """(the winner's model, the report); the frontier is written where it was asked for."""
    contest, remarks = _contest(model, options)
    budget = Budget(options.max_drop, options.force)
    if options.pareto is None:
        result = engine_race.quantize(model, split, contest, budget, progress)
    else:
        with new_folder(options.pareto, "--pareto") as folder:
            store = CandidateStore(folder)
            result = engine_race.quantize(
                model, split, contest, budget, progress, store.keep_for
            )
            _write_frontier(folder, model, store, result)
    own = _own_remark(split, options, result)
    report = replace(result.report, warnings=(*remarks, *own, *result.report.warnings))
    return result.chosen, report


def _write_frontier(
    folder: Path, model: Artifact, store: CandidateStore, result: RaceResult
) -> None:
    # It brings the templates of cards, which `repzoo --help` does not need.
    from repzoo.report.frontier import write_frontier

    points = frontier(store, model, result)
    write_frontier(folder, points, result.summary)


def _own_remark(
    split: QuantizationSplit, options: QuantizeOptions, result: RaceResult
) -> list[str]:
    """What to know about the arithmetic of the INT8 model that won."""
    if result.chosen is not result.int8:
        return []
    runner = engines.engine(result.summary.chosen.engine)
    _, remark = target_for(runner, options)
    # Both speak of hosts without VNNI: one is enough.
    remark = remark or saturation_remark(result.int8, split.gate, runner, host())
    return [remark] if remark else []


def _contest(model: Artifact, options: QuantizeOptions) -> tuple[Contest, list[str]]:
    """(who races, remarks on engines that cannot)."""
    is_choice = options.engine == AUTO and not options.scheme
    if is_choice:
        installed = engine_race.installed_engines()
        runners, remarks = engine_race.usable_engines(model, installed)
    else:
        runners, remarks = [engines.engine(own_engine(options))], []
    int8_runners = [runner for runner in runners if engine_race.computes_int8(runner)]
    if not int8_runners:
        raise InputError(
            f"{runners[0].name} computes INT8 in float arithmetic, so its latency says nothing of "
            "INT8; leave out pareto (--pareto), or name another --engine"
        )
    targets = []
    for runner in int8_runners:
        target, _ = target_for(runner, options)
        if options.search is not None:
            # The time that was allowed is for all engines together.
            seconds = options.search / len(int8_runners)
            target = replace(target, search_seconds=seconds)
        targets.append(target)
    float_only = [runner for runner in runners if runner not in int8_runners]
    # Who asks for a placement by name wants INT8.
    hands_out_float = is_choice and options.placement == "fastest"
    contest = Contest(
        tuple(targets), tuple(float_only), options.objective, hands_out_float
    )
    return contest, remarks


def target_for(runner: Engine, options: QuantizeOptions) -> tuple[ladder.Target, str]:
    """(the ladder's target on `runner`, a remark for the user or "")."""
    scheme = default_scheme(runner.name)
    if options.scheme:
        scheme = load_scheme(options.scheme)
    placement = options.placement
    remark: str
    if scheme.runs_on_board:
        remark = Remark(
            "the scheme {scheme} is for a board, so its latency is not measured on this host",
            scheme=scheme.name,
        )
        # Nor can timing here decide what should run in INT8 there.
        if placement == "fastest":
            placement = "everything"
    else:
        # x86 without VNNI saturates where weights have 8 bits (docs/decisions/11-exact-int8.md).
        scheme, remark = adapt_to_host(
            scheme, runner, host(), is_named=bool(options.scheme)
        )
    if options.objective == "size" and placement == "fastest":
        placement = "everything"  # each layer in INT8 makes the file smaller
    target = ladder.Target(
        engine=runner,
        scheme=scheme,
        placement=placement,
        # Where the placement was asked for by name, all of it stays in INT8.
        may_fall_back=placement != options.placement,
        search_seconds=options.search,
        new_search=options.new_search,
        finetune_epochs=options.finetune_epochs,
        load=load_for(options),
    )
    return target, remark


def load_for(options: QuantizeOptions) -> Load:
    """How sessions are used while they are timed."""
    clients = 1
    if options.objective == "throughput":
        clients = max(1, int(host()["affinity"]) // options.threads)
    return Load(options.threads, clients)
