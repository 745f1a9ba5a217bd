"""The how-to of docs/packs.md: its file is a target, and keeps to what all targets keep to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.contracts import test_pack as suite

import repzoo
from repzoo.packs.pack import PackTarget, open_target, write_pack

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "plugin_sample"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackTarget:
    """The sample target, as if its package were installed."""
    noted = tmp_path / "site" / "repzoo_sample-1.dist-info"
    noted.mkdir(parents=True)
    (noted / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: repzoo-sample\nVersion: 1\n"
    )
    (noted / "entry_points.txt").write_text(
        "[repzoo.packs]\ntoy = repzoo_sample_pack:Toy\n"
    )
    monkeypatch.syspath_prepend(str(noted.parent))
    monkeypatch.syspath_prepend(str(SAMPLE))
    return open_target("toy")


def test_the_how_to_shows_the_file() -> None:
    text = (ROOT / "docs" / "packs.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert block == (SAMPLE / "repzoo_sample_pack.py").read_text("utf-8")
    declared = (SAMPLE / "pyproject.toml").read_text("utf-8")
    (entry,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert entry in declared


def test_it_keeps_the_contract(toy: PackTarget, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "pack"
    write_pack(toy, suite.job_for(toy), folder)
    suite.test_the_manifest_names_every_file_with_its_hash(toy, folder)
    suite.test_the_steps_are_numbered_and_run_in_bash(folder)
    suite.test_the_steps_read_only_files_that_exist(folder)
    suite.test_the_model_and_the_labels_are_those_that_were_given(folder)
    suite.test_both_languages_give_the_same_figures(folder)
    suite.test_the_same_bytes_twice(toy, folder, tmp_path / "second")
    suite.test_nothing_of_this_machine_is_in_a_file(folder)
    (tmp_path / "odd").mkdir()
    suite.test_odd_names_do_no_harm(toy, tmp_path / "odd")
    assert (
        (folder / "toy.ini").read_text().startswith("model = net.onnx\nmean = [123.67")
    )


def test_the_command_knows_it(toy: PackTarget, tmp_path: Path) -> None:
    model = suite.artifact_for(toy)
    repzoo.pack(model, "digits", tmp_path / "pack", target="toy", calibration=5)
    assert len(list((tmp_path / "pack" / "images").iterdir())) == 5
