"""Shared fixtures: photographs made of numbers, the embedded model as files, and the command
line inside this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from PIL import Image
from tests.small_model import small_training_form

from repzoo import cli
from repzoo.artifact import Artifact
from repzoo.console import output
from repzoo.data import digits
from repzoo.measure import system_noise
from repzoo.quant.search import gate
from repzoo.storage import cache_folder
from repzoo.zoo import embedded

MODEL = "repghostnet_050.digits"

# Ends a process or a thread that hangs. No test expects a machine to be fast.
PROCESS_SECONDS = 600

# `make test` draws the same examples on every run; `make fuzz` sets the profile and draws at
# random.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-variants",
        action="store_true",
        help="test every variant of the catalog, the largest included",
    )


@dataclasses.dataclass(frozen=True)
class Ran:
    """What one run of the command line left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines cache goes to a folder of its own, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on the machine must not decide what is said or kept."""
    monkeypatch.setattr(system_noise, "OTHERS", 2.0)
    monkeypatch.setattr(system_noise, "UNSTEADY", math.inf)


@pytest.fixture(autouse=True)
def _no_kept_searches() -> None:
    """What one test's search found must not decide what another one's does."""
    shutil.rmtree(cache_folder() / "placements", ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_lines() -> Iterator[None]:
    """Whether a command takes long enough to show progress must not depend on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "QUIET_SECONDS", 1e6)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_race_of_engines() -> Iterator[None]:
    """Which engine is fastest depends on the machine, so `auto` is ONNX Runtime here.

    tests/quant/search/test_engine_race.py holds races.
    """
    from repzoo.verbs import quantize_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize_model, "is_race", lambda _: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _brief_timings() -> Iterator[None]:
    """The gate times each model; no test depends on how long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "BENCH_SECONDS", 0.02)
        yield


Run = Callable[..., Ran]
Photograph = Callable[..., Image.Image]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("fold", path, "-o", out)`: the real command line, its exit code and both streams."""

    def ran(*arguments: object) -> Ran:
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ran(code or 0, captured.out, captured.err)

    return ran


@pytest.fixture(scope="session")
def photograph() -> Photograph:
    """`photograph(width, height, seed)`: RGB with edges, slopes and noise, so that every filter
    and offset shows.
    """

    def draw(width: int, height: int, seed: int = 0) -> Image.Image:
        random = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        slope = np.stack(
            [
                x * 255 / max(width - 1, 1),
                y * 255 / max(height - 1, 1),
                (x * 7 + y * 13) % 256,
            ],
            -1,
        )
        block = ((x // 5 + y // 3) % 2 * 90)[..., None]
        return Image.fromarray(
            np.clip(
                slope - block + random.integers(-40, 40, (height, width, 3)), 0, 255
            ).astype(np.uint8)
        )

    return draw


@pytest.fixture(scope="session")
def trained() -> Artifact:
    """The embedded training-form classifier of digits, 32 px, labels "0".."9"."""
    return embedded.read(MODEL)


@pytest.fixture(scope="session")
def model_file(trained: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` as a file; do not change it."""
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    trained.save(path)
    return path


@pytest.fixture(scope="session")
def small_training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training form of three layers, for what needs no real network; do not change it."""
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    small_training_form().save(path)
    return path


@pytest.fixture(scope="session")
def foreign_file(trained: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph without any metadata, as another exporter would leave it."""
    model = onnx.ModelProto()
    model.CopyFrom(trained.model)
    del model.metadata_props[:]
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 held-out digits as PNG files in folders "0".."9", 20 each."""
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    root = tmp_path_factory.mktemp("images") / "numbers"
    test = digits.read().join("test")
    for name in test.classes:
        (root / name).mkdir(parents=True)
    for index in test.balanced_sample(200, seed=0):
        key = test.keys[index]
        test.load(key).save(root / test.classes[test.targets[index]] / f"{key}.png")
    return root


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What `repzoo quantize --force` left, with a budget that cannot be met."""

    file: Path
    report: Path
    ran: Ran


@pytest.fixture(scope="session")
def quantized(
    small_training_file: Path,
    digits_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Quantized:
    """A small training form, folded and quantized by the command line, its gate forced."""
    folder = tmp_path_factory.mktemp("int8")
    file, report = folder / "int8.onnx", folder / "report.json"
    files = [small_training_file, "-o", file, "--report", report]
    options: list[object] = [
        "--data",
        digits_folder,
        "--images",
        20,
        "--force",
        "--json",
    ]
    options += ["--max-drop", -100, "--placement", "everything"]  # without a search
    out, err = io.StringIO(), io.StringIO()
    quiet = contextlib.ExitStack()
    for manager in (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        quiet.enter_context(manager)
    with quiet, pytest.raises(SystemExit) as ended:
        cli.main(["quantize", *map(str, files), *map(str, options)])
    assert isinstance(ended.value.code, int)
    return Quantized(
        file, report, Ran(ended.value.code, out.getvalue(), err.getvalue())
    )


@pytest.fixture(scope="session")
def int8_file(quantized: Quantized) -> Path:
    """An INT8 model of 16 px; do not change it."""
    return quantized.file
