"""Bit for bit what torchvision and timm make: the reference is their own code, run beside ours."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from repzoo.artifact import Interpolation, Preprocess
from repzoo.data import preprocess as module
from repzoo.data.dataset import UnreadableImage
from repzoo.data.preprocess import prepare, resized_and_cropped, to_rgb

pytest.importorskip("torchvision", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

from timm.data import create_transform
from torchvision import transforms

Array = npt.NDArray[np.float32]
INTERPOLATIONS: tuple[Interpolation, ...] = (
    "nearest",
    "bilinear",
    "bicubic",
    "lanczos",
)
unit = st.floats(2**-7, 1, width=32)
channels = st.tuples(unit, unit, unit)
sides = st.one_of(st.integers(1, 12), st.integers(13, 150))
settings_drawn = st.builds(
    Preprocess,
    size=st.integers(1, 48),
    resize=st.sampled_from(["short", "squash"]),
    crop_fraction=st.one_of(
        st.sampled_from([1.0, 0.875, 0.9, 0.95, 224 / 256, 0.5]), st.floats(0.3, 1)
    ),
    interpolation=st.sampled_from(INTERPOLATIONS),
    mean=channels,
    std=channels,
)
drawn = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def by_torchvision(image: Image.Image, wanted: Preprocess) -> Array:
    to = math.floor(wanted.height / wanted.crop_fraction)
    steps = transforms.Compose(
        [
            transforms.Resize(
                to if wanted.resize == "short" else (to, to),
                transforms.InterpolationMode[wanted.interpolation.upper()],
            ),
            transforms.CenterCrop(wanted.size),
            transforms.ToTensor(),
            transforms.Normalize(wanted.mean, wanted.std),
        ]
    )
    return np.asarray(steps(image.convert("RGB")))


def by_timm(image: Image.Image, wanted: Preprocess) -> Array:
    transform: Any = create_transform(
        (3, wanted.size, wanted.size),
        is_training=False,
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        std=wanted.std,
        crop_pct=wanted.crop_fraction,
        crop_mode="center" if wanted.resize == "short" else "squash",
    )
    return np.asarray(transform(image.convert("RGB")))


@drawn
@given(sides, sides, settings_drawn)
@example(37, 61, Preprocess(size=32, crop_fraction=0.875))
@example(61, 37, Preprocess(size=32, crop_fraction=0.875))
@example(36, 36, Preprocess(size=32, crop_fraction=0.875))
@example(32, 32, Preprocess(size=32, crop_fraction=1.0))
@example(1, 1, Preprocess(size=32, crop_fraction=1.0, interpolation="bicubic"))
def test_equals_torchvision_bit_for_bit(
    width: int, height: int, wanted: Preprocess
) -> None:
    image = picture(width, height)
    tensor = prepare(image, wanted)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, wanted.size, wanted.size)
    assert np.array_equal(tensor, by_torchvision(image, wanted))


@drawn
@given(sides, sides, settings_drawn)
@example(
    61,
    37,
    Preprocess(size=32, crop_fraction=0.95, resize="squash", interpolation="bicubic"),
)
@example(500, 375, Preprocess(size=224, crop_fraction=0.875))
@example(333, 500, Preprocess(size=224, crop_fraction=0.95, interpolation="bicubic"))
def test_equals_timm_bit_for_bit(width: int, height: int, wanted: Preprocess) -> None:
    image = picture(width, height)
    assert np.array_equal(prepare(image, wanted), by_timm(image, wanted))


@pytest.mark.parametrize(("width", "same"), [(40, True), (41, True), (42, False)])
def test_short_and_squash_part_when_the_long_side_grows_by_a_whole_pixel(
    width: int, same: bool
) -> None:
    """A short side of 40 becomes 36; 41 * 36 / 40 = 36.9 is truncated to 36, 42 * 36 / 40 =
    37.8 to 37.
    """
    image = picture(width, 40)
    short, squash = (
        resized_and_cropped(image, Preprocess(size=32, resize=resize))
        for resize in ("short", "squash")
    )
    assert np.array_equal(short, squash) == same


def rounded_long_side(size: tuple[int, int], wanted: Preprocess) -> tuple[int, int]:
    to, (width, height) = wanted.resize_to, size
    assert isinstance(to, int)
    return (
        (to, round(to * height / width))
        if width <= height
        else (round(to * width / height), to)
    )


def test_a_rounded_long_side_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """36 * 59 / 37 = 57.4 is rounded as it is truncated; 36 * 50 / 37 = 48.6 is not."""
    wanted, image, tall = Preprocess(size=32), picture(37, 59), picture(37, 50)
    assert np.array_equal(prepare(tall, wanted), by_torchvision(tall, wanted))
    monkeypatch.setattr(module, "_target_size", rounded_long_side)
    assert np.array_equal(prepare(image, wanted), by_torchvision(image, wanted))
    assert not np.array_equal(prepare(tall, wanted), by_torchvision(tall, wanted))


@pytest.mark.parametrize("to", [33, 35, 37])
def test_half_a_pixel_is_rounded_to_even_and_another_rounding_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, to: int
) -> None:
    """Offsets 0.5, 1.5 and 2.5 become 0, 2 and 2; rounding down or up is wrong for at least one
    of them.
    """
    wanted, image = Preprocess(size=32, crop_fraction=32 / to), picture(to, to)
    assert wanted.resize_to == to
    right = by_torchvision(image, wanted)
    assert np.array_equal(prepare(image, wanted), right)
    for name in ("floor", "ceil"):
        monkeypatch.setattr(module, "round", getattr(math, name), raising=False)
        mutant_is_right = getattr(math, name)((to - 32) / 2) == builtins.round(
            (to - 32) / 2
        )
        assert np.array_equal(prepare(image, wanted), right) == mutant_is_right


def test_multiplying_by_reciprocals_would_be_noticed() -> None:
    """The arithmetic is / 255, - mean, / std in float32; the cheaper (x * (1/255) - mean) *
    (1/std) is another number.
    """
    wanted, image = Preprocess(size=32, crop_fraction=1.0), picture(32, 32)
    pixels = np.moveaxis(np.asarray(image), -1, 0).astype(np.float32)
    mean, std = (
        np.array(values, np.float32)[:, None, None]
        for values in (wanted.mean, wanted.std)
    )
    cheap = (pixels * np.float32(1 / 255) - mean) * (1 / std)
    assert not np.array_equal(cheap, prepare(image, wanted))
    np.testing.assert_allclose(cheap, prepare(image, wanted), rtol=1e-4, atol=1e-6)


def test_bgr_reverses_the_channels_and_leaves_mean_and_std_in_the_tensors_order() -> (
    None
):
    image = picture(50, 40)
    rgb = prepare(image, Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1)))
    bgr = prepare(
        image,
        Preprocess(size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), color="BGR"),
    )
    shift, scale = (
        np.array(values, np.float32)[:, None, None]
        for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    )
    assert np.array_equal(bgr, (rgb[::-1] - shift) / scale)


def image_in_mode(mode: str) -> Image.Image:
    image, random = picture(23, 31), np.random.default_rng(1)
    if mode.startswith("I;16"):
        return Image.frombytes(
            mode, (23, 31), random.integers(0, 65536, 23 * 31, np.uint16).tobytes()
        )
    if mode == "P with one transparent color":
        palette = image.convert("P")
        palette.info["transparency"] = 3
        return palette
    if mode == "P with alpha for each color":
        palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
        palette.info["transparency"] = bytes(random.integers(0, 256, 256, np.uint8))
        return palette
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(random.integers(0, 256, (31, 23), np.uint8)))
        return image
    return image.convert(mode)


@pytest.mark.parametrize(
    "mode",
    [
        *(
            "1",
            "L",
            "LA",
            "P",
            "P with one transparent color",
            "P with alpha for each color",
            "RGBA",
            "RGBX",
            "CMYK",
            "YCbCr",
        ),
        *("I", "F", "I;16", "I;16L", "I;16B"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Palette images with Transparency"
)  # Pillow's advice on the reference's own conversion
def test_every_mode_becomes_what_convert_rgb_makes_of_it(mode: str) -> None:
    image, wanted = image_in_mode(mode), Preprocess(size=16)
    expected = image.convert("RGB")
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(expected))
    assert np.array_equal(prepare(image, wanted), by_torchvision(expected, wanted))


def test_rgb_is_not_copied() -> None:
    image = picture(4, 4)
    assert to_rgb(image) is image


def test_a_strip_that_would_become_gigabytes_is_refused() -> None:
    strip = Image.new("RGB", (60_000, 1))
    with pytest.raises(
        UnreadableImage, match="60000x1 pixels would be resized to 15360000x256"
    ):
        prepare(strip, Preprocess(size=224))
    assert prepare(strip, Preprocess(size=224, resize="squash")).shape == (3, 224, 224)
