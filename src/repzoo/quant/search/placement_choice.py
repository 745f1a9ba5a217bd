"""Chooses what runs in INT8: the placement that a search finds fastest, or the one asked for.

A search of the same graph on the same engine and kind of host is not repeated: what it found is
timed once more (kept_search.py). One that is to go further, or that is of another width of the same
architecture, begins with what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.measure import system_noise as noise
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import ranges
from repzoo.quant.parameters.gelu_polynomial import LARGEST_ERROR, has_gelu
from repzoo.quant.parameters.gemm_convolution import has_large_gemm
from repzoo.quant.rewrites.stages import FloatModel
from repzoo.quant.search import kept_search, placement_search
from repzoo.quant.search.builder import Builder
from repzoo.quant.search.evaluator import Evaluator, free_memory
from repzoo.quant.search.kept_search import KeptPlacement, KeptSearch
from repzoo.quant.search.placement_race import SMALLEST_GAIN, PlacementRace, layer_names
from repzoo.quant.search.placement_search import SearchResult, TimedPlacement
from repzoo.remark import Remark

SEARCH_SECONDS = 60.0

PlacementChoice = Literal["fastest", "layers", "everything"]


@dataclass(frozen=True)
class Form:
    """A spelling in INT8 files that is faster on some hosts.

    applies  whether a float model has what it is for
    enough   a ratio of latencies below which it is taken although some sessions say otherwise. On a
             virtual machine among others the medians of sessions differ by 10 %, and the median of
             eleven by 4 %
    """

    applies: Callable[[FloatModel], bool]
    enough: float

    def wins(self, ratio: Interval) -> bool:
        """Whether it is faster: `ratio` is of the latency with it to that without it."""
        is_sure = ratio.high < 1 and ratio.value <= SMALLEST_GAIN
        return is_sure or ratio.value < self.enough


def _has_negative_activations(original: FloatModel) -> bool:
    """Whether something is negative: in a network of ReLUs it is the input alone."""
    histograms = original.statistics.histograms.values()
    return any(ranges.minmax(histogram)[0] < 0 for histogram in histograms)


# By the setting of a scheme that asks for it; see QuantScheme.
FORMS = {
    # The ladder takes it back where it costs accuracy.
    "signed_activations": Form(_has_negative_activations, enough=SMALLEST_GAIN),
    # It is no more than close to GELU.
    "gelu_polynomial": Form(lambda original: has_gelu(original.model), enough=0.93),
    # The same to the bit.
    "gemm_convolution": Form(lambda original: has_large_gemm(original.model), enough=1),
}


@dataclass(frozen=True)
class SearchLimits:
    """How long a search may take.

    asked              seconds that the user allows; None: as long as calibration took, at most
                       SEARCH_SECONDS
    calibrate_seconds  that calibration took
    new_search         whether to search even where a search of the same graph is kept
    """

    asked: float | None
    calibrate_seconds: float
    new_search: bool = False

    @property
    def seconds(self) -> float:
        """After these no further trial begins."""
        if self.asked is None:
            return min(SEARCH_SECONDS, self.calibrate_seconds)
        return self.asked

    def go_beyond(self, kept: KeptSearch) -> bool:
        """Whether a search under these limits could go further than `kept`."""
        if kept.interrupted:
            return True
        if kept.finished or (self.asked is None and kept.is_default):
            return False
        return self.seconds > kept.seconds


def fastest_placement(
    evaluator: Evaluator, limits: SearchLimits
) -> tuple[SearchResult, list[str]]:
    """(the fastest placement that is found, with others that come near it; remarks).

    The builder's scheme then says which FORMS are faster.
    """
    key = kept_search.circumstances(evaluator)
    kept: KeptSearch | None = None
    remarks: list[str] = []
    known: list[Placement] = []
    if not limits.new_search:
        space = evaluator.builder.space
        kept, remarks = kept_search.read(key, space, FORMS)
        known = kept_search.related(key, space)
    if kept is not None and not limits.go_beyond(kept):
        again = _time_again(evaluator, kept)
        if again is not None:
            return again, [_kept_remark(evaluator, kept)]
        kept = None  # the engine refuses now what it ran then
    if kept is not None:
        known.insert(0, kept.best.placement(evaluator.builder.space))
        remarks.append(_further_remark(evaluator, kept))
    before = noise.read_counters()
    result = _search_and_keep(evaluator, limits, key, kept, known)
    used_by_others = noise.between(before, noise.read_counters())["used_by_others"]
    if used_by_others is not None and used_by_others > noise.OTHERS:
        return result, [*remarks, _busy_remark(evaluator)]
    if _is_unsteady(result):
        return result, [*remarks, _unsteady_remark(evaluator)]
    found = KeptSearch.of(
        result,
        _forms_of(evaluator.builder),
        limits.seconds,
        is_default=limits.asked is None,
    )
    return result, remarks + kept_search.write(key, found)


def _search_and_keep(
    evaluator: Evaluator,
    limits: SearchLimits,
    key: Mapping[str, Any],
    kept: KeptSearch | None,
    known: Sequence[Placement],
) -> SearchResult:
    """Search, and keep what is fastest so far as soon as it is known.

    kept   what an earlier search of the graph found
    known  where to begin, besides the usual starts
    """
    choose_forms(evaluator)
    forms = _forms_of(evaluator.builder)

    def keep(faster: Placement) -> None:
        """In the file of the search, which is replaced when it has come to its end."""
        if kept is None:
            best = KeptPlacement.of(faster)
            so_far = KeptSearch(best, (), (), forms, 0.0, False, interrupted=True)
        else:
            so_far = kept.with_best(faster, forms)
        kept_search.write(key, so_far)

    return search_placement(evaluator, limits.seconds, known, keep)


def _forms_of(builder: Builder) -> tuple[str, ...]:
    """Names of the FORMS that the builder's scheme has."""
    return tuple(name for name in FORMS if getattr(builder.scheme, name))


