"""Layers as matrices: shapes there and back, and sums over the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from repzoo.quant.network.layers import Layer, is_scaled_product

GROUPED = Layer(
    name="y",
    op="Conv",
    source="x",
    weight="w",
    bias="",
    shape=(6, 2, 3, 3),
    groups=2,
    kernel=(3, 3),
)
LINEAR = Layer("y", "Gemm", "x", "w", "", (4, 5), transposed=True)


@pytest.mark.parametrize("layer", [GROUPED, LINEAR])
def test_rows_turn_back_into_the_stored_weight(layer: Layer) -> None:
    weight = np.random.default_rng(0).standard_normal(layer.shape)
    rows = layer.to_rows(weight)
    assert rows.shape[0] == layer.groups
    assert rows.shape[2] == layer.fan_in
    np.testing.assert_array_equal(layer.from_rows(rows), weight)


@pytest.mark.parametrize("layer", [GROUPED, LINEAR])
def test_a_channel_has_one_column_entry_for_each_kernel_position(layer: Layer) -> None:
    values = np.arange(1.0, layer.in_channels + 1)
    columns = layer.per_column(values)
    assert columns.shape == (layer.groups, layer.fan_in)
    np.testing.assert_array_equal(layer.per_channel(columns), layer.taps * values)


def test_taps_of_a_grouped_convolution() -> None:
    weight = np.random.default_rng(0).standard_normal(GROUPED.shape)
    taps = GROUPED.taps_of(GROUPED.to_rows(weight))
    assert taps.shape == (2, 3, 2, 9)
    # output 4 is the second of the second group
    np.testing.assert_array_equal(taps[1, 1], weight[4].reshape(2, 9))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, False),
        ({"alpha": 1.0}, False),
        ({"beta": 0.5}, True),
        ({"alpha": 2.0}, True),
    ],
)
def test_a_gemm_with_other_factors_is_more_than_a_layer(
    attributes: dict[str, Any], expected: bool
) -> None:
    node: onnx.NodeProto = helper.make_node("Gemm", ["x", "w"], ["y"], **attributes)
    assert is_scaled_product(node) == expected
