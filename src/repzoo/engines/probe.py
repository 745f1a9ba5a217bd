"""One run of a model on an engine in a child process: whether it compiles, runs, hangs or takes
the process down.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import onnx

from repzoo.engines import Array, engine
from repzoo.errors import InputError

PROBE_SECONDS = 300.0  # torch.compile on a loaded machine takes minutes
CHILD = "from repzoo.engines.probe import child; child()"


def probe(
    engine_name: str,
    model: onnx.ModelProto,
    inputs: Array,
    threads: int = 1,
    seconds: float = PROBE_SECONDS,
) -> None:
    """Open `model` on the engine called `engine_name` and run `inputs` once, in a child process.

    Call it before a sweep over several engines, so that one that crashes costs its own rows and
    not the others'.

    Raises:
        InputError: what the engine says against the model; or that it crashed (which signal),
        or took over `seconds`.
    """
    array = io.BytesIO()
    np.save(array, inputs, allow_pickle=False)
    name, data = engine_name.encode(), model.SerializeToString()
    sent = (
        struct.pack("<III", len(name), threads, len(data))
        + name
        + data
        + array.getvalue()
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=sent,
            env=environment,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the engine {engine_name} did not run the model within {seconds:g} s; leave it out "
            "of the sweep"
        ) from None
    if ran.returncode == -signal.SIGINT:  # Ctrl-C reaches the child too
        raise KeyboardInterrupt
    said = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    if ran.returncode < 0:
        raise InputError(
            f"the engine {engine_name} crashed (signal {signal.Signals(-ran.returncode).name}) "
            "on this model; "
            "leave it out of the sweep, and report it to whoever makes the engine"
        )
    if ran.returncode:
        ending = said[-1] if said else f"exit {ran.returncode}"
        raise InputError(
            ending
            if ran.returncode == InputError.exit_code
            else f"the engine {engine_name} failed: {ending}"
        )


def child() -> None:
    """The child's side of `probe`: engine name, threads, model and array come on stdin; the
    problem goes to stderr, exit 2.
    """
    sent = sys.stdin.buffer.read()
    name_size, threads, model_size = struct.unpack_from("<III", sent)
    start = struct.calcsize("<III")
    name, data = (
        sent[start : start + name_size].decode(),
        sent[start + name_size : start + name_size + model_size],
    )
    inputs = np.load(
        io.BytesIO(sent[start + name_size + model_size :]), allow_pickle=False
    )
    try:
        engine(name).open(onnx.ModelProto.FromString(data), threads).run(inputs)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(InputError.exit_code)
