"""Second-order rounding against exhaustive search, and the properties it must have whatever the numbers."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from repzoo.quant.calibration.statistics import squared_output
from repzoo.quant.parameters import gptq as rounding

Float = npt.NDArray[np.float64]


def problem(
    seed: int, groups: int, outputs: int, inputs: int, rows: int = 400
) -> tuple[Float, Float, Float]:
    """(weights [G, O, K], Gram matrix [G, K, K] of correlated inputs with a mean, scales [G, O, 1])."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, rows, inputs)) @ rng.standard_normal(
        (groups, inputs, inputs)
    ) + rng.uniform(0, 3, inputs)
    weights = rng.standard_normal((groups, outputs, inputs))
    return (
        weights,
        mixed.transpose(0, 2, 1) @ mixed / rows,
        np.abs(weights).max(2, keepdims=True) / 7,
    )  # 4-bit steps: rounding shows


def loss(weights: Float, gram: Float, scale: Float, integers: Float) -> Float:
    return squared_output(integers * scale - weights, gram.astype(np.float32))


def test_it_comes_near_the_best_of_all_roundings() -> None:
    found = []
    for seed in range(6):
        weights, gram, scale = problem(seed, 1, 3, 6)
        floors = np.floor(weights / scale)
        every = [floors + np.array(up) for up in itertools.product((-1, 0, 1, 2), repeat=6)]
        best = np.min([loss(weights, gram, scale, one) for one in every], axis=0).sum()
        ours = loss(
            weights, gram, scale, rounding.gptq_round(weights, gram, scale, damping=1e-6)
        ).sum()
        found.append(
            (
                best,
                ours,
                loss(weights, gram, scale, rounding.round_to_nearest(weights, scale)).sum(),
            )
        )
        assert best - 1e-9 <= ours
    best, ours, plain = np.array(found).sum(0)
    assert best < 0.6 * plain  # there is something to win
    assert ours <= best + 0.3 * (plain - best)


@pytest.mark.parametrize(
    ("groups", "outputs", "inputs"), [(1, 8, 150), (5, 2, 9), (1, 1, 1), (3, 4, 70)]
)
def test_it_never_errs_more_than_rounding_to_nearest(
    groups: int, outputs: int, inputs: int
) -> None:
    weights, gram, scale = problem(7, groups, outputs, inputs)
    integers = rounding.gptq_round(weights, gram, scale)
    assert (integers == np.round(integers)).all()
    assert np.abs(integers).max() <= 127
    assert (
        loss(weights, gram, scale, integers).sum()
        <= loss(weights, gram, scale, rounding.round_to_nearest(weights, scale)).sum() + 1e-12
    )


def test_independent_inputs_make_it_rounding_to_nearest() -> None:
    weights, _, scale = problem(1, 2, 4, 12)
    gram = np.broadcast_to(np.diag(np.arange(1.0, 13)), (2, 12, 12))
    np.testing.assert_array_equal(
        rounding.gptq_round(weights, gram, scale), rounding.round_to_nearest(weights, scale)
    )


def test_the_column_formula_is_the_papers() -> None:
    """One column at a time by the paper's own words: w += -(w_k - q_k) / [H^-1]_kk * [H^-1]_k,: , and k leaves H."""
    weights, gram, scale = problem(3, 1, 2, 7)
    found = rounding._round_column_by_column(weights, gram, scale)[0]
    for row in range(2):
        left, inverse = weights[0, row].copy(), np.linalg.inv(gram[0])
        for k in range(7):
            quantized = np.round(left[k] / scale[0, row, 0])
            assert found[row, k] == quantized
            left -= (left[k] - quantized * scale[0, row, 0]) / inverse[k, k] * inverse[k]
            inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]


def test_dead_inputs_and_dead_groups_are_rounded_plainly() -> None:
    weights, gram, scale = problem(5, 3, 2, 6)
    gram[1] = 0
    gram[2, :, 4] = gram[2, 4, :] = 0
    integers = rounding.gptq_round(weights, gram, scale)
    np.testing.assert_array_equal(integers[1], rounding.round_to_nearest(weights, scale)[1])
    assert np.isfinite(integers).all()
    np.testing.assert_array_equal(
        integers[2, :, 4], rounding.round_to_nearest(weights, scale)[2, :, 4]
    )


@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_the_triangular_inverse(size: int) -> None:
    rng = np.random.default_rng(size)
    upper = np.triu(rng.standard_normal((2, size, size)) / size) + 2 * np.eye(size)
    np.testing.assert_allclose(
        rounding._inverse_upper(upper) @ upper,
        np.broadcast_to(np.eye(size), upper.shape),
        atol=1e-12,
    )


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 64, 40), (8, 4, 9)])
def test_a_step_that_all_rows_share_cuts_off_what_costs_less_than_it_gains(
    groups: int, outputs: int, inputs: int
) -> None:
    """Near the best of all steps by the error of plain rounding, which is clearly below that of the step that reaches the outlier."""
    weights, gram, _ = problem(3, groups, outputs, inputs)
    weights[0, 0, 0] = 3 * np.abs(weights).max()
    narrow = gram.astype(np.float32)

    def total(step: float) -> float:
        scale = np.full((groups, outputs, 1), step)
        return float(
            loss(weights, gram, scale, rounding.round_to_nearest(weights, scale, 15)).sum()
        )

    reaching = np.abs(weights).max() / 15
    best = min(total(reaching * factor) for factor in np.linspace(0.2, 1, 81))
    ours = total(rounding.shared_scale(weights, [narrow], [(0, inputs)], 15))
    assert ours <= best + 0.2 * (total(reaching) - best)
    assert best < 0.85 * total(reaching)  # there is something to win


def test_a_shared_step_reaches_a_weight_whose_input_is_all_that_counts() -> None:
    weights, _, _ = problem(4, 1, 8, 6)
    weights[0, 2, 5] = 10 * np.abs(weights).max()
    gram = np.diag([1e-3] * 5 + [1e3])[None].astype(np.float32)
    assert rounding.shared_scale(weights, [gram], [(0, 6)]) * 127 > 0.98 * weights.max()


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e30])
def test_a_shared_step_of_weights_of_any_size(size: float) -> None:
    weights = problem(5, 1, 4, 5)[0] * size
    with np.errstate(all="raise", under="ignore"):
        step = rounding.shared_scale(weights, [np.eye(5, dtype=np.float32)[None]], [(0, 5)])
    assert step <= np.abs(weights).max() / 127 * (1 + 1e-6)
    assert (step > 0) == (size > 0)


def test_blocks_of_columns_give_the_step_of_the_whole() -> None:
    weights, gram, _ = problem(6, 1, 16, 12)
    weights[0, 0, 3] *= 6
    whole = np.zeros_like(gram)
    for a, b in ((0, 5), (5, 12)):
        whole[:, a:b, a:b] = gram[:, a:b, a:b]
    parts = [np.ascontiguousarray(whole[:, a:b, a:b], np.float32) for a, b in ((0, 5), (5, 12))]
    found = rounding.shared_scale(weights, parts, [(0, 5), (5, 12)], 15)
    assert found == rounding.shared_scale(weights, [whole.astype(np.float32)], [(0, 12)], 15)
