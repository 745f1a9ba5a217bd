"""Decode one image file from anyone: bounded in size and in work, with 8 bits for each channel."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from repzoo.data.dataset import UnreadableImage

# Formats that are decoded, whatever the suffix, and their suffixes. Pillow opens more. Some of
# these start another program (PostScript) or hold no pixels of their own (WMF, HDF5), so the table
# names what is wanted.
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "TGA": (".tga",),
}
FORMATS = tuple(SUFFIXES_OF)
# A file with one of these suffixes counts as an image without a look into it.
SUFFIXES = frozenset(suffix for group in SUFFIXES_OF.values() for suffix in group)
# TGA has no signature: Pillow would take other binary files for it.
WITH_SIGNATURE = tuple(name for name in FORMATS if name != "TGA")
SIGNATURE_BYTES = 16  # that Pillow's plug-ins look at

MAX_PIXELS = 64_000_000  # a decoded RGB image of 192 MB; checked before decoding
# Every scan of a progressive JPEG goes over the whole image. Encoders write about 10 scans, and
# libtiff accepts 100. A file of 288 kB with thousands of them took 23 s.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 10 * MAX_PIXELS  # pixels times scans
START_OF_SCAN = b"\xff\xda"  # ITU-T T.81, table B.1; never occurs within coded data

# Keys of Image.info that say what the file held before it was converted here.
FILE_MODE = "repzoo.mode"
UPRIGHT = 1  # value of the EXIF orientation tag


def load_image(path: Path) -> Image.Image:
    """Decode the image at `path` completely, with at most 8 bits for each channel.

    Raises:
        UnreadableImage: truncated, not an image, more than MAX_PIXELS pixels or MAX_SCANS scans,
            values without a known range, or gone.
    """
    try:
        # Opening a pipe or a device would wait for ever.
        if path.exists() and not path.is_file():
            raise UnreadableImage(f"{path} is no file")
        with Image.open(path, formats=FORMATS) as image:
            _require_bounded(path, image)
            if image.format == "TIFF":
                _silence_libtiff()
            image.load()
            return to_8_bits(image)
    except UnreadableImage as error:
        raise UnreadableImage(_with_path(str(error), path)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(
            f"{path} has too many pixels; at most {MAX_PIXELS:,} are decoded"
        ) from None
    except UnidentifiedImageError:
        raise UnreadableImage(f"{path} is not an image that can be decoded") from None
    # On damaged files Pillow's decoders raise any error: struct.error, IndexError, zlib.error.
    except Exception as error:
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from None


def is_image(path: Path) -> bool:
    """Whether the file at `path` is an image, by its suffix or by its first bytes."""
    return path.suffix.lower() in SUFFIXES or _has_signature(path)


def to_8_bits(image: Image.Image) -> Image.Image:
    """`image` scaled to 8 bits a channel where it has 16 or 32; Pillow would clip it to white.

    16-bit values are 0..65535. Floating-point values are 0..1, or 0..255 where one is above 1.

    Raises:
        UnreadableImage: values outside these ranges, or a color space that Pillow cannot convert.
    """
    if image.mode.startswith("I"):
        pixels = _scaled_integers(np.asarray(image))
    elif image.mode == "F":
        pixels = _scaled_floats(np.asarray(image))
    elif image.mode == "La":
        raise UnreadableImage("the mode La cannot be converted to RGB; save it as LA")
    else:
        return image
    scaled = Image.fromarray(pixels)
    scaled.info = {**image.info, FILE_MODE: image.mode}
    return scaled


def file_mode(image: Image.Image) -> str:
    """Pillow's mode of the file that `image` was decoded from."""
    return str(image.info.get(FILE_MODE, image.mode))


def has_orientation(image: Image.Image) -> bool:
    """Whether an EXIF tag says that `image` must be turned or mirrored to stand upright."""
    # EXIF data may be damaged in any way while the pixels are fine.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return orientation in range(UPRIGHT + 1, 9)
    return False


def upright(image: Image.Image) -> Image.Image:
    """`image` turned and mirrored as its EXIF orientation tag says."""
    if not has_orientation(image):
        return image
    turned = ImageOps.exif_transpose(image)
    turned.info.setdefault(FILE_MODE, file_mode(image))
    return turned


def _require_bounded(path: Path, image: Image.Image) -> None:
    """Refuse an image whose decoding would take too much memory or time."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise UnreadableImage(
            f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded"
        )
    if not image.info.get("progressive"):
        return
    scans = path.read_bytes().count(START_OF_SCAN)
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        raise UnreadableImage(
            f"{path} is a progressive JPEG of {scans:,} scans, which would take too long to "
            f"decode; at most {MAX_SCANS} scans are read: save it again"
        )


def _scaled_integers(values: np.ndarray) -> np.ndarray:
    low = int(values.min())
    high = int(values.max())
    if low < 0 or high > 65535:
        raise UnreadableImage(
            f"values from {low} to {high} have no known range; expected 16 bits, 0 to 65535"
        )
    # 65535 = 257 * 255: adding half of 257 rounds to the nearest.
    return np.asarray((values.astype(np.uint32) + 128) // 257, np.uint8)


def _scaled_floats(values: np.ndarray) -> np.ndarray:
    low = float(values.min())
    high = float(values.max())
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise UnreadableImage(
            f"values from {low:g} to {high:g} have no known range; expected 0 to 1 or 0 to 255"
        )
    scale = 255 if high <= 1 else 1
    return np.asarray(np.rint(values * scale), np.uint8)


def _has_signature(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            prefix = file.read(SIGNATURE_BYTES)
        if not _may_be_image(prefix):
            return False
        # Text may begin with "P3" or "BM" too: only the header tells.
        with Image.open(path, formats=WITH_SIGNATURE):
            return True
    # Pillow's parsers raise any error on files that are no images.
    except Exception:
        return False


def _may_be_image(prefix: bytes) -> bool:
    """Whether a Pillow plug-in of WITH_SIGNATURE accepts a file that begins with `prefix`."""
    Image.init()
    for name in WITH_SIGNATURE:
        _, accept = Image.OPEN[name]
        if accept is not None and accept(prefix):
            return True
    return False


def _with_path(sentence: str, path: Path) -> str:
    return sentence if sentence.startswith(str(path)) else f"{path}: {sentence}"


@functools.cache
def _silence_libtiff() -> None:
    """Turn off the lines that libtiff writes to stderr, past Python, about damaged files.

    What is wrong with a file is in the exception that Pillow raises. Pillow offers no switch, so
    the handlers are removed in the library that its wheel brings. Other builds of Pillow are left
    as they are.
    """
    package = Path(PIL.__file__).parent
    for folder in (package.parent / "pillow.libs", package / ".dylibs"):
        for path in folder.glob("libtiff*"):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(path))
                library.TIFFSetErrorHandler(None)
                library.TIFFSetWarningHandler(None)
