"""`repzoo pack`: each part of a pack against the vendor's rules and the model's own input."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import sets, small

import repzoo
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.packs import pack as packs
from repzoo.packs.rdk_x5 import RdkX5
from repzoo.packs.rdk_x5_yaml import yaml_text

Run = Callable[..., Any]
KEYS = [
    "onnx_model",
    "march",
    "layer_out_dump",
    "working_dir",
    "output_model_file_prefix",
    "input_name",
    "input_type_rt",
    "input_type_train",
    "input_layout_train",
    "input_shape",
    "norm_type",
    "mean_value",
    "scale_value",
    "cal_data_dir",
    "cal_data_type",
    "calibration_type",
    "compile_mode",
    "debug",
    "optimize_level",
]


@pytest.fixture(scope="module")
def hardened() -> Artifact:
    return repzoo.harden(small(), "digits", images=64, max_drop=5)


def keys_of(text: str) -> dict[str, str]:
    """The keys of a YAML of two levels, sections included, with their values as text."""
    pairs = re.findall(r"^ *(\w+):[ ]*'?([^'\n]*)'?$", text, re.MULTILINE)
    return dict(pairs)


def test_the_whole_folder(hardened: Artifact, run: Run, tmp_path: Path) -> None:
    model = tmp_path / "my model's.onnx"
    hardened.save(model)
    folder = tmp_path / "out" / "pack"
    data = ("--data", "digits", "--images", 64, "--calibration", 12)
    ran = run("pack", model, "-o", folder, *data, "--json")
    assert ran.code == 0, ran.err
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    assert set(ran.document["files"]) == files
    images = sorted(
        name for name in files if name.startswith("calibration_data_rgb_f32/")
    )
    assert len(images) == 12
    assert {
        "my_model_s.onnx",
        "my_model_s.yaml",
        "my_model_s_load.onnx",
        "my_model_s_load.yaml",
        "01_check.sh",
        "02_build.sh",
        "07_evaluate_on_board.sh",
        "test_my_model_s.ipynb",
        "labels.txt",
        "README.md",
        "README_cn.md",
        "manifest.json",
    } <= files
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert set(manifest["files"]) == files - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    model_file = onnx.load(folder / "my_model_s.onnx")
    assert model_file.opset_import[0].version == 11
    assert (folder / "labels.txt").read_text().split() == list(map(str, range(10)))
    for script in folder.glob("*.sh"):
        if shutil.which("bash"):
            subprocess.run(["bash", "-n", script], check=True)
        named = re.findall(r"my_model_s\.\w+", script.read_text())
        assert all((folder / name).is_file() for name in named)
    for readme in folder.glob("README*"):
        assert "16x16" in readme.read_text("utf-8")
    assert not list(folder.parent.glob(".repzoo*"))


def test_configuration_and_calibration_files_make_the_input_that_the_model_expects(
    hardened: Artifact,
) -> None:
    preprocess = replace(
        hardened.require_preprocess(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        color="BGR",
    )
    artifact = replace(hardened, preprocess=preprocess)
    images = sets().calibration.subset(range(3))
    files = dict(RdkX5().files(packs.PackJob(artifact, images)))
    text = files["small.yaml"]
    assert isinstance(text, str)
    values = keys_of(text)
    assert set(KEYS) <= values.keys()
    assert (values["input_type_rt"], values["input_type_train"]) == ("nv12", "bgr")
    mean = np.array(values["mean_value"].split(), float).reshape(3, 1, 1)
    scale = np.array(values["scale_value"].split(), float).reshape(3, 1, 1)
    expected = next(iter(batches(images, preprocess, 3, ReadReport()))).inputs
    for number in range(3):
        data = files[f"calibration_data_bgr_f32/{number:04d}.rgb"]
        assert isinstance(data, bytes)
        assert len(data) == 4 * 3 * 16 * 16
        pixels = np.frombuffer(data, np.float32).reshape(3, 16, 16)
        normalized = (pixels - mean) * scale
        np.testing.assert_allclose(normalized, expected[number], atol=1e-5)


def test_the_public_configuration_of_imagenet_models() -> None:
    preprocess = replace(
        small().require_preprocess(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    values = keys_of(yaml_text(replace(small(), preprocess=preprocess)))
    assert values["mean_value"] == "123.675 116.28 103.53"
    scales = [float(value) for value in values["scale_value"].split()]
    np.testing.assert_allclose(scales, [0.01712475, 0.017507, 0.01742919], rtol=1e-6)
    assert (values["march"], values["cal_data_type"]) == ("bayes-e", "float32")


def test_a_pack_is_whole_or_not_there(hardened: Artifact, tmp_path: Path) -> None:
    class Broken(RdkX5):
        def files(self, job: packs.PackJob) -> Any:
            yield "first.txt", "1"
            raise OSError(28, "No space left on device")

    job = packs.PackJob(hardened, sets().calibration.subset(range(2)))
    with pytest.raises(repzoo.InputError, match="No space left"):
        packs.write_pack(Broken(), job, tmp_path / "pack")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--target", "rdk-x6"],
            "no pack target is called 'rdk-x6'; did you mean rdk-x5?",
        ),
        (["--size", "15"], "15"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(
    run: Run, model_file: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    folder = tmp_path / "pack"
    ran = run("pack", model_file, "-o", folder, "--data", "digits", *arguments)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert not folder.exists()


def test_a_folder_that_holds_something_is_refused_before_the_work(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = run("pack", model_file, "-o", tmp_path, "--data", "digits")
    assert ran.code == 2
    assert "exists already and is not an empty folder" in " ".join(ran.err.split())


def test_odd_sides_and_camera_inputs_are_refused() -> None:
    odd = replace(small(), preprocess=replace(small().require_preprocess(), size=16))
    RdkX5().check(odd)
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 15
    preprocess = replace(small().require_preprocess(), size=15)
    with pytest.raises(repzoo.InputError, match="NV12 needs even sides"):
        RdkX5().check(replace(small(), model=model, preprocess=preprocess))


def test_a_model_that_was_not_hardened_keeps_its_opset_and_is_refused(
    tmp_path: Path,
) -> None:
    job = packs.PackJob(small(), sets().calibration.subset(range(2)))
    with pytest.raises(repzoo.InputError, match="has opset 17, and rdk-x5 takes at"):
        packs.write_pack(RdkX5(), job, tmp_path / "pack")
