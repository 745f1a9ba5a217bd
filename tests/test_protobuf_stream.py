"""The bytes of a model in pieces are protobuf's own bytes."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from repzoo import protobuf_stream as wire
from repzoo.zoo import embedded


def test_the_pieces_of_a_real_model_are_its_bytes() -> None:
    model = embedded.read(embedded.names()[0]).model
    parts = list(wire.chunks(model))
    assert b"".join(parts) == model.SerializeToString(deterministic=True)
    assert len(parts) > 2 * len(model.graph.initializer)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 30, 31, 32, 127, 4000, 70_000]), max_size=4),
    texts=st.lists(st.text(max_size=200)),
)
@settings(max_examples=60, deadline=None)
def test_the_pieces_of_any_model_are_its_bytes(
    sizes: list[int], texts: list[str]
) -> None:
    weights = [
        numpy_helper.from_array(np.zeros(size, np.float32), f"w{size}")
        for size in sizes
    ]
    data = helper.make_tensor_value_info("x", 1, ["N", None])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name=text) for text in texts],
        "g",
        [data],
        [],
        weights,
    )
    model = helper.make_model(graph, producer_name="".join(texts))
    model.metadata_props.add(key="a", value="b")
    assert b"".join(wire.chunks(model)) == model.SerializeToString(deterministic=True)


def test_a_model_without_a_graph_and_one_with_other_metadata() -> None:
    assert (
        b"".join(wire.chunks(onnx.ModelProto(ir_version=8)))
        == onnx.ModelProto(ir_version=8).SerializeToString()
    )
    model = onnx.ModelProto(ir_version=8)
    model.metadata_props.add(key="a", value="b")
    got = onnx.ModelProto.FromString(
        b"".join(
            wire.chunks(
                model, metadata_props=[onnx.StringStringEntryProto(key="c", value="d")]
            )
        )
    )
    assert [(item.key, item.value) for item in got.metadata_props] == [("c", "d")]
