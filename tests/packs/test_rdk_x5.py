"""The pack for the RDK X5: configurations, the form with its own scales, programs, notebook."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.packs.test_rdk_x5_board import FakeModel, fake_opencv
from tests.small_model import sets, small

from repzoo.artifact import Artifact, Step
from repzoo.data.nv12 import from_rgb, to_rgb
from repzoo.data.preprocess import resized_and_cropped
from repzoo.errors import InputError
from repzoo.graph.tools.older_opset import limit_version
from repzoo.measure.external_results import read
from repzoo.packs.board import infer
from repzoo.packs.pack import Figures, PackJob, write_pack
from repzoo.packs.rdk_x5 import RdkX5
from repzoo.packs.rdk_x5_samples import module_name
from repzoo.packs.rdk_x5_yaml import yaml_text

RANGES = {"data": [-128 / 127, 1.0], "b": [-2 * 128 / 127, 2.0]}


@pytest.fixture(scope="module")
def packable() -> Artifact:
    """A model as hardening leaves it, without the time that it takes."""
    step = Step("export", "1", {"model": "repvgg_a0"})
    return replace(
        small(),
        name="my model's",
        model=limit_version(small().model, 11, 7),
        steps=(step, Step("harden", "1")),
        extras={"activations": RANGES},
    )


def files_of(artifact: Artifact, **values: Any) -> dict[str, Any]:
    job = PackJob(artifact, sets().calibration.subset(range(3)), **values)
    return dict(RdkX5().files(job))


@pytest.fixture(scope="module")
def folder(packable: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = sets().calibration.subset(range(3))
    path = tmp_path_factory.mktemp("pack") / "pack"
    figures = Figures(720, 98.333, 98.06, 99.7)
    write_pack(RdkX5(), PackJob(packable, images, figures), path)
    return path


def sections(text: str) -> dict[str, dict[str, Any]]:
    document: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return document


def test_both_configurations_have_all_sections(folder: Path) -> None:
    default = sections((folder / "my_model_s.yaml").read_text("utf-8"))
    load = sections((folder / "my_model_s_load.yaml").read_text("utf-8"))
    for document in (default, load):
        assert list(document) == [
            "model_parameters",
            "input_parameters",
            "calibration_parameters",
            "compiler_parameters",
        ]
        model = document["model_parameters"]
        assert (folder / model["onnx_model"]).is_file()
        assert model["march"] == "bayes-e"
        entry = document["input_parameters"]
        assert entry["input_type_rt"] == "nv12"
        assert entry["mean_value"] == "127.5 127.5 127.5"
    calibration = default["calibration_parameters"]
    assert calibration["calibration_type"] == "default"
    assert len(list((folder / calibration["cal_data_dir"]).iterdir())) == 3
    assert load["calibration_parameters"] == {"calibration_type": "load"}
    assert "node_info" not in default["model_parameters"]


def test_fallback_is_int16_whatever_a_node_is_called(packable: Artifact) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(packable.model)
    name = 'it\'s "odd": {#}\n中文 %s'
    model.graph.node[0].name = name
    fallback = (name, packable.model.graph.node[2].output[0])
    files = files_of(replace(packable, model=model), fallback=fallback)
    info = sections(files["my_model_s.yaml"])["model_parameters"]["node_info"]
    packed = onnx.load_from_string(files["my_model_s.onnx"])
    names = [node.name for node in packed.graph.node]
    assert list(info) == [name, names[2]]
    assert len(set(names)) == len(names)
    assert set(map(str, info[name].values())) == {"BPU", "int16"}
    # int16 cannot be written in Q/DQ of opset 11.
    assert not [name for name in files if "_load." in name]


def test_a_model_without_ranges_has_one_form(packable: Artifact) -> None:
    files = files_of(replace(packable, extras={}))
    assert not [name for name in files if "load" in Path(name).stem.split("_")]
    assert "03_infer.sh" in files
    assert "_load" not in files["README.md"]


def test_the_form_with_its_own_scales(folder: Path) -> None:
    model = onnx.load(folder / "my_model_s_load.onnx")
    onnx.checker.check_model(model)
    constants = {
        item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer
    }
    scales: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scales[node.input[0]] = constants[node.input[1]]
            assert constants[node.input[2]] == 0
    assert set(scales) == set(RANGES)
    # hb_mapper's thresholds are 127 times the scale.
    for name, (_, high) in RANGES.items():
        assert np.float32(127) * scales[name] == pytest.approx(high, rel=1e-6)


def test_gray_models_and_channels_last(packable: Artifact) -> None:
    gray = replace(
        packable.require_preprocess(),
        color="GRAY",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.2),
    )
    entry = sections(yaml_text(replace(packable, preprocess=gray, model=one_channel())))
    assert entry["input_parameters"]["input_type_rt"] == "gray"
    assert entry["input_parameters"]["input_type_train"] == "gray"
    assert float(entry["input_parameters"]["mean_value"]) == pytest.approx(127.5)
    directory = entry["calibration_parameters"]["cal_data_dir"]
    assert directory == "./calibration_data_gray_f32"


def one_channel() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    return model


def test_several_outputs_are_refused(packable: Artifact) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(packable.model)
    output = model.graph.output[0]
    model.graph.output.extend([output] * 32)
    with pytest.raises(InputError, match="one output"):
        RdkX5().check(replace(packable, model=model))


def test_shell_steps_are_valid_and_name_files_that_are_there(folder: Path) -> None:
    scripts = sorted(path.name for path in folder.glob("*.sh"))
    assert scripts == [
        "01_check.sh",
        "02_build.sh",
        "03_build_load.sh",
        "04_infer.sh",
        "05_evaluate.sh",
        "06_perf_on_board.sh",
        "07_evaluate_on_board.sh",
    ]
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    for script in folder.rglob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    for name in ("04_infer.sh", "06_perf_on_board.sh"):
        ran = subprocess.run(
            ["bash", folder / name], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 2
        assert "is not there" in ran.stderr


def test_texts_name_only_steps_that_are_there(packable: Artifact) -> None:
    layer = packable.model.graph.node[0].output[0]
    for fallback in ((), (layer,)):  # a layer in int16 takes the step build_load away
        files = files_of(packable, fallback=fallback)
        named: set[str] = set()
        for content in files.values():
            text = content if isinstance(content, str) else ""
            named |= set(re.findall(r"\b\d\d_\w+\.sh\b", text))
        assert "02_build.sh" in named
        assert named <= files.keys()


def test_readmes_say_what_is_known(folder: Path) -> None:
    english = (folder / "README.md").read_text("utf-8")
    chinese = (folder / "README_cn.md").read_text("utf-8")
    for text in (english, chinese):
        assert "https://arxiv.org/abs/2101.03697" in text
        assert "98.33" in text
        assert "`05_evaluate.sh`" in text
        assert "`./07_evaluate_on_board.sh`" in text
    assert english.count("not known") == chinese.count("未知") == 3
    assert "3x3 convolutions" in english


class Board:
    """A folder as it is on the board: with a compiled model, and modules made for the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        shown = ModuleType("IPython.display")
        self.shown: list[Any] = []
        shown.__dict__.update(Image=SimpleNamespace, display=self.shown.append)
        runtime = ModuleType("hbm_runtime")
        runtime.__dict__["HB_HBMRuntime"] = Ten
        modules = {
            "cv2": fake_opencv(),
            "hbm_runtime": runtime,
            "IPython": ModuleType("IPython"),
            "IPython.display": shown,
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        monkeypatch.delitem(sys.modules, "classifier", raising=False)
        monkeypatch.chdir(folder)


class Ten(FakeModel):
    """Ten logits for 16x16 pixels; class 7 wins."""

    def run(self, inputs: Any) -> Any:
        assert inputs["m"]["data"].shape == (1, 24, 16, 1)
        return {"m": {"output": np.eye(10)[7].reshape(1, 10, 1, 1)}}


@pytest.fixture
def on_board(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Board]:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    binary = copy / "model_output" / "my_model_s_16x16_nv12.bin"
    binary.parent.mkdir()
    binary.write_bytes(b"compiled")
    yield Board(copy, monkeypatch)
    sys.modules.pop("classifier", None)


def test_the_notebook_is_valid_and_its_cells_run(on_board: Board) -> None:
    text = (on_board.folder / "test_my_model_s.ipynb").read_text("utf-8")
    document = nbformat.reads(text, as_version=4)
    nbformat.validate(document)
    names: dict[str, Any] = {}
    ran = skipped = 0
    for cell in document.cells:
        if cell.cell_type != "code":
            continue
        if "board" in cell.metadata.get("tags", []):
            assert cell.source.startswith("!")
            skipped += 1
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(cell.source, "cell", "exec"), names)
        ran += 1
    assert (ran, skipped) == (7, 4)
    assert names["best"][0][0] == 7
    assert [item.filename for item in on_board.shown] == ["result.png"]
    with Image.open("result.png") as result, Image.open("sample.png") as sample:
        assert result.size == sample.size


