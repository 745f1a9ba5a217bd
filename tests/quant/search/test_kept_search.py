"""What a placement search found is kept, and trusted no further than it can be checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.small_model import sets, small

from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.graph.tools.skeleton import sha256_of_structure
from repzoo.measure import system_noise
from repzoo.measure.race_result import Load
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import kept_search, ladder, placement_search
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import Evaluator
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.kept_search import KeptPlacement, KeptSearch
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.placement_choice import (
    FORMS,
    SearchLimits,
    fastest_placement,
)
from repzoo.quant.search.verdict import Budget

LIMITS = SearchLimits(asked=0.0, calibrate_seconds=60.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))


def evaluator(artifact: Artifact | None = None, scheme: str = "ort-cpu") -> Evaluator:
    artifact = artifact or small()
    target = Target(engine("onnxruntime"), load_scheme(scheme))
    split = sets()
    gate = Gate(FloatComparison(artifact, split.gate, target.engine), Budget())
    return ladder.calibrate(gate, split, target)[0]


def with_other_weights(artifact: Artifact) -> Artifact:
    """As if it had been trained once more."""
    model = clone(artifact.model)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype.kind == "f":
            item.CopyFrom(numpy_helper.from_array(values * np.float32(1.1), item.name))
    return replace(artifact, model=model)


def wider(artifact: Artifact) -> Artifact:
    """The same function with two more channels, which are 0."""
    model = clone(artifact.model)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        more = {
            "first": ((0, 2), *[(0, 0)] * 3),
            "second": ((0, 0), (0, 2), (0, 0), (0, 0)),
        }
        if item.name in more:
            padded = np.pad(values, more[item.name])
            item.CopyFrom(numpy_helper.from_array(padded, item.name))
    return replace(artifact, model=model)


def kept_file(found: Evaluator) -> Path:
    return kept_search.path_of(kept_search.circumstances(found))


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    search = placement_search.find_fastest

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return search(*arguments)

    monkeypatch.setattr(placement_search, "find_fastest", counted)
    return calls


def test_a_second_search_of_the_graph_takes_what_the_first_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = count_searches(monkeypatch)
    first, remarks = fastest_placement(evaluator(), LIMITS)
    assert remarks == []
    again = evaluator(with_other_weights(small()))
    second, remarks = fastest_placement(again, LIMITS)
    assert len(searches) == 1
    assert "an earlier search of the same graph" in remarks[0]
    assert second.best.ratio is not None  # timed now, not remembered
    known = {first.best.placement, *first.others}
    assert {second.best.placement, *second.others} == known
    _, remarks = fastest_placement(again, replace(LIMITS, new_search=True))
    assert len(searches) == 2
    assert remarks == []


def known_to(searches: list[Any]) -> list[frozenset[str]]:
    """The nodes of the placements that the last of `searches` knew."""
    known = searches[-1][4]
    return [placement.nodes for placement in known]


def test_a_search_begins_with_what_was_fastest_in_another_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = count_searches(monkeypatch)
    narrow, _ = fastest_placement(evaluator(), LIMITS)
    assert known_to(searches) == []
    wide, remarks = fastest_placement(evaluator(wider(small())), LIMITS)
    assert len(searches) == 2
    assert known_to(searches) == [narrow.best.placement.nodes]
    assert remarks == []  # it is a start among others
    assert wide.best.ratio is not None
    fastest_placement(evaluator(wider(small())), replace(LIMITS, new_search=True))
    assert known_to(searches) == []
    fastest_placement(evaluator(wider(small()), "per-tensor"), LIMITS)
    assert known_to(searches) == []


def test_a_damaged_file_of_another_width_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = count_searches(monkeypatch)
    narrow = evaluator()
    fastest_placement(narrow, LIMITS)
    for text in ("{", "[]", kept_file(narrow).read_text().replace('"flat"', '"round"')):
        kept_file(narrow).write_text(text)
        _, remarks = fastest_placement(evaluator(wider(small())), LIMITS)
        assert remarks == []
        assert known_to(searches) == []
        kept_file(evaluator(wider(small()))).unlink()


def test_a_search_that_was_interrupted_goes_on_from_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    found = evaluator()
    with monkeypatch.context() as patched:
        patched.setattr(placement_search, "improve", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fastest_placement(found, LIMITS)
    key = kept_search.circumstances(found)
    kept, _ = kept_search.read(key, found.builder.space, FORMS)
    assert kept is not None
    assert kept.interrupted
    searches = count_searches(monkeypatch)
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert "went on from what an earlier one found" in remarks[0]
    assert known_to(searches) == [set(kept.best.nodes)]
    fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 1  # now it has come to its end


def test_a_kept_search_that_the_engine_refuses_by_now_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest_placement(evaluator(), LIMITS)
    searches = count_searches(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(placement_search, "time_again", lambda *_: None)
        _, remarks = fastest_placement(evaluator(), LIMITS)
    assert remarks == []
    assert known_to(searches) == []
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 1
    assert "an earlier search" in remarks[0]


def test_a_longer_search_that_is_interrupted_leaves_the_shorter_one_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = evaluator()
    fastest_placement(found, LIMITS)
    key = kept_search.circumstances(found)
    short, _ = kept_search.read(key, found.builder.space, FORMS)
    assert short is not None
    kept_search.write(key, replace(short, finished=False))
    layers = found.builder.space.placement("layers", ["c"])

    def interrupted(*arguments: Any) -> Any:
        keep = arguments[5]
        keep(layers)
        raise KeyboardInterrupt

    longer = evaluator()
    with monkeypatch.context() as patched:
        patched.setattr(placement_search, "find_fastest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fastest_placement(longer, replace(LIMITS, asked=9.0))
    kept, _ = kept_search.read(key, found.builder.space, FORMS)
    assert kept is not None
    assert set(kept.best.nodes) == layers.nodes
    assert kept.nearly_as_fast == short.nearly_as_fast
    assert not LIMITS.go_beyond(kept)
    assert replace(LIMITS, asked=9.0).go_beyond(kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "{",
        lambda _: "[]",
        lambda _: '{"search": 3}',
        lambda text: text.replace('"finished"', '"ended"'),
        lambda text: text.replace(small().model.graph.node[0].output[0], "elsewhere"),
        lambda text: text.replace('"nodes"', '"nodes": [], "was"', 1),
        lambda text: text.replace('"clients": 1', '"clients": 2'),
        lambda text: text.replace('"affinity": ', '"affinity": 9'),
        lambda _: "[" * 100_000,
        lambda text: text.replace('"forms": [', '"forms": ["bogus", ').replace(
            ", ]", "]"
        ),
        lambda text: text.replace('"seconds": ', '"seconds": NaN, "was": '),
        lambda text: text.replace('"name": "', '"name": "\\u001b', 1),
        lambda text: text.replace('"name": "', '"name": "' + 5000 * "x", 1),
    ],
)
def test_a_file_that_is_damaged_or_of_another_host_is_named_and_replaced(
    damage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = count_searches(monkeypatch)
    found = evaluator()
    fastest_placement(found, LIMITS)
    path = kept_file(found)
    content = path.read_text()
    assert damage(content) != content
    path.write_text(damage(content))
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 2
    assert len(remarks) == 1
    assert str(path) in remarks[0]
    assert "a new search replaces it" in remarks[0]
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 2
    assert "an earlier search" in remarks[0]


def test_a_cache_that_cannot_be_written_costs_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "file"))
    result, remarks = fastest_placement(evaluator(), LIMITS)
    assert result.best.ratio is not None
    assert "searched again the next time" in remarks[0]


def test_a_search_on_a_busy_machine_is_searched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_noise, "OTHERS", -1.0)
    found = evaluator()
    _, remarks = fastest_placement(found, LIMITS)
    assert "on onnxruntime: it may not be the fastest" in remarks[-1]
    searches = count_searches(monkeypatch)
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 1  # what was found is where it begins, and no more
    assert "went on" in remarks[0]


def test_a_search_whose_latencies_tell_nothing_is_searched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_noise, "UNSTEADY", 0.0)
    _, remarks = fastest_placement(evaluator(), LIMITS)
    assert "on onnxruntime, which something that slows" in remarks[-1]
    monkeypatch.setattr(system_noise, "UNSTEADY", math.inf)
    searches = count_searches(monkeypatch)
    fastest_placement(evaluator(), LIMITS)
    assert len(searches) == 1


def test_a_search_that_ran_out_of_time_serves_those_that_have_no_more() -> None:
    found = KeptSearch(KeptPlacement("layers", ("a",)), (), (), (), 5.0, False)
    assert not SearchLimits(5.0, 60.0).go_beyond(found)
    assert SearchLimits(6.0, 60.0).go_beyond(found)
    assert not SearchLimits(6.0, 60.0).go_beyond(replace(found, finished=True))
    assert SearchLimits(5.0, 60.0).go_beyond(replace(found, interrupted=True))


def test_without_a_limit_a_search_takes_as_long_as_calibration_and_a_minute_at_most() -> (
    None
):
    """And calibration that takes a little longer the next time is no reason for another."""
    assert SearchLimits(None, 7.0).seconds == 7
    assert SearchLimits(None, 300.0).seconds == 60
    assert SearchLimits(300.0, 7.0).seconds == 300
    found = KeptSearch(KeptPlacement("layers", ("a",)), (), (), (), 7.0, False)
    assert SearchLimits(None, 7.1).go_beyond(found)
    assert not SearchLimits(None, 7.1).go_beyond(replace(found, is_default=True))
    assert SearchLimits(7.1, 7.1).go_beyond(replace(found, is_default=True))


def test_the_structure_of_a_graph_is_all_but_the_values_of_its_weights() -> None:
    artifact = small()
    structure = sha256_of_structure(artifact.model)
    assert sha256_of_structure(with_other_weights(artifact).model) == structure
    named = clone(artifact.model)
    for node in named.graph.node:
        node.name, node.doc_string = "x", "exported from here"
    assert sha256_of_structure(named) == structure


def _set_attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    strides = next(item for item in node.attribute if item.name == "strides")
    strides.ints[0] += 1


def _set_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def _set_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Softmax"


def _set_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value += 1


def _set_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def _add_integers(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "shape"))


@pytest.mark.parametrize(
    "change",
    [_set_attribute, _set_shape, _set_operator, _set_input, _set_opset, _add_integers],
)
def test_whatever_else_differs_is_another_structure(
    change: Callable[[onnx.ModelProto], None],
) -> None:
    model = clone(small().model)
    change(model)
    assert sha256_of_structure(model) != sha256_of_structure(small().model)


def test_schemes_engines_clients_and_threads_have_searches_of_their_own() -> None:
    first = evaluator()
    key = kept_search.circumstances(first)
    assert kept_search.path_of(key) == kept_file(evaluator())
    assert kept_file(evaluator(scheme="per-tensor")) != kept_file(first)
    for load in (Load(clients=2), Load(threads=2)):
        first.gate.load = load
        assert kept_file(first) != kept_search.path_of(key)
    for name in ("engine", "host", "inputs"):
        assert kept_search.path_of({**key, name: []}) != kept_search.path_of(key)


def test_integers_in_a_shape_are_part_of_the_structure() -> None:
    one, two = clone(small().model), clone(small().model)
    one.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "shape"))
    two.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
    assert sha256_of_structure(one) != sha256_of_structure(two)
