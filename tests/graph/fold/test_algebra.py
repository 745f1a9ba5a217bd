"""The laws of affine maps, each against the direct sum that defines it.

All values are small integers, so equality is exact.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from repzoo.graph.fold import algebra
from repzoo.graph.fold.algebra import AffineMap, Array
from repzoo.graph.fold.geometry import (
    Geometry,
    Inexact,
    add_geometry,
    compose_geometry,
    join_geometry,
)

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADS = st.tuples(*[st.integers(0, 3)] * 4) | st.just((0, 0, 0, 0))
SEEDS = st.integers(0, 2**32 - 1)


def direct(affine: AffineMap, image: Array) -> Array:
    """The defining sum [C, H, W] -> [O, H', W'], one product at a time in the number of taps;
    zero outside the borders.
    """
    shape = affine.geometry
    outputs, inputs = shape.outputs // shape.groups, shape.inputs // shape.groups
    size = [
        (
            image.shape[1 + a]
            + shape.pads[a]
            + shape.pads[a + 2]
            - (shape.kernel[a] - 1) * shape.dilations[a]
            - 1
        )
        // shape.strides[a]
        + 1
        for a in (0, 1)
    ]
    result = np.zeros((shape.outputs, *size))
    for o, y, x in itertools.product(
        range(shape.outputs), range(size[0]), range(size[1])
    ):
        seen = image[o // outputs * inputs :][:inputs]
        result[o, y, x] = affine.bias[o]
        for r, c in itertools.product(range(shape.kernel[0]), range(shape.kernel[1])):
            row = y * shape.strides[0] + r * shape.dilations[0] - shape.pads[0]
            column = x * shape.strides[1] + c * shape.dilations[1] - shape.pads[1]
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                result[o, y, x] += affine.kernel[o, :, r, c] @ seen[:, row, column]
    return result


def integers(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float64)


def images(channels: int, smallest: tuple[int, int], seed: int) -> list[Array]:
    """Two inputs whose sides leave different remainders by every stride."""
    return [
        integers(
            (channels, smallest[0] + 1 + extra, smallest[1] + 2 * extra), seed + extra
        )
        for extra in (1, 4)
    ]


def random_map(shape: Geometry, seed: int, bias: bool = True) -> AffineMap:
    kernel = integers(
        (shape.outputs, shape.inputs // shape.groups, *shape.kernel), seed
    )
    return AffineMap(
        shape,
        kernel,
        integers((shape.outputs,), seed + 1) if bias else np.zeros(shape.outputs),
    )


@st.composite
def windows(draw: st.DrawFn, outputs: int, inputs: int) -> Geometry:
    """A geometry of any window, in any number of groups that the channels allow."""
    groups = draw(
        st.sampled_from(
            [g for g in range(1, 7) if outputs % g == 0 and inputs % g == 0]
        )
    )
    pointwise = draw(st.booleans())
    kernel = (1, 1) if pointwise else draw(PAIRS)
    pads = draw(st.just((0, 0, 0, 0)) | PADS)
    return Geometry(
        outputs,
        inputs,
        kernel,
        draw(st.just((1, 1)) | PAIRS),
        pads,
        draw(PAIRS),
        groups,
    )


def reach(*shapes: Geometry) -> tuple[int, int]:
    """Sides for which a chain of maps, the last one applied first, gives at least one pixel."""
    sides = [1, 1]
    for shape in shapes:
        sides = [(sides[a] - 1) * shape.strides[a] + shape.span[a] for a in (0, 1)]
    return sides[0], sides[1]


CHANNELS = st.sampled_from([1, 2, 4, 6])


@given(
    shape=st.tuples(CHANNELS, CHANNELS).flatmap(lambda pair: windows(*pair)), seed=SEEDS
)
@settings(max_examples=60, deadline=None)
def test_the_defining_sum_is_the_convolution_that_torch_computes(
    shape: Geometry, seed: int
) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    affine = algebra.from_kernel(
        random_map(shape, seed).kernel,
        random_map(shape, seed).bias,
        shape.groups,
        strides=shape.strides,
        pads=shape.pads,
        dilations=shape.dilations,
    )
    assert affine.geometry == shape
    top, left, bottom, right = shape.pads
    for image in images(shape.inputs, shape.span, seed):
        padded = torch.nn.functional.pad(
            torch.from_numpy(image), (left, right, top, bottom)
        )
        expected = torch.nn.functional.conv2d(
            padded[None],
            torch.from_numpy(affine.kernel),
            torch.from_numpy(affine.bias),
            shape.strides,
            0,
            shape.dilations,
            shape.groups,
        )
        assert np.array_equal(direct(affine, image), expected[0].numpy())


@given(shape=st.tuples(CHANNELS, CHANNELS).flatmap(lambda pair: windows(*pair)))
@settings(max_examples=60, deadline=None)
def test_excess_gives_the_size_of_the_output(shape: Geometry) -> None:
    for image in images(shape.inputs, shape.span, 0):
        result = direct(random_map(shape, 0), image)
        assert result.shape[1:] == tuple(
            (image.shape[1 + a] + shape.excess[a] - 1) // shape.strides[a] + 1
            for a in (0, 1)
        )


def test_a_map_refuses_values_of_another_shape() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        AffineMap(Geometry(4, 2), np.zeros((4, 1, 1, 1)), np.zeros(4))
    with pytest.raises(ValueError, match="do not fit"):
        AffineMap(Geometry(4, 2), np.zeros((4, 2, 1, 1)), np.zeros(2))


# --- makers -----------------------------------------------------------------------------------


@given(channels=st.integers(1, 6), seed=SEEDS)
@settings(deadline=None)
def test_scale_identity_and_batchnorm_are_their_formulas(
    channels: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    image = random.standard_normal((channels, 3, 4))
    gamma, beta, mean, variance = (random.uniform(0.1, 2, channels) for _ in range(4))
    by_channel = [values[:, None, None] for values in (gamma, beta, mean, variance)]
    scaled = direct(algebra.from_scale(gamma, beta), image)
    assert np.allclose(
        scaled, by_channel[0] * image + by_channel[1], rtol=1e-15, atol=1e-15
    )
    assert np.array_equal(direct(algebra.identity(channels), image), image)
    normal = direct(algebra.from_batchnorm(gamma, beta, mean, variance, 0.25), image)
    expected = (image - by_channel[2]) / (by_channel[3] + 0.25) ** 0.5 * by_channel[
        0
    ] + by_channel[1]
    assert np.allclose(normal, expected, rtol=1e-13, atol=1e-13)


@given(kernel=PAIRS, strides=PAIRS, pads=PADS, seed=SEEDS)
@settings(deadline=None)
def test_average_pool_is_the_mean_of_each_window_padding_counted(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    seed: int,
) -> None:
    image = integers((2, 7, 8), seed)
    padded = np.pad(image, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))[
        :, :: strides[0], :: strides[1]
    ]
    pool = algebra.from_average_pool(2, kernel, strides, pads)
    assert np.allclose(direct(pool, image), views.mean((3, 4)), rtol=1e-14, atol=1e-14)


@given(shape=windows(4, 6), factor=st.sampled_from([-2.0, 0.0, 0.5, 3.0]), seed=SEEDS)
@settings(deadline=None, max_examples=40)
def test_scaled_multiplies_the_output(
    shape: Geometry, factor: float, seed: int
) -> None:
    affine = random_map(shape, seed)
    for image in images(6, shape.span, seed):
        assert np.array_equal(
            direct(algebra.scale_output(affine, factor), image),
            factor * direct(affine, image),
        )


@given(
    shape=st.tuples(CHANNELS, CHANNELS).flatmap(lambda pair: windows(*pair)),
    seed=SEEDS,
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_fewer_groups_is_the_same_map(
    shape: Geometry, seed: int, data: st.DataObject
) -> None:
    affine = random_map(shape, seed)
    groups = data.draw(
        st.sampled_from(
            [g for g in range(1, shape.groups + 1) if shape.groups % g == 0]
        )
    )
    fewer = algebra.regroup(affine, groups)
    assert fewer.geometry == replace(shape, groups=groups)
    for image in images(shape.inputs, shape.span, seed):
        assert np.array_equal(direct(fewer, image), direct(affine, image))


# --- sums -------------------------------------------------------------------------------------


@st.composite
def aligned_pairs(draw: st.DrawFn) -> tuple[Geometry, Geometry]:
    """Two geometries whose outputs line up, the padding of the second split anyhow between its
    two sides.
    """
    outputs, inputs = draw(CHANNELS), draw(CHANNELS)
    first, second = draw(windows(outputs, inputs)), draw(windows(outputs, inputs))
    total = [first.excess[a] - 1 + second.span[a] for a in (0, 1)]
    assume(min(total) >= 0)
    before = [draw(st.integers(0, total[a])) for a in (0, 1)]
    pads = (before[0], before[1], total[0] - before[0], total[1] - before[1])
    return first, replace(second, strides=first.strides, pads=pads)


@given(pair=aligned_pairs(), seed=SEEDS)
@settings(deadline=None, max_examples=150)
def test_add_is_the_sum_wherever_outputs_line_up(
    pair: tuple[Geometry, Geometry], seed: int
) -> None:
    first, second = (random_map(shape, seed + i) for i, shape in enumerate(pair))
    total = algebra.add(first, second)
    assert total.geometry == add_geometry(*pair)
    assert min(total.geometry.pads) >= 0
    for image in images(
        first.geometry.inputs,
        (
            max(reach(pair[0])[0], reach(pair[1])[0]),
            max(reach(pair[0])[1], reach(pair[1])[1]),
        ),
        seed,
    ):
        assert np.array_equal(
            direct(total, image), direct(first, image) + direct(second, image)
        )


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Geometry(4, 4), Geometry(4, 2), "channels do not add"),
        (Geometry(4, 4), Geometry(1, 4), "channels do not add"),
        (Geometry(4, 4, (3, 3), (2, 2), (1, 1, 1, 1)), Geometry(4, 4), "strides"),
        (Geometry(4, 4, (3, 3)), Geometry(4, 4), "different sizes"),
        (
            Geometry(4, 4, (3, 3), (2, 2), (1, 1, 1, 1)),
            Geometry(4, 4, (3, 3), (2, 2), (0, 0, 1, 1)),
            "different sizes",
        ),
    ],
)
def test_add_refuses_what_does_not_line_up(
    first: Geometry, second: Geometry, reason: str
) -> None:
    with pytest.raises(Inexact, match=reason):
        algebra.add(random_map(first, 0), random_map(second, 1))


def test_add_keeps_dilations_and_groups() -> None:
    """A dilated kernel plus an identity stays dilated; two depthwise kernels stay depthwise;
    1x3 plus 3x1 spans 3x3.
    """
    dilated = Geometry(4, 4, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2))
    assert add_geometry(dilated, Geometry(4, 4, groups=4)) == dilated
    assert add_geometry(Geometry(4, 4, groups=4), dilated) == dilated
    depthwise = Geometry(4, 4, (3, 3), pads=(1, 1, 1, 1), groups=4)
    assert add_geometry(depthwise, Geometry(4, 4, groups=4)).groups == 4
    flat, tall = (
        Geometry(4, 4, (1, 3), pads=(0, 1, 0, 1)),
        Geometry(4, 4, (3, 1), pads=(1, 0, 1, 0)),
    )
    assert add_geometry(flat, tall).kernel == (3, 3)


@given(pair=aligned_pairs(), outputs=CHANNELS, seed=SEEDS)
@settings(deadline=None, max_examples=100)
def test_join_is_one_above_the_other_wherever_outputs_line_up(
    pair: tuple[Geometry, Geometry], outputs: int, seed: int
) -> None:
    groups = np.gcd.reduce([outputs, pair[1].inputs, pair[1].groups])
    shapes = pair[0], replace(pair[1], outputs=outputs, groups=int(groups))
    maps = [random_map(shape, seed + i) for i, shape in enumerate(shapes)]
    joined = algebra.join(*maps)
    assert joined.geometry == join_geometry(*shapes)
    smallest = [max(reach(shape)[a] for shape in shapes) for a in (0, 1)]
    for image in images(pair[0].inputs, (smallest[0], smallest[1]), seed):
        assert np.array_equal(
            direct(joined, image),
            np.concatenate([direct(affine, image) for affine in maps]),
        )


def test_join_refuses_what_does_not_line_up() -> None:
    with pytest.raises(Inexact, match="channels do not add"):
        algebra.join(random_map(Geometry(4, 4), 0), random_map(Geometry(4, 2), 0))
    with pytest.raises(Inexact, match="strides"):
        algebra.join(
            random_map(Geometry(4, 4), 0), random_map(Geometry(2, 4, strides=(2, 2)), 0)
        )


@given(channels=st.integers(1, 8), data=st.data(), seed=SEEDS)
@settings(deadline=None, max_examples=60)
def test_select_takes_a_run_of_channels_and_join_puts_the_runs_back(
    channels: int, data: st.DataObject, seed: int
) -> None:
    start = data.draw(st.integers(0, channels - 1))
    count = data.draw(st.integers(1, channels - start))
    image = integers((channels, 3, 4), seed)
    assert np.array_equal(
        direct(algebra.select_channels(channels, start, count), image),
        image[start : start + count],
    )
    if start:
        joined = algebra.join(
            algebra.select_channels(channels, 0, start),
            algebra.select_channels(channels, start, channels - start),
        )
        assert np.array_equal(
            joined.kernel, algebra.regroup(algebra.identity(channels), 1).kernel
        )


@given(pads=PADS, seed=SEEDS)
@settings(deadline=None, max_examples=60)
def test_zero_pad_is_a_frame_of_zeros(
    pads: tuple[int, int, int, int], seed: int
) -> None:
    image = integers((3, 4, 5), seed)
    framed = np.pad(image, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    assert np.array_equal(direct(algebra.zero_pad(3, pads), image), framed)
    outer = random_map(Geometry(2, 3, (2, 3), (2, 1), (1, 0, 2, 1)), seed)
    whole = algebra.compose(outer, algebra.zero_pad(3, pads))
    assert np.array_equal(direct(whole, image), direct(outer, framed))


# --- compositions -----------------------------------------------------------------------------


@st.composite
def chained_pairs(draw: st.DrawFn) -> tuple[Geometry, Geometry]:
    """(outer, inner) with any windows; often one that is diagonal, so that scales and depthwise
    kernels occur.
    """
    inputs, middle, outputs = draw(CHANNELS), draw(CHANNELS), draw(CHANNELS)
    outer, inner = draw(windows(outputs, middle)), draw(windows(middle, inputs))
    kind = draw(st.sampled_from(["any", "outer diagonal", "inner diagonal"]))
    if kind == "outer diagonal":
        outer = replace(outer, outputs=middle, groups=middle)
    if kind == "inner diagonal":
        inner = replace(inner, inputs=middle, groups=middle)
    return outer, inner


@given(pair=chained_pairs(), bias=st.booleans(), seed=SEEDS)
@settings(deadline=None, max_examples=200)
def test_compose_is_right_or_refuses_for_its_one_reason(
    pair: tuple[Geometry, Geometry], bias: bool, seed: int
) -> None:
    outer, inner = random_map(pair[0], seed), random_map(pair[1], seed + 5, bias)
    padded = any(pair[0].pads)
    moves = pair[1].kernel != (1, 1) or pair[1].strides != (1, 1)
    try:
        whole = algebra.compose(outer, inner)
    except Inexact:
        assert padded
        assert moves or inner.bias.any()
        return
    assert not (padded and (moves or inner.bias.any()))
    for image in images(pair[1].inputs, reach(*pair), seed):
        assert np.array_equal(direct(whole, image), direct(outer, direct(inner, image)))


@given(pair=chained_pairs(), seed=SEEDS)
@settings(deadline=None, max_examples=100)
def test_what_is_composed_without_outer_padding_never_refuses(
    pair: tuple[Geometry, Geometry], seed: int
) -> None:
    outer, inner = (
        random_map(replace(pair[0], pads=(0, 0, 0, 0)), seed),
        random_map(pair[1], seed + 5),
    )
    whole = algebra.compose(outer, inner)
    assert whole.geometry == compose_geometry(outer.geometry, inner.geometry)
    for image in images(pair[1].inputs, reach(outer.geometry, inner.geometry), seed):
        assert np.array_equal(direct(whole, image), direct(outer, direct(inner, image)))


def test_padding_around_a_shift_would_indeed_differ_at_the_border() -> None:
    """Why compose refuses: leaving the padding out of the shift is right inside and wrong at
    the border.
    """
    outer = random_map(Geometry(2, 2, (3, 3), pads=(1, 1, 1, 1)), 1)
    inner = algebra.from_scale([2.0, 3.0], [1.0, -1.0])
    with pytest.raises(Inexact, match="borders would differ"):
        algebra.compose(outer, inner)
    scaled = algebra.compose(outer, replace(inner, bias=np.zeros(2)))
    shifted = replace(scaled, bias=outer.bias + outer.kernel.sum((2, 3)) @ inner.bias)
    image = integers((2, 6, 7), 3)
    error = np.abs(direct(shifted, image) - direct(outer, direct(inner, image)))
    assert not error[:, 1:-1, 1:-1].any()
    assert error[:, 0].any()


def test_compose_refuses_channels_that_do_not_meet() -> None:
    with pytest.raises(Inexact, match="3 channels are read where 4 are made"):
        algebra.compose(random_map(Geometry(2, 3), 0), random_map(Geometry(4, 2), 0))


def test_compose_keeps_groups_and_dilations() -> None:
    """A scale around a grouped or dilated convolution costs no weight."""
    conv = Geometry(6, 6, (3, 3), (2, 2), (2, 2, 2, 2), (2, 2), 3)
    scale = Geometry(6, 6, groups=6)
    assert compose_geometry(scale, conv) == conv
    assert compose_geometry(conv, scale) == conv
    subsample = Geometry(6, 6, strides=(2, 2), groups=6)
    assert compose_geometry(Geometry(6, 6, (3, 3)), subsample) == Geometry(
        6, 6, (3, 3), (2, 2), dilations=(2, 2)
    )
    assert (
        compose_geometry(Geometry(6, 6, groups=2), Geometry(6, 6, groups=3)).groups == 1
    )
    assert (
        compose_geometry(Geometry(8, 8, groups=4), Geometry(8, 8, groups=2)).groups == 2
    )
