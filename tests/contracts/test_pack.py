"""What every pack keeps to, the package's own and anyone's: the suite runs against all targets that
TARGETS knows, with each of their options.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.packs.calibration_readers import READERS
from tests.small_model import sets

import repzoo
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import UnreadableImage
from repzoo.packs.limits import require_packable
from repzoo.packs.pack import (
    TARGETS,
    Figures,
    PackFile,
    PackJob,
    PackTarget,
    open_target,
    write_pack,
)
from repzoo.quant.network.scheme import load_scheme

ODD = 'it\'s a `net`; $(touch pwned) "é"\n# end'
IMAGES = 20
FIGURES = Figures(720, 91.25, 90.75, 98.5)
# Opset 11 and 10 outputs: what every target takes.
FLOAT = """<ir_version: 7, opset_import: ["" : 11]>
    g (float[1, 3, 16, 16] data) => (float[1, 10] output) {
    stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, w, b)
    live = Relu (stem)
    pooled = GlobalAveragePool (live)
    flat = Flatten (pooled)
    output = Gemm <transB = 1> (flat, v, c) }"""
QDQ = """<ir_version: 7, opset_import: ["" : 13]>
    g (float[N, 3, 16, 16] data) => (float[N, 10] output)
    <float s = {0.02}, int8 z = {0}> {
    q = QuantizeLinear (data, s, z)
    x = DequantizeLinear (q, s, z)
    k = DequantizeLinear <axis = 0> (w8, sw, zw)
    bias = DequantizeLinear <axis = 0> (b32, sb, zb)
    stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, bias)
    live = Relu (stem)
    pooled = GlobalAveragePool (live)
    flat = Flatten (pooled)
    output = Gemm <transB = 1> (flat, v, c) }"""
PREPROCESS = Preprocess(
    16,
    "short",
    1.0,
    "bilinear",
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    "RGB",
)
# File names in steps that the tools write themselves.
WRITTEN = re.compile(r"(_top|_in_f32|npz|_quantized_model)\.\w+$")


def names() -> Iterator[str]:
    for base in TARGETS.names():
        yield base
        for option in getattr(TARGETS.load(base), "options", list)():
            yield f"{base}:{option}"


NAMES = list(names())


def tensor(name: str, values: Any, kind: Any = np.float32) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, kind), name)


def artifact_for(target: PackTarget, **changes: Any) -> Artifact:
    """A model in the form that the target takes, as if `harden` or `quantize` had written it."""
    random = np.random.default_rng(0)
    is_int8 = getattr(target, "form", "float") == "int8"
    model = onnx.parser.parse_model(QDQ if is_int8 else FLOAT)
    weights = [
        tensor("v", random.standard_normal((10, 8))),
        tensor("c", np.zeros(10)),
    ]
    if is_int8:
        weights += [
            tensor("w8", random.integers(-127, 128, (8, 3, 3, 3)), np.int8),
            tensor("sw", np.full(8, 0.01)),
            tensor("zw", np.zeros(8), np.int8),
            tensor("b32", random.integers(-99, 99, 8), np.int32),
            tensor("sb", np.full(8, np.float32(0.02) * np.float32(0.01))),
            tensor("zb", np.zeros(8), np.int32),
        ]
    else:
        weights += [
            tensor("w", random.standard_normal((8, 3, 3, 3))),
            tensor("b", np.zeros(8)),
        ]
    model.graph.initializer.extend(weights)
    artifact = Artifact(
        model,
        "net",
        PREPROCESS,
        tuple(map(str, range(10))),
        (Step("harden", "0", {}),),
        extras={} if is_int8 else {"activations": {"data": [-2.0, 2.0]}},
        sha256="0" * 64,
    )
    return replace(artifact, **changes)


def job_for(target: PackTarget, **changes: Any) -> PackJob:
    images = sets().calibration.subset(range(IMAGES))
    return PackJob(artifact_for(target, **changes), images, FIGURES)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=NAMES)
def target(request: pytest.FixtureRequest) -> PackTarget:
    return open_target(request.param)


@pytest.fixture(scope="module")
def folder(target: PackTarget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of a target; do not change it."""
    folder = tmp_path_factory.mktemp("out") / "pack"
    write_pack(target, job_for(target), folder)
    return folder


