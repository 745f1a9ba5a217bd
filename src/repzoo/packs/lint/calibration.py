"""Calibration files of hb_mapper: their number, size, type, values and order of channels.

A file holds one image, without a header: float32 or uint8 [channels, height, width], pixels 0..255
in the channel order of training, before normalization, which the tool does itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from repzoo.packs.lint.finding import Finding

MIN_FILES = 20  # vendors ask for about 100; below 20 D-Robotics' script warns
MAX_FILES = 1000
READ_FILES = (
    64  # whose values are looked at, spread over the folder: reading all takes long
)
MAX_FILE_BYTES = 2**28
HEADED = (".npy", ".npz")
ITEM_BYTES = {"float32": 4, "uint8": 1}
SOURCES = "take 100 images or so, from all classes"
SUSPECTED = 4.0  # standard errors between two means that are called different
SAME_LEVELS = 2.0  # of block means: resizing differs less between libraries
BLOCKS = 8
LEAST_FLOAT, LARGEST_FLOAT = 1e-12, 1e5  # of values that anyone would calibrate with

Pixels = npt.NDArray[np.float32]


def dtype_by_name(folder: str) -> str:
    """The type that hb_mapper takes from a folder's name where cal_data_type is missing."""
    return "float32" if folder.rstrip("/").endswith("_f32") else "uint8"


@dataclass(frozen=True)
class Expected:
    """What the files should hold.

    Attributes:
        shape: [channels, height, width]; None where it is not known.
        dtype: float32 or uint8.
        color: RGB, BGR or GRAY; "" where it is not known.
        source: where that comes from, for messages.
    """

    shape: tuple[int, int, int] | None
    dtype: str
    color: str
    source: str

    @property
    def size(self) -> int:
        """Bytes of a file; 0 where the shape is not known."""
        if self.shape is None:
            return 0
        channels, height, width = self.shape
        return ITEM_BYTES[self.dtype] * channels * height * width


def files_of(folder: Path) -> list[Path]:
    """The calibration files, in order; listing stops at ten times MAX_FILES."""
    paths: list[Path] = []
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            paths.append(path)
        if len(paths) >= 10 * MAX_FILES:
            break
    return sorted(paths)


def check(
    folder: Path, shown: str, expected: Expected, images: Sequence[Pixels] = ()
) -> Iterator[Finding]:
    """Findings about a calibration folder.

    Args:
        folder: of the files.
        shown: its path in messages.
        expected: what the files should hold.
        images: photographs prepared as the model wants them, float32 [C, H, W], pixels 0..255 in
            the order of `expected.color`; with these, swapped channels are found.
    """
    paths = files_of(folder)
    yield from _count(paths, shown)
    if not paths:
        return
    yield from _identical(paths, shown)
    headed = [path for path in paths if path.suffix in HEADED]
    if headed:
        yield _with_header(headed, shown)
        return  # values would be read at the wrong places
    sizes = _sizes(paths, shown, expected)
    yield from sizes
    if sizes or expected.shape is None:
        return  # values of such files would be read at the wrong places
    pixels = _read(paths, expected)
    yield from _values(pixels, shown)
    if images and expected.color in ("RGB", "BGR"):
        yield from _channels(pixels, shown, expected, images)


def _count(paths: list[Path], shown: str) -> Iterator[Finding]:
    number = len(paths)
    if not paths:
        yield Finding(
            "calibration-empty", "there are no calibration files", SOURCES, shown
        )
    elif number < MIN_FILES:
        yield Finding(
            "calibration-few",
            f"{number} calibration files; expected at least {MIN_FILES}. Ranges from so few "
            "images clip what others need",
            SOURCES,
            shown,
        )
    elif number > MAX_FILES:
        yield Finding(
            "calibration-many",
            f"{number} calibration files; more than {MAX_FILES} take the tool hours and change "
            "little",
            SOURCES,
            shown,
        )


def _with_header(paths: list[Path], shown: str) -> Finding:
    """hb_mapper reads every file as raw values, whatever its name."""
    return Finding(
        "calibration-size",
        f"{len(paths)} files are NumPy's, such as {paths[0].name}; the tool reads raw values and "
        "takes the header for pixels",
        "write raw values: np.load(FILE).tofile(FILE.bin)",
        shown,
    )


