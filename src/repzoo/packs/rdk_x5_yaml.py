"""hb_mapper's configurations of one model: calibrated by the tool, or with the scales of the file.

hb_mapper normalizes by (x - mean_value) * scale_value of pixels 0..255, so mean_value = 255 mean
and scale_value = 1 / (255 std). Its calibration files hold float32 pixels before normalization, in
the layout and the channel order of training. On the board the camera gives NV12, which needs even
sides. Source: D-Robotics' guide of the tool chain, ptq_process.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from repzoo.artifact import Artifact
from repzoo.packs.parts import file_name, numbers, pixel_mean, pixel_std, render
from repzoo.storage import json_text

WORKING_DIR = "model_output"
LOAD_DIR = "model_output_load"
LOAD = "_load"  # after the model's name, where the file brings its own scales
INT16 = {"ON": "BPU", "InputType": "int16", "OutputType": "int16"}


def runtime_type(artifact: Artifact) -> str:
    """What the board hands over: nv12 or gray."""
    return "gray" if artifact.require_preprocess().color == "GRAY" else "nv12"


def calibration_folder(artifact: Artifact) -> str:
    """The folder of the calibration images; hb_mapper reads files of `_f32` as float32."""
    return f"calibration_data_{artifact.require_preprocess().color.lower()}_f32"


def prefix(artifact: Artifact, suffix: str = "") -> str:
    """What the names of hb_mapper's results begin with."""
    preprocess = artifact.require_preprocess()
    name = file_name(artifact.name) + suffix
    return f"{name}_{preprocess.height}x{preprocess.width}_{runtime_type(artifact)}"


def binary_path(artifact: Artifact, suffix: str = "") -> str:
    """The compiled model, below the pack's folder."""
    folder = LOAD_DIR if suffix else WORKING_DIR
    return f"{folder}/{prefix(artifact, suffix)}.bin"


def quantized_path(artifact: Artifact, suffix: str = "") -> str:
    """The quantized model that hb_mapper's own runtime computes on a PC."""
    folder = LOAD_DIR if suffix else WORKING_DIR
    return f"{folder}/{prefix(artifact, suffix)}_quantized_model.onnx"


def yaml_text(
    artifact: Artifact, fallback: Iterable[str] = (), root: str = "./"
) -> str:
    """The configuration in which hb_mapper calibrates activations by itself.

    Args:
        artifact: the packed model; its preprocessing is what all values follow from.
        fallback: names of nodes that compute in int16.
        root: the pack's folder, from where hb_mapper runs.
    """
    return _yaml(artifact, fallback, root, load=False)


def load_yaml_text(
    artifact: Artifact, fallback: Iterable[str] = (), root: str = "./"
) -> str:
    """The configuration in which hb_mapper takes the scales of the file; as `yaml_text`."""
    return _yaml(artifact, fallback, root, load=True)


def _yaml(artifact: Artifact, fallback: Iterable[str], root: str, load: bool) -> str:
    preprocess = artifact.require_preprocess()
    suffix = LOAD if load else ""
    purpose = "hb_mapper calibrates the activations"
    if load:
        purpose = "the scales of the activations are those in the file"
    # JSON is a part of YAML: a name of any characters stays one string.
    node_info = dict.fromkeys(fallback, INT16)
    return render(
        "rdk_x5.yaml.j2",
        name=file_name(artifact.name),
        purpose=purpose,
        root=root,
        onnx=f"{file_name(artifact.name)}{suffix}.onnx",
        working_dir=LOAD_DIR if load else WORKING_DIR,
        prefix=prefix(artifact, suffix),
        node_info=json_text(node_info) if node_info else "",
        runtime=runtime_type(artifact),
        color=preprocess.color.lower(),
        layout=preprocess.layout,
        mean=numbers(pixel_mean(preprocess), " "),
        scale=numbers([1 / value for value in pixel_std(preprocess)], " "),
        calibration="" if load else calibration_folder(artifact),
    )
