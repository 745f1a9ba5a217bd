"""RGB to NV12 and back, in BT.601 and BT.709, full and limited range.

NV12 is one byte buffer: H rows of luma, then H / 2 rows in which chroma samples U (Cb) and V (Cr)
alternate. Here it is [..., H * 3 / 2, W, 1]. With R, G, B in 0..255:

    Y' = Kr R + Kg G + Kb B
    U  = (B - Y') / (2 (1 - Kb))
    V  = (R - Y') / (2 (1 - Kr))

    full range:     Y = Y'                    U, V = 128 + U, V               JPEG, boards' default
    limited range:  Y = 16 + 219 / 255 Y'     U, V = 128 + 224 / 255 (U, V)   video

Encoding works in float64 and takes the mean chroma of each 2x2 block, so that a chroma sample lies
in the middle of its block (as in JPEG and MPEG-1). It rounds half to even and clips once. Decoding
repeats a chroma sample over its block and is linear: nothing is rounded or clipped, because a graph
can merge a linear map into a convolution.

Other tools differ. OpenCV encodes with the chroma of each block's upper left pixel and clips when
decoding. FFmpeg's swscale filters chroma sited at the left.

Sources: ITU-R BT.601-7, 2.5.1 and 2.5.3; BT.709-6, 3.2 and 3.4; JFIF (ITU-T T.871), 7; FourCC NV12
in Microsoft, "Recommended 8-Bit YUV Formats for Video Rendering".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Yuv

Bytes = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
LIMITED = np.array([219, 224, 224]) / 255  # scales of Y, U and V in limited range


def encoding(yuv: Yuv) -> tuple[Float, Float]:
    """(matrix [3, 3], offset [3]): (Y, U, V) = matrix @ (R, G, B) + offset, all in 0..255."""
    standard, _, extent = yuv.partition("-")
    kr, kb = KR_KB[standard]
    red, _, blue = np.eye(3)
    luma = np.array([kr, 1 - kr - kb, kb])
    u = (blue - luma) / (2 * (1 - kb))
    v = (red - luma) / (2 * (1 - kr))
    matrix = np.stack([luma, u, v])
    if extent == "full":
        return matrix, np.array([0.0, 128, 128])
    return matrix * LIMITED[:, None], np.array([16.0, 128, 128])


def decoding(yuv: Yuv) -> tuple[Float, Float]:
    """(matrix [3, 3], origin [3]): (R, G, B) = matrix @ ((Y, U, V) - origin)."""
    matrix, offset = encoding(yuv)
    return np.asarray(np.linalg.inv(matrix)), offset


def from_rgb(pixels: Bytes, yuv: Yuv) -> Bytes:
    """RGB uint8 [..., H, W, 3] as NV12 uint8 [..., H * 3 / 2, W, 1]. H and W must be even.

    Raises:
        ValueError: an odd side.
    """
    *batch, height, width, _ = pixels.shape
    if height % 2 or width % 2:
        raise ValueError(f"NV12 needs even sides; got {height}x{width}")
    matrix, offset = encoding(yuv)
    planes = pixels.astype(np.float64) @ matrix.T + offset
    blocks = planes[..., 1:].reshape(*batch, height // 2, 2, width // 2, 2, 2)
    chroma = blocks.mean((-4, -2)).reshape(*batch, height // 2, width)
    return _to_bytes(np.concatenate([planes[..., 0], chroma], -2))[..., None]


def to_rgb(buffer: Bytes, yuv: Yuv) -> Float:
    """NV12 uint8 [..., H * 3 / 2, W, 1] as RGB float64 [..., H, W, 3], not rounded or clipped."""
    *batch, rows, width, _ = buffer.shape
    height = rows * 2 // 3
    luma = buffer[..., :height, :, :]
    chroma = buffer[..., height:, :, 0].reshape(*batch, height // 2, width // 2, 2)
    upsampled = chroma.repeat(2, -3).repeat(2, -2)
    planes = np.concatenate([luma, upsampled], -1).astype(np.float64)
    matrix, origin = decoding(yuv)
    return np.asarray((planes - origin) @ matrix.T)


def to_rgb8(buffer: Bytes, yuv: Yuv) -> Bytes:
    """`to_rgb`, rounded half to even and clipped to uint8, as a converter in software does."""
    return _to_bytes(to_rgb(buffer, yuv))


def _to_bytes(values: Float) -> Bytes:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
