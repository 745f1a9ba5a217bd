"""GPTQ against exhaustive search, and properties that hold for any weights."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from repzoo.quant.calibration.statistics import squared_output
from repzoo.quant.parameters import gptq as rounding
from repzoo.quant.parameters import weight_scales

Float = npt.NDArray[np.float64]


def problem(
    seed: int, groups: int, outputs: int, inputs: int, rows: int = 400
) -> tuple[Float, Float, Float]:
    """(weights [G, O, K], Gram matrix [G, K, K], scales [G, O, 1]); inputs correlate."""
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


def test_gptq_is_close_to_the_best_of_all_roundings() -> None:
    results = []
    for seed in range(6):
        weights, gram, scale = problem(seed, 1, 3, 6)
        floors = np.floor(weights / scale)
        candidates = [
            floors + np.array(up) for up in itertools.product((-1, 0, 1, 2), repeat=6)
        ]
        best = np.min(
            [loss(weights, gram, scale, integers) for integers in candidates], axis=0
        ).sum()
        gptq = loss(
            weights,
            gram,
            scale,
            rounding.gptq_round(weights, gram, scale, damping=1e-6),
        ).sum()
        results.append(
            (
                best,
                gptq,
                loss(
                    weights, gram, scale, rounding.round_to_nearest(weights, scale)
                ).sum(),
            )
        )
        assert best - 1e-9 <= gptq
    best, gptq, nearest = np.array(results).sum(0)
    assert best < 0.6 * nearest  # there is something to win
    assert gptq <= best + 0.3 * (nearest - best)


@pytest.mark.parametrize(
    ("groups", "outputs", "inputs"), [(1, 8, 150), (5, 2, 9), (1, 1, 1), (3, 4, 70)]
)
def test_the_output_error_is_never_larger_than_by_rounding_to_nearest(
    groups: int, outputs: int, inputs: int
) -> None:
    weights, gram, scale = problem(7, groups, outputs, inputs)
    integers = rounding.gptq_round(weights, gram, scale)
    assert (integers == np.round(integers)).all()
    assert np.abs(integers).max() <= 127
    assert (
        loss(weights, gram, scale, integers).sum()
        <= loss(weights, gram, scale, rounding.round_to_nearest(weights, scale)).sum()
        + 1e-12
    )


def test_uncorrelated_inputs_give_rounding_to_nearest() -> None:
    weights, _, scale = problem(1, 2, 4, 12)
    gram = np.broadcast_to(np.diag(np.arange(1.0, 13)), (2, 12, 12))
    np.testing.assert_array_equal(
        rounding.gptq_round(weights, gram, scale),
        rounding.round_to_nearest(weights, scale),
    )


def test_column_by_column_rounding_matches_the_paper() -> None:
    """The formula of the paper: w -= (w_k - q_k) / [H^-1]_kk [H^-1]_k,: and k is removed from H."""
    weights, gram, scale = problem(3, 1, 2, 7)
    integers = rounding._round_column_by_column(weights, gram, scale)[0]
    for row in range(2):
        left, inverse = weights[0, row].copy(), np.linalg.inv(gram[0])
        for k in range(7):
            quantized = np.round(left[k] / scale[0, row, 0])
            assert integers[row, k] == quantized
            left -= (
                (left[k] - quantized * scale[0, row, 0]) / inverse[k, k] * inverse[k]
            )
            inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    weights, gram, scale = problem(5, 3, 2, 6)
    gram[1] = 0
    gram[2, :, 4] = gram[2, 4, :] = 0
    integers = rounding.gptq_round(weights, gram, scale)
    np.testing.assert_array_equal(
        integers[1], rounding.round_to_nearest(weights, scale)[1]
    )
    assert np.isfinite(integers).all()
    np.testing.assert_array_equal(
        integers[2, :, 4], rounding.round_to_nearest(weights, scale)[2, :, 4]
    )


@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_the_inverse_of_a_triangular_matrix(size: int) -> None:
    rng = np.random.default_rng(size)
    upper = np.triu(rng.standard_normal((2, size, size)) / size) + 2 * np.eye(size)
    np.testing.assert_allclose(
        rounding._inverse_upper(upper) @ upper,
        np.broadcast_to(np.eye(size), upper.shape),
        atol=1e-12,
    )


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 64, 40), (8, 4, 9)])
def test_the_shared_scale_clips_weights_where_that_lowers_the_error(
    groups: int, outputs: int, inputs: int
) -> None:
    """Its error is close to the least of all scales, and well below that of not clipping."""
    weights, gram, _ = problem(3, groups, outputs, inputs)
    weights[0, 0, 0] = 3 * np.abs(weights).max()
    narrow = gram.astype(np.float32)

    def total(step: float) -> float:
        scale = np.full((groups, outputs, 1), step)
        return float(
            loss(
                weights, gram, scale, rounding.round_to_nearest(weights, scale, 15)
            ).sum()
        )

    reaching = np.abs(weights).max() / 15
    best = min(total(reaching * factor) for factor in np.linspace(0.2, 1, 81))
    error = total(weight_scales.shared_scale(weights, [narrow], [(0, inputs)], 15))
    assert error <= best + 0.2 * (total(reaching) - best)
    assert best < 0.85 * total(reaching)  # there is something to win


def test_the_shared_scale_does_not_clip_the_weight_of_the_dominant_input() -> None:
    weights, _, _ = problem(4, 1, 8, 6)
    weights[0, 2, 5] = 10 * np.abs(weights).max()
    gram = np.diag([1e-3] * 5 + [1e3])[None].astype(np.float32)
    assert (
        weight_scales.shared_scale(weights, [gram], [(0, 6)]) * 127
        > 0.98 * weights.max()
    )


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e30])
def test_the_shared_scale_works_for_weights_of_any_magnitude(size: float) -> None:
    weights = problem(5, 1, 4, 5)[0] * size
    with np.errstate(all="raise", under="ignore"):
        step = weight_scales.shared_scale(
            weights, [np.eye(5, dtype=np.float32)[None]], [(0, 5)]
        )
    assert step <= np.abs(weights).max() / 127 * (1 + 1e-6)
    assert (step > 0) == (size > 0)


def test_blocks_of_columns_give_the_same_shared_scale() -> None:
    weights, gram, _ = problem(6, 1, 16, 12)
    weights[0, 0, 3] *= 6
    block_diagonal = np.zeros_like(gram)
    for a, b in ((0, 5), (5, 12)):
        block_diagonal[:, a:b, a:b] = gram[:, a:b, a:b]
    parts = [
        np.ascontiguousarray(block_diagonal[:, a:b, a:b], np.float32)
        for a, b in ((0, 5), (5, 12))
    ]
    scale = weight_scales.shared_scale(weights, parts, [(0, 5), (5, 12)], 15)
    assert scale == weight_scales.shared_scale(
        weights, [block_diagonal.astype(np.float32)], [(0, 12)], 15
    )
