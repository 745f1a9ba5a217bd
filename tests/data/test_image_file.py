"""Images of more than 8 bits, orientation tags, and files that would take too long to decode."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.image_file import file_mode, is_image, load_image, to_8_bits, upright
from repzoo.data.preprocess import resized_and_cropped

Photograph = Callable[..., Image.Image]
GRAY = np.arange(0, 256, 17).astype(np.uint8).reshape(4, 4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", GRAY.astype(np.uint16) * 257),
        ("16.tif", GRAY.astype(np.uint16) * 257),
        ("16.pgm", GRAY.astype(np.uint16) * 257),
        ("32.tif", GRAY.astype(np.int32) * 257),
        ("unit.tif", GRAY.astype(np.float32) / 255),
        ("bytes.tif", GRAY.astype(np.float32)),
    ],
)
def test_deep_images_are_scaled_to_8_bits(
    tmp_path: Path, name: str, values: np.ndarray
) -> None:
    Image.fromarray(values).save(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.mode == "L"
    assert file_mode(image)[0] in "IF"
    np.testing.assert_array_equal(np.asarray(image), GRAY)


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), 70_000, np.int32),
        np.full((2, 2), -1, np.int32),
        np.full((2, 2), np.nan, np.float32),
        np.full((2, 2), 300, np.float32),
    ],
)
def test_values_without_a_known_range_are_refused(
    tmp_path: Path, values: np.ndarray
) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImage, match=r"x\.tif: values .* no known range"):
        load_image(tmp_path / "x.tif")


def test_8_bit_images_are_left_as_they_are() -> None:
    image = Image.new("CMYK", (2, 2))
    assert to_8_bits(image) is image


def oriented(path: Path, image: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def test_an_orientation_tag_is_counted_and_applied_on_request(
    tmp_path: Path, photograph: Photograph
) -> None:
    picture = photograph(16, 8)
    path = oriented(tmp_path / "1.png", picture, 6)
    plain = Preprocess(size=8, resize="squash", crop_fraction=1.0)
    applied = Preprocess(
        size=8, resize="squash", crop_fraction=1.0, orientation="apply"
    )
    turned = picture.transpose(Image.Transpose.ROTATE_270)
    image = load_image(path)
    assert upright(image).size == (8, 16)
    for preprocess, expected in ((plain, picture), (applied, turned)):
        np.testing.assert_array_equal(
            resized_and_cropped(image, preprocess), resized_and_cropped(expected, plain)
        )
    report = ReadReport()
    dataset = Dataset(
        "d", ("a",), (str(path),), (0,), lambda key: load_image(Path(key))
    )
    list(batches(dataset, plain, 1, report))
    assert report.sentences() == [
        "images with an EXIF orientation tag: 1 (it is ignored, as by torchvision and timm, "
        "unless --orientation apply is given)"
    ]


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_a_tag_without_meaning_turns_nothing(tmp_path: Path, orientation: int) -> None:
    path = oriented(tmp_path / "1.jpg", Image.new("RGB", (4, 2)), orientation)
    assert upright(load_image(path)).size == (4, 2)


def with_scans(path: Path, image: Image.Image, count: int) -> Path:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    image.save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    own = data.count(b"\xff\xda")
    path.write_bytes(data[:-2] + scan * (count - own) + data[-2:])
    return path


def test_a_progressive_jpeg_of_many_scans_is_refused_before_decoding(
    tmp_path: Path, photograph: Photograph
) -> None:
    path = with_scans(tmp_path / "slow.jpg", photograph(32, 32), 2000)
    with pytest.raises(UnreadableImage, match=r"progressive JPEG of 2,000 scans"):
        load_image(path)
    usual = with_scans(tmp_path / "usual.jpg", photograph(32, 32), 10)
    assert load_image(usual).size == (32, 32)


def test_a_damaged_tiff_writes_nothing_to_stderr(
    tmp_path: Path, photograph: Photograph, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "1.tif"
    photograph(64, 64).save(path, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    for position in range(200, 400):
        data[position] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"1\.tif cannot be decoded"):
        load_image(path)
    assert capfd.readouterr().err == ""


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UnreadableImage, match=r"pipe\.jpg is no file"):
        load_image(tmp_path / "pipe.jpg")
    assert not is_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", False),
        (b"BM is a text", False),
        (b"P3 is a text", False),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", False),
        (struct.pack("<I", 7) * 8, False),
    ],
)
def test_text_and_other_files_are_no_images(
    tmp_path: Path, content: bytes, expected: bool
) -> None:
    (tmp_path / "x").write_bytes(content)
    assert is_image(tmp_path / "x") is expected