def _time_again(evaluator: Evaluator, kept: KeptSearch) -> SearchResult | None:
    """What an earlier search found, with the latencies of now; None where it no longer runs."""
    builder = evaluator.builder
    asked = builder.scheme
    builder.scheme = with_forms(asked, kept.forms)
    found = kept_search.placements(kept, builder.space)
    finalists = 1 + len(kept.nearly_as_fast)
    result = placement_search.time_again(
        _race(evaluator),
        found[:finalists],
        found[finalists:],
        evaluator.gate.candidate_seconds,
    )
    if result is None:
        builder.scheme = asked
    free_memory()
    return result


def _kept_remark(evaluator: Evaluator, kept: KeptSearch) -> Remark:
    return Remark(
        "{engine}: an earlier search of the same graph ({date}) found the placement, which was "
        "timed again; --new-search searches anew",
        engine=evaluator.gate.engine.name,
        date=kept.date,
    )


def _further_remark(evaluator: Evaluator, kept: KeptSearch) -> Remark:
    return Remark(
        "{engine}: the search for a placement went on from what an earlier one found ({date})",
        engine=evaluator.gate.engine.name,
        date=kept.date,
    )


def _is_unsteady(result: SearchResult) -> bool:
    """Whether the latency of the best placement over float's is as good as unknown."""
    ratio = result.best.ratio
    return ratio is not None and ratio.ratio_high > noise.UNSTEADY * ratio.ratio_low


def _unsteady_remark(evaluator: Evaluator) -> Remark:
    return Remark(
        "latencies changed by more than a factor of {factor:g} between rounds while the placement "
        "was searched on {engine}, which something that slows this machine down may cause: it may "
        "not be the fastest, and is searched again the next time",
        factor=noise.UNSTEADY,
        engine=evaluator.gate.engine.name,
    )


def _busy_remark(evaluator: Evaluator) -> Remark:
    return Remark(
        "other processes used this machine while the placement was searched on {engine}: it may "
        "not be the fastest, and is searched again the next time",
        engine=evaluator.gate.engine.name,
    )


def probe_int8(evaluator: Evaluator) -> None:
    """Run the model with all it can have in INT8 once in a child process.

    Raises:
        CrashError: the engine crashes or hangs.
    """
    builder = evaluator.builder
    tried = _forms_for(builder)
    forms = [with_forms(builder.scheme, [])]
    if tried:
        forms.append(with_forms(builder.scheme, tried))
    _race(evaluator).probe(builder.space.starting_placements()[0], forms)
    free_memory()


