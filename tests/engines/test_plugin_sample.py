"""A third party's engines, installed by pip from a package of their own, used through the
command line and probed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import PROCESS_SECONDS, Run
from tests.small_model import sets, small

import repzoo
from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.engines.probe import Limits, probe
from repzoo.errors import InputError
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import engine_race
from repzoo.quant.search.contenders import Contest
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget

pytest.importorskip(
    "setuptools",
    reason="pip builds the sample package with setuptools, which is not installed",
)
SAMPLE = Path(__file__).parents[1] / "plugin_sample"
IMAGE = np.zeros((1, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the sample, offline."""
    source, target = (
        tmp_path_factory.mktemp("source") / "sample",
        tmp_path_factory.mktemp("site"),
    )
    shutil.copytree(SAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)],
        check=True,
        timeout=PROCESS_SECONDS,
    )
    return target


@pytest.fixture
def plugin_on_path(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample on this process's path."""
    monkeypatch.syspath_prepend(str(plugin_folder))
    monkeypatch.delitem(sys.modules, "repzoo_sample_engine", raising=False)


def command(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), str(Path(repzoo.__file__).parents[1])])
    called = [sys.executable, "-m", "repzoo", *map(str, arguments)]
    return subprocess.run(
        called,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )


def test_the_command_line_lists_it_and_predicts_and_times_through_it(
    run: Run, plugin_folder: Path, model_file: Path, digits_folder: Path
) -> None:
    listed = json.loads(command(plugin_folder, "engines", "--json").stdout)["engines"]
    assert {row["name"]: row["version"] for row in listed}["sample"] == "9.9"
    image = next((digits_folder / "7").iterdir())
    predict = ("predict", model_file, image, "--json", "--engine")
    printed = json.loads(command(plugin_folder, *predict, "sample").stdout)
    documents = (printed, run(*predict, "onnxruntime").document)
    own, ours = (document["predictions"][0]["top"] for document in documents)
    assert [row["class"] for row in own] == [row["class"] for row in ours]
    np.testing.assert_allclose(
        [row["probability"] for row in own],
        [row["probability"] for row in ours],
        atol=1e-4,
    )
    ran = command(
        plugin_folder,
        "bench",
        model_file,
        "--engine",
        "sample:twice",
        "--seconds",
        "0.2",
        "--json",
    )
    assert ran.returncode == 0, ran.stderr
    assert {row["engine"] for row in json.loads(ran.stdout)["runs"]} == {"sample:twice"}


@pytest.mark.usefixtures("plugin_on_path")
def test_it_is_an_engine_like_any_other(trained: Artifact) -> None:
    plain, doubled, reference = (
        engine(name).open(trained.model).run(IMAGE)
        for name in ("sample", "sample:TW", "reference")
    )
    np.testing.assert_allclose(doubled, 2 * plain)
    np.testing.assert_allclose(plain, reference, rtol=1e-5)


@pytest.mark.usefixtures("plugin_on_path")
def test_an_engine_that_crashes_on_int8_leaves_the_race_of_engines() -> None:
    scheme = load_scheme("ort-cpu")
    targets = []
    for name in ("onnxruntime", "sample-abort-int8"):
        targets.append(Target(engine(name), scheme, placement="everything"))
    result = engine_race.quantize(small(), sets(), Contest(tuple(targets)), Budget(5))
    assert result.int8.steps[-1].settings["engine"] == "onnxruntime"
    row = result.summary.entries[3]
    assert (row.engine, row.form, row.ratio) == ("sample-abort-int8", "int8", None)
    assert "sample-abort-int8 crashed (signal SIGABRT)" in row.problem


@pytest.mark.usefixtures("plugin_on_path")
def test_a_probe_says_how_an_engine_ends(trained: Artifact) -> None:
    probe("sample", trained.model, IMAGE)
    with pytest.raises(
        InputError,
        match=r"^the engine sample-abort crashed \(signal SIGABRT\) on this model; leave it out",
    ):
        probe("sample-abort", trained.model, IMAGE)
    with pytest.raises(
        InputError, match=r"^the engine sample-hang did not run the model within 1 s"
    ):
        probe("sample-hang", trained.model, IMAGE, limits=Limits(seconds=1))
    with pytest.raises(
        InputError,
        match=r"^onnxruntime cannot run this model on float32 \(1, 3, 32, 31\)",
    ):
        probe("onnxruntime", trained.model, IMAGE[..., 1:])
    with pytest.raises(InputError, match="no engine is called 'onnxruntine'"):
        probe("onnxruntine", trained.model, IMAGE)
