"""Bounds on the memory and time of a model that may come from anyone.

The size of most tensors follows from the input's shape: what the first run of a shape needs, the
later ones need too. The first run may therefore use what memory the machine has left, and fails
in a sentence beyond it, instead of waking the kernel's out-of-memory killer. The operators in
VALUE_SIZED make tensors whose size depends on values, so every run of a model with one is
bounded, by VALUE_SIZED_BYTES. Loop and Scan may also run for ever; a call of a model with one is
stopped after LOOP_SECONDS.

The bound on memory is Linux's limit on data (setrlimit(2), RLIMIT_DATA), moved while a model
runs; elsewhere there is none. A child process for each model would also bound engines that
cannot be stopped, but would cost a second a model, so only `probe` takes one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import onnx

VALUE_SIZED = frozenset(
    {"ConstantOfShape", "Expand", "Loop", "OneHot", "Range", "Scan", "Tile"}
)
LOOPS = frozenset({"Loop", "Scan"})
# Several times what a batch of a light classifier needs.
VALUE_SIZED_BYTES = 2 * 2**30
LOOP_SECONDS = 10.0

_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_DATA_PAGES = 5  # the column of /proc/self/statm that the limit is compared with
_CGROUP = Path("/sys/fs/cgroup")


def operators_in(model: onnx.ModelProto) -> set[str]:
    """The operators of the graph, of its subgraphs and of its functions."""
    operators = set()
    pending = list(model.graph.node)
    for function in model.functions:
        pending.extend(function.node)
    while pending:
        node = pending.pop()
        operators.add(node.op_type)
        for attribute in node.attribute:
            pending.extend(attribute.g.node)
            for graph in attribute.graphs:
                pending.extend(graph.node)
    return operators


def available_memory() -> int:
    """Bytes that the machine, or this process's control group, has left; 0 if unknown."""
    left = []
    for line in _read(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    limit = _read(_CGROUP / "memory.max").strip()
    used = _read(_CGROUP / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        left.append(max(0, int(limit) - int(used)))
    return min(left, default=0)


class _MemoryLimit:
    """The limit on this process's data. Several threads may be inside at once.

    The limit is that of the thread that came in last; the usual one is back when the last thread
    has left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._usual = (0, 0)  # (soft, hard) before the first thread came in

    @contextlib.contextmanager
    def __call__(self, more: int) -> Iterator[None]:
        """Let the block use `more` bytes than now; a request beyond them fails. 0: no limit."""
        data = self._data_bytes()
        if not more or not data:
            yield
            return
        self._enter(data + more)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, limit: int) -> None:
        # Not at the top: Windows has no such module.
        import resource

        with self._lock:
            if not self._inside:
                self._usual = resource.getrlimit(resource.RLIMIT_DATA)
            self._inside += 1
            _, hard = self._usual
            if hard != resource.RLIM_INFINITY:
                limit = min(limit, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    def _leave(self) -> None:
        import resource

        with self._lock:
            self._inside -= 1
            if not self._inside:
                resource.setrlimit(resource.RLIMIT_DATA, self._usual)

    def _data_bytes(self) -> int:
        """What this process's data takes now; 0 where the system does not say."""
        columns = _read(_STATM).split()
        if len(columns) <= _DATA_PAGES:
            return 0
        return int(columns[_DATA_PAGES]) * os.sysconf("SC_PAGE_SIZE")


memory_limit = _MemoryLimit()


def _read(path: Path) -> str:
    """The text of a file of the kernel's; "" where the system has none."""
    try:
        return path.read_text()
    except OSError:
        return ""
