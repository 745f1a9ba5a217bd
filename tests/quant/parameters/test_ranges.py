"""Ranges and weights: properties that hold for any numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.network.functions import FUNCTIONS, Function, identity
from repzoo.quant.parameters import noise, ranges, scales
from repzoo.quant.parameters.scales import ActivationParameters

Numbers = npt.NDArray[np.float32]
finite = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100
)


def quantized(values: Numbers, affine: ActivationParameters) -> npt.NDArray[np.float64]:
    """QuantizeLinear then DequantizeLinear on uint8, as the ONNX operators define them."""
    steps = np.clip(np.round(values / affine.scale) + affine.zero_point, 0, 255)
    return np.asarray((steps - affine.zero_point) * affine.scale)


def histogram(values: Numbers) -> Histogram:
    """Of one channel."""
    flat = values.astype(np.float32).reshape(1, -1)
    made = Histogram(1)
    made.add(flat, flat.min(1), flat.max(1))
    return made


def activation(values: Numbers, method: str) -> ActivationParameters:
    return scales.uint8_parameters(*ranges.choose_range(histogram(values), np.ones(1), method)[1])


@given(finite, finite)
def test_affine_holds_zero_exactly_and_covers_the_range(one: float, two: float) -> None:
    low, high = sorted((one, two))
    made = scales.uint8_parameters(low, high)
    assert type(made.zero_point) is int
    assert 0 <= made.zero_point <= 255
    assert made.scale > 0
    assert np.float32(made.scale) == made.scale
    assert quantized(np.zeros(1, np.float32), made)[0] == 0
    ends = np.array([min(low, 0), max(high, 0)], np.float32)
    step = max(made.scale, float(np.abs(ends).max()) / 255)
    assert (
        np.abs(quantized(ends, made) - ends).max() <= 0.501 * step + 1e-6 * np.abs(ends).max()
        or made.scale <= scales.SMALLEST_SCALE
    )


def test_affine_of_known_ranges() -> None:
    assert scales.uint8_parameters(0.0, 255.0) == ActivationParameters(1.0, 0)
    assert scales.uint8_parameters(-255.0, -5.0) == ActivationParameters(1.0, 255)
    assert scales.uint8_parameters(-128.0, 127.0) == ActivationParameters(1.0, 128)
    assert scales.uint8_parameters(0.0, 0.0) == ActivationParameters(1.0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_range_errs_no_more_than_any_method(seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(2.5, 40_000).astype(np.float32)
    errors = {}
    for method in (*ranges.METHODS, "mse", "auto"):
        errors[method] = float(
            np.mean((quantized(values, activation(values, method)) - values) ** 2)
        )
    assert errors["auto"] < 0.97 * errors["minmax"]
    assert errors["auto"] <= 1.02 * min(errors.values())


def test_the_range_follows_the_channel_that_matters_downstream() -> None:
    rng = np.random.default_rng(0)
    parts = np.stack(
        [
            rng.uniform(-1, 1, 20_000),
            rng.uniform(-1, 1, 20_000) * np.where(rng.random(20_000) < 1e-3, 40, 1),
        ]
    )
    seen = Histogram(2)
    seen.add(
        parts.astype(np.float32), parts.min(1).astype(np.float32), parts.max(1).astype(np.float32)
    )
    narrow, wide = (
        ranges.choose_range(seen, np.array(one, float))[1] for one in ([1, 1e-6], [1e-3, 1])
    )
    assert narrow[1] < 0.5 * wide[1]


@pytest.mark.parametrize("outlier", [30.0, 200.0])
def test_a_channel_that_nothing_reads_does_not_set_the_range(outlier: float) -> None:
    values = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)
    values[1] *= outlier
    seen = Histogram(2)
    seen.add(values, values.min(1), values.max(1))
    _, (low, high) = ranges.choose_range(seen, np.array([1.0, 0.0]))
    assert max(-low, high) <= 2 * np.abs(values[0]).max()
    assert (
        noise.quantization_noise(seen, low, high)[0]
        <= 4
        * noise.quantization_noise(histogram(values[0]), *ranges.minmax(histogram(values[0])))[0]
    )


def test_the_predicted_noise_is_what_quantizing_does() -> None:
    rng = np.random.default_rng(1)
    values = np.maximum(rng.standard_normal((3, 20_000)) * np.array([[0.1], [1], [3]]), 0).astype(
        np.float32
    )
    seen = Histogram(3)
    seen.add(values, values.min(1), values.max(1))
    low, high = 0.0, 4.0
    found = quantized(values, scales.uint8_parameters(low, high)) - values
    np.testing.assert_allclose(
        noise.quantization_noise(seen, low, high), (found**2).mean(1), rtol=0.15
    )
    clip = np.clip(values, low, high) - values
    np.testing.assert_allclose(
        noise.clipping_shift(seen, low, high), clip.mean(1), rtol=0.05, atol=1e-6
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_predicted_noise_is_what_a_function_makes_of_it(name: str) -> None:
    """Of channels narrow and wide, with ranges that cut both ends."""
    values = np.random.default_rng(1).standard_normal((3, 20_000)).astype(np.float32) * np.array(
        [[0.3], [1], [3]], np.float32
    )
    seen, of, (low, high) = Histogram(3), FUNCTIONS[name], (-1.0, 4.0)
    seen.add(values, values.min(1), values.max(1))
    found = of(quantized(values, scales.uint8_parameters(low, high)).astype(float)) - of(
        values.astype(float)
    )
    np.testing.assert_allclose(
        noise.quantization_noise(seen, low, high, function=of), (found**2).mean(1), rtol=0.15
    )


def test_what_gelu_makes_nothing_of_need_not_be_covered() -> None:
    values = np.random.default_rng(1).uniform(-40, 4, (1, 20_000)).astype(np.float32)
    seen = Histogram(1)
    seen.add(values, values.min(1), values.max(1))
    low, high = ranges.choose_range(seen, np.ones(1), function=FUNCTIONS["Gelu"])[1]
    assert -8 < low < -2
    assert high > 3.8


def test_the_mean_that_rounding_moves_is_foreseen() -> None:
    """Small negative numbers as GELU leaves them, beside large ones that no histogram tells apart from others within a step."""
    random = np.random.default_rng(1)
    values = FUNCTIONS["Gelu"](random.normal(-1, 0.4, (4, 256))) + np.where(
        random.random((4, 256)) < 0.1, 17, 0
    )
    seen = Histogram(4)
    seen.samples = values.astype(np.float32)
    for low, high in ((-0.16, 17.6), (-0.16, 1.0), (-20.0, 20.0)):
        numbers = scales.uint8_parameters(low, high)
        moved = quantized(seen.samples, numbers) - np.clip(
            values, *numbers.bounds
        )  # what is cut off is ranges.clipped's to say
        np.testing.assert_allclose(noise.rounding_shift(seen, numbers), moved.mean(1), atol=1e-6)
        assert np.abs(moved.mean(1)).min() > 1e-3 or high < 20


@pytest.mark.parametrize(
    "numbers",
    [
        scales.uint8_parameters(-0.16, 17.6),
        scales.uint8_parameters(-3, 2),
        scales.uint8_parameters(-1, 2, True),
        scales.int16_parameters(-1, 2),
    ],
)
def test_the_ends_are_the_furthest_that_can_be_written(
    numbers: scales.ActivationParameters,
) -> None:
    least, most = {8: (0, 255), 16: (-scales.INT16_MAX, scales.INT16_MAX)}[numbers.bits]
    assert numbers.bounds == pytest.approx(
        tuple((code - numbers.zero_point) * numbers.scale for code in (least, most))
    )


@pytest.mark.parametrize("of", [identity, FUNCTIONS["Gelu"], FUNCTIONS["Sigmoid"]])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_losses_from_sums_are_those_bin_by_bin(scale: float, of: Function) -> None:
    """Ranges inside, at and outside of what was seen, of channels of any width, one of them zero, and of one that was rescaled."""
    rng = np.random.default_rng(2)
    values = scale * rng.standard_t(3, (5, 3000)) * np.array([[1.0], [0.01], [0.0], [0.3], [1.0]])
    values[4] = np.maximum(values[4], 0)
    seen = Histogram(5)
    seen.add(
        values.astype(np.float32),
        values.min(1).astype(np.float32),
        values.max(1).astype(np.float32),
    )
    seen, worth = seen.rescaled(rng.uniform(0.3, 2, 5)), rng.uniform(0, 1, 5)
    low, high = ranges.minmax(seen)
    center = float(seen.centers[0, 200])  # a value that lies on the border of a range is inside it
    spans = [
        (low * one, high * two) for one in (0, 1e-3, 0.2, 1, 2) for two in (0, 1e-3, 0.5, 1, 2)
    ] + [(-center, center)]
    expected = [worth @ noise.quantization_noise(seen, *span, function=of) for span in spans]
    np.testing.assert_allclose(
        noise.range_losses(seen, worth, np.array(spans), of), expected, rtol=1e-6
    )


def test_mse_keeps_the_whole_of_an_even_range() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 40_000).astype(np.float32)
    low, high = ranges.choose_range(histogram(values), np.ones(1), "mse")[1]
    assert (low, high) == pytest.approx((values.min(), values.max()), rel=0.03)


def test_minmax_is_all_that_was_seen() -> None:
    assert ranges.minmax(histogram(np.array([-0.25, 3, 1], np.float32))) == (-0.25, 3.0)


def test_percentile_leaves_the_outliers_out() -> None:
    values = np.append(np.random.default_rng(0).uniform(-1, 1, 999_999), 16.0).astype(np.float32)
    seen = ranges.PooledHistogram.of(histogram(values))
    low, high = ranges.percentile(seen, share=0.999)
    assert (low, high) == pytest.approx((-1, 1), abs=2 * 16 / 256)
    assert ranges.percentile(seen, share=1.0)[1] == 16


@given(
    arrays.arrays(np.float32, st.integers(1, 50), elements=finite),
    st.sampled_from([*ranges.METHODS, "mse", "auto"]),
)
def test_every_method_stays_within_what_was_seen(values: Numbers, method: str) -> None:
    found = histogram(values)
    low, high = ranges.choose_range(found, np.ones(1), method)[1]
    assert max(abs(low), abs(high)) <= float(np.abs(values).max())
    assert activation(values, method).scale > 0


weights = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(-8, 8, width=32),
)


@given(weights, st.sampled_from([0, 1, None]))
def test_weights_come_back_within_half_a_step(values: Numbers, axis: int | None) -> None:
    made = scales.quantize_weight(values, axis)
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    scale = made.scale.reshape(shape)
    assert made.values.dtype == np.int8
    assert made.values.shape == values.shape
    assert (
        made.values.min() >= -127
    )  # -128 is left out, so that the negative of a weight is a weight
    assert made.scale.shape == ((1,) if axis is None else (values.shape[axis],))
    assert (np.abs(made.values * scale - values) <= scale * (0.5 + 1e-5)).all()


@given(weights)
def test_the_largest_weight_of_a_channel_uses_the_whole_range(values: Numbers) -> None:
    peaks = np.abs(values).reshape(len(values), -1).max(1)
    assume((peaks > 1e-12).any())
    found = (
        np.abs(scales.quantize_weight(values, 0).values.astype(int)).reshape(len(values), -1).max(1)
    )
    assert (found[peaks > 1e-12] == 127).all()


def test_a_channel_of_zeros_has_a_usable_scale() -> None:
    values = np.array([[1, -2], [0, 0]], np.float32)
    made = scales.quantize_weight(values, 0)
    assert made.values[1].tolist() == [0, 0]
    assert made.scale[1] == 1
    assert scales.quantize_weight(values, 0, np.array([0, 0.25])).scale[1] == 0.25


def test_the_least_scale_makes_room_for_the_bias() -> None:
    values, bias, incoming = np.array([[1e-6], [1.0]], np.float32), np.array([5e4, 1.0]), 1e-3
    room = 2.0**30
    made = scales.quantize_weight(values, 0, np.abs(bias) / (incoming * room))
    assert (np.abs(bias / (incoming * made.scale)) <= room * (1 + 1e-6)).all()
    assert (
        abs(bias[0] / (incoming * scales.quantize_weight(values, 0).scale[0])) > 2.0**31
    )  # without it, this would not fit
    assert made.scale[1] == pytest.approx(1 / 127)  # the channel with room is left alone


@given(st.floats(0, 1e-20), st.floats(0, 1e-20))
def test_the_product_of_two_scales_is_a_normal_number(one: float, two: float) -> None:
    incoming = np.float32(scales.uint8_parameters(0.0, one).scale)
    scale = np.float32(scales.quantize_weight(np.array([[two]], np.float32), 0).scale[0])
    assert incoming * scale >= np.finfo(np.float32).tiny


def test_symmetric_ranges_have_their_zero_in_the_middle() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 20_000).astype(np.float32)
    name, (low, high) = ranges.choose_range(
        histogram(values), np.ones(1), "auto", ("minmax",), symmetric=True
    )
    assert (name, low, high) == ("minmax", -values.max(), values.max())
    made = scales.uint8_parameters(low, high, symmetric=True)
    assert made.zero_point == 128
    assert made.scale == pytest.approx(float(values.max()) / 127)


def bytes_of_images(mean: float, std: tuple[float, ...]) -> tuple[Numbers, Histogram]:
    """All values that bytes of images have, three channels, scaled as a model wants them; and what calibration keeps of them."""
    values = np.stack(
        [
            (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(mean))
            / np.float32(one)
            for one in std
        ]
    )
    seen = Histogram(3)
    seen.add(values, values.min(1), values.max(1))
    seen.samples = values[:, np.random.default_rng(0).permutation(256)[:200]]
    return values, seen


def missed(values: Numbers, made: ActivationParameters) -> float:
    """Root mean square error, in steps."""
    return float(np.sqrt(np.square(quantized(values, made) - values).mean()) / made.scale)


def test_bytes_scaled_to_both_sides_of_zero_do_not_lie_between_two_steps() -> None:
    """(x - 0.5) / 0.5, as many models want it: 0 is no byte, so that on 255 steps from end to end each value errs by half a step."""
    values, seen = bytes_of_images(0.5, (0.5,) * 3)
    span = ranges.minmax(seen)
    assert missed(values, scales.uint8_parameters(*span)) == pytest.approx(0.5, abs=0.01)
    made = scales.uint8_parameters(*ranges.align_to_pixel_values(seen, np.ones(3), span))
    assert missed(values, made) < 0.3
    assert quantized(values, made) == pytest.approx(values, abs=0.51 * made.scale)  # nothing is cut


@pytest.mark.parametrize("mean", [0.0, 127 / 255])
def test_bytes_of_which_one_is_zero_are_not_rounded_at_all(mean: float) -> None:
    values, seen = bytes_of_images(mean, (0.5,) * 3)
    low, high = ranges.minmax(seen)
    for span in ((low, high), (0.9 * low, 0.8 * high)):
        assert (
            missed(
                values,
                scales.uint8_parameters(*ranges.align_to_pixel_values(seen, np.ones(3), span)),
            )
            < 0.01
        )


def test_a_range_stays_where_no_other_is_clearly_better() -> None:
    _, seen = bytes_of_images(0.45, (0.229, 0.224, 0.225))
    assert ranges.align_to_pixel_values(seen, np.ones(3), ranges.minmax(seen)) == ranges.minmax(
        seen
    )
    for values in (
        np.zeros((1, 9), np.float32),
        np.random.default_rng(0).normal(0, 1, (1, 256)).astype(np.float32),
    ):
        one = histogram(values)
        one.samples = values
        assert ranges.align_to_pixel_values(one, np.ones(1), ranges.minmax(one)) == ranges.minmax(
            one
        )
