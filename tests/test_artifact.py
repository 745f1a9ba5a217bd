"""Artifacts: what is written is what is read, and no file on disk can do worse than be refused
with a sentence.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import InputError
from repzoo.onnx_file import MAX_DEPTH, classifier_input
from repzoo.storage import sha256_of

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,4,4] data) => (float[N,2] output) {
    pooled = GlobalAveragePool (data)
    flat = Flatten (pooled)
    output = Gemm <transB: int = 1> (flat, weight)
}
"""


def graph(text: str = TEXT, **metadata: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(
        numpy_helper.from_array(np.ones((2, 3), np.float32), "weight")
    )
    for key, value in metadata.items():
        model.metadata_props.add(key=f"repzoo.{key}", value=value)
    return model


PREPROCESS = Preprocess(
    4, "squash", 0.9, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BGR"
)


def make_artifact() -> Artifact:
    return Artifact(
        graph(),
        "net",
        PREPROCESS,
        ("cat", "猫"),
        (Step("build", "1", {"a": [1, None]}, "00"),),
        {"certificate": {"x": 1.5}},
    )


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    artifact = make_artifact()
    written = artifact.save(tmp_path / "some.name.onnx")
    again = Artifact.read(tmp_path / "some.name.onnx")
    assert replace(again, model=written.model) == written
    assert again.name == "some.name"
    assert again.sha256 == sha256_of((tmp_path / "some.name.onnx").read_bytes())
    assert (again.preprocess, again.labels, again.steps, again.extras) == (
        artifact.preprocess,
        artifact.labels,
        artifact.steps,
        artifact.extras,
    )
    assert again.model.graph == artifact.model.graph


def test_equal_artifacts_have_equal_bytes_in_any_order_of_their_extras() -> None:
    artifact = make_artifact()
    assert artifact.to_bytes() == make_artifact().to_bytes()
    extras = {"a": {"x": 1, "y": 2}, "b": 3}
    other = {"a": {"y": 2, "x": 1}, "b": 3}
    assert (
        replace(artifact, extras=extras).to_bytes()
        == replace(artifact, extras=other).to_bytes()
    )
    assert (
        Artifact.from_bytes(artifact.to_bytes(), "net").to_bytes()
        == artifact.to_bytes()
    )
    assert replace(artifact, labels=("cat", "dog")).to_bytes() != artifact.to_bytes()


def test_others_metadata_is_kept_and_ours_replaced() -> None:
    model = graph(labels='["old", "older"]')
    model.metadata_props.add(key="author", value="someone")
    again = Artifact.from_bytes(
        Artifact(model, "net", labels=("a", "b")).to_bytes(), "net"
    )
    assert again.labels == ("a", "b")
    assert [
        item.value for item in again.model.metadata_props if item.key == "author"
    ] == ["someone"]
    assert sum(item.key == "repzoo.labels" for item in again.model.metadata_props) == 1


def test_writing_leaves_the_artifact_in_memory_as_it_was() -> None:
    artifact = make_artifact()
    artifact.to_bytes()
    assert not artifact.model.metadata_props


def test_a_foreign_file_without_preprocessing_is_refused_with_the_options_to_set() -> (
    None
):
    artifact = Artifact.from_bytes(graph().SerializeToString(), "theirs")
    assert (artifact.preprocess, artifact.labels, artifact.steps, artifact.extras) == (
        None,
        (),
        (),
        {},
    )
    with pytest.raises(
        InputError,
        match=r"theirs does not say.*--size --resize --crop-fraction --interpolation --mean --std --color",
    ):
        artifact.require_preprocess()
    assert make_artifact().require_preprocess() == PREPROCESS


def test_then_adds_a_step_that_names_its_input_and_hashes_its_output() -> None:
    first = Artifact.from_bytes(make_artifact().to_bytes(), "net")
    model = graph()
    model.graph.name = "other"
    second = first.then(model, Step("fold", "2", {"k": 1}), certificate={"equal": True})
    assert second.steps == (*first.steps, Step("fold", "2", {"k": 1}, first.sha256))
    assert second.sha256 == sha256_of(second.to_bytes()) != first.sha256
    assert second.extras == {"certificate": {"equal": True}}
    assert (second.labels, second.preprocess) == (first.labels, first.preprocess)
    assert first.extras == {"certificate": {"x": 1.5}}


@pytest.mark.parametrize(
    ("node", "form"),
    [("", "deploy"), ("BatchNormalization", "train"), ("QuantizeLinear", "int8")],
)
def test_the_form_is_read_off_the_graph(node: str, form: str) -> None:
    model = graph()
    if node:
        model.graph.node.append(helper.make_node(node, ["x"] * 5, ["y"]))
    assert Artifact(model, "net").form == form


def test_opset_input_and_classes_are_read_off_the_graph() -> None:
    artifact = make_artifact()
    assert (artifact.opset, artifact.input_name, artifact.num_classes) == (
        17,
        "data",
        2,
    )
    assert (
        Artifact(
            graph(TEXT.replace("float[N,2] output", "float output")), "net"
        ).num_classes
        == 0
    )
    old = graph(TEXT)
    old.graph.input.append(
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [2, 3])
    )  # as before IR version 4
    assert Artifact(old, "net").input_name == "data"