def _sizes(paths: list[Path], shown: str, expected: Expected) -> list[Finding]:
    """Files whose size is not that of one image."""
    sizes = Counter(path.stat().st_size for path in paths)
    if not expected.size:
        return list(_sizes_alone(paths, shown, expected, sizes))
    wrong = [path for path in paths if path.stat().st_size != expected.size]
    if not wrong:
        return []
    size = wrong[0].stat().st_size
    assert expected.shape is not None
    sides = "x".join(map(str, expected.shape))
    item = ITEM_BYTES[expected.dtype]
    message = (
        f"{len(wrong)} of {len(paths)} files have the wrong size, such as {wrong[0].name} with "
        f"{size:,} bytes; expected {item} x {sides} = {expected.size:,} ({expected.dtype}, "
        f"{expected.source}){_guess(size, expected)}"
    )
    return [Finding("calibration-size", message, _type_fix(size, expected), shown)]


def _guess(size: int, expected: Expected) -> str:
    """What a file of that size holds, if it is an image at all."""
    assert expected.shape is not None
    channels = expected.shape[0]
    elements = expected.size // ITEM_BYTES[expected.dtype]
    for dtype, item in ITEM_BYTES.items():
        if size == item * elements and dtype != expected.dtype:
            return f": that is {dtype}"
    side = _square_side(size, ITEM_BYTES[expected.dtype] * channels)
    return f": that is an image of {side}x{side}" if side else ""


