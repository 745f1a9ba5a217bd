"""Ranges and weights: properties that hold for any numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.sensitivity import Sensitivity
from repzoo.quant.network.functions import FUNCTIONS, Function, identity
from repzoo.quant.network.scheme import RANGE_METHODS, load_scheme
from repzoo.quant.parameters import input_alignment, noise, ranges, scales
from repzoo.quant.parameters.scales import ActivationParameters

Numbers = npt.NDArray[np.float32]
finite = st.floats(
    width=32,
    allow_nan=False,
    allow_infinity=False,
    min_value=-(2.0**100),
    max_value=2.0**100,
)


def quantize(
    values: Numbers, parameters: ActivationParameters
) -> npt.NDArray[np.float64]:
    """QuantizeLinear then DequantizeLinear on uint8, as the ONNX operators define them."""
    steps = np.clip(np.round(values / parameters.scale) + parameters.zero_point, 0, 255)
    return np.asarray((steps - parameters.zero_point) * parameters.scale)


def histogram_of(values: Numbers) -> Histogram:
    """Of one channel."""
    flat = values.astype(np.float32).reshape(1, -1)
    result = Histogram(1)
    result.add(flat, flat.min(1), flat.max(1))
    return result


def choose_bounds(
    histogram: Histogram, method: str = "auto", sensitivity: Sensitivity | None = None
) -> scales.Range:
    """The range that ort-cpu gets; without a sensitivity, all channels count alike."""
    if sensitivity is None:
        sensitivity = Sensitivity(np.ones(len(histogram.low)))
    scheme = load_scheme("ort-cpu")
    return ranges.choose_range(histogram, sensitivity, method, scheme).bounds


def activation(values: Numbers, method: str) -> ActivationParameters:
    return scales.uint8_parameters(*choose_bounds(histogram_of(values), method))


@given(finite, finite)
def test_uint8_parameters_represent_zero_and_cover_the_range(
    first: float, second: float
) -> None:
    low, high = sorted((first, second))
    result = scales.uint8_parameters(low, high)
    assert type(result.zero_point) is int
    assert 0 <= result.zero_point <= 255
    assert result.scale > 0
    assert np.float32(result.scale) == result.scale
    assert quantize(np.zeros(1, np.float32), result)[0] == 0
    ends = np.array([min(low, 0), max(high, 0)], np.float32)
    step = max(result.scale, float(np.abs(ends).max()) / 255)
    assert (
        np.abs(quantize(ends, result) - ends).max()
        <= 0.501 * step + 1e-6 * np.abs(ends).max()
        or result.scale <= scales.SMALLEST_SCALE
    )


def test_uint8_parameters_of_known_ranges() -> None:
    assert scales.uint8_parameters(0.0, 255.0) == ActivationParameters(1.0, 0)
    assert scales.uint8_parameters(-255.0, -5.0) == ActivationParameters(1.0, 255)
    assert scales.uint8_parameters(-128.0, 127.0) == ActivationParameters(1.0, 128)
    assert scales.uint8_parameters(0.0, 0.0) == ActivationParameters(1.0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_range_has_the_least_error_of_all_methods(seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(2.5, 40_000).astype(np.float32)
    errors = {}
    for method in (*RANGE_METHODS, "auto"):
        errors[method] = float(
            np.mean((quantize(values, activation(values, method)) - values) ** 2)
        )
    assert errors["auto"] < 0.97 * errors["minmax"]
    assert errors["auto"] <= 1.02 * min(errors.values())


def test_the_range_depends_on_the_cost_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    parts = np.stack(
        [
            rng.uniform(-1, 1, 20_000),
            rng.uniform(-1, 1, 20_000) * np.where(rng.random(20_000) < 1e-3, 40, 1),
        ]
    )
    histogram = Histogram(2)
    histogram.add(
        parts.astype(np.float32),
        parts.min(1).astype(np.float32),
        parts.max(1).astype(np.float32),
    )
    narrow, wide = (
        choose_bounds(histogram, sensitivity=Sensitivity(np.array(cost, float)))
        for cost in ([1, 1e-6], [1e-3, 1])
    )
    assert narrow[1] < 0.5 * wide[1]


@pytest.mark.parametrize("outlier", [30.0, 200.0])
def test_a_channel_without_cost_does_not_set_the_range(outlier: float) -> None:
    values = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)
    values[1] *= outlier
    histogram = Histogram(2)
    histogram.add(values, values.min(1), values.max(1))
    sensitivity = Sensitivity(np.array([1.0, 0.0]))
    low, high = choose_bounds(histogram, sensitivity=sensitivity)
    assert max(-low, high) <= 2 * np.abs(values[0]).max()
    assert (
        noise.quantization_noise(histogram, low, high)[0]
        <= 4
        * noise.quantization_noise(
            histogram_of(values[0]), *ranges.minmax(histogram_of(values[0]))
        )[0]
    )


def test_predicted_noise_matches_quantization() -> None:
    rng = np.random.default_rng(1)
    values = np.maximum(
        rng.standard_normal((3, 20_000)) * np.array([[0.1], [1], [3]]), 0
    ).astype(np.float32)
    histogram = Histogram(3)
    histogram.add(values, values.min(1), values.max(1))
    low, high = 0.0, 4.0
    errors = quantize(values, scales.uint8_parameters(low, high)) - values
    np.testing.assert_allclose(
        noise.quantization_noise(histogram, low, high), (errors**2).mean(1), rtol=0.15
    )
    clip = np.clip(values, low, high) - values
    np.testing.assert_allclose(
        noise.clipping_shift(histogram, low, high), clip.mean(1), rtol=0.05, atol=1e-6
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_predicted_noise_matches_quantization_behind_a_function(name: str) -> None:
    """Of channels narrow and wide, with ranges that cut both ends."""
    values = np.random.default_rng(1).standard_normal((3, 20_000)).astype(
        np.float32
    ) * np.array([[0.3], [1], [3]], np.float32)
    histogram, function, (low, high) = Histogram(3), FUNCTIONS[name], (-1.0, 4.0)
    histogram.add(values, values.min(1), values.max(1))
    errors = function(
        quantize(values, scales.uint8_parameters(low, high)).astype(float)
    ) - function(values.astype(float))
    np.testing.assert_allclose(
        noise.quantization_noise(histogram, low, high, function=function),
        (errors**2).mean(1),
        rtol=0.15,
    )


def test_values_that_gelu_maps_to_zero_are_clipped() -> None:
    values = np.random.default_rng(1).uniform(-40, 4, (1, 20_000)).astype(np.float32)
    histogram = Histogram(1)
    histogram.add(values, values.min(1), values.max(1))
    behind_gelu = Sensitivity(np.ones(1), FUNCTIONS["Gelu"])
    low, high = choose_bounds(histogram, sensitivity=behind_gelu)
    assert -8 < low < -2
    assert high > 3.8


def test_rounding_shift_matches_quantization() -> None:
    """Small negative values, as of GELU, next to large ones: all small ones share a bin."""
    random = np.random.default_rng(1)
    values = FUNCTIONS["Gelu"](random.normal(-1, 0.4, (4, 256))) + np.where(
        random.random((4, 256)) < 0.1, 17, 0
    )
    histogram = Histogram(4)
    histogram.samples = values.astype(np.float32)
    for low, high in ((-0.16, 17.6), (-0.16, 1.0), (-20.0, 20.0)):
        parameters = scales.uint8_parameters(low, high)
        shift = quantize(histogram.samples, parameters) - np.clip(
            values, *parameters.bounds
        )  # clipping_shift covers what is clipped
        np.testing.assert_allclose(
            noise.rounding_shift(histogram, parameters), shift.mean(1), atol=1e-6
        )
        assert np.abs(shift.mean(1)).min() > 1e-3 or high < 20


@pytest.mark.parametrize(
    "parameters",
    [
        scales.uint8_parameters(-0.16, 17.6),
        scales.uint8_parameters(-3, 2),
        scales.uint8_parameters(-1, 2, True),
        scales.int16_parameters(-1, 2),
    ],
)
def test_bounds_are_the_extreme_representable_values(
    parameters: scales.ActivationParameters,
) -> None:
    least, most = {8: (0, 255), 16: (-scales.INT16_MAX, scales.INT16_MAX)}[
        parameters.bits
    ]
    assert parameters.bounds == pytest.approx(
        tuple(
            (code - parameters.zero_point) * parameters.scale for code in (least, most)
        )
    )


@pytest.mark.parametrize(
    "function", [identity, FUNCTIONS["Gelu"], FUNCTIONS["Sigmoid"]]
)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_range_losses_match_the_noise_summed_over_bins(
    scale: float, function: Function
) -> None:
    """For ranges within and beyond the values, and channels of any width, zero, or rescaled."""
    rng = np.random.default_rng(2)
    values = (
        scale
        * rng.standard_t(3, (5, 3000))
        * np.array([[1.0], [0.01], [0.0], [0.3], [1.0]])
    )
    values[4] = np.maximum(values[4], 0)
    histogram = Histogram(5)
    histogram.add(
        values.astype(np.float32),
        values.min(1).astype(np.float32),
        values.max(1).astype(np.float32),
    )
    histogram, cost = histogram.rescaled(rng.uniform(0.3, 2, 5)), rng.uniform(0, 1, 5)
    low, high = ranges.minmax(histogram)
    center = float(
        histogram.centers[0, 200]
    )  # a value that lies on the border of a range is inside it
    candidates = [
        (low * first, high * second)
        for first in (0, 1e-3, 0.2, 1, 2)
        for second in (0, 1e-3, 0.5, 1, 2)
    ] + [(-center, center)]
    expected = [
        cost @ noise.quantization_noise(histogram, *bounds, function=function)
        for bounds in candidates
    ]
    np.testing.assert_allclose(
        noise.range_losses(histogram, cost, np.array(candidates), function),
        expected,
        rtol=1e-6,
    )


def test_mse_does_not_clip_uniform_values() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 40_000).astype(np.float32)
    low, high = choose_bounds(histogram_of(values), "mse")
    assert (low, high) == pytest.approx((values.min(), values.max()), rel=0.03)


def test_minmax_covers_all_values() -> None:
    assert ranges.minmax(histogram_of(np.array([-0.25, 3, 1], np.float32))) == (
        -0.25,
        3.0,
    )


def test_percentile_excludes_outliers() -> None:
    values = np.append(np.random.default_rng(0).uniform(-1, 1, 999_999), 16.0).astype(
        np.float32
    )
    histogram = ranges.PooledHistogram.of(histogram_of(values))
    low, high = ranges.percentile(histogram, share=0.999)
    assert (low, high) == pytest.approx((-1, 1), abs=2 * 16 / 256)
    assert ranges.percentile(histogram, share=1.0)[1] == 16


@given(
    arrays.arrays(np.float32, st.integers(1, 50), elements=finite),
    st.sampled_from([*RANGE_METHODS, "auto"]),
)
def test_every_method_stays_within_the_observed_values(
    values: Numbers, method: str
) -> None:
    histogram = histogram_of(values)
    low, high = choose_bounds(histogram, method)
    assert max(abs(low), abs(high)) <= float(np.abs(values).max())
    assert activation(values, method).scale > 0


weights = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(-8, 8, width=32),
)


@given(weights, st.sampled_from([0, 1, None]))
def test_quantized_weights_are_within_half_a_step(
    values: Numbers, axis: int | None
) -> None:
    result = scales.quantize_weight(values, axis)
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    scale = result.scale.reshape(shape)
    assert result.values.dtype == np.int8
    assert result.values.shape == values.shape
    assert (
        result.values.min() >= -127
    )  # -128 is left out, so that the negative of a weight is a weight
    assert result.scale.shape == ((1,) if axis is None else (values.shape[axis],))
    assert (np.abs(result.values * scale - values) <= scale * (0.5 + 1e-5)).all()


@given(weights)
def test_the_largest_weight_of_a_channel_uses_the_whole_range(values: Numbers) -> None:
    peaks = np.abs(values).reshape(len(values), -1).max(1)
    assume((peaks > 1e-12).any())
    largest = (
        np.abs(scales.quantize_weight(values, 0).values.astype(int))
        .reshape(len(values), -1)
        .max(1)
    )
    assert (largest[peaks > 1e-12] == 127).all()


def test_weights_of_7_bits_use_their_range() -> None:
    values = np.array([[0.5, -1.0], [0.25, 0.125]], np.float32)
    result = scales.quantize_weight(values, 0, limit=64)
    assert result.values.tolist() == [[32, -64], [64, 32]]


def test_a_channel_of_zeros_has_a_usable_scale() -> None:
    values = np.array([[1, -2], [0, 0]], np.float32)
    result = scales.quantize_weight(values, 0)
    assert result.values[1].tolist() == [0, 0]
    assert result.scale[1] == 1
    assert scales.quantize_weight(values, 0, np.array([0, 0.25])).scale[1] == 0.25


def test_the_minimum_scale_keeps_the_bias_within_int32() -> None:
    values, bias, input_scale = (
        np.array([[1e-6], [1.0]], np.float32),
        np.array([5e4, 1.0]),
        1e-3,
    )
    room = 2.0**30
    result = scales.quantize_weight(values, 0, np.abs(bias) / (input_scale * room))
    assert (np.abs(bias / (input_scale * result.scale)) <= room * (1 + 1e-6)).all()
    assert (
        abs(bias[0] / (input_scale * scales.quantize_weight(values, 0).scale[0]))
        > 2.0**31
    )  # without it, this would not fit
    assert result.scale[1] == pytest.approx(
        1 / 127
    )  # the channel with room is left alone


@given(st.floats(0, 1e-20), st.floats(0, 1e-20))
def test_the_product_of_two_scales_is_a_normal_number(
    first: float, second: float
) -> None:
    input_scale = np.float32(scales.uint8_parameters(0.0, first).scale)
    scale = np.float32(
        scales.quantize_weight(np.array([[second]], np.float32), 0).scale[0]
    )
    assert input_scale * scale >= np.finfo(np.float32).tiny


def test_symmetric_ranges_have_zero_point_128() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 20_000).astype(np.float32)
    scheme = replace(
        load_scheme("ort-minmax"), range_methods=("minmax",), activation_symmetric=True
    )
    name, (low, high) = ranges.choose_range(
        histogram_of(values), Sensitivity(np.ones(1)), "auto", scheme
    )
    assert (name, low, high) == ("minmax", -values.max(), values.max())
    result = scales.uint8_parameters(low, high, symmetric=True)
    assert result.zero_point == 128
    assert result.scale == pytest.approx(float(values.max()) / 127)


def test_without_zero_points_only_what_is_negative_is_symmetric() -> None:
    scheme = replace(load_scheme("ort-cpu"), signed_activations=True)
    positive = scales.parameters_of(0.0, 2.55, scheme)
    assert (positive.zero_point, positive.signed) == (0, False)
    assert positive.scale == pytest.approx(0.01)
    negative = scales.parameters_of(-0.17, 6.35, scheme)
    assert (negative.zero_point, negative.signed) == (128, True)
    assert negative.scale == pytest.approx(0.05)
    values = np.random.default_rng(0).uniform(-0.17, 6.35, 20_000).astype(np.float32)
    histogram = histogram_of(values)
    sensitivity = Sensitivity(np.ones(1))
    low, high = ranges.choose_range(histogram, sensitivity, "mse", scheme).bounds
    assert low == -high
    above = histogram_of(values + 0.2)
    low, high = ranges.choose_range(above, sensitivity, "mse", scheme).bounds
    assert low >= 0


def pixel_histogram(mean: float, std: tuple[float, ...]) -> tuple[Numbers, Histogram]:
    """All values of normalized pixels in three channels, and their histogram with samples."""
    values = np.stack(
        [
            (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(mean))
            / np.float32(deviation)
            for deviation in std
        ]
    )
    histogram = Histogram(3)
    histogram.add(values, values.min(1), values.max(1))
    histogram.samples = values[:, np.random.default_rng(0).permutation(256)[:200]]
    return values, histogram


def rms_error_in_steps(values: Numbers, result: ActivationParameters) -> float:
    """Root mean square error, in steps."""
    return float(
        np.sqrt(np.square(quantize(values, result) - values).mean()) / result.scale
    )


def test_pixels_normalized_around_zero_are_aligned_with_steps() -> None:
    """For (x - 0.5) / 0.5 no pixel is 0: on 255 steps, each value errs by half a step."""
    values, histogram = pixel_histogram(0.5, (0.5,) * 3)
    bounds = ranges.minmax(histogram)
    assert rms_error_in_steps(
        values, scales.uint8_parameters(*bounds)
    ) == pytest.approx(0.5, abs=0.01)
    result = scales.uint8_parameters(
        *input_alignment.align_to_pixel_values(histogram, np.ones(3), bounds)
    )
    assert rms_error_in_steps(values, result) < 0.3
    assert quantize(values, result) == pytest.approx(
        values, abs=0.51 * result.scale
    )  # nothing is cut


@pytest.mark.parametrize("mean", [0.0, 127 / 255])
def test_pixels_including_zero_are_represented_exactly(mean: float) -> None:
    values, histogram = pixel_histogram(mean, (0.5,) * 3)
    low, high = ranges.minmax(histogram)
    for bounds in ((low, high), (0.9 * low, 0.8 * high)):
        assert (
            rms_error_in_steps(
                values,
                scales.uint8_parameters(
                    *input_alignment.align_to_pixel_values(
                        histogram, np.ones(3), bounds
                    )
                ),
            )
            < 0.01
        )


def test_the_range_is_not_aligned_without_a_clear_gain() -> None:
    _, histogram = pixel_histogram(0.45, (0.229, 0.224, 0.225))
    assert input_alignment.align_to_pixel_values(
        histogram, np.ones(3), ranges.minmax(histogram)
    ) == ranges.minmax(histogram)
    for values in (
        np.zeros((1, 9), np.float32),
        np.random.default_rng(0).normal(0, 1, (1, 256)).astype(np.float32),
    ):
        first = histogram_of(values)
        first.samples = values
        assert input_alignment.align_to_pixel_values(
            first, np.ones(1), ranges.minmax(first)
        ) == ranges.minmax(first)