def run_main(path: Path, *arguments: str) -> str:
    """What the program prints, run in this process, where the fake board is."""
    source = path.read_text("utf-8")
    shown = io.StringIO()
    argv = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        with contextlib.redirect_stdout(shown):
            exec(
                compile(source, str(path), "exec"),
                {"__name__": "__main__", "__file__": str(path)},
            )
    finally:
        sys.argv = argv
    return shown.getvalue()


def test_the_program_and_its_result_which_evaluate_reads(on_board: Board) -> None:
    assert "1. 7 (7): 0.2320" in run_main(on_board.folder / "main.py")
    data = sets().gate.subset(range(20))
    for key, target in zip(data.keys, data.targets, strict=True):
        path = on_board.folder / "images" / str(target) / f"{key.replace('/', '_')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.load(key).save(path)
    (on_board.folder / "images" / "7" / "broken.png").write_bytes(b"")
    shown = run_main(on_board.folder / "main.py", "--image-dir", "images")
    assert shown == "result.txt: 20 images, 1 unreadable\n"
    from repzoo.data.source import open_source

    dataset = open_source(str(on_board.folder / "images")).join("all")
    predictions, _ = read(Path("result.txt"), dataset)
    assert len(predictions.correct) == 20
    assert predictions.correct.sum() == sum(target == 7 for target in data.targets)