# Damaged and hostile files


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = make_artifact().to_bytes()
    path = tmp_path / "cut.onnx"
    survived = []
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with contextlib.suppress(InputError):  # any other exception fails
            survived.append(Artifact.read(path))
    # Only a cut exactly between two metadata entries leaves a valid ONNX file, in which less is
    # said.
    assert len(survived) == len(make_artifact()._documents())
    assert all(
        artifact.model.graph == make_artifact().model.graph for artifact in survived
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no ONNX graph"),
        (b"\x00" * 64, "not a readable ONNX file"),
        (b"PK\x03\x04 a zip archive", "not a readable ONNX file"),
        (b"\x89PNG\r\n\x1a\n", "not a readable ONNX file"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no ONNX graph"),
    ],
)
def test_what_is_not_onnx_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^x.onnx.*{message}"):
        Artifact.from_bytes(data, "x", "x.onnx")


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_any_damaged_byte_is_refused_or_survives_another_round(
    changes: list[tuple[float, int]],
) -> None:
    data = bytearray(make_artifact().to_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    with contextlib.suppress(InputError):  # any other exception fails
        once = Artifact.from_bytes(bytes(data), "damaged")
        twice = Artifact.from_bytes(once.to_bytes(), "damaged")
        assert (twice.preprocess, twice.labels, twice.steps) == (
            once.preprocess,
            once.labels,
            once.steps,
        )


@pytest.mark.parametrize(
    "title",
    [
        "producer_name",
        "producer_version",
        "domain",
        "doc_string",
        "graph.name",
        "graph.doc_string",
    ],
)
def test_a_title_that_is_not_text_is_refused(title: str) -> None:
    model = onnx.load_from_string(make_artifact().to_bytes())
    holder = model.graph if title.startswith("graph.") else model
    setattr(holder, title.removeprefix("graph."), "QQQQ")
    with pytest.raises(InputError, match="UTF-8"):
        Artifact.from_bytes(
            model.SerializeToString().replace(b"QQQQ", b"QQ\x80Q"), "damaged"
        )


def test_an_invalid_graph_is_refused_with_the_checkers_first_line() -> None:
    model = graph()
    model.graph.node[2].input[0] = "nowhere"
    with pytest.raises(
        InputError, match=r"^the model is not valid ONNX: .*nowhere[^\n]*$"
    ):
        Artifact.from_bytes(model.SerializeToString(), "x")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
def test_deeply_nested_metadata_is_refused(
    depth: int, brackets: tuple[str, str]
) -> None:
    nested = brackets[0] * depth + "1" + brackets[1] * depth
    with pytest.raises(InputError, match=r"^x\.onnx has damaged metadata"):
        Artifact.from_bytes(graph(extra=nested).SerializeToString(), "x", "x.onnx")


def test_metadata_as_deep_as_allowed_survives() -> None:
    nested = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    artifact = Artifact.from_bytes(graph(extra=nested).SerializeToString(), "x")
    assert Artifact.from_bytes(artifact.to_bytes(), "x").extras == {
        "extra": json.loads(nested)
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("preprocess", "{", "damaged metadata"),
        ("preprocess", "", "damaged metadata"),
        ("preprocess", "9" * 5000, "damaged metadata"),
        ("preprocess", "[]", "wrong shape"),
        ("preprocess", "3", "wrong shape"),
        (
            "preprocess",
            '{"sise": 3}',
            "unknown preprocess field 'sise'; expected some of color, crop_fraction",
        ),
        ("preprocess", '{"size": "3"}', "size must be an integer"),
        ("preprocess", '{"size": true}', "size must be an integer"),
        ("preprocess", '{"mean": 3}', "wrong type"),
        ("preprocess", '{"mean": [0, 0, NaN]}', "mean must be 3 values, each a number"),
        (
            "preprocess",
            '{"std": [1, 1, 1e-300]}',
            "std must be 3 values, each a number from 1e-06",
        ),
        ("preprocess", '{"crop_fraction": "all"}', "must be a number"),
        ("labels", '"ab"', "wrong shape"),
        ("labels", '{"a": 0, "b": 1}', "wrong shape"),
        ("labels", "[1, 2]", "wrong shape"),
        ("labels", '["a", "b", "c"]', "3 labels for 2 outputs"),
        ("steps", '{"verb": "x"}', "wrong shape"),
        ("steps", '[{"verb": "x"}]', "wrong shape"),
        ("steps", "[7]", "wrong shape"),
        ("steps", '[{"verb": "x", "version": "1", "color": 3}]', "wrong shape"),
        (
            "steps",
            '[{"verb": "x", "version": "1", "settings": 3}]',
            "a step has a verb",
        ),
        ("steps", '[{"verb": 1, "version": "1"}]', "a step has a verb"),
    ],
)
def test_metadata_that_is_not_ours_is_refused_and_the_file_named(
    key: str, value: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^x\.onnx.*{message}"):
        Artifact.from_bytes(graph(**{key: value}).SerializeToString(), "x", "x.onnx")


def test_metadata_that_is_not_utf8_is_refused() -> None:
    data = graph(labels='["??", "b"]').SerializeToString()
    for broken in (
        data.replace(b"??", b"\xff\xfe"),
        data.replace(b"repzoo.labels", b"\xff\xfepzoo.labels"),
    ):
        assert broken != data
        with pytest.raises(
            InputError, match=r"^the model holds a name that is not UTF-8"
        ):
            Artifact.from_bytes(broken, "x")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (
            ("float[N,3,4,4] data", "float[N,3,4,4] data, float[N,3,4,4] second"),
            "second of rank 4",
        ),
        (("float[N,2] output", "float[N,2,3] output"), "output of rank 3"),
        (("float[N,3,4,4] data", "float[N,3] data"), "data of rank 2"),
        (
            ("=> (float[N,2] output)", "=> (float[N,2] output, float[N,3] flat)"),
            "flat of rank 2",
        ),
    ],
)
def test_what_is_not_a_classifier_is_refused(change: tuple[str, str], got: str) -> None:
    text = TEXT.replace(*change)
    assert text != TEXT
    with pytest.raises(
        InputError,
        match=rf"^not a classifier: expected one input \[N, 3, H, W\].*{got}",
    ):
        classifier_input(graph(text))


