"""The demo: what the file holds, where its runtime comes from, and what is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.report.test_page import HOSTILE, Parsed

import repzoo
from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import InputError
from repzoo.report import demo, web_runtime
from repzoo.report.web_runtime import WebRuntime
from repzoo.storage import cache_folder

Run = Callable[..., Any]
TEMPLATES = Path(demo.__file__).parent / "templates"
STUB = WebRuntime("globalThis.ort = {};", b"wasm")
MODULE = b"const a=1,b=2;export{a as Tensor,b as env};\n//# sourceMappingURL=x\n"


def tiny(
    labels: tuple[str, ...] = (),
    element: int = TensorProto.FLOAT,
    **preprocess: Any,
) -> Artifact:
    """A model whose logits are the means of its input's channels, and their negatives."""
    own = Preprocess(**{"size": 8, "crop_fraction": 1.0, **preprocess})
    is_last = own.input != "float" or own.layout == "NHWC"
    axes = numpy_helper.from_array(np.array([1, 2] if is_last else [2, 3]), "axes")
    channels = own.input_shape[2 if is_last else 0]
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Neg", ["mean"], ["negative"]),
        helper.make_node("Concat", ["mean", "negative"], ["y"], axis=1),
    ]
    shape: list[str | int] = ["n", *own.input_shape]
    classes: list[str | int] = ["n", 2 * channels]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, classes)],
        [axes],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return Artifact(model, "tiny", preprocess=own, labels=labels)


def page(artifact: Artifact, runtime: WebRuntime = STUB) -> str:
    return demo.render(demo.contents(artifact), runtime)


def package(parts: dict[str, bytes]) -> bytes:
    """A package of npm that holds `parts`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


PACKAGE = package({web_runtime.SCRIPT: MODULE, web_runtime.WASM: b"\0asm"})


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    tiny().save(path)
    return path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """PACKAGE counts as what was published."""
    digest = base64.b64encode(hashlib.sha512(PACKAGE).digest()).decode()
    monkeypatch.setattr(web_runtime, "SHA512", digest)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`npm(script)` is the only npm there is, with an empty cache."""
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def install(script: str) -> None:
        program = folder / "npm"
        program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        program.chmod(0o755)

    return install


# --- the file ------------------------------------------------------------------------


def test_the_file_holds_the_model_and_the_runtime_byte_for_byte() -> None:
    artifact = tiny()
    html = page(artifact)
    packed = dict(re.findall(r'<script type="text/plain" id="(\w+)">([^<]*)<', html))
    unpacked = {
        name: gzip.decompress(base64.b64decode(text)) for name, text in packed.items()
    }
    assert unpacked == {"model": artifact.to_bytes(), "wasm": STUB.wasm}
    assert html == page(artifact)  # the same bytes each time


def test_names_and_labels_of_others_are_only_text() -> None:
    parsed = Parsed(page(replace(tiny(labels=(HOSTILE, *"bcdef")), name=HOSTILE)))
    assert [tag for tag, _ in parsed.tags].count("script") == 5
    assert "img" not in [tag for tag, _ in parsed.tags]
    for tag, attributes in parsed.tags:
        assert not {"src", "action", "onclick", "onerror"} & attributes.keys(), tag
    [data] = [
        text
        for attributes, text in parsed.scripts
        if attributes.get("type") == "application/json"
    ]
    assert "<" not in data


