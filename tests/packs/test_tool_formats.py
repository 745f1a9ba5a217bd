"""The files for rknn-toolkit2, tpu-mlir, Hailo and the tools that take Q/DQ: keys and values as the
makers' public files have them, layers out of INT8, and the programs against stand-ins of the tools.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.contracts.test_pack import PREPROCESS, artifact_for, job_for

import repzoo
from repzoo.packs import hailo, qdq, rknn, rknn_program, sophgo
from repzoo.packs.pack import PackJob, open_target

# What the toolkit's calls do, without the toolkit: each is noted, and step 1 writes a table.
RKNN_API = """
import json
from pathlib import Path

class RKNN:
    def __init__(self, verbose): pass
    def release(self): pass
    def __getattr__(self, name):
        def call(*words, **arguments):
            with Path("calls.jsonl").open("a") as file:
                file.write(json.dumps([name, arguments]) + "\\n")
            if name == "hybrid_quantization_step1":
                Path("net.quantization.cfg").write_text(json.dumps(TABLE))
            return 1 if name == FAILS else 0
        return call

def row(dtype, scale):
    return {"dtype": dtype, "min": [0], "max": [9], "scale": scale}

TABLE = {
    "custom_quantize_layers": {},
    "quantize_parameters": {
        "data": row("float32", []),
        "live": row("int8", [0.1]),
        "theirs": row("int8", [0.2]),
    },
}
FAILS = ""
"""
RUAMEL = """
import json

class YAML:
    def load(self, text): return json.loads(text)
    def dump(self, document, file): json.dump(document, file)
