"""Checkpoints inside the package: training-form artifacts, rounded and compressed.

Weights are rounded to 11 bits of mantissa and stay float32 in the graph. xz then needs less
than half the bytes. Every published figure was measured on the rounded weights.
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
from repzoo.protobuf_stream import clone
from repzoo.storage import write_atomically
from repzoo.zoo import catalog

MAX_BYTES = 64 * 2**20  # decompressed
LICENSE = "apache-2.0"  # of the package, which the weights are a part of
# That of half precision, with the leading bit that is not stored.
MANTISSA_BITS = 11


def names() -> list[str]:
    """Names of the embedded checkpoints, such as `repghostnet_050.digits`."""
    folder = files("repzoo.zoo") / "weights"
    with_file = [row for row in catalog.checkpoints() if row.file]
    return [row.name for row in with_file if (folder / row.file).is_file()]


def read(name: str) -> Artifact:
    """The embedded checkpoint `name` as an artifact.

    Raises:
        InputError: no such embedded checkpoint.
    """
    known = names()
    if name not in known:
        raise InputError(
            f"no weights of {name!r} are embedded; embedded: {', '.join(known)}"
        )
    row = next(row for row in catalog.checkpoints() if row.name == name)
    packed = (files("repzoo.zoo") / "weights" / row.file).read_bytes()
    return Artifact.from_bytes(unpacked(packed, row.file), name)


def unpacked(packed: bytes, where: str) -> bytes:
    """Decompress an ONNX file of at most MAX_BYTES. `where` names it in errors.

    Raises:
        RepzooError: damaged, truncated or too large: the installation is broken.
    """
    # A damaged header may ask for gigabytes; preset 9, which `pack` uses, needs 65 MiB.
    unpacker = lzma.LZMADecompressor(memlimit=256 * 2**20)
    try:
        data = unpacker.decompress(packed, MAX_BYTES)
    except lzma.LZMAError as error:
        raise RepzooError(
            f"the embedded {where} is damaged ({error}); install repzoo again"
        ) from None
    if not unpacker.eof:
        raise RepzooError(
            f"the embedded {where} is truncated, or unpacks to more than {MAX_BYTES:,} bytes; "
            "install repzoo again"
        )
    return data


def pack(artifact: Artifact) -> bytes:
    """`artifact` compressed, with its float weights rounded to the mantissa of half precision.

    Raises:
        InputError: more than MAX_BYTES, which `read` would refuse.
    """
    model = clone(artifact.model)
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(rounded(values), item.name))
    step = Step("embed", __version__, {"mantissa_bits": MANTISSA_BITS})
    data = artifact.then(model, step).to_bytes()
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{artifact.name} has {len(data):,} bytes; at most {MAX_BYTES:,} can be embedded"
        )
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`values` rounded to MANTISSA_BITS significant bits, ties to even.

    Unlike a cast to float16 this does not overflow: exponents keep the range of float32.
    """
    mantissa, exponent = np.frexp(values)
    whole = np.round(np.ldexp(mantissa, MANTISSA_BITS))
    return np.asarray(np.ldexp(whole, exponent - MANTISSA_BITS), np.float32)


def main() -> None:
    """`python -m repzoo.zoo.embedded IN.onnx OUT.onnx.xz` makes an embedded file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    write_atomically(options.target, pack(Artifact.read(options.source)))


if __name__ == "__main__":
    main()
