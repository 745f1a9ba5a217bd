"""Weights on a target's grid: rounded once more, as each kind of tool does it, they stay."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from repzoo.quant.calibration.statistics import Moments
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import grid_rounding, weight_grid
from repzoo.quant.parameters.gptq import gptq_round

Float = npt.NDArray[np.float64]
RULES = ("largest", "minmax", "power-of-two")
# (groups, outputs of each group, weights of each output): dense, depthwise 3x3, 1x1, linear
SHAPES = [(1, 16, 72), (24, 1, 9), (1, 12, 1), (1, 10, 200), (3, 2, 5)]


def layer(shape: tuple[int, int, int], seed: int = 0) -> tuple[Float, Moments]:
    """Weights of channels of very different sizes, and moments of correlated inputs."""
    random = np.random.default_rng(seed)
    groups, outputs, columns = shape
    sizes = np.exp(random.standard_normal((groups, outputs, 1)) * 2)
    rows = random.standard_normal(shape) * sizes
    common = random.standard_normal((groups, 1, 3 * columns))
    inputs = np.abs(random.standard_normal((groups, columns, 3 * columns)) + 3 * common)
    inputs[:, :1] = 0  # an input that is always 0
    gram = inputs @ inputs.transpose(0, 2, 1) / inputs.shape[2]
    half = columns // 2
    blocks = [(0, half), (half, columns)] if half else [(0, columns)]
    stored = []
    for start, end in blocks:
        stored.append(gram[:, start:end, start:end].astype(np.float32))
    mean = inputs.mean(2)
    return rows, Moments(mean, tuple(stored), tuple(blocks), inputs.shape[2])


def scheme(
    rule: str = "largest", per_channel: bool = True, bits: int = 8
) -> QuantScheme:
    return QuantScheme(
        "tool", "", per_channel=per_channel, weight_bits=bits, weight_rule=rule
    )


def codes_of_a_tool(weights: npt.NDArray[np.float32], rule: str, bits: int) -> Float:
    """One tensor or channel as a vendor's tool rounds it, written from the rule alone."""
    values = [float(value) for value in weights.reshape(-1)]
    largest = max(abs(value) for value in values)
    if largest == 0:
        return np.zeros(len(values))
    limit = 127 if bits == 8 else 64
    if rule == "largest":
        step = largest / limit
    elif rule == "power-of-two":
        step = 2.0 ** math.ceil(math.log2(largest / limit) - 1e-9)
    else:
        step = (max(*values, 0.0) - min(*values, 0.0)) / (2**bits - 1)
    return np.array([value / step for value in values])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gptq", [True, False])
def test_a_tool_finds_the_same_integers(
    rule: str, per_channel: bool, bits: int, shape: tuple[int, int, int], gptq: bool
) -> None:
    rows, moments = layer(shape)
    target = scheme(rule, per_channel, bits)
    codes, grid = grid_rounding.round_onto_grid(rows, moments, target, gptq)
    written = (codes * grid.scale).astype(np.float32)
    units = written.reshape(shape[0] * shape[1], -1) if per_channel else written[None]
    expected = codes.reshape(len(units), -1)
    for weights, chosen in zip(units, expected, strict=True):
        found = codes_of_a_tool(weights, rule, bits)
        # not only rounded to the same integers: there is next to nothing to round
        np.testing.assert_allclose(found, chosen, atol=1e-4)
    again, scale = weight_grid.requantize(written, target)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal((again * scale).astype(np.float32), written)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_channel_reaches_127(shape: tuple[int, int, int]) -> None:
    rows, moments = layer(shape)
    codes, _ = grid_rounding.round_onto_grid(rows, moments, scheme(), gptq=True)
    assert (np.abs(codes).max(2) == 127).all()


def test_gptq_alone_leaves_channels_short_and_a_tool_then_finds_others() -> None:
    rows, moments = layer((1, 16, 72))
    scale = np.abs(rows).max(2, keepdims=True) / 127
    (start, end), *_ = moments.blocks
    codes = np.round(rows / scale)
    codes[:, :, start:end] = gptq_round(rows[:, :, start:end], moments.grams[0], scale)
    codes = np.where(np.abs(codes) == 127, 126.0, codes)
    again, _ = weight_grid.requantize((codes * scale).astype(np.float32), scheme())
    assert (again != codes).any()


def output_error(rows: Float, moments: Moments, written: Float) -> float:
    error = 0.0
    for gram, (start, end) in zip(moments.grams, moments.blocks, strict=True):
        difference = (written - rows)[:, :, start:end]
        error += float(np.einsum("gok,gkl,gol->", difference, gram, difference))
    return error


def test_reaching_the_end_costs_little() -> None:
    rows, moments = layer((1, 32, 72))
    codes, grid = grid_rounding.round_onto_grid(rows, moments, scheme(), gptq=True)
    short = np.clip(
        codes, -125, 125
    )  # as if compensation had moved the largest weights
    reached = grid_rounding.reach_ends(rows, short, grid, moments)
    assert (np.abs(reached).max(2) == 127).all()
    nearest = output_error(rows, moments, np.round(rows / grid.scale) * grid.scale)
    error = output_error(rows, moments, reached * grid.scale)
    assert error < 1.2 * output_error(rows, moments, codes * grid.scale)
    assert error < 0.5 * output_error(rows, moments, short * grid.scale)
    assert error < 0.8 * nearest
    # reaching it anywhere else than where it costs least would not do
    first = short.copy()
    first[:, :, 1] = 127
    assert output_error(rows, moments, first * grid.scale) > 10 * error


def test_channels_of_zeros_stay_zero() -> None:
    rows, moments = layer((1, 4, 9))
    rows[:, 1] = 0
    for rule in RULES:
        codes, _ = grid_rounding.round_onto_grid(rows, moments, scheme(rule), gptq=True)
        assert (codes[:, 1] == 0).all()
        assert codes[:, 0].any()


def test_weights_of_one_sign_use_the_whole_range_of_minmax() -> None:
    rows, moments = layer((1, 8, 30))
    rows = np.abs(rows)
    codes, grid = grid_rounding.round_onto_grid(
        rows, moments, scheme("minmax"), gptq=True
    )
    assert codes.min() >= 0
    assert (codes.max(2) == 255).all()
    step = rows.max(2) / 255
    np.testing.assert_allclose(grid.scale[:, :, 0], step, rtol=1e-4)


def test_a_scale_is_rounded_up_to_16_bits() -> None:
    assert weight_grid.exact_scale(np.array([1.0, 0.75])).tolist() == [1.0, 0.75]
    random = np.random.default_rng(0).uniform(1e-6, 1e3, 100)
    scales = weight_grid.exact_scale(random)
    assert (scales >= random).all()
    assert (scales < random * (1 + 2.0**-15)).all()
    for code in (127, -128, 255, 3):
        product = scales * code
        np.testing.assert_array_equal(product.astype(np.float32), product)


def test_each_check_of_the_proof_fails_for_its_mutant() -> None:
    rows, moments = layer((1, 6, 20))
    target = scheme()
    codes, grid = grid_rounding.round_onto_grid(rows, moments, target, gptq=True)
    written = (codes * grid.scale).astype(np.float32)
    moved = written.copy()
    moved[0, 2, 3] += np.float32(grid.scale[0, 2, 0])
    assert (weight_grid.requantize(moved, target)[0] != codes).any()
    short = np.where(np.abs(codes) == 127, 120, codes) * grid.scale
    assert (weight_grid.requantize(short.astype(np.float32), target)[0] != codes).any()
    other = replace(target, per_channel=False)
    assert (weight_grid.requantize(written, other)[0] != codes).any()
