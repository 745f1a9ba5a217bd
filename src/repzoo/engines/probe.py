"""Run a model once in a child process, to learn whether it compiles, runs, hangs or crashes.

The parent writes one message to the child's stdin: a header of fixed size, the name of the engine,
the model, and the arrays in NumPy's format. A complaint comes back on stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from repzoo.engines import Array, Feeds, engine
from repzoo.errors import InputError
from repzoo.onnx_file import model_inputs

PROBE_SECONDS = 300.0  # torch.compile on a loaded machine takes minutes
CHILD = "from repzoo.engines.probe import child; child()"
HEADER = "<IIIQ"  # lengths of name and model, threads, bytes of memory; little-endian


@dataclass(frozen=True)
class Limits:
    """What the child process may use.

    seconds  on the clock, its start included
    bytes    of memory that it may ask for; 0: without limit. Linux only
    """

    seconds: float = PROBE_SECONDS
    bytes: int = 0


class CrashError(InputError):
    """An engine that took its process down, did not end, or failed with no error of repzoo."""


def probe(
    engine_name: str,
    model: onnx.ModelProto,
    inputs: Array | Feeds,
    threads: int = 1,
    limits: Limits | None = None,
) -> None:
    """Open `model` on the engine called `engine_name` and run `inputs` once, in a child process.

    Call it before a sweep over several engines: one that crashes then costs its own rows, not
    those of the others.

    Raises:
        CrashError: it crashed, took longer than `limits`, or raised anything else.
        InputError: the engine's own complaint.
    """
    limits = limits or Limits()
    message = _message(engine_name, model, inputs, threads, limits.bytes)
    try:
        process = _run_child(message, limits.seconds)
    except subprocess.TimeoutExpired:
        raise CrashError(
            f"the engine {engine_name} did not run the model within {limits.seconds:g} s; leave "
            "it out"
        ) from None
    if process.returncode == -signal.SIGINT:  # Ctrl-C reaches the child too
        raise KeyboardInterrupt
    if process.returncode:
        raise _error(engine_name, process)


def _run_child(message: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    # The child must find plug-ins where this process finds them.
    search_path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", CHILD],
        input=message,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        timeout=seconds,
        check=False,
    )


def child() -> None:
    """The child's side of `probe`. It reads stdin; a complaint goes to stderr with exit 2."""
    message = io.BytesIO(sys.stdin.buffer.read())
    header = message.read(struct.calcsize(HEADER))
    name_size, model_size, threads, memory = struct.unpack(HEADER, header)
    name = message.read(name_size).decode()
    data = message.read(model_size)
    arrays = message.read()
    if memory:
        _limit_memory(memory)
    try:
        model = onnx.ModelProto.FromString(data)
        inputs = _unpack(arrays, model)
        engine(name).open(model, threads).run(inputs)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(InputError.exit_code)


def _message(
    engine_name: str,
    model: onnx.ModelProto,
    inputs: Array | Feeds,
    threads: int,
    memory: int,
) -> bytes:
    """What `child` reads."""
    name = engine_name.encode()
    data = model.SerializeToString()
    header = struct.pack(HEADER, len(name), len(data), threads, memory)
    return header + name + data + _pack(inputs, model)


def _pack(inputs: Array | Feeds, model: onnx.ModelProto) -> bytes:
    """One array, or those of all inputs in the order of the model's: names may hold anything."""
    packed = io.BytesIO()
    if isinstance(inputs, Mapping):
        arrays = [inputs[item.name] for item in model_inputs(model)]
        np.savez(packed, *arrays)
    else:
        np.save(packed, inputs, allow_pickle=False)
    return packed.getvalue()


def _unpack(packed: bytes, model: onnx.ModelProto) -> Array | Feeds:
    """What `_pack` packed."""
    inputs = np.load(io.BytesIO(packed), allow_pickle=False)
    if isinstance(inputs, np.ndarray):
        return inputs
    feeds: dict[str, Array] = {}
    for index, item in enumerate(model_inputs(model)):
        feeds[item.name] = inputs[
            f"arr_{index}"
        ]  # savez's name of an array without one
    return feeds


def _limit_memory(limit: int) -> None:
    """Limit this process for good. Systems without such a limit go on without."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        # Not RLIMIT_AS: runtimes reserve far more addresses than they ever write to.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _error(engine_name: str, process: subprocess.CompletedProcess[bytes]) -> InputError:
    """Why the child failed."""
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return CrashError(
            f"the engine {engine_name} crashed (signal {name}) on this model; leave it out, and "
            "report it to the engine's makers"
        )
    printed = process.stderr.decode("utf-8", "replace").strip().splitlines()
    complaint = printed[-1] if printed else f"exit {process.returncode}"
    if process.returncode == InputError.exit_code:
        return InputError(complaint)
    return CrashError(f"the engine {engine_name} failed: {complaint}")
