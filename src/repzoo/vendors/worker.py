"""A vendor's simulator in a process of its tool chain's Python, which may crash or hang."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError
from repzoo.vendors import worker_child
from repzoo.vendors.program import complaint, end, how_it_ended, start
from repzoo.vendors.recipes import Recipe

START_SECONDS = 600.0
# Simulators take up to a second an image on a loaded machine.
RUN_SECONDS = 60.0
RUN_SECONDS_AN_IMAGE = 20.0
MAX_TEXT = 300


class Worker:
    """One process with one model open.

    Raises:
        InputError: it cannot be started, crashes, hangs, or cannot open the model.
    """

    def __init__(self, recipe: Recipe, path: Path) -> None:
        self._recipe = recipe
        self._folder = tempfile.TemporaryDirectory(prefix="repzoo.")
        self._log = Path(self._folder.name) / "worker.log"
        script = str(Path(worker_child.__file__).resolve())
        command = ["python", script, recipe.name, str(path.resolve())]
        with self._log.open("wb") as log:
            self._process = start(
                recipe,
                command,
                Path(self._folder.name),
                log,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        # A session is never closed; the process must not outlive it.
        self._close = weakref.finalize(self, _close, self._process, self._folder)
        self._read(START_SECONDS)

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The model's first output, float32 [N, outputs].

        Raises:
            InputError: the simulator fails, crashes or hangs.
        """
        assert self._process.stdin is not None
        content = worker_child.pack_array(inputs)
        with contextlib.suppress(OSError):  # reading then says why it ended
            worker_child.write_message(self._process.stdin, b"a", content)
        answer = self._read(RUN_SECONDS + RUN_SECONDS_AN_IMAGE * len(inputs))
        try:
            outputs = worker_child.unpack_array(answer)
        except ValueError as error:
            raise self._error(f"answered with no array ({error})") from None
        if outputs.ndim != 2 or len(outputs) != len(inputs):
            raise self._error(f"answered with an array {list(outputs.shape)}")
        return np.asarray(outputs, np.float32)

    def _read(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            """End it, so that reading returns."""
            expired.set()
            end(self._process)

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            kind, content = worker_child.read_message(self._process.stdout)
        except ValueError as error:
            kind, content = b"e", str(error).encode()
        finally:
            timer.cancel()
        if expired.is_set():
            raise self._error(f"did not answer within {seconds:.0f} s")
        if not kind:
            code = self._process.wait()
            raise self._error(f"{how_it_ended(code)}: {complaint(self._log)}")
        if kind == b"e":
            raise self._error(f"failed: {content.decode(errors='replace')[:MAX_TEXT]}")
        return content

    def _error(self, text: str) -> InputError:
        return InputError(f"the simulator of the tool chain {self._recipe.name} {text}")


class Workers:
    """Up to `count` processes with the same model, for calls from several threads."""

    def __init__(self, recipe: Recipe, path: Path, count: int) -> None:
        self._recipe = recipe
        self._path = path
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(max(1, count) - 1):
            self._idle.put(None)  # started when it is needed
        self._idle.put(Worker(recipe, path))

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """See `Worker.run`."""
        with self._worker() as worker:
            return worker.run(inputs)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        worker = self._idle.get()
        try:
            worker = worker or Worker(self._recipe, self._path)
            yield worker
        except BaseException:
            worker = None  # it may be gone; the next call starts another
            raise
        finally:
            self._idle.put(worker)


def _close(
    process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]
) -> None:
    end(process)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    folder.cleanup()