"""


def fallback_job(name: str) -> PackJob:
    """A job whose first convolution stays out of INT8."""
    job = job_for(open_target(name))
    return replace(job, fallback=("stem",))


def test_a_layer_that_tpu_mlir_cannot_name_is_not_lost_in_silence() -> None:
    job = fallback_job("sophgo")
    model = onnx.ModelProto()
    model.CopyFrom(job.artifact.model)
    stem, live = model.graph.node[:2]
    stem.name, stem.output[0], live.input[0] = "stem", "stem 1", "stem 1"
    job = replace(job, artifact=replace(job.artifact, model=model))
    files = files_of("sophgo", job)
    assert "net_qtable" not in files
    assert "stem should compute in F16, but will compute in INT8" in job.remarks[0]
    for name in ("03_build_int8.sh", "README.md", "README_cn.md"):
        assert "qtable" not in files[name]


def files_of(name: str, job: PackJob) -> dict[str, Any]:
    return dict(open_target(name).files(job))


def run_convert(folder: Path, action: str, api: str = RKNN_API) -> Any:
    """convert.py with stand-ins of the two packages that it imports."""
    for module, text in (("rknn/api", api), ("ruamel/yaml", RUAMEL)):
        path = folder / f"{module}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return subprocess.run(
        [sys.executable, "convert.py", action, "--platform", "rk3566"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def rknn_folder(tmp_path: Path) -> Path:
    job = fallback_job("rknn")
    artifact = replace(
        job.artifact, extras={"activations": {"data": [-2, 2], "live": [0, 3]}}
    )
    for name, content in files_of("rknn", replace(job, artifact=artifact)).items():
        if name.endswith((".py", ".cfg", ".txt")):
            (tmp_path / name).write_text(content)
    return tmp_path


def test_rknn_is_called_as_its_examples_call_it(rknn_folder: Path) -> None:
    ran = run_convert(rknn_folder, "build")
    assert ran.returncode == 0, ran.stderr
    lines = (rknn_folder / "calls.jsonl").read_text().splitlines()
    calls = dict(json.loads(line) for line in lines)
    assert list(calls) == ["config", "load_onnx", "build", "export_rknn"]
    config = calls["config"]
    np.testing.assert_allclose(config["mean_values"], [[123.675, 116.28, 103.53]])
    np.testing.assert_allclose(config["std_values"], [[58.395, 57.12, 57.375]])
    assert config["target_platform"] == "rk3566"
    assert config["quantized_method"] == "channel"
    assert calls["load_onnx"] == {
        "model": "net.onnx",
        "inputs": ["data"],
        "input_size_list": [[1, 3, 16, 16]],
    }
    assert calls["build"] == {"do_quantization": True, "dataset": "dataset.txt"}


def test_rknn_takes_our_ranges_and_keeps_its_scales(rknn_folder: Path) -> None:
    ran = run_convert(rknn_folder, "ranges")
    assert ran.returncode == 0, ran.stderr
    assert "activation ranges taken: 1 of 2" in ran.stdout
    table = json.loads((rknn_folder / "net.quantization.cfg").read_text())
    assert table["custom_quantize_layers"] == {"stem": "float16"}
    rows = table["quantize_parameters"]
    assert (rows["live"]["min"], rows["live"]["max"]) == ([0], [3])
    assert rows["live"]["scale"] == [0.1]
    assert rows["theirs"]["max"] == rows["data"]["max"] == [9]


def test_a_call_of_rknn_that_fails_is_named(rknn_folder: Path) -> None:
    ran = run_convert(
        rknn_folder, "build", RKNN_API.replace('FAILS = ""', 'FAILS = "build"')
    )
    assert ran.returncode == 1
    assert "build failed with 1; the tool's messages above say why" in ran.stderr


def test_rknn_turns_images_for_a_model_of_the_other_order() -> None:
    swapped = replace(PREPROCESS, color="BGR")
    job = job_for(open_target("rknn"), preprocess=swapped)
    assert "quant_img_RGB2BGR=True" in rknn_program.program_text(
        job.artifact, "layer", "rk3588"
    )
    assert "quantized_method='layer'" in rknn_program.program_text(
        job.artifact, "layer", "rk3566"
    )
    files = files_of("rknn", job)
    other = files_of("rknn", job_for(open_target("rknn")))
    # The tool reads RGB and turns it: the files themselves show the true colors.
    assert files["calibration/0000.png"] == other["calibration/0000.png"]


def test_rknn_has_arrays_for_gray_models() -> None:
    kind, data = rknn.image_file(np.zeros((1, 4, 6), np.uint8), "GRAY")
    assert kind == "npy"
    assert data.startswith(b"\x93NUMPY")
    assert b"(1, 1, 4, 6)" in data


def test_sophgo_normalizes_as_its_guide_does() -> None:
    command = sophgo.transform_command(artifact_for(open_target("sophgo")))
    assert "--mean 123.675,116.28,103.53" in command
    # The guide has 0.0171,0.0175,0.0174, rounded.
    assert "--scale 0.017124754,0.017507003,0.017429194" in command
    assert "--pixel_format rgb" in command


def test_sophgo_tables(tmp_path: Path) -> None:
    files = files_of("sophgo", fallback_job("sophgo"))
    assert files["net_qtable"] == "# op_name quantize_mode\nstem_Conv F16\n"
    assert "--quantize_table net_qtable" in files["03_build_int8.sh"]
    ours = files["net_thresholds"].splitlines()
    name, threshold, low, high = ours[1].split()
    assert name == "data"
    assert float(threshold) == float(high) == -float(low)
    (tmp_path / "ours").write_text(files["net_thresholds"])
    (tmp_path / "tool").write_text(
        "# sample number: 10\n###\ndata 9 -1 9\nlive_Relu 5 0 6\n"
    )
    (tmp_path / "merge_table.py").write_text(files["merge_table.py"])
    ran = subprocess.run(
        [sys.executable, "merge_table.py", "tool", "ours", "merged"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == "thresholds taken: 1 of 1\n"
    merged = (tmp_path / "merged").read_text()
    # The tool sees from its own minimum whether an activation is ever negative.
    assert merged == (
        f"# sample number: 10\n###\ndata {threshold} -1 9\nlive_Relu 5 0 6\n"
    )


def test_hailo_says_what_the_model_zoo_says() -> None:
    job = fallback_job("hailo")
    lines = hailo.script_text(job).splitlines()
    assert lines[0] == (
        "normalization1 = normalization([123.675, 116.28, 103.53], "
        "[58.395, 57.12, 57.375])"
    )
    assert "quantization_param([conv1], precision_mode=a16_w16)" in lines
    assert (
        "model_optimization_config(calibration, batch_size=8, calibset_size=20)"
        in lines
    )
    document: Any = hailo.configuration(job.artifact)
    assert {"base", "network", "paths", "info", "parser"} <= document.keys()
    parser = document["parser"]
    assert parser.keys() == {"nodes", "normalization_params"}
    values = parser["normalization_params"]
    assert values["normalize_in_net"] is True
    np.testing.assert_allclose(values["mean_list"], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(values["std_list"], [58.395, 57.12, 57.375])
    assert document["paths"]["alls_script"] == "net.alls"


def test_axera_has_the_keys_of_its_guide() -> None:
    job = job_for(open_target("qdq:axera"))
    document: Any = qdq.axera_configuration(job)
    assert document.keys() == {
        "model_type",
        "npu_mode",
        "quant",
        "input_processors",
        "compiler",
    }
    assert document["model_type"] == "QuantONNX"
    (settings,) = document["quant"]["input_configs"]
    assert settings["tensor_name"] == "data"
    np.testing.assert_allclose(settings["calibration_mean"], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(settings["calibration_std"], [58.395, 57.12, 57.375])


def test_tensorrt_gets_float_biases_of_the_same_values() -> None:
    artifact = artifact_for(open_target("qdq:tensorrt"))
    model = qdq.with_float_biases(artifact.model)
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert onnx.TensorProto.INT32 not in kinds.values()
    assert kinds["bias"] == onnx.TensorProto.FLOAT
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    outputs = []
    for each in (artifact.model, model):
        session = repzoo.engines.engine("onnxruntime").open(each, exact=True)
        outputs.append(session.run(image))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_tensorrt_is_quantized_without_zero_points(tmp_path: Path) -> None:
    from tests.small_model import small

    written = repzoo.pack(
        small(),
        "digits",
        tmp_path / "pack",
        target="qdq:tensorrt",
        images=64,
        calibration=10,
        max_drop=5,
    )
    model = onnx.load(tmp_path / "pack" / "small.onnx")
    constants = {
        item.name: numpy_helper.to_array(item) for item in model.graph.initializer
    }
    pairs = [node for node in model.graph.node if node.op_type.endswith("Linear")]
    assert len(pairs) >= 8
    for node in pairs:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert written.model.form == "int8"
    text = (tmp_path / "pack" / "README.md").read_text("utf-8")
    assert "not known" not in text
    assert "Measured on 720 images" in text


def test_a_layer_that_is_not_there() -> None:
    job = replace(job_for(open_target("rknn")), fallback=("nothing",))
    with pytest.raises(repzoo.InputError, match="has no node called nothing"):
        rknn.ranges_text(job)


def test_ranges_of_another_graph() -> None:
    artifact = artifact_for(
        open_target("rknn"), extras={"activations": {"elsewhere": [0, 1]}}
    )
    job = replace(job_for(open_target("rknn")), artifact=artifact)
    with pytest.raises(repzoo.InputError, match="'elsewhere', and its graph has no"):
        rknn.ranges_text(job)