def _square_side(size: int, item: int) -> int:
    if size % item:
        return 0
    side = round((size // item) ** 0.5)
    return side if side * side * item == size else 0


def _type_fix(size: int, expected: Expected) -> str:
    elements = expected.size // ITEM_BYTES[expected.dtype]
    for dtype, item in ITEM_BYTES.items():
        if size == item * elements:
            return f"cal_data_type: '{dtype}', or write the files anew"
    return "write the files anew, at the size of the model's input"


def _sizes_alone(
    paths: list[Path], shown: str, expected: Expected, sizes: Counter[int]
) -> Iterator[Finding]:
    """Without a model: the files against each other."""
    if len(sizes) > 1:
        common, number = sizes.most_common(1)[0]
        other = next(path for path in paths if path.stat().st_size != common)
        yield Finding(
            "calibration-size",
            f"{number} of {len(paths)} files have {common:,} bytes, but {other.name} has "
            f"{other.stat().st_size:,}; all must hold one image of the same size",
            "write the files anew",
            shown,
        )
    first = paths[0]
    if first.stat().st_size % 4 or not 0 < first.stat().st_size <= MAX_FILE_BYTES:
        dtype = "uint8"
    else:
        # 224 x 224 bytes are 112 x 112 floats: only the values tell.
        dtype = "float32" if _are_floats(first) else "uint8"
    if dtype != expected.dtype:
        yield Finding(
            "calibration-size",
            f"the files hold {dtype} by their values, such as {first.name} with "
            f"{first.stat().st_size:,} bytes; the tool reads them as {expected.dtype} "
            f"({expected.source})",
            f"cal_data_type: '{dtype}'",
            shown,
        )


def _are_floats(path: Path) -> bool:
    """Whether bytes make sense as float32 pixels, normalized or not."""
    values = np.frombuffer(path.read_bytes(), np.float32)
    if not np.isfinite(values).all():
        return False
    # Four bytes of pixels are floats of any size, many of them tiny.
    magnitudes = np.abs(values)
    tiny = (magnitudes > 0) & (magnitudes < LEAST_FLOAT)
    return bool(magnitudes.max() <= LARGEST_FLOAT and not tiny.any())


def _identical(paths: list[Path], shown: str) -> Iterator[Finding]:
    seen: dict[str, Path] = {}
    copies: list[tuple[Path, Path]] = []
    for path in paths[:MAX_FILES]:
        if path.stat().st_size > MAX_FILE_BYTES:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            copies.append((path, seen[digest]))
        seen.setdefault(digest, path)
    if copies:
        first, second = copies[0]
        yield Finding(
            "calibration-identical",
            f"{len(copies)} of {len(paths)} files repeat others, such as {first.name} and "
            f"{second.name}; they add no information",
            SOURCES,
            shown,
        )


def _read(paths: list[Path], expected: Expected) -> list[Pixels]:
    """Images spread over the folder, float32 [channels, height, width]."""
    step = max(1, len(paths) // READ_FILES)
    images: list[Pixels] = []
    for path in paths[::step][:READ_FILES]:
        values = np.frombuffer(path.read_bytes(), np.dtype(expected.dtype))
        assert expected.shape is not None
        images.append(values.reshape(expected.shape).astype(np.float32))
    return images


def _values(images: list[Pixels], shown: str) -> Iterator[Finding]:
    """Values that are no pixels 0..255."""
    if not all(np.isfinite(image).all() for image in images):
        yield Finding(
            "calibration-values",
            "some files hold values that are not finite numbers; expected pixels 0..255",
            "write the files anew",
            shown,
        )
        return
    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    if low == high:
        yield Finding(
            "calibration-values",
            f"all files hold the one value {low:g}; expected photographs",
            SOURCES,
            shown,
        )
    # No photograph has only levels 0 and 1; the rest is for rounding.
    elif high <= 1.001 and low >= 0:
        yield _normalized(low, high, "pixels divided by 255 already", shown)
    # (x - mean) / std of any usual std stays within a few units; pixels do not.
    elif low < -0.5 and high < 16:
        yield _normalized(
            low, high, "normalized already, and the tool does it again", shown
        )
    # Half a level beyond 0..255 is rounding.
    elif low < -0.5 or high > 255.5:
        yield Finding(
            "calibration-values",
            f"values go from {low:.4g} to {high:.4g}; expected pixels 0..255",
            "write the files anew",
            shown,
        )


def _normalized(low: float, high: float, reason: str, shown: str) -> Finding:
    return Finding(
        "calibration-normalized",
        f"values go from {low:.4g} to {high:.4g}; expected pixels 0..255: they are {reason}",
        "write pixels 0..255; mean_value and scale_value normalize them",
        shown,
    )


def _channels(
    pixels: list[Pixels], shown: str, expected: Expected, images: Sequence[Pixels]
) -> Iterator[Finding]:
    """Channels in reverse order: by the very image where it is there, else by the averages."""
    swapped, right = _matches(pixels, images)
    if swapped > right:
        proof = f"{swapped} files show an image of the data with R and B swapped"
    elif right or not _averages_are_swapped(pixels, images):
        return
    else:
        proof = "their average R - B has the sign of the data's B - R"
    other = "BGR" if expected.color == "RGB" else "RGB"
    yield Finding(
        "calibration-color",
        f"the files hold {other}, but the model was trained with {expected.color} "
        f"({expected.source}): {proof}. A known script of the vendor converts to RGB and then "
        "writes the BGR image",
        "write the files anew; cv2.imread gives BGR, which needs [:, :, ::-1]",
        shown,
    )


def _signature(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means of BLOCKS x BLOCKS parts of a channel."""
    rows = np.array_split(channel, min(BLOCKS, channel.shape[0]), axis=0)
    means = [
        [part.mean() for part in np.array_split(row, min(BLOCKS, row.shape[1]), axis=1)]
        for row in rows
    ]
    return np.array(means, np.float32)


def _matches(pixels: list[Pixels], images: Sequence[Pixels]) -> tuple[int, int]:
    """How many files are an image of the data with channels reversed, and in order."""
    signatures = [[_signature(channel) for channel in image] for image in images]
    swapped = right = 0
    for image in pixels:
        if len(image) != 3:
            return 0, 0
        first, green, last = map(_signature, image)
        for data_first, data_green, data_last in signatures:
            if np.abs(green - data_green).max() > SAME_LEVELS:
                continue
            straight = np.abs(first - data_first).max() + np.abs(last - data_last).max()
            crossed = np.abs(first - data_last).max() + np.abs(last - data_first).max()
            # A gray photograph says nothing.
            if abs(straight - crossed) > 2 * SAME_LEVELS:
                swapped += bool(crossed < straight)
                right += bool(straight < crossed)
            break
    return swapped, right


def _averages_are_swapped(pixels: list[Pixels], images: Sequence[Pixels]) -> bool:
    files = np.array([image[0].mean() - image[-1].mean() for image in pixels])
    data = np.array([image[0].mean() - image[-1].mean() for image in images])
    return _clear_sign(files) * _clear_sign(data) < 0


def _clear_sign(values: npt.NDArray[np.floating]) -> int:
    """The sign of the mean where it is far from 0 by its standard error, else 0."""
    if len(values) < 2:
        return 0
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return int(np.sign(mean)) if abs(mean) > SUSPECTED * error else 0
