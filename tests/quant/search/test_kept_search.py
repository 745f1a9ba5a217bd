"""What a placement search found is kept, and trusted no further than it can be checked."""

from __future__ import annotations

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
from repzoo.quant.search.placement_choice import SearchLimits, fastest_placement
from repzoo.quant.search.verdict import Budget

LIMITS = SearchLimits(seconds=0.0, calibrate_seconds=60.0)


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


def test_a_search_on_a_busy_machine_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_noise, "OTHERS", -1.0)
    found = evaluator()
    _, remarks = fastest_placement(found, LIMITS)
    assert not kept_file(found).exists()
    assert "on onnxruntime: it may not be the fastest" in remarks[-1]


def test_a_search_that_ran_out_of_time_serves_those_that_have_no_more() -> None:
    found = KeptSearch(KeptPlacement("layers", ("a",)), (), (), (), 5.0, False)
    assert found.is_enough(5.0)
    assert not found.is_enough(6.0)
    assert replace(found, finished=True).is_enough(6.0)


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
