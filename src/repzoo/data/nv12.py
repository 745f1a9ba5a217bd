"""RGB to NV12 and back, in BT.601 and BT.709, full and limited range.

NV12 is one byte buffer: H rows of luma, then H / 2 rows of chroma in which U (Cb) and V (Cr) take turns; here [..., H * 3 / 2, W, 1].

    Y' = Kr R + Kg G + Kb B     U = (B - Y') / (2 (1 - Kb))     V = (R - Y') / (2 (1 - Kr))          R, G, B in 0..255
    full:     Y = Y'                      U, V = 128 + U, V                           JPEG; what boards call NV12 "regular"
    limited:  Y = 16 + 219 / 255 Y'       U, V = 128 + 224 / 255 (U, V)               video: Y in 16..235, U and V in 16..240

Encoding computes in float64, takes the mean of each 2x2 block's chroma, so that a chroma sample lies in the middle of its block
(as in JPEG and MPEG-1), and rounds half to even and clips once. Decoding repeats a chroma sample over its block (nearest) and
is linear: nothing is rounded or clipped, for that is what a graph can merge into a convolution. Others differ: OpenCV encodes with
the chroma of the block's upper left pixel and decodes with clipping to 0..255; FFmpeg's swscale filters chroma sited at the left.
Sources: ITU-R BT.601-7, 2.5.1 and 2.5.3; BT.709-6, 3.2 and 3.4; JFIF (ITU-T T.871), 7; FourCC NV12 in Microsoft, "Recommended 8-Bit
YUV Formats for Video Rendering".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Yuv

Bytes = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
LIMITED = np.array([219, 224, 224]) / 255


def encoding(yuv: Yuv) -> tuple[Float, Float]:
    """(matrix [3, 3], offset [3]): (Y, U, V) = matrix @ (R, G, B) + offset, all in 0..255."""
    standard, _, extent = yuv.partition("-")
    red, blue = KR_KB[standard]
    luma = np.array([red, 1 - red - blue, blue])
    matrix = np.stack(
        [luma, (np.eye(3)[2] - luma) / (2 * (1 - blue)), (np.eye(3)[0] - luma) / (2 * (1 - red))]
    )
    if extent == "full":
        return matrix, np.array([0.0, 128, 128])
    return matrix * LIMITED[:, None], np.array([16.0, 128, 128])


def decoding(yuv: Yuv) -> tuple[Float, Float]:
    """(matrix [3, 3], origin [3]): (R, G, B) = matrix @ ((Y, U, V) - origin)."""
    matrix, offset = encoding(yuv)
    return np.asarray(np.linalg.inv(matrix)), offset


def from_rgb(pixels: Bytes, yuv: Yuv) -> Bytes:
    """uint8 [..., H, W, 3] in RGB, H and W even, to NV12 uint8 [..., H * 3 / 2, W, 1]."""
    *batch, height, width, _ = pixels.shape
    if height % 2 or width % 2:
        raise ValueError(f"NV12 needs even sides; got {height}x{width}")
    matrix, offset = encoding(yuv)
    planes = pixels.astype(np.float64) @ matrix.T + offset
    chroma = planes[..., 1:].reshape(*batch, height // 2, 2, width // 2, 2, 2).mean((-4, -2))
    rows = np.concatenate([planes[..., 0], chroma.reshape(*batch, height // 2, width)], -2)
    return _bytes(rows)[..., None]


def to_rgb(buffer: Bytes, yuv: Yuv) -> Float:
    """NV12 uint8 [..., H * 3 / 2, W, 1] to RGB float64 [..., H, W, 3], neither rounded nor clipped."""
    *batch, rows, width, _ = buffer.shape
    height = rows * 2 // 3
    chroma = buffer[..., height:, :, 0].reshape(*batch, height // 2, width // 2, 2)
    spread = chroma.repeat(2, -3).repeat(2, -2)
    planes = np.concatenate([buffer[..., :height, :, :], spread], -1).astype(np.float64)
    matrix, origin = decoding(yuv)
    return np.asarray((planes - origin) @ matrix.T)


def to_rgb8(buffer: Bytes, yuv: Yuv) -> Bytes:
    """As `to_rgb`, rounded half to even and clipped to uint8: what a converter in front of a float model gives it."""
    return _bytes(to_rgb(buffer, yuv))


def _bytes(values: Float) -> Bytes:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
