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
import onnx
from onnx import numpy_helper

from repzoo import __version__
from repzoo.artifact import Artifact, Step
from repzoo.errors import InputError, RepzooError
from repzoo.storage import write_atomically
from repzoo.zoo import catalog

MAX_BYTES = 64 * 2**20  # decompressed


def names() -> list[str]:
    """Names of the embedded checkpoints, such as `repghostnet_050.digits`."""
    return [row.name for row in catalog.checkpoints() if row.file and (files("repzoo.zoo") / "weights" / row.file).is_file()]


def read(name: str) -> Artifact:
    """The embedded checkpoint `name` as an artifact.

    Raises:
        InputError: no such embedded checkpoint.
    """
    row = next((row for row in catalog.checkpoints() if row.name == name and row.name in names()), None)
    if row is None:
        raise InputError(f"no weights of {name!r} are embedded; embedded: {', '.join(names())}")
    packed = (files("repzoo.zoo") / "weights" / row.file).read_bytes()
    data = lzma.LZMADecompressor(memlimit=256 * 2**20).decompress(packed, MAX_BYTES)
    if len(data) >= MAX_BYTES:
        raise RepzooError(f"the embedded {row.file} unpacks to more than {MAX_BYTES:,} bytes")
    return Artifact.from_bytes(data, name)


def pack(artifact: Artifact) -> bytes:
    """The compressed form of `artifact` with its float weights rounded to half precision."""
    model = onnx.ModelProto()
    model.CopyFrom(artifact.model)
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), item.name))
    rounded = artifact.then(model, Step("embed", __version__, {"mantissa_bits": 11}))
    return lzma.compress(rounded.to_bytes(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """`python -m repzoo.zoo.embedded IN.onnx OUT.onnx.xz`: how the shipped files were made."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    write_atomically(options.target, pack(Artifact.read(options.source)))


if __name__ == "__main__":
    main()