def test_the_newer_layout(on_board: Board) -> None:
    sample = on_board.folder / "samples" / "vision" / "my_model_s"
    for part in ("", "conversion", "evaluator", "model", "runtime/python"):
        for readme in ("README.md", "README_cn.md"):
            assert (sample / part / readme).is_file()
    for path in (sample / "conversion").glob("*.yaml"):
        document = sections(path.read_text("utf-8"))
        assert (path.parent / document["model_parameters"]["onnx_model"]).is_file()
    (sample / "model" / "my_model_s_16x16_nv12.bin").write_bytes(b"compiled")
    program = sample / "runtime" / "python" / "main.py"
    assert (program.parent / "my_model_s.py").is_file()
    assert "1. 7 (7)" in run_main(program)
    sys.modules.pop("my_model_s", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RepVGG-A0", "repvgg_a0"),
        ("50x", "model_50x"),
        ("a.b", "a_b"),
        ("中文", "model__"),
    ],
)
def test_module_names(name: str, expected: str) -> None:
    assert module_name(name) == expected
    assert module_name(name).isidentifier()


def test_settings_of_the_board_prepare_images_as_the_model_sees_them(
    folder: Path, packable: Artifact
) -> None:
    from repzoo.packs.board import classifier

    config = classifier.Config.read(folder / "model.json", folder / "labels.txt")
    assert config.labels == packable.labels
    assert not config.probabilities
    images = sets().calibration
    for key in images.keys[:5]:
        image = images.load(key).convert("RGB")
        pixels = resized_and_cropped(image, packable.require_preprocess())
        tensor = classifier.model_input(np.asarray(image)[..., ::-1], config)
        np.testing.assert_array_equal(tensor[0], from_rgb(pixels, "bt601-full"))
        # On a PC, hb_mapper's model takes the same as YUV 4:4:4.
        yuv = infer.quantized_input(tensor, gray=False)
        assert yuv.shape == (1, 16, 16, 3)
        decoded = to_rgb(tensor, "bt601-full")[0]
        red = yuv[0, ..., 0] + 1.402 * (yuv[0, ..., 2] - 128.0)
        np.testing.assert_allclose(decoded[..., 0], red, atol=1e-9)


def test_the_manifest_has_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    assert set(manifest["files"]) == files - {"manifest.json"}
