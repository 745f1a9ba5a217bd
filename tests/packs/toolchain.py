"""A pack and a tool chain of shell scripts that stand in for the vendor's programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.quant.conftest import sets, small
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
