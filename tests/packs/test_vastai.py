"""`repzoo pack --target vastai`: key by key against the files that Vastai publishes, and in use."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
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

from tests.small_model import sets, small

import repzoo
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import prepare
from repzoo.data.source import open_source
from repzoo.graph.tools.older_opset import limit_version
from repzoo.packs import pack as packs
from repzoo.packs import vastai, vastai_images, vdsp
from repzoo.packs.vastai import Vastai
from repzoo.packs.vastai_steps import CardSteps

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

Run = Callable[..., Any]
IMAGENET = Preprocess(224, "short", 0.875, "bilinear")


def opset_11() -> Artifact:
    return replace(small(), model=limit_version(small().model, 11, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with 5 images for calibration and 20 for evaluation."""
    job = packs.PackJob(
        opset_11(),
        sets().calibration.subset(range(5)),
        gate=sets().gate.subset(range(20)),
        fallback=("c", "output"),
    )
    path = tmp_path_factory.mktemp("packs") / "pack"
    packs.write_pack(Vastai(), job, path)
    return path


# The values of cv/classification/repvgg/build_in/vdsp_params/official-repvgg_a0-vdsp_params.json,
# which are those of all RepVGG and RepOpt files there.
REPVGG = {
    "IimageFormat": "RGB_PLANAR",
    "IimageWidth": 256,
    "IimageHeight": 256,
    "OimageWidth": 224,
    "OimageHeight": 224,
    "CropX": 16,
    "CropY": 16,
    "ResizeWidth": 256,
    "ResizeHeight": 256,
    "IimageWidthPitch": 256,
    "IimageHeightPitch": 256,
    "Mean": [0.485107421875, 0.4560546875, 0.406005859375],
    "Std": [0.22900390625, 0.2239990234375, 0.2249755859375],
    "NormaType": "DIV255_MINUSMEAN_DIVSTD",
    "ColorCvtCode": "NO_CHANGE",
    "ResizeType": "BILINEAR_CV",
}
# MobileOne's files write the same preprocessing for pixels of 0 to 255: 123.675 becomes 123.6875.
# Both are rounded by less than 1/2048.
MOBILEONE = {
    "Mean": [123.6875, 116.25, 103.5],
    "Std": [58.40625, 57.125, 57.375],
    "NormaType": "MINUSMEAN_DIVSTD",
}
# keras-resnet50 and ShuffleNetV1: BGR pixels of 0 to 255.
CAFFE_MEAN = (103.939, 116.779, 123.68)


def test_the_public_operator_of_repvgg() -> None:
    document = vdsp.parameters(IMAGENET)
    assert document["OpType"] == "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR"
    assert document["OpConfig"] == REPVGG
    assert list(document["OpConfig"]) == list(REPVGG)


def test_the_public_operator_of_mobileone_is_the_same_up_to_its_rounding() -> None:
    config = vdsp.parameters(IMAGENET)["OpConfig"]
    for key in ("Mean", "Std"):
        np.testing.assert_allclose(
            np.array(MOBILEONE[key]) / 255, config[key], rtol=2**-10
        )
    assert set(MOBILEONE) <= set(config)


def test_pixels_of_0_to_255_are_not_divided() -> None:
    raw = replace(IMAGENET, color="BGR", std=(1 / 255,) * 3, mean=(0.0,) * 3)
    config = vdsp.parameters(raw)["OpConfig"]
    assert (config["NormaType"], config["ColorCvtCode"]) == ("EQUAL", "RGB2BGR")
    mean = tuple(value / 255 for value in CAFFE_MEAN)
    config = vdsp.parameters(replace(raw, mean=(mean[0], mean[1], mean[2])))["OpConfig"]
    assert config["NormaType"] == "MINUSMEAN_DIVSTD"
    assert (config["Mean"], config["Std"]) == ([103.9375, 116.75, 123.6875], [1.0] * 3)
    plain = replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert vdsp.parameters(plain)["OpConfig"]["NormaType"] == "DIV255"


def test_the_crop_is_the_models_own() -> None:
    config = vdsp.parameters(replace(IMAGENET, size=299, crop_fraction=0.874))
    assert config["OpConfig"]["ResizeWidth"] == 342
    assert config["OpConfig"]["CropX"] == 22  # torchvision's round(21.5); public: 21


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(repzoo.InputError, match="out of the range of float16"):
        vdsp.parameters(replace(IMAGENET, std=(1e5,) * 3))


