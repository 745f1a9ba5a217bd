"""Weights in files beside the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repzoo import artifact as artifacts
from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.external_data import external_tensors

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n,3,8,8] x) => (float[n,600] y) {
  p = GlobalAveragePool (x)
  f = Flatten (p)
  y = MatMul (f, w)
}
"""


@pytest.fixture
def plain() -> onnx.ModelProto:
    """A classifier with one weight of 7,200 bytes."""
    model = onnx.parser.parse_model(MODEL)
    values = np.random.default_rng(0).standard_normal((3, 600)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


@pytest.fixture
def external(plain: onnx.ModelProto, tmp_path: Path) -> Path:
    """The same with its weight in `m.onnx.data`."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=0,
    )
    assert path.with_name("m.onnx.data").stat().st_size == 7200
    return path


Change = Callable[[str, str], None]
Run = Callable[..., Any]


@pytest.fixture
def change(external: Path) -> Change:
    """`change(key, value)`: set an entry of the weight's external data."""

    def changed(key: str, value: str) -> None:
        model = onnx.load(external, load_external_data=False)
        entries = model.graph.initializer[0].external_data
        for item in list(entries):
            if item.key == key:
                entries.remove(item)
        entries.add(key=key, value=value)
        external.write_bytes(model.SerializeToString())

    return changed


def test_weights_are_read_and_hashed_with_the_model(
    plain: onnx.ModelProto, external: Path, tmp_path: Path
) -> None:
    model = Artifact.read(external)
    weight = numpy_helper.to_array(model.model.graph.initializer[0])
    assert np.array_equal(weight, numpy_helper.to_array(plain.graph.initializer[0]))
    joined = external.read_bytes() + (external.parent / "m.onnx.data").read_bytes()
    assert model.sha256 == hashlib.sha256(joined).hexdigest()
    saved = model.save(tmp_path / "one.onnx")
    assert not (tmp_path / "one.onnx.data").exists()
    assert not external_tensors(onnx.load(tmp_path / "one.onnx"))
    data = (tmp_path / "one.onnx").read_bytes()
    assert saved.sha256 == hashlib.sha256(data).hexdigest()


def test_a_model_too_large_for_one_message_keeps_its_weights_beside_it(
    plain: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_MODEL_BYTES", 4000)
    saved = Artifact(plain, "m").save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == 7200
    again = Artifact.read(tmp_path / "m.onnx")
    assert again.sha256 == saved.sha256
    assert again.model.graph == plain.graph
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "location", ["../m.onnx.data", "/etc/hostname", "", "a/../../b", "..\\m.onnx.data"]
)
def test_weights_outside_of_the_folder_are_refused(
    external: Path, change: Change, location: str
) -> None:
    (external.parent.parent / "m.onnx.data").write_bytes(bytes(7200))
    change("location", location)
    with pytest.raises(InputError, match="not within the model's own folder"):
        Artifact.read(external)


def test_a_link_out_of_the_folder_is_refused(external: Path) -> None:
    data = external.parent / "m.onnx.data"
    outside = data.replace(external.parent.parent / "elsewhere")
    data.symlink_to(outside)
    with pytest.raises(InputError, match="not within the model's own folder"):
        Artifact.read(external)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "absent", "does not exist; copy it beside the model"),
        ("offset", "100", "which has 7,200; it is truncated"),
        ("offset", "-4", "which is no number of bytes"),
        ("offset", "9" * 30, "which is no number of bytes"),
        ("length", "8", "has 7,200 bytes by its shape, but 8"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    external: Path, change: Change, run: Run, key: str, value: str, message: str
) -> None:
    change(key, value)
    refused = run("count", external)
    assert refused.code == 2
    assert message in refused.err


def test_a_subgraph_is_searched_too(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    weight = model.graph.initializer[0]
    weight.external_data[0].value = "../secret"
    constant = onnx.helper.make_node("Constant", [], ["c"], value=weight)
    branch = onnx.helper.make_graph(
        [constant], "b", [], [onnx.helper.make_tensor_value_info("c", 1, None)]
    )
    node = model.graph.node.add(op_type="If", input=["k"], output=["z"])
    for name in ("then_branch", "else_branch"):
        node.attribute.append(onnx.helper.make_attribute(name, branch))
    del model.graph.initializer[:]
    external.write_bytes(model.SerializeToString())
    assert len(external_tensors(model)) == 2
    with pytest.raises(InputError, match="not within the model's own folder"):
        Artifact.read(external)


def test_bytes_alone_have_no_folder(external: Path) -> None:
    with pytest.raises(InputError, match="keeps its weights in another file"):
        Artifact.from_bytes(external.read_bytes(), "m")
