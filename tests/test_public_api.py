"""The public API: every name of `repzoo.__all__`, and the snippets that people type first."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tests.conftest import PROCESS_SECONDS
from tests.small_model import small_training_form

import repzoo

NAMES = sorted(set(repzoo.__all__) - {"__version__", "torch"})
QUICK: dict[str, Any] = {"images": 20, "search": 0, "max_drop": 100}


@pytest.fixture(scope="module")
def folded() -> repzoo.Artifact:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    return repzoo.fold(small_training_form())


@pytest.fixture(scope="module")
def int8(folded: repzoo.Artifact, digits_folder: Path) -> repzoo.Artifact:
    return repzoo.quantize(folded, digits_folder, **QUICK)


def test_all_is_sorted_and_dir_lists_every_name() -> None:
    assert repzoo.__all__ == sorted(repzoo.__all__)
    assert set(repzoo.__all__) <= set(dir(repzoo))


def test_the_names_for_type_checkers_are_those_of_all() -> None:
    tree = ast.parse(Path(repzoo.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported | {"__version__"} == set(repzoo.__all__)


def members(name: str) -> Iterator[tuple[str, Any]]:
    """The object `name` of the API and, for a class, its own public methods and properties."""
    value = getattr(repzoo, name)
    yield name, value
    if not inspect.isclass(value):
        return
    for kind in value.__mro__:
        if not kind.__module__.startswith("repzoo"):
            continue
        for attribute, member in vars(kind).items():
            if attribute.startswith("_"):
                continue
            if isinstance(member, property):
                yield f"{name}.{attribute}", member.fget
            elif isinstance(member, classmethod | staticmethod):
                yield f"{name}.{attribute}", member.__func__
            elif inspect.isfunction(member):
                yield f"{name}.{attribute}", member


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    for path, member in members(name):
        assert inspect.getdoc(member), f"{path} has no docstring"
        if not inspect.isfunction(member):
            continue
        signature = inspect.signature(member)
        assert signature.return_annotation is not inspect.Signature.empty, path
        for parameter in list(signature.parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, (
                    f"{path}({parameter})"
                )


def test_every_public_name_but_torch_is_imported_without_extras() -> None:
    code = (
        "import sys, json, repzoo\n"
        "assert 'onnxruntime' not in sys.modules and 'numpy' not in sys.modules\n"
        "for name in repzoo.__all__:\n"
        "    if name != 'torch': getattr(repzoo, name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=True,
    )
    packages = {name.split(".")[0] for name in json.loads(ran.stdout)}
    assert not packages & {
        "torch",
        "timm",
        "safetensors",
        "sklearn",
        "openvino",
        "nncf",
    }


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(
        AttributeError, match="module 'repzoo' has no attribute 'quantise'"
    ):
        _ = repzoo.quantise


def test_train_is_a_function_however_repzoo_was_imported() -> None:
    importlib.import_module("repzoo.training.options")
    assert inspect.isfunction(repzoo.train)


def test_torch_folds_a_module_after_import_repzoo() -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    ).eval()
    example = torch.zeros(1, 3, 8, 8)
    folded = repzoo.torch.fold(module, example)
    kinds = [type(part).__name__ for part in folded.modules()]
    assert "BatchNorm2d" not in kinds


# Loading


def test_load_takes_a_path_a_string_a_name_and_a_proto(model_file: Path) -> None:
    proto = onnx.load(model_file)
    sources: list[Any] = [model_file, str(model_file), "repghostnet_050.digits", proto]
    for source in sources:
        model = repzoo.load(source)
        assert isinstance(model, repzoo.Artifact)
        assert model.labels == tuple("0123456789")


def test_load_sets_the_preprocessing_of_a_foreign_file(foreign_file: Path) -> None:
    model = repzoo.load(foreign_file, size=32, mean=(0.5, 0.5, 0.5))
    assert model.preprocess == repzoo.Preprocess(size=32, mean=(0.5, 0.5, 0.5))


def test_load_exports_a_catalog_model() -> None:
    pytest.importorskip("timm", reason="the torch extra is not installed")
    model = repzoo.load("repghostnet_050", size=64)
    assert (model.form, model.num_classes) == ("train", 1000)


def test_load_reads_a_checkpoint_of_a_catalog_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    timm = pytest.importorskip("timm", reason="the torch extra is not installed")
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("repghostnet_050", num_classes=7).state_dict(), path)
    assert repzoo.load(path, model="repghostnet_050").num_classes == 7
    with pytest.raises(repzoo.InputError, match="name the catalog model it belongs to"):
        repzoo.load(path)
    converted = repzoo.convert(path, "repghostnet_050")
    saved = converted.save(tmp_path / "weights.safetensors")
    assert saved.stat().st_size == len(converted.data)


# The snippet of the documentation, step by step


def test_fold_attaches_its_certificate(folded: repzoo.Artifact) -> None:
    assert folded.form == "deploy"
    assert folded.certificate is not None
    assert folded.certificate.equal


def test_quantize_attaches_its_report_and_keeps_the_certificate(
    int8: repzoo.Artifact, folded: repzoo.Artifact
) -> None:
    assert int8.form == "int8"
    assert int8.report is not None
    assert int8.certificate is folded.certificate


def test_quantize_takes_options_and_keywords(
    folded: repzoo.Artifact, digits_folder: Path
) -> None:
    options = repzoo.QuantizeOptions(images=20, search=0)
    again = repzoo.quantize(folded, str(digits_folder), options=options, max_drop=100)
    assert again.steps[-1].settings["max_drop"] == 100
    assert again.steps[-1].settings["calibration_images"] == 20


def test_save_takes_a_string_and_a_path(int8: repzoo.Artifact, tmp_path: Path) -> None:
    saved = int8.save(str(tmp_path / "int8.onnx"))
    assert saved.name == "int8"
    assert isinstance(saved, repzoo.Artifact)
    int8.save(tmp_path / "again.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == (
        tmp_path / "again.onnx"
    ).read_bytes()


def test_evaluate_gives_the_drop_of_one_model(
    int8: repzoo.Artifact, folded: repzoo.Artifact, digits_folder: Path
) -> None:
    evaluation = repzoo.evaluate(int8, digits_folder, against=folded)
    assert evaluation.drop == pytest.approx(
        repzoo.evaluate(folded, digits_folder).top1 - evaluation.top1
    )
    assert (
        repzoo.evaluate([int8], str(digits_folder), against=folded).drop
        == evaluation.drop
    )


def test_a_drop_of_several_or_no_comparisons_is_refused(
    int8: repzoo.Artifact, folded: repzoo.Artifact, digits_folder: Path
) -> None:
    several = repzoo.evaluate([int8, folded], digits_folder, against=folded)
    with pytest.raises(
        repzoo.InputError, match=r"has 2 comparisons; read evaluation\.paired"
    ):
        _ = several.drop
    with pytest.raises(repzoo.InputError, match="nothing was compared"):
        _ = repzoo.evaluate(int8, digits_folder).drop


def test_benchmark_gives_the_ratios(
    folded: repzoo.Artifact, int8: repzoo.Artifact
) -> None:
    result = repzoo.benchmark([folded, int8], engine="onnxruntime", seconds=0.05)
    assert len(result.records) == 2
    assert len(result.ratios) == 1


def test_predict_takes_a_path_an_image_an_array_and_a_list(
    int8: repzoo.Artifact, digits_folder: Path
) -> None:
    path = next((digits_folder / "7").iterdir())
    image = Image.open(path).convert("RGB")
    prediction = int8.predict(str(path), top=3)
    assert (prediction.label, len(prediction.top), prediction.image) == (
        "7",
        3,
        str(path),
    )
    assert 0 < prediction.probability <= 1
    variants: list[Any] = [path, image, np.asarray(image)]
    several = int8.predict(variants, top=3)
    assert [item.top for item in several] == [prediction.top] * 3
    assert repzoo.predict(int8, path, top=3) == prediction


def test_an_artifact_describes_itself_in_one_line(folded: repzoo.Artifact) -> None:
    assert repr(folded) == ("<Artifact 'small': deploy form, 16x16, 10 classes>")


# Wrong arguments: one sentence each


def _untyped(function: Any) -> Any:
    return function


def test_wrong_arguments_are_one_sentence(
    folded: repzoo.Artifact, int8: repzoo.Artifact, model_file: Path, tmp_path: Path
) -> None:
    # Any, since the arguments are wrong on purpose.
    load, fold, quantize, predict = map(
        _untyped, (repzoo.load, repzoo.fold, repzoo.quantize, int8.predict)
    )
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: load(["a.onnx"]), "got list"),
        (lambda: load(tmp_path / "none.onnx"), "does not exist; check the path"),
        (lambda: load("repvit_m0_99"), "did you mean repvit_m0_9"),
        (lambda: load(model_file, sise=32), "did you mean size"),
        (lambda: load(model_file, model="repvgg_a0"), "is for checkpoint files"),
        (
            lambda: fold(3),
            "a model must be an Artifact, a path, a name or an onnx.ModelProto",
        ),
        (lambda: quantize(folded, tmp_path / "photos"), "does not exist"),
        (lambda: quantize(folded, ["a.jpg"]), "data must be a folder"),
        (lambda: quantize(folded, "digits", max_dorp=1), "did you mean max_drop"),
        (lambda: quantize(folded, "digits", max_drop="1"), "got '1'"),
        (lambda: quantize(int8, "digits"), "is quantized already"),
        (lambda: repzoo.evaluate(int8, tmp_path / "photos"), "does not exist"),
        (lambda: repzoo.evaluate([], "digits"), "nothing to evaluate"),
        (lambda: repzoo.benchmark(int8, engine="openvin"), "did you mean openvino"),
        (lambda: repzoo.benchmark(int8, thread=1), "did you mean threads"),
        (lambda: predict("cat.jpg"), "the image cat.jpg does not exist"),
        (lambda: predict(np.zeros((3, 8, 8), np.float32)), "got float32 [3, 8, 8]"),
        (lambda: predict(3), "an image must be a path, a PIL.Image or a uint8 array"),
        (
            lambda: predict(np.zeros((8, 8, 3), np.uint8), top=0),
            "top must be at least 1",
        ),
        (lambda: repzoo.export("repvgg_a9"), "did you mean"),
        (lambda: repzoo.export("repvgg_a0", opse=13), "did you mean opset"),
        (lambda: repzoo.train("repvgg_a0", "digits", epoch=3), "did you mean"),
        (lambda: repzoo.convert("none.pth", "repvgg_a0"), "none.pth"),
    ]
    for call, message in calls:
        with pytest.raises(repzoo.InputError) as caught:
            call()
        sentence = str(caught.value)
        assert message in sentence
        assert "\n" not in sentence
