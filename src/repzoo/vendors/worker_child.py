"""The side of `worker.py` that runs in a tool chain's own Python, 3.8 or later, without repzoo.

A message is a byte for its kind, eight bytes for its length, and the content: b"a" an array in
NumPy's format, b"e" an error as text, b"r" that the model is open. No pickle.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

HEADER = "<cQ"
MAX_BYTES = 2**31


def write_message(stream: IO[bytes], kind: bytes, content: bytes = b"") -> None:
    """Write one message."""
    stream.write(struct.pack(HEADER, kind, len(content)))
    stream.write(content)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """(kind, content) of the next message; kind b"" at the end of the stream.

    Raises:
        ValueError: a message that is too long, or cut.
    """
    size = struct.calcsize(HEADER)
    header = stream.read(size)
    if not header:
        return b"", b""
    if len(header) < size:
        raise ValueError("the message is cut")
    kind, length = struct.unpack(HEADER, header)
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes")
    content = stream.read(length)
    if len(content) < length:
        raise ValueError("the message is cut")
    return kind, content


def pack_array(array: Any) -> bytes:
    """`array` in NumPy's format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpack_array(content: bytes) -> Any:
    """The array in NumPy's format.

    Raises:
        ValueError: damaged, or objects.
    """
    return np.load(io.BytesIO(content), allow_pickle=False)


class RdkX5:
    """D-Robotics' runtime of `*_quantized_model.onnx` on a PC."""

    def __init__(self, path: str) -> None:
        package = importlib.import_module("horizon_tc_ui")
        self._session = package.HB_ONNXRuntime(model_file=path)
        self._input = self._session.input_names[0]

    def run(self, array: Any) -> Any:
        """int8 images one at a time, to float32 [N, outputs]."""
        rows = []
        for image in array:
            outputs = self._session.run_direct([], {self._input: image[None]})
            rows.append(np.asarray(outputs[0], np.float32).reshape(-1))
        return np.stack(rows)


class Rknn:
    """Rockchip's simulator, after the tool has built the model again from a pack's build.json."""

    def __init__(self, path: str) -> None:
        # A program of this folder, which is no package here.
        child = importlib.import_module("rknn_child")
        self._tool = child.open_tool(Path(path))
        child.require(self._tool.init_runtime(), "init_runtime")

    def run(self, array: Any) -> Any:
        """uint8 images [height, width, channels] one at a time, to float32 [N, outputs]."""
        rows = []
        for image in array:
            outputs = self._tool.inference(inputs=[image[None]], data_format=["nhwc"])
            if outputs is None:
                raise RuntimeError("inference gave no outputs")
            rows.append(np.asarray(outputs[0], np.float32).reshape(-1))
        return np.stack(rows)


MODELS: dict[str, type[Any]] = {"rdk-x5": RdkX5, "rknn": Rknn}


def reason(error: Exception) -> str:
    """An exception in one line: rknn-toolkit2's texts are whole tracebacks, the reason last."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def main(name: str, path: str) -> None:
    """Open the model, then answer every array with an array or an error."""
    # What the tool prints must not get between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    try:
        model = MODELS[name](path)
    except Exception as error:
        write_message(answers, b"e", reason(error).encode())
        raise
    write_message(answers, b"r")
    while True:
        kind, content = read_message(questions)
        if not kind:
            return
        try:
            write_message(answers, b"a", pack_array(model.run(unpack_array(content))))
        except Exception as error:
            write_message(answers, b"e", reason(error).encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
