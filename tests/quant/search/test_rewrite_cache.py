"""Float graphs are made once per chain of rewrites, shared by stages, and dropped when done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx

from repzoo.measure.expected_drop import Margins
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.rewrites.stages import FloatModel, Rewrite, Stage
from repzoo.quant.search.rewrite_cache import RewriteCache

NO_MARGINS = Margins(np.zeros((0, 1), np.int64), np.zeros((0, 1)))


def original() -> FloatModel:
    return FloatModel(onnx.ModelProto(), Statistics({}, {}, 0, NO_MARGINS))


def rename(name: str, calls: list[str]) -> Rewrite:
    """A rewrite that appends `name` to the producer's name, and says in `calls` that it ran."""

    def rewrite(before: FloatModel) -> FloatModel:
        calls.append(name)
        model = onnx.ModelProto(producer_name=before.model.producer_name + name)
        return replace(before, model=model)

    return rewrite


def nothing_to_do(_: FloatModel) -> None:
    return None


def stage(*rewrites: Callable[[FloatModel], FloatModel | None]) -> Stage:
    return Stage("stage", Corrections(), rewrites)


def test_a_stage_without_rewrites_gets_the_original_model() -> None:
    model = original()
    cache = RewriteCache(model)
    assert cache.get(stage()) is model
    assert cache.original is model


def test_rewrites_run_once_and_are_shared_by_stages_that_begin_alike() -> None:
    calls: list[str] = []
    first, second = rename("a", calls), rename("b", calls)
    cache = RewriteCache(original())
    assert cache.get(stage(first, second)).model.producer_name == "ab"
    assert cache.get(stage(first)).model.producer_name == "a"
    assert cache.get(stage(first, second)).model.producer_name == "ab"
    assert calls == ["a", "b"]


def test_a_chain_with_a_rewrite_that_changes_nothing_is_skipped() -> None:
    calls: list[str] = []
    cache = RewriteCache(original())
    assert not cache.changes(stage(nothing_to_do))
    assert not cache.changes(stage(nothing_to_do, rename("a", calls)))
    assert not cache.changes(stage(rename("a", calls), nothing_to_do))
    assert calls == ["a"]
    assert cache.changes(stage(rename("b", calls)))


def test_graphs_that_no_further_stage_needs_are_dropped() -> None:
    calls: list[str] = []
    first, second, third = (rename(name, calls) for name in "abc")
    model = original()
    cache = RewriteCache(model)
    cache.get(stage(first, second))
    cache.get(stage(third))
    cache.keep_only([stage(first)])
    cache.get(stage(first))
    assert calls == ["a", "b", "c"]
    cache.get(stage(first, second))
    cache.get(stage(third))
    assert calls == ["a", "b", "c", "b", "c"]
    cache.keep_only([])
    assert cache.original is model