def test_only_the_scripts_of_the_file_may_run_and_nothing_is_asked_for() -> None:
    parsed = Parsed(page(tiny()))
    [policy] = [
        str(attributes["content"])
        for attributes in parsed.named("meta")
        if "http-equiv" in attributes
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-inline" not in policy
    assert re.findall("'unsafe[^']*'", policy) == []
    for attributes, text in parsed.scripts:
        if attributes.get("type") in (None, "module"):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_both_languages_have_every_word_that_is_used() -> None:
    words = demo.words()
    assert list(words["en"]) == list(words["zh"])
    script = "".join(path.read_text("utf-8") for path in TEMPLATES.glob("demo*.js"))
    html = (TEMPLATES / "demo.html.j2").read_text("utf-8")
    used = set(re.findall(r'Complaint\("(\w+)"', script))
    used |= set(re.findall(r'data-word="(\w+)"', html))
    used |= {"camera", "stop", "done", "inexact"}
    facts = demo.contents(replace(tiny(), assumed=("mean",))).data["facts"]
    used |= {key for key, _ in facts}
    assert used | {"no_script"} == set(words["en"])
    for key, text in words["en"].items():
        fields = set(re.findall(r"{(\w+)}", text))
        assert fields == set(re.findall(r"{(\w+)}", words["zh"][key])), key


def test_the_scripts_are_small() -> None:
    for path in TEMPLATES.glob("demo*.js"):
        assert len(path.read_text("utf-8").splitlines()) <= 200, path


def test_what_the_scripts_know_is_what_python_does() -> None:
    spec = demo.spec(tiny(size=(8, 16), crop_fraction=0.5))
    assert spec["resize_to"] == (16, 32)
    assert spec["dims"] == [1, 3, 8, 16]
    assert spec["mean"][0] == float(np.float32(0.485))
    gray = demo.spec(tiny(color="GRAY"))
    assert gray["dims"] == [1, 1, 8, 8]
    assert len(gray["mean"]) == 1


# --- the runtime ---------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_npm_is_asked_once(npm: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / web_runtime.TARBALL).write_bytes(PACKAGE)
    npm(f'echo "$@" >> {tmp_path}/asked; cp {tmp_path}/*.tgz .')
    runtime = web_runtime.load()
    assert runtime.wasm == b"\0asm"
    assert runtime.script.endswith("globalThis.ort={Tensor:a,env:b};\n")
    assert web_runtime.load() == runtime
    [asked] = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert f"onnxruntime-web@{web_runtime.VERSION} --ignore-scripts" in asked


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exit 7", "is its registry out of reach"),
        ("exit 0", "is its registry out of reach"),
        (
            'for last; do :; done; echo no > "$last"/onnxruntime-web-1.30.0.tgz',
            "SHA-512 differs",
        ),
    ],
)
def test_without_the_package_there_is_one_sentence(
    run: Run,
    npm: Callable[[str], None],
    tiny_file: Path,
    tmp_path: Path,
    script: str,
    sentence: str,
) -> None:
    npm(script)
    ran = run("demo", tiny_file, "-o", tmp_path / "demo.html")
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "demo.html").exists()
    assert not (cache_folder() / web_runtime.KIND / web_runtime.TARBALL).exists()


def test_without_npm_the_sentence_says_where_the_package_goes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tiny_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = run("demo", tiny_file, "-o", tmp_path / "demo.html")
    assert ran.code == 2
    assert "npm is not installed" in ran.err
    path = cache_folder() / web_runtime.KIND / web_runtime.TARBALL
    assert str(path) in ran.err
    # The advice works.
    monkeypatch.setattr(web_runtime, "is_published", lambda content: content == PACKAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACKAGE)
    ran = run("demo", tiny_file, "-o", tmp_path / "demo.html", "--json")
    assert ran.code == 0
    assert ran.document["bytes"] == (tmp_path / "demo.html").stat().st_size
    # A cache that was tampered with is not used.
    path.write_bytes(PACKAGE[:-1])
    ran = run("demo", tiny_file, "-o", tmp_path / "other.html")
    assert ran.code == 2
    assert "SHA-512 differs" in ran.err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PACKAGE[:50],
        package({"package/other": b""}),
        package({web_runtime.SCRIPT: b"const a=1;", web_runtime.WASM: b""}),
    ],
    # gzip writes the time, so the bytes would differ between processes
    ids=["empty", "cut", "other file", "no exports"],
)
def test_a_package_without_the_parts_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"onnxruntime-web-1\.30\.0\.tgz"):
        web_runtime.unpack(content)


# --- models that cannot be shown -----------------------------------------------------


def test_a_model_is_refused_before_npm_is_asked(
    run: Run, npm: Callable[[str], None], tmp_path: Path
) -> None:
    npm(f"touch {tmp_path}/asked; exit 1")
    half = tiny(element=TensorProto.FLOAT16).model
    odd = tiny().model
    odd.metadata_props.add(key="repzoo.preprocess", value='{"size": 8, "blur": 2}')
    sentences = {"float16": half, "unknown preprocess field 'blur'": odd}
    for sentence, model in sentences.items():
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        ran = run("demo", path, "-o", tmp_path / "demo.html", "--size", "8")
        assert ran.code == 2
        assert sentence in ran.err
    (tmp_path / "text.onnx").write_text("no model", "utf-8")
    assert run("demo", tmp_path / "text.onnx", "-o", tmp_path / "demo.html").code == 2
    assert run("demo", tmp_path / "gone.onnx", "-o", tmp_path / "demo.html").code == 2
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "demo.html").exists()


@pytest.mark.usefixtures("published")
def test_what_was_assumed_of_preprocessing_is_said_there(
    npm: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / web_runtime.TARBALL).write_bytes(PACKAGE)
    npm(f"cp {tmp_path}/*.tgz .")
    foreign = replace(tiny(), preprocess=None)
    with pytest.warns(repzoo.errors.AssumedPreprocess):
        written = repzoo.demo(foreign, tmp_path / "demo.html")
    parsed = Parsed(written.path.read_text("utf-8"))
    texts = [text for attributes, text in parsed.scripts if "id" in attributes]
    assert '["assumed","mean, std, resize' in texts[0]
