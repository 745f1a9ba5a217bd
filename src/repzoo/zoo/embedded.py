"""Checkpoints that ship inside the package: training-form artifacts, rounded to half precision and compressed.

Rounding the weights to 11 bits of mantissa (they stay float32 in the graph) lets xz store them in under half the bytes. What
is shipped is what every published figure was measured on.
"""

from __future__ import annotations

import argparse
import lzma
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.errors import InputError, RepzooError
from repzoo.storage import write_atomically
from repzoo.zoo import catalog

MAX_BYTES = 64 * 2**20  # decompressed
MANTISSA_BITS = 11


def names() -> list[str]:
    """Names of the embedded checkpoints, such as `repghostnet_050.digits`."""
    return [
        row.name
        for row in catalog.checkpoints()
        if row.file and (files("repzoo.zoo") / "weights" / row.file).is_file()
    ]


def read(name: str) -> Artifact:
    """The embedded checkpoint `name` as an artifact.

    Raises:
        InputError: no such embedded checkpoint.
    """
    row = next(
        (row for row in catalog.checkpoints() if row.name == name and row.name in names()), None
    )
    if row is None:
        raise InputError(f"no weights of {name!r} are embedded; embedded: {', '.join(names())}")
    packed = (files("repzoo.zoo") / "weights" / row.file).read_bytes()
    return Artifact.from_bytes(unpacked(packed, row.file), name)


def unpacked(packed: bytes, where: str) -> bytes:
    """The ONNX file in `packed`, whole and of at most MAX_BYTES; `where` names it in errors.

    Raises:
        RepzooError: damaged, truncated or too large: the installation is broken.
    """
    unpacker = lzma.LZMADecompressor(memlimit=256 * 2**20)
    try:
        data = unpacker.decompress(packed, MAX_BYTES)
    except lzma.LZMAError as error:
        raise RepzooError(
            f"the embedded {where} is damaged ({error}); install repzoo again"
        ) from None
    if not unpacker.eof:
        raise RepzooError(
            f"the embedded {where} is cut short, or unpacks to more than {MAX_BYTES:,} bytes; install repzoo again"
        )
    return data


def pack(artifact: Artifact) -> bytes:
    """The compressed form of `artifact` with its float weights rounded to the mantissa of half precision.

    Raises:
        InputError: more than MAX_BYTES, which `read` would refuse.
    """
    model = onnx.ModelProto()
    model.CopyFrom(artifact.model)
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(rounded(values), item.name))
    data = artifact.then(
        model, Step("embed", __version__, {"mantissa_bits": MANTISSA_BITS})
    ).to_bytes()
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{artifact.name} has {len(data):,} bytes; at most {MAX_BYTES:,} can be embedded"
        )
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`values` to MANTISSA_BITS significant bits, ties to even, over the whole range of float32 (float16 itself would overflow)."""
    mantissa, exponent = np.frexp(values)
    whole = np.round(np.ldexp(mantissa, MANTISSA_BITS))
    return np.asarray(np.ldexp(whole, exponent - MANTISSA_BITS), np.float32)


def main() -> None:
    """`python -m repzoo.zoo.embedded IN.onnx OUT.onnx.xz`: how the shipped files were made."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    write_atomically(options.target, pack(Artifact.read(options.source)))


if __name__ == "__main__":
    main()