def test_the_manifest_names_every_file_with_its_hash(
    target: PackTarget, folder: Path
) -> None:
    files = contents(folder)
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["target"] == target.name
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert manifest["files"] == hashes
    assert manifest["calibration"] == {
        "data": sets().calibration.name,
        "images": IMAGES,
    }
    assert [path.name for path in folder.parent.iterdir()] == ["pack"]


def test_the_steps_are_numbered_and_run_in_bash(folder: Path) -> None:
    scripts = sorted(folder.glob("*.sh"))
    numbers = [path.name[:3] for path in scripts]
    assert numbers == [f"{number:02d}_" for number in range(1, len(scripts) + 1)]
    for script in scripts:
        if shutil.which("bash"):
            subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o100


def test_the_steps_read_only_files_that_exist(folder: Path) -> None:
    for script in folder.glob("*.sh"):
        for word in re.findall(
            r"[\w./-]+\.(?:onnx|ya?ml|alls|py|txt|npy|png|cfg)\b", script.read_text()
        ):
            is_there = (folder / word).exists() or WRITTEN.search(word)
            assert is_there or word.endswith("result.txt"), (script.name, word)


def test_the_model_and_the_labels_are_those_that_were_given(folder: Path) -> None:
    (model,) = [path for path in folder.glob("*.onnx") if path.stem == "net"]
    onnx.checker.check_model(onnx.load(model), full_check=True)
    assert (folder / "labels.txt").read_text().split() == list(map(str, range(10)))


def test_both_languages_give_the_same_figures(folder: Path) -> None:
    texts = [
        (folder / name).read_text("utf-8") for name in ("README.md", "README_cn.md")
    ]
    english, chinese = texts
    figures = [sorted(re.findall(r"\d+\.\d+", text)) for text in texts]
    assert figures[0] == figures[1]
    assert {"91.25", "90.75", "98.50"} <= set(figures[0])
    assert len(re.findall("^## ", english, re.M)) == len(
        re.findall("^## ", chinese, re.M)
    )
    for script in folder.glob("*.sh"):
        assert all(script.name in text for text in texts)
    for path in folder.iterdir():
        named = path.name in english or path.suffix == ".sh"
        assert named or path.stem.startswith("README"), path.name


def test_calibration_data_and_configuration_make_the_input_of_the_model(
    target: PackTarget, folder: Path
) -> None:
    base = target.name.partition(":")[0]
    if base not in READERS:
        pytest.skip(f"no reader of the calibration data of {base} is known here")
    job = job_for(target)
    expected = next(iter(batches(job.images, PREPROCESS, IMAGES, ReadReport()))).inputs
    actual = READERS[base](folder)
    assert actual.shape == expected.shape
    # Pixels are whole numbers, so what differs is how a float32 was rounded.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_are_refused_at_once_or_prepared_as_the_model_wants_them(
    name: str, tmp_path: Path
) -> None:
    target = open_target(name)
    preprocess = replace(PREPROCESS, layout="NHWC")
    model = channels_last(artifact_for(target).model)
    job = job_for(target, model=model, preprocess=preprocess)
    refusal = refusal_of(target, job.artifact)
    if refusal:
        assert "channels last (NHWC)" in refusal
        return
    write_pack(target, job, tmp_path / "pack")
    actual = READERS[name.partition(":")[0]](tmp_path / "pack")
    expected = next(iter(batches(job.images, preprocess, IMAGES, ReadReport()))).inputs
    assert actual.shape == expected.shape == (IMAGES, 16, 16, 3)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("hailo", "net.alls", "calibset_size=119"),
        ("sophgo", "02_calibrate.sh", "--input_num 119"),
        ("qdq:axera", "config.json", '"calibration_size": 119'),
    ],
)
def test_an_unreadable_image_is_named_and_counted_nowhere(
    name: str, file: str, words: str, tmp_path: Path
) -> None:
    target = open_target(name)
    job = job_for(target)
    readable = job.images
    keys = ("broken.png", *readable.keys[:1] * 119)

    def load(key: str) -> Image.Image:
        if key == "broken.png":
            raise UnreadableImage("broken.png is cut off")
        return readable.load(key)

    images = replace(readable, keys=keys, targets=(0,) * 120, load=load)
    job = replace(job, images=images)
    write_pack(target, job, tmp_path / "pack")
    assert job.remarks == ["left out: broken.png is cut off"]
    assert words in (tmp_path / "pack" / file).read_text()
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    assert manifest["calibration"]["images"] == 119


