"""Models that OpenVINO compiled lately, exported, so that they open quickly again.

OpenVINO rewrites a graph in many passes, on one core. An INT8 RepViT-m0.9 takes 2.1 s to compile;
what was exported opens in 0.3 s, with the same outputs to the bit. Both run equally fast (measured,
INT8 and float: 0.98 to 1.00, as two sessions of one file also differ).
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

# Exported models kept at most, in bytes: those of a search of a model of 15 million parameters.
MAX_BYTES = 2**27
# A model that compiles faster is not kept: exporting takes as long as is gained.
SLOW_SECONDS = 0.4


class CompiledModels:
    """Exported models by key. The one that was asked for longest ago goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._exported: collections.OrderedDict[Hashable, bytes] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Models that are kept."""
        return len(self._exported)

    def get(
        self,
        key: Hashable,
        compile_model: Callable[[], Any],
        import_model: Callable[[bytes], Any],
    ) -> Any:
        """OpenVINO's compiled model for `key`, which must stand for graph, shape and settings."""
        with self._lock:
            exported = self._exported.get(key)
            if exported is not None:
                self._exported.move_to_end(key)
        if exported is not None:
            return import_model(exported)
        started = time.perf_counter()
        compiled = compile_model()
        if time.perf_counter() - started >= SLOW_SECONDS:
            self.keep(key, compiled)
        return compiled

    def keep(self, key: Hashable, compiled: Any) -> bytes:
        """What is exported of `compiled`, which is kept for `key` unless it is too large."""
        exported = compiled.export_model()
        content: bytes = (
            exported if isinstance(exported, bytes) else exported.getvalue()
        )
        if len(content) > self._max_bytes:
            return content
        with self._lock:
            self._exported[key] = content
            while sum(map(len, self._exported.values())) > self._max_bytes:
                self._exported.popitem(last=False)
        return content
