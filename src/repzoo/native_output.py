"""Discard what C and C++ libraries print themselves, past Python's own streams.

A library that writes to stdout would break the one JSON document of `--json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

STDOUT, STDERR = 1, 2
# Descriptors belong to the process: of two blocks at once one would keep the other's.
_REDIRECTION = threading.RLock()


@contextlib.contextmanager
def discarded(*descriptors: int) -> Iterator[None]:
    """Discard what is written to `descriptors`. A closed one is left alone."""
    with _REDIRECTION, contextlib.ExitStack() as stack:
        if sys.stdout is not None:
            sys.stdout.flush()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        stack.callback(_flush)
        yield


def _flush() -> None:
    """Empty C's own buffers, which would be printed later."""
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
