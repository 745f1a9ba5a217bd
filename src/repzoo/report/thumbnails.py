"""Small pictures of images, as addresses that hold their pixels (RFC 2397)."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from repzoo.data.dataset import UnreadableImage
from repzoo.data.image_file import load_image

SIDE = 96  # pixels of the longer side
QUALITY = 75  # of JPEG: about 3 kB each


def thumbnail(folder: Path, key: str) -> str:
    """The image `key` below `folder` as an address; "" where there is none that can be read.

    Records are of others, so a key that leads out of the folder is not followed.
    """
    root = folder.resolve()
    try:
        path = (root / key).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return ""
        image = load_image(path).convert("RGB")
    except (OSError, ValueError, UnreadableImage):
        return ""
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    # Of the pixels only: the file's own metadata may say where it was taken.
    image.save(encoded, "JPEG", quality=QUALITY, exif=b"")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
