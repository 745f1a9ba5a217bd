"""NV12 against other people's code and published numbers: Pillow, OpenCV, FFmpeg, OpenVINO, the
SMPTE color bars.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from repzoo.artifact import Preprocess, Yuv
from repzoo.data import nv12
from repzoo.data.preprocess import as_float, model_input, normalized, pixel_map

YUV = get_args(Yuv)
# 75 % color bars, 8-bit limited range: SMPTE EG 1 for BT.601, SMPTE RP 219 for BT.709.
BARS = {
    "bt601-limited": [
        (180, 128, 128),
        (162, 44, 142),
        (131, 156, 44),
        (112, 72, 58),
        (84, 184, 198),
        (65, 100, 212),
        (35, 212, 114),
    ],
    "bt709-limited": [
        (180, 128, 128),
        (168, 44, 136),
        (145, 147, 44),
        (133, 63, 52),
        (63, 193, 204),
        (51, 109, 212),
        (28, 212, 120),
    ],
}
COLORS = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
VECTORS = json.loads((Path(__file__).parent / "yuv_vectors.json").read_text())


def flat(color: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((2, 2, 3), color, np.uint8)


def yuv_of(color: tuple[int, ...], yuv: Yuv) -> tuple[int, ...]:
    """Y, U and V of a picture of one color."""
    buffer = nv12.from_rgb(flat(color), yuv)[..., 0]
    return int(buffer[0, 0]), int(buffer[2, 0]), int(buffer[2, 1])


@pytest.mark.parametrize("yuv", BARS)
def test_the_color_bars_have_their_published_values(yuv: Yuv) -> None:
    for wanted, color in zip(BARS[yuv], COLORS, strict=True):
        actual = yuv_of(tuple(round(0.75 * 255 * part) for part in color), yuv)
        assert np.abs(np.subtract(actual, wanted)).max() <= 1, (color, actual, wanted)


@pytest.mark.parametrize(
    ("yuv", "white", "black"), [("full", 255, 0), ("limited", 235, 16)]
)
@pytest.mark.parametrize("standard", ["bt601", "bt709"])
def test_white_and_black_are_the_ends_of_the_range(
    standard: str, yuv: str, white: int, black: int
) -> None:
    name: Yuv = f"{standard}-{yuv}"  # type: ignore[assignment]
    assert yuv_of((255, 255, 255), name) == (white, 128, 128)
    assert yuv_of((0, 0, 0), name) == (black, 128, 128)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_full_range_bt601_is_pillows_ycbcr(color: tuple[int, int, int]) -> None:
    wanted = np.asarray(Image.new("RGB", (1, 1), color).convert("YCbCr"))[0, 0].astype(
        int
    )
    assert np.abs(np.subtract(yuv_of(color, "bt601-full"), wanted)).max() <= 1


@pytest.mark.parametrize("who", VECTORS)
def test_other_converters_agree_to_their_rounding(who: str) -> None:
    """Recorded answers; see yuv_vectors.json for who gave them and how.

    Ours, and none of the three others, is theirs.
    """
    distances = {yuv: distance(who, yuv) for yuv in YUV}
    own: Yuv = VECTORS[who]["yuv"]
    assert distances.pop(own) <= VECTORS[who]["tolerance"]
    assert min(distances.values()) > 4 * VECTORS[who]["tolerance"]


def distance(who: str, yuv: Yuv) -> float:
    rows = np.array(VECTORS[who]["rows"])
    if VECTORS[who]["to"] == "rgb":
        buffers = np.stack(
            [
                np.array([[y, y], [y, y], [u, v]], np.uint8)[..., None]
                for y, u, v in rows[:, :3]
            ]
        )
        return float(
            np.abs(nv12.to_rgb8(buffers, yuv)[:, 0, 0].astype(int) - rows[:, 3:]).max()
        )
    return float(
        np.abs(
            np.array([yuv_of(tuple(row[:3]), yuv) for row in rows.tolist()])
            - rows[:, 3:]
        ).max()
    )


def test_openvinos_own_operator_decodes_the_same() -> None:
    """Its NV12toRGB is BT.601 limited, nearest chroma, single plane [N, H * 3 / 2, W, 1]."""
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    opset = pytest.importorskip("openvino.opset8")
    given_buffer = opset.parameter([1, 12, 6, 1], np.uint8)
    model = ov.Model([opset.nv12_to_rgb(given_buffer)], [given_buffer])
    buffer = np.random.default_rng(0).integers(0, 256, (1, 12, 6, 1), np.uint8)
    decoded = ov.Core().compile_model(model, "CPU")(buffer)[0]
    assert (
        np.abs(decoded.astype(int) - nv12.to_rgb8(buffer, "bt601-limited")).max() <= 2
    )  # its coefficients have three decimals


@pytest.mark.parametrize("yuv", YUV)
def test_a_round_trip_of_flat_blocks_loses_only_rounding(yuv: Yuv) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (500, 1, 1, 3), np.uint8)
    pixels = np.broadcast_to(colors, (500, 2, 2, 3)).astype(np.uint8)
    back = nv12.to_rgb8(nv12.from_rgb(pixels, yuv), yuv).astype(int)
    # Half a step in Y and in U or V, through the largest coefficients (1.8556 of U in BT.709),
    # widened by 255/219 and 255/224.
    assert np.abs(back - pixels).max() <= (2 if yuv.endswith("full") else 3)


def test_chroma_is_the_mean_of_its_block_and_is_repeated_over_it() -> None:
    left, right = (255, 0, 0), (0, 0, 255)
    pixels = np.array(
        [[left, right, right, right], [left, right, right, right]], np.uint8
    )
    buffer = nv12.from_rgb(pixels, "bt601-full")
    assert buffer.shape == (3, 4, 1)
    first, second = (
        np.array(yuv_of(color, "bt601-full"), float)[1:] for color in (left, right)
    )
    np.testing.assert_allclose(buffer[2, :2, 0], (first + second) / 2, atol=1)
    np.testing.assert_allclose(buffer[2, 2:, 0], second, atol=1)
    decoded = nv12.to_rgb(buffer, "bt601-full")
    chroma = (
        decoded - decoded @ nv12.encoding("bt601-full")[0][0][:, None]
    )  # R - Y, G - Y, B - Y
    np.testing.assert_allclose(
        chroma[:, :2], np.broadcast_to(chroma[:1, :1], (2, 2, 3)), atol=1e-9
    )


def test_odd_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="even sides"):
        nv12.from_rgb(np.zeros((3, 4, 3), np.uint8), "bt601-full")


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", ["uint8", *YUV])
def test_the_map_for_the_graph_is_the_arithmetic_of_the_float_path(
    kind: str, color: str
) -> None:
    """pixel_map and as_float are written apart; the certificate rests on it."""
    more = {"input": "uint8"} if kind == "uint8" else {"input": "nv12", "yuv": kind}
    wanted = Preprocess.from_mapping(
        {
            "size": 6,
            "color": color,
            "mean": (0.1, 0.4, 0.7),
            "std": (0.2, 0.3, 0.6),
            **more,
        }
    )
    raw = np.random.default_rng(0).integers(0, 256, (2, *wanted.input_shape), np.uint8)
    matrix, origin = pixel_map(wanted, wanted.color)
    planes = raw if kind == "uint8" else np.stack([planes_of(image) for image in raw])
    computed = np.moveaxis((planes - origin) @ matrix.T, -1, 1)
    np.testing.assert_allclose(computed, as_float(raw, wanted), rtol=0, atol=2e-5)
    other = pixel_map(wanted, "BGR" if color == "RGB" else "RGB")[0]
    np.testing.assert_allclose(other, matrix[::-1])


def planes_of(
    buffer: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Y, U and V of each pixel, by plain loops."""
    size = buffer.shape[1]
    planes = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            pair = buffer[size + row // 2, column // 2 * 2 : column // 2 * 2 + 2, 0]
            planes[row, column] = buffer[row, column, 0], *pair
    return planes


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_bytes_are_the_pixels_in_the_order_of_the_tensor(color: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    wanted = Preprocess.from_mapping({"size": 4, "input": "uint8", "color": color})
    tensor = model_input(pixels, wanted)
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(
        tensor, pixels if color == "RGB" else pixels[..., ::-1]
    )
    np.testing.assert_array_equal(as_float(tensor, wanted), normalized(pixels, wanted))
