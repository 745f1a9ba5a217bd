"""A pack and a tool chain of shell scripts that stand in for the vendor's programs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tests.small_model import sets, small
from tests.vendors.hb_mapper_log import hb_mapper_log

from repzoo.artifact import Artifact
from repzoo.graph.tools.older_opset import limit_version
from repzoo.packs.pack import PackJob, PackTarget, write_pack
from repzoo.vendors.environment import NOTE, folder_of
from repzoo.vendors.recipes import find_recipe


def opset_11(name: str = "tiny") -> Artifact:
    artifact = small()
    return replace(artifact, name=name, model=limit_version(artifact.model, 11, 7))


def write_small_pack(target: PackTarget, folder: Path) -> Path:
    images = sets().calibration.subset(range(2))
    write_pack(target, PackJob(opset_11(), images), folder)
    return folder


def install_toolchain(name: str, version: str = "") -> Path:
    """The folder of its programs, which is empty."""
    recipe = find_recipe(name)
    folder = folder_of(recipe)
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (folder / NOTE).write_text(version or f"{name}, version {recipe.version}")
    return programs


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)


def mapper_script(artifact: Artifact) -> str:
    """What makertbin does, as far as repzoo sees it."""
    log = hb_mapper_log(
        model="tiny.onnx",
        input_name=artifact.input_name,
        output_name=artifact.model.graph.output[0].name,
        size=16,
    )
    return f"""mkdir model_output
echo quantized > model_output/tiny_quantized_model.onnx
echo binary > model_output/tiny.bin
echo internal > hb_mapper_makertbin.log
cat <<'END'
{log}
END"""


RKNN = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np

FAULT = {fault!r}
ROW = "[Conv] {{}}   0.99{{}} | 1.5   0.99990 | 0.5\\n"

class RKNN:
    def __init__(self, verbose): print("a line on stdout")
    def release(self): pass
    def config(self, **settings):
        self.settings = settings
    def load_onnx(self, model, inputs, input_size_list):
        assert Path(model).stat().st_size and inputs == ["data"]
        if FAULT == "operator": raise ValueError("operator Odd is not supported")
        return 0
    def build(self, do_quantization, dataset):
        if FAULT == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if FAULT == "hang": time.sleep(60)
        for name in Path(dataset).read_text().split():
            assert Path(name).stat().st_size
        return 0
    def hybrid_quantization_step1(self, dataset):
        Path("model.quantization.cfg").write_text("custom_quantize_layers: {{}}\\n")
        return 0
    def hybrid_quantization_step2(self, model_input, data_input, model_quantization_cfg):
        print(Path(model_quantization_cfg).read_text())
        return 0
    def export_rknn(self, path):
        if FAULT != "nothing": Path(path).write_text("binary")
        return 0
    def accuracy_analysis(self, inputs, output_dir):
        assert Path(inputs[0]).is_file()
        Path(output_dir).mkdir()
        rows = [ROW.format(name, number) for number, name in enumerate({names!r})]
        table = "layer_name   simulator_error\\n" + "".join(rows)
        (Path(output_dir) / "error_analysis.txt").write_text(table)
        return 0
    def init_runtime(self): return 0
    def inference(self, inputs, data_format):
        (image,) = inputs
        assert image.dtype == np.uint8 and data_format == ["nhwc"]
        if image[0, 0, 0, 0] == 255: return None
        if image[0, 0, 0, 0] == 254: os.kill(os.getpid(), signal.SIGSEGV)
        mean, deviation = self.settings["mean_values"][0], self.settings["std_values"][0]
        values = ((image - mean) / deviation).mean((0, 1, 2))
        return [np.resize(values, (1, 10)).astype(np.float32)]
"""


def install_rknn(folder: Path, fault: str = "") -> None:
    """A tool chain whose Python is ours, with a module in the place of rknn-toolkit2."""
    names = [node.output[0] for node in opset_11().model.graph.node]
    package = folder / "rknn"
    package.mkdir()
    (package / "api.py").write_text(RKNN.format(fault=fault, names=names))
    script = f'PYTHONPATH="{folder}" exec "{sys.executable}" "$@"'
    write_program(install_toolchain("rknn") / "python", script)
