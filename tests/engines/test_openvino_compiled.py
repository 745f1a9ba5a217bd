"""What OpenVINO compiled is kept exported: it opens again without compiling, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.contracts.test_engine import QDQ, images, model

from repzoo.engines import openvino, openvino_compiled
from repzoo.engines.openvino_compiled import CompiledModels


class Exported:
    """A compiled model that exports as `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def export_model(self) -> bytes:
        return bytes(self._size)


def opener(
    size: int, log: list[str]
) -> tuple[Callable[[], Any], Callable[[bytes], Any]]:
    """(compiles, imports) a model of `size` bytes; each is logged."""

    def compile_model() -> Any:
        log.append("compile")
        return Exported(size)

    def import_model(content: bytes) -> Any:
        log.append("import")
        assert len(content) == size
        return Exported(size)

    return compile_model, import_model


@pytest.fixture(autouse=True)
def _every_model_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_compiled, "SLOW_SECONDS", 0.0)


def test_a_model_is_compiled_once() -> None:
    kept, log = CompiledModels(), list[str]()
    for _ in range(3):
        kept.get("a", *opener(8, log))
    kept.get("b", *opener(8, log))
    assert log == ["compile", "import", "import", "compile"]


def test_the_one_not_asked_for_longest_goes_first() -> None:
    kept, log = CompiledModels(max_bytes=20), list[str]()
    for key in ("a", "b", "a", "c"):
        kept.get(key, *opener(8, log))
    log.clear()
    for key in ("a", "c", "b"):
        kept.get(key, *opener(8, log))
    assert log == ["import", "import", "compile"]


def test_a_model_larger_than_all_that_may_be_kept_is_not() -> None:
    kept, log = CompiledModels(max_bytes=4), list[str]()
    for _ in range(2):
        kept.get("a", *opener(8, log))
    assert log == ["compile", "compile"]


def test_models_that_compile_quickly_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_compiled, "SLOW_SECONDS", 60.0)
    kept, log = CompiledModels(), list[str]()
    for _ in range(2):
        kept.get("a", *opener(8, log))
    assert log == ["compile", "compile"]


def test_what_is_imported_computes_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = CompiledModels()
    monkeypatch.setattr(openvino, "_compiled_models", lambda: kept)
    runner = openvino.OpenVino()
    quantized = model(QDQ)
    inputs = images(2)
    first = runner.open(quantized).run(inputs)
    assert len(kept) == 1
    second = runner.open(quantized).run(inputs)
    assert len(kept) == 1
    exact = runner.open(quantized, exact=True).run(inputs)
    assert len(kept) == 2
    np.testing.assert_array_equal(first, second)
    # Other settings are another model: float arithmetic between pairs differs.
    assert np.abs(exact - first).max() > 0


def test_what_was_profiled_opens_without_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = CompiledModels()
    monkeypatch.setattr(openvino, "_compiled_models", lambda: kept)
    runner = openvino.OpenVino()
    quantized = model(QDQ)
    inputs = images(2)
    fresh = runner.open(quantized, threads=2).run(inputs)
    profiler = runner.profiler(quantized, inputs)
    assert len(kept) == 2  # sessions of one thread, and of two
    operators = profiler.run(2)
    computed = [name for operator in operators for name in operator.nodes]
    assert set(computed) <= {node.output[0] for node in quantized.graph.node}
    assert quantized.graph.node[-1].output[0] in computed

    def refuse(*_: object) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(openvino._Compiler, "_compile", refuse)
    np.testing.assert_array_equal(runner.open(quantized).run(inputs), fresh)