def refusal_of(target: PackTarget, artifact: Artifact) -> str:
    try:
        target.check(artifact)
    except repzoo.InputError as error:
        return str(error)
    return ""


def channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with an input [N, 16, 16, 3] that it transposes."""
    last = onnx.ModelProto()
    last.CopyFrom(model)
    graph = last.graph
    sides = graph.input[0].type.tensor_type.shape.dim
    sides[1].dim_value, sides[3].dim_value = 16, 3
    graph.input[0].name = "images"
    first = onnx.helper.make_node(
        "Transpose", ["images"], ["data"], "first", perm=[0, 3, 1, 2]
    )
    graph.node.insert(0, first)
    onnx.checker.check_model(last, full_check=True)
    return last


def test_the_same_bytes_twice(target: PackTarget, folder: Path, tmp_path: Path) -> None:
    write_pack(target, job_for(target), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_nothing_of_this_machine_is_in_a_file(folder: Path) -> None:
    for name, data in contents(folder).items():
        for path in (folder.parent, Path.home(), Path(repzoo.__file__).parent):
            assert str(path).encode() not in data, name


def test_odd_names_do_no_harm(target: PackTarget, tmp_path: Path) -> None:
    labels = (ODD, "<b>|`x`|</b>", *map(str, range(8)))
    write_pack(target, job_for(target, name=ODD, labels=labels), tmp_path / "pack")
    for name, data in contents(tmp_path / "pack").items():
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", name)
        if name.endswith((".sh", ".yaml", ".alls", ".py")):
            assert b"$(touch" not in data, name
    assert len((tmp_path / "pack" / "labels.txt").read_text("utf-8").splitlines()) == 10
    for script in (tmp_path / "pack").glob("*.sh"):
        if shutil.which("bash"):
            subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("qdq")])
def test_gray_models_have_one_mean(name: str, tmp_path: Path) -> None:
    target = open_target(name)
    model = onnx.parser.parse_model(FLOAT.replace("[1, 3, 16", "[1, 1, 16"))
    model.graph.initializer.extend(
        [
            tensor("w", np.ones((8, 1, 3, 3))),
            tensor("b", np.zeros(8)),
            tensor("v", np.ones((10, 8))),
            tensor("c", np.zeros(10)),
        ]
    )
    preprocess = replace(PREPROCESS, color="GRAY")
    job = job_for(target, model=model, preprocess=preprocess)
    refusal = refusal_of(target, job.artifact)
    if refusal:
        pytest.skip(refusal)
    write_pack(target, job, tmp_path / "pack")
    texts = [
        data
        for path, data in contents(tmp_path / "pack").items()
        if path.endswith((".sh", ".yaml", ".alls", ".py", ".json"))
    ]
    # One channel has the average of the three values.
    assert any(re.search(rb"\b114\.49[45]", text) for text in texts)
    assert not any(b"123.675" in text for text in texts)


def test_a_pack_is_whole_or_not_there(target: PackTarget, tmp_path: Path) -> None:
    class Broken:
        name, scheme, check = target.name, target.scheme, target.check

        def files(self, job: PackJob) -> Iterator[PackFile]:
            yield next(iter(target.files(job)))
            raise OSError(28, "No space left on device")

    with pytest.raises(repzoo.InputError, match="No space left"):
        write_pack(Broken(), job_for(target), tmp_path / "pack")
    assert not list(tmp_path.iterdir())
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.txt").write_text("mine")
    with pytest.raises(repzoo.InputError, match="is not an empty folder"):
        write_pack(target, job_for(target), tmp_path / "pack")
    assert contents(tmp_path / "pack") == {"mine.txt": b"mine"}


def changed(old: str, new: str) -> Artifact:
    """The float model with a part of its text replaced."""
    artifact = artifact_for(open_target("rknn"))
    model = onnx.parser.parse_model(FLOAT.replace(old, new))
    model.graph.initializer.extend(artifact.model.graph.initializer)
    return replace(artifact, model=model, steps=())


OPEN = changed("float[1, 3, 16, 16]", "float[1, 3, H, W]")
OPEN_LAST = replace(
    changed("float[1, 3, 16, 16]", "float[1, H, W, 3]"),
    preprocess=replace(PREPROCESS, layout="NHWC"),
)
BYTES = replace(
    changed("float[1, 3, 16, 16]", "uint8[1, 16, 16, 3]"),
    preprocess=replace(PREPROCESS, input="uint8"),
)
RUN_TIME = changed(
    "live = Relu (stem)", "live = Relu (stem)\n    found = NonZero (live)"
)
STRANGE = changed("live = Relu (stem)", "live = my.shop.Relu (stem)")
STRANGE.model.opset_import.append(onnx.helper.make_opsetid("my.shop", 1))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OPEN, "--input_name data --input_shape 1,3,16,16"),
        (BYTES, "takes uint8 images.*before repzoo embed-input"),
        (OPEN_LAST, "--input_name data --input_shape 1,16,16,3"),
        (RUN_TIME, r"the operator NonZero \(found\).*--no-dynamic-batch"),
        (STRANGE, r"the operator Relu \(live\) of my.shop.*--opset 11"),
    ],
)
def test_what_no_board_takes_is_named(model: Artifact, words: str) -> None:
    with pytest.raises(repzoo.InputError, match=words):
        require_packable(model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OPEN, "leaves the size of its input open"),
        (RUN_TIME, "decides at run time"),
    ],
)
def test_it_is_refused_before_the_work(
    model: Artifact, words: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(repzoo.InputError, match=words):
        repzoo.pack(model, "digits", tmp_path / "pack", target=name)
    assert not list(tmp_path.iterdir())


def test_a_newer_opset_than_the_tool_takes(target: PackTarget, tmp_path: Path) -> None:
    artifact = artifact_for(target)
    model = onnx.ModelProto()
    model.CopyFrom(artifact.model)
    model.opset_import[0].version = 23
    job = replace(job_for(target), artifact=replace(artifact, model=model))
    if not load_scheme(target.scheme).opset:
        pytest.skip(f"{target.name} takes every opset")
    with pytest.raises(repzoo.InputError, match=r"opset 23.*harden --target"):
        write_pack(target, job, tmp_path / "pack")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_too_few_images(name: str, tmp_path: Path) -> None:
    model = artifact_for(open_target("rknn"))
    with pytest.raises(repzoo.InputError, match="--calibration asks for 300"):
        repzoo.pack(
            model, "digits", tmp_path / "pack", target=name, images=64, calibration=300
        )
    assert not list(tmp_path.iterdir())


def test_options_of_targets() -> None:
    with pytest.raises(repzoo.InputError, match=r"no option of qdq .* did you mean"):
        open_target("qdq:tensort")
    with pytest.raises(repzoo.InputError, match="hailo has no options; give hailo"):
        open_target("hailo:8l")


@pytest.mark.parametrize("name", ["rknn:layer", "sophgo"])
def test_a_model_that_was_hardened_for_a_tool_that_rounds_otherwise(
    name: str, tmp_path: Path
) -> None:
    settings = {"target": "rknn", "per_channel": True, "weight_rule": "largest"}
    artifact = artifact_for(open_target("rknn"), steps=(Step("harden", "0", settings),))
    with pytest.raises(repzoo.InputError, match="hardened for rknn, which rounds"):
        repzoo.pack(artifact, "digits", tmp_path / "pack", target=name, calibration=10)
    assert not list(tmp_path.iterdir())