# cv/classification/repvgg/build_in/build/official_repvgg.yaml, without names and paths.
YAML = {
    "frontend": {"shape": {"input": [1, 3, 224, 224]}, "type": "onnx", "dtype": "fp32"},
    "backend": {
        "type": "tvm_vacc",
        "dtype": "int8",
        "compile": {"cluster_mode": 0, "data_transport_mode": 1},
        "quantize": {"calibrate_mode": "percentile", "quantize_per_channel": True},
    },
    "graph": {"extra_ops": {"type": "softmax"}},
    "dataset": {
        "type": "tvm",
        "sampler": {"suffix": "JPEG", "get_data_num": 50},
        "process_ops": [
            {"type": "DecodeImage"},
            {"type": "Resize", "size": [256, 256]},
            {"type": "CenterCrop", "crop_size": [224, 224]},
            {
                "type": "Normalize",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            {"type": "ToTensor"},
        ],
    },
    "workspace": {"path": "./deploy_weights/"},
}


def content(preprocess: Preprocess = IMAGENET, **changes: Any) -> vastai.Content:
    images = sets().calibration
    fifty = images.subset([index % len(images) for index in range(50)])
    values: dict[str, Any] = {
        "name": "official_repvgg",
        "model": vastai.with_input_name(opset_11(), "input"),
        "preprocess": preprocess,
        "calibration": vastai_images.CalibrationImages(fifty, "JPEG"),
    }
    return vastai.Content(**{**values, **changes})


def test_the_public_configuration_of_repvgg() -> None:
    document = yaml.safe_load(vastai.yaml_text(content(), "int8"))
    assert document.pop("name") == "official_repvgg_int8"
    assert document["frontend"].pop("checkpoint") == "./official_repvgg.onnx"
    assert document["dataset"].pop("path") == "./calibration"
    assert document == YAML
    half = yaml.safe_load(vastai.yaml_text(content(), "fp16"))
    assert (half["name"], half["backend"]["dtype"]) == ("official_repvgg_fp16", "fp16")


def test_the_range_method_that_hardening_chose() -> None:
    step = Step("harden", "0", {"target": "vastai", "ranges": "entropy"})
    artifact = replace(opset_11(), steps=(step,))
    text = vastai.yaml_text(content(model=artifact), "int8")
    quantize = yaml.safe_load(text)["backend"]["quantize"]
    assert quantize["calibrate_mode"] == "kl_divergence"


def test_bgr_and_pixels_of_0_to_255_in_the_configuration() -> None:
    raw = replace(IMAGENET, color="BGR", std=(1 / 255,) * 3, mean=(0.0,) * 3)
    operations = yaml.safe_load(vastai.yaml_text(content(raw), "int8"))["dataset"]
    kinds = [item["type"] for item in operations["process_ops"]]
    assert kinds[2:] == ["CenterCrop", "CvtColor", "Normalize", "ToTensor"]
    normalize = operations["process_ops"][4]
    assert normalize["div255"] is False
    assert (normalize["mean"], normalize["std"]) == ([0] * 3, [1] * 3)


BRANCHES = """<ir_version: 7, opset_import: ["" : 11]>
    g (float[1, 3, 8, 8] data) => (float[1, 3, 8, 8] out) {
    short = Conv (data, w)
    first = Conv (data, w)
    second = Conv (first, w)
    out = Add (second, short) }"""


def test_convolutions_are_counted_as_tvm_counts_them() -> None:
    graph = onnx.parser.parse_model(BRANCHES).graph
    order = [node.output[0] for node in vastai.convolutions(graph)]
    assert order == ["first", "second", "short"]
    assert vastai.split_fallback(graph, ["short", "first", "out"]) == ((0, 2), ("out",))


def test_a_tensor_that_is_called_input_already_keeps_its_name() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "input"
    artifact = replace(small(), model=model)
    assert vastai.with_input_name(artifact, "input").input_name == "data"
    text = vastai.yaml_text(content(model=artifact), "int8")
    assert list(yaml.safe_load(text)["frontend"]["shape"]) == ["data"]


def test_the_folder(folder: Path) -> None:
    document = yaml.safe_load((folder / "small_int8.yaml").read_text("utf-8"))
    model = repzoo.load(folder / "small.onnx")
    assert document["frontend"]["shape"] == {model.input_name: [1, 3, 16, 16]}
    assert document["backend"]["quantize"]["skip_conv_layers"] == [1]
    sampler = document["dataset"]["sampler"]
    images = list((folder / document["dataset"]["path"]).iterdir())
    assert len(images) == sampler["get_data_num"] == 5
    assert {path.suffix for path in images} == {f".{sampler['suffix']}"}
    assert (folder / "labels.txt").read_text().split() == list(map(str, range(10)))
    for script in sorted(folder.glob("*.sh")):
        if shutil.which("bash"):
            subprocess.run(["bash", "-n", script], check=True)
        named = re.findall(r"small[\w-]*\.(?:onnx|yaml|json)", script.read_text())
        assert all((folder / name).is_file() for name in named)
    for name in ("README.md", "README_cn.md"):
        text = (folder / name).read_text("utf-8")
        headings = ["Code Source", "Model Arch", "Model Info", "Build_In Deploy"]
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == headings
        assert "`output`" in text  # vamc cannot be told that this one stays in float


def test_arrays_are_the_images(folder: Path) -> None:
    listed = (folder / "npz.txt").read_text().splitlines()
    assert len(listed) == 20
    for line in listed:
        array = np.load(folder / line)["input_0"]
        assert array.dtype == np.uint8
        image = folder / line.replace("_npz", "").replace(".npz", ".JPEG")
        np.testing.assert_array_equal(
            array.transpose(1, 2, 0), np.asarray(Image.open(image).convert("RGB"))
        )


def arguments_of(script: Path) -> list[str]:
    """The arguments of the last `repzoo` command of a script."""
    lines = [
        line for line in script.read_text().splitlines() if line.startswith("repzoo ")
    ]
    return shlex.split(lines[-1])[1:]


def logits_of_card(folder: Path) -> Iterator[tuple[Path, np.ndarray[Any, Any]]]:
    """What the network says of each evaluation image."""
    model = repzoo.load(folder / "small.onnx")
    session = repzoo.engines.engine("onnxruntime").open(model.model)
    for path in sorted(folder.glob("evaluation/*/*.JPEG")):
        inputs = prepare(Image.open(path), model.require_preprocess())
        yield path, session.run(inputs[None])[0]


def test_results_of_the_card_are_read_from_the_pack(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the scripts on files that the vendor's programs would write."""
    monkeypatch.chdir(folder)
    Path("runstream_output").mkdir()
    lines = []
    for path, logits in logits_of_card(folder):
        place = path.relative_to(folder)
        array = place.with_suffix(".npz").as_posix().replace("/", "_")
        for precision in ("fp16", "int8"):
            output = Path(f"vamp_output_{precision}")
            output.mkdir(exist_ok=True)
            np.savez(
                output / array.removeprefix("evaluation_")[-9:], output_0=logits[None]
            )
        for rank, index in enumerate(np.argsort(-logits)[:5]):
            lines.append(
                f"./{place}: Relay top-{rank} id: {index}, prob: {-rank:.8f}, class name: {index}"
            )
    for precision in ("fp16", "int8"):
        Path(f"runstream_output/{precision}.txt").write_text("\n".join(lines))
    datalist = [str(folder / line) for line in Path("npz.txt").read_text().split()]
    Path("npz_absolute.txt").write_text("\n".join(datalist))
    for script in ("05_evaluate.sh", "07_evaluate_vamp.sh"):
        ran = run(*arguments_of(folder / script), "--json")
        assert ran.code == 0, ran.err
        float_run, half, int8 = ran.document["runs"]
        assert float_run["n"] == half["n"] == int8["n"] == 20
        assert float_run["top1"] == half["top1"] == int8["top1"] > 50


def test_without_classes_the_float_model_says_what_is_right(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = sets().gate.subset(range(4)).without_labels()
    job = packs.PackJob(opset_11(), sets().calibration.subset(range(2)), gate=gate)
    packs.write_pack(Vastai(), job, tmp_path / "pack")
    monkeypatch.chdir(tmp_path / "pack")
    lines = []
    for path, logits in logits_of_card(Path()):
        for rank, index in enumerate(np.argsort(-logits)[:5]):
            lines.append(
                f"./{path}: Relay top-{rank} id: {index}, prob: 0.5, class name: {index}"
            )
    Path("runstream_output").mkdir()
    for precision in ("fp16", "int8"):
        Path(f"runstream_output/{precision}.txt").write_text("\n".join(lines))
    ran = run(*arguments_of(Path("05_evaluate.sh")), "--json")
    assert ran.code == 0, ran.err
    assert [item["top1"] for item in ran.document["runs"]] == [100, 100]


def photographs(
    root: Path, photograph: Callable[..., Image.Image], **options: Any
) -> Dataset:
    """Two classes of wide photographs with odd sides."""
    for number in range(8):
        path = root / f"class '{number % 2}': 猫" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(41, 27, number).save(path, "JPEG", **options)
    return open_source(str(root)).join("all")


def test_large_images_are_fewer(
    tmp_path: Path,
    photograph: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = photographs(tmp_path, photograph).without_labels()
    monkeypatch.setattr(vastai_images, "MAX_ARRAY_BYTES", 3 * 41 * 27 * 5)
    assert len(vastai_images.evaluation_images(images, small(), 0).images) == 5


def test_classification_py_is_not_used_for_fewer_classes_than_it_prints() -> None:
    evaluation = vastai_images.EvaluationImages(sets().gate, ("images",))
    for has_classes in (False, True):
        steps = CardSteps("m", IMAGENET, evaluation, has_classes).all()
        assert ("inference" in [step.name for step in steps]) == has_classes


def test_original_files_are_copied_unless_opencv_would_turn_them(
    tmp_path: Path, photograph: Callable[..., Image.Image]
) -> None:
    images = photographs(tmp_path / "plain", photograph)
    chosen = vastai_images.calibration_images(images, IMAGENET)
    assert chosen.suffix == "JPEG"
    files = dict(chosen.files(IMAGENET))
    originals = [path.read_bytes() for path in sorted(tmp_path.rglob("*.jpg"))]
    assert sorted(map(bytes, map(_as_bytes, files.values()))) == sorted(originals)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    turned = photographs(tmp_path / "turned", photograph, exif=exif)
    assert vastai_images.calibration_images(turned, IMAGENET).suffix == "png"
    applied = replace(IMAGENET, orientation="apply")
    assert vastai_images.calibration_images(turned, applied).suffix == "JPEG"


def _as_bytes(value: bytes | str) -> bytes:
    assert isinstance(value, bytes)
    return value


def test_odd_class_names_and_sides(
    tmp_path: Path, photograph: Callable[..., Image.Image]
) -> None:
    images = photographs(tmp_path / "photos", photograph)
    artifact = replace(small(), labels=(*images.classes, *map(str, range(8))))
    evaluation = vastai_images.evaluation_images(images, artifact, 0)
    files = dict(evaluation.files(artifact.require_preprocess()))
    # An apostrophe and a colon are no part of a folder's name; classes.tsv says which is which.
    assert evaluation.folders == ("00000", "00001")
    assert str(files["evaluation/classes.tsv"]).split() == list(evaluation.order)
    array = files["evaluation_npz/00000/00000.npz"]
    path = tmp_path / "array.npz"
    path.write_bytes(_as_bytes(array))
    assert np.load(path)["input_0"].shape == (3, 26, 40)


def test_squashing_is_measured_and_cropping_undoes_it(
    tmp_path: Path, photograph: Callable[..., Image.Image]
) -> None:
    images = photographs(tmp_path / "photos", photograph).without_labels()
    preprocess = replace(
        small().require_preprocess(), resize="short", crop_fraction=0.8
    )
    artifact = replace(small(), preprocess=preprocess)
    loss = vdsp.measure_loss(artifact, images, "BILINEAR_PILLOW")
    assert not loss.labeled
    assert loss.cropped is not None
    image = images.load(images.keys[0])
    pixels = {}
    for cropped in (False, True):
        card = vdsp.card_variant(preprocess, "BILINEAR_PILLOW", cropped)
        pixels[cropped] = card.to_input(card.resize(image)[None])
    expected = prepare(image, preprocess)
    errors = {key: np.abs(value[0] - expected).mean() for key, value in pixels.items()}
    assert errors[True] < errors[False] / 3
    assert "of the predictions on 8 images stay" in vastai.loss_sentence("small", loss)


def test_numbers_are_rounded_to_float16_as_on_the_card() -> None:
    card = vdsp.card_variant(IMAGENET, "BILINEAR_CV")
    white = card.to_input(np.full((1, 1, 1, 3), 255, np.uint8)).reshape(3)
    half = np.array(REPVGG["Mean"]), np.array(REPVGG["Std"])
    expected = ((1 - half[0]) / half[1]).astype(np.float16)
    np.testing.assert_array_equal(white, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ()}, "has no labels"),
        (
            {"preprocess": replace(IMAGENET, size=16, layout="NHWC")},
            "the card's operator makes NCHW only",
        ),
        (
            {"preprocess": replace(IMAGENET, size=16, color="GRAY")},
            "three channels only",
        ),
    ],
)
def test_models_that_the_card_cannot_take(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = replace(small(), **changes)
    # The graph of another input is not what is tested.
    monkeypatch.setattr(
        Artifact, "require_preprocess", lambda artifact: artifact.preprocess
    )
    with pytest.raises(repzoo.InputError, match=words):
        Vastai().check(artifact)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", 65, "--images", 64], "64 images for calibration"),
        (["--std", 1e5, 1e5, 1e5], "out of the range of float16"),
        (["--labels", "few.txt"], "1 names for the 10 outputs"),
    ],
)
def test_bad_input(
    run: Run,
    model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("cat\n")
    data = ("--data", "digits", "--target", "vastai")
    ran = run("pack", model_file, "-o", "pack", *data, *arguments)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert not Path("pack").exists()