def choose_forms(evaluator: Evaluator) -> None:
    """Keep those of the scheme's FORMS that are faster here.

    All of them together are timed beside all but one: each must gain beside the others.
    """
    builder = evaluator.builder
    tried = _forms_for(builder)
    faster: list[str] = []
    if tried:
        first = builder.space.starting_placements()[0]
        schemes = [with_forms(builder.scheme, tried)]
        for left_out in tried:
            others = [name for name in tried if name != left_out]
            schemes.append(with_forms(builder.scheme, others))
        ratios = _race(evaluator).form_ratios(first, schemes)
        for name, ratio in zip(tried, ratios, strict=True):
            if FORMS[name].wins(ratio):
                faster.append(name)
    builder.scheme = with_forms(builder.scheme, faster)
    free_memory()


def _forms_for(builder: Builder) -> list[str]:
    """The names of the FORMS that the scheme asks for and the model has a use for."""
    if builder.scheme.runs_on_board:
        return []  # what is fast on this host says nothing of a board
    original = builder.cache.original
    names: list[str] = []
    for name, form in FORMS.items():
        if getattr(builder.scheme, name) and form.applies(original):
            names.append(name)
    return names


def with_forms(scheme: QuantScheme, names: Collection[str]) -> QuantScheme:
    """`scheme` with those of its FORMS that are in `names`, and no others."""
    settings: dict[str, Any] = {}
    for name in FORMS:
        settings[name] = name in names and getattr(scheme, name)
    return replace(scheme, **settings)


def gelu_remarks(evaluator: Evaluator) -> list[str]:
    """What to know where GELU is a polynomial."""
    if not evaluator.builder.scheme.gelu_polynomial:
        return []
    remark = Remark(
        "GELU is written as a polynomial, which {engine} computes faster here; it is within "
        "{error} of GELU, less than an INT8 step",
        engine=evaluator.gate.engine.name,
        error=LARGEST_ERROR,
    )
    return [remark]


def search_placement(
    evaluator: Evaluator,
    seconds: float,
    known: Sequence[Placement] = (),
    keep: Callable[[Placement], None] | None = None,
) -> SearchResult:
    """The fastest placement that is found in about `seconds`, and others that come near it.

    known, keep  see `placement_search.find_fastest`
    """
    starts = evaluator.builder.space.starting_placements()
    screening = evaluator.gate.candidate_seconds
    result = placement_search.find_fastest(
        _race(evaluator), starts, screening, seconds, known, keep
    )
    free_memory()
    return result


def requested_placement(evaluator: Evaluator, choice: PlacementChoice) -> SearchResult:
    """The placement called `choice`, timed against float, and no others.

    It is not timed where only a board runs it.
    """
    space = evaluator.builder.space
    placement = space.starting_placements()[0]  # the one with most in INT8
    if choice == "layers":
        layers = layer_names(space)
        placement = space.placement(choice, layers)
    if evaluator.builder.scheme.runs_on_board:
        return SearchResult(TimedPlacement(placement, None), ())
    race = _race(evaluator)
    started = time.perf_counter()
    ratio = race.ratios_to_float([placement], evaluator.gate.candidate_seconds)[0]
    free_memory()
    if ratio is None:
        raise race.refusal(placement) or InputError("the engine refuses this placement")
    seconds = round(time.perf_counter() - started, 2)
    return SearchResult(TimedPlacement(placement, ratio), (), seconds=seconds)


def model_for_timing(evaluator: Evaluator, placement: Placement) -> Artifact:
    """The INT8 model of `placement`, of which only the latency matters (placement_race.py)."""
    return _race(evaluator).write(placement)


def _race(evaluator: Evaluator) -> PlacementRace:
    """What times placements of the float model, as it is before any rewrite."""
    builder = evaluator.builder
    original = builder.cache.original
    return PlacementRace(
        evaluator.gate,
        original.model,
        original.statistics,
        builder.scheme,
        builder.space,
    )