def test_a_detector_is_refused_by_name_where_a_classifier_is_needed() -> None:
    text = TEXT.replace(
        "float[N,3,4,4] data", "float[N,3,4,4] data, float[N,3,4,4] second"
    )
    detector = Artifact.from_bytes(graph(text).SerializeToString(), "x", "x.onnx")
    with pytest.raises(InputError, match=r"^x is not a classifier"):
        detector.input_name  # noqa: B018


# Preprocess


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("size", [0, -1, 4097, 32.0, "32", None, True]),
        ("crop_fraction", [0, 0.04, 1.01, math.nan, math.inf, -0.875]),
        ("resize", ["long", "", None]),
        ("interpolation", ["area", "BILINEAR"]),
        ("color", ["rgb", "GBR"]),
        (
            "mean",
            [
                (0.0, 0.0),
                (0.0, 0.0, math.nan),
                (0.0, 0.0, math.inf),
                (0.0, 0.0, 1e39),
                (0.0,) * 4,
            ],
        ),
        (
            "std",
            [
                (1.0, 1.0),
                (1.0, 1.0, 0.0),
                (1.0, -1.0, 1.0),
                (1.0, 1.0, 1e-40),
                (1.0, 1.0, math.nan),
            ],
        ),
    ],
)
def test_no_preprocessing_that_could_not_be_done(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"preprocess {field}"):
            Preprocess(**{field: value})


@given(
    st.builds(
        Preprocess,
        size=st.integers(1, 4096),
        resize=st.sampled_from(["short", "squash"]),
        crop_fraction=st.floats(0.05, 1),
        mean=st.tuples(*[st.floats(-10, 10)] * 3),
        std=st.tuples(*[st.floats(1e-6, 1e6)] * 3),
    )
)
def test_preprocessing_survives_json_and_never_crops_more_than_there_is(
    preprocess: Preprocess,
) -> None:
    assert (
        Preprocess.from_mapping(json.loads(json.dumps(asdict(preprocess))))
        == preprocess
    )
    assert isinstance(preprocess.resize_to, int)
    assert preprocess.resize_to >= preprocess.height
