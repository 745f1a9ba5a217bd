"""The demo in Chromium: inputs with Python's bits, the same classes, sentences for the rest."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.report.chromium import Tab, chromium
from tests.report.test_demo import tiny
from tests.report.test_page import HOSTILE

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.image_file import load_image
from repzoo.data.preprocess import prepare
from repzoo.engines.onnxruntime import OnnxRuntime
from repzoo.graph.tools.head import Head, HeadKind
from repzoo.report import demo, web_runtime
from repzoo.report.web_runtime import WebRuntime
from repzoo.storage import cache_folder

Photograph = Callable[..., Image.Image]
# Where the user's npm has put it; the tests themselves have a cache of their own.
PACKAGE = cache_folder() / web_runtime.KIND / web_runtime.TARBALL
# Of a runtime: six outputs, which are the first six inputs.
STUB = """
globalThis.ort = {
  env: { wasm: {} },
  Tensor: class { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } },
  InferenceSession: {
    create: async () => ({ run: async ({ x }) => ({ y: { data: Float32Array.from(x.data.slice(0, 6)) } }) }),
  },
};
"""
LABELS = (HOSTILE, '"quoted" <b>', "\u202eright to left", "four", "five", "six")
# Cameras that Chromium makes up, and no question whether they may be used.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium(*CAMERA) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A demo of a tiny model, whose runtime is the stub."""
    artifact = replace(tiny(labels=LABELS, size=24, crop_fraction=0.9), name=HOSTILE)
    path = tmp_path_factory.mktemp("demo") / "demo.html"
    html = demo.render(demo.contents(artifact), WebRuntime(STUB, b""))
    path.write_text(html, "utf-8")
    return path.as_uri()


@pytest.fixture
def opened(tab: Tab, address: str) -> Any:
    """The demo, ready, in a tab that has complained of nothing yet."""
    tab.complaints.clear()
    page = tab.open(address)
    page.locator("#status[data-message=ready]").wait_for()
    return page


def choose(page: Any, path: Path) -> str:
    """Choose a file; the key of the sentence that it leads to."""
    page.set_input_files("#file", path)
    return settled(page)


def settled(page: Any) -> str:
    status = page.locator("#status:not([data-message=working])")
    status.wait_for()
    return str(status.get_attribute("data-message"))


def labels(page: Any) -> list[str]:
    texts: list[str] = page.locator("#classes .label").all_text_contents()
    return texts


# --- the bits of the input -----------------------------------------------------------

MEANS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    **{
        f"{name} short": ({"interpolation": name}, (97, 61))
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    },
    **{
        f"{name} enlarged": ({"interpolation": name}, (13, 9))
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    },
    "tall": ({}, (60, 190)),
    "tall and enlarged": ({"interpolation": "lanczos"}, (20, 90)),
    "large": ({"interpolation": "bicubic"}, (701, 399)),
    "squash": ({"resize": "squash", "interpolation": "lanczos"}, (50, 90)),
    "squash of a rectangle": ({"resize": "squash", "size": (20, 36)}, (50, 90)),
    "rectangle": ({"size": (20, 36)}, (90, 31)),
    "rectangle, tall": ({"size": (36, 20)}, (90, 31)),
    "no crop": ({"crop_fraction": 1.0}, (31, 77)),
    "as it is": ({"crop_fraction": 1.0}, (24, 24)),
    "odd crop": ({"size": 25, "crop_fraction": 0.8}, (64, 41)),
    "gray": ({"color": "GRAY", **MEANS}, (40, 50)),
    "BGR": ({"color": "BGR", **MEANS}, (40, 50)),
    "NHWC": ({"layout": "NHWC", **MEANS}, (40, 50)),
    "uint8": ({"input": "uint8"}, (40, 50)),
    "uint8 BGR": ({"input": "uint8", "color": "BGR"}, (40, 50)),
    "uint8 gray": ({"input": "uint8", "color": "GRAY"}, (40, 50)),
    **{
        f"nv12 {yuv}": ({"input": "nv12", "yuv": yuv}, (40, 50))
        for yuv in ("bt601-full", "bt709-limited")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_input_has_the_bits_of_python(
    opened: Any, photograph: Photograph, case: str
) -> None:
    fields, (width, height) = CASES[case]
    is_float = "input" not in fields
    element = TensorProto.FLOAT if is_float else TensorProto.UINT8
    preprocess = {"size": 24, "crop_fraction": 0.875, **fields}
    artifact = tiny(element=element, **preprocess)
    image = photograph(width, height, seed=3)
    rgba = base64.b64encode(image.convert("RGBA").tobytes()).decode()
    values = opened.evaluate(
        """([text, width, height, spec]) => {
          const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          return [...modelInput(resizedAndCropped({ data, width, height }, spec), spec)];
        }""",
        [rgba, width, height, demo.spec(artifact)],
    )
    expected = prepare(image, artifact.require_preprocess())
    actual = np.array(values, expected.dtype).reshape(expected.shape)
    np.testing.assert_array_equal(actual, expected)


def pictures(folder: Path, image: Image.Image) -> dict[str, Path]:
    """Files of `image` that browsers and Pillow decode to the same pixels."""
    width, height = image.size
    exif = Image.Exif()
    exif[0x112] = 6  # turned by 90 degrees
    opacity = Image.linear_gradient("L").resize((width, height))
    transparent = image.copy()
    transparent.putalpha(opacity)
    gray = image.convert("LA")
    gray.putalpha(opacity)
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (image, {}),
        "progressive.jpg": (image, {"progressive": True, "quality": 60}),
        "gray.jpg": (image.convert("L"), {}),
        "turned.jpg": (image, {"exif": exif}),
        "turned.png": (image, {"exif": exif}),
        "transparent.png": (transparent, {}),
        "transparent_gray.png": (gray, {}),
        "palette.png": (image.quantize(9), {"transparency": 2}),
        "plain.bmp": (image, {}),
        "lossy.webp": (image, {}),
        "animated.gif": (
            image,
            {"save_all": True, "append_images": [image.rotate(90)]},
        ),
        "animated.png": (
            image,
            {"save_all": True, "append_images": [image.rotate(90)]},
        ),
    }
    for name, (picture, options) in files.items():
        picture.save(folder / name, **options)
    # A decoder that trusts the name would fail.
    (folder / "png_named.jpg").write_bytes((folder / "turned.png").read_bytes())
    return {name: folder / name for name in [*files, "png_named.jpg"]}


def test_files_are_decoded_to_the_pixels_of_python(
    opened: Any, photograph: Photograph, tmp_path: Path
) -> None:
    preprocess = Preprocess(size=24, crop_fraction=0.9)
    for name, path in pictures(tmp_path, photograph(90, 70)).items():
        assert choose(opened, path) == "done", name
        expected = prepare(load_image(path), preprocess)
        actual = np.array(opened.evaluate("[...result.values]"), np.float32)
        np.testing.assert_array_equal(actual, expected.ravel(), name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_are_turned_as_python_turns_them(
    opened: Any, photograph: Photograph, tmp_path: Path, suffix: str
) -> None:
    image = photograph(90, 70)
    # 9 is none of EXIF's; 0 stands for a file without the tag.
    paths = [tmp_path / f"{orientation}.{suffix}" for orientation in range(10)]
    for orientation, path in enumerate(paths):
        exif = Image.Exif()
        exif[0x112] = orientation
        image.save(path, exif=exif if orientation else b"")
    for wish in ("ignore", "apply"):
        preprocess = Preprocess(size=24, crop_fraction=0.9, orientation=wish)
        opened.evaluate("(wish) => { spec.orientation = wish; }", wish)
        for path in paths:
            assert choose(opened, path) == "done", path
            expected = prepare(load_image(path), preprocess)
            actual = np.array(opened.evaluate("[...result.values]"), np.float32)
            np.testing.assert_array_equal(actual, expected.ravel(), f"{path} {wish}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_orientation_of_adobe_and_of_broken_tags_is_that_of_python(
    opened: Any, photograph: Photograph, tmp_path: Path, suffix: str
) -> None:
    image = photograph(90, 70)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options: dict[str, dict[str, Any]] = {
        "xmp": {"pnginfo": text} if suffix == "png" else {"xmp": xmp},
        "short": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"},
        "none": {"exif": b"Exif\0\0MM"},
    }
    if suffix == "jpg":
        del options["short"]  # Pillow refuses such a JPEG
    preprocess = Preprocess(size=24, crop_fraction=0.9, orientation="apply")
    opened.evaluate("spec.orientation = 'apply'")
    for name, given in options.items():
        path = tmp_path / f"{name}.{suffix}"
        image.save(path, **given)
        assert choose(opened, path) == "done", path
        expected = prepare(load_image(path), preprocess)
        actual = np.array(opened.evaluate("[...result.values]"), np.float32)
        np.testing.assert_array_equal(actual, expected.ravel(), str(path))


def test_what_browsers_decode_in_their_own_way_is_classified_with_a_remark(
    opened: Any, photograph: Photograph, tmp_path: Path
) -> None:
    image = photograph(90, 70)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(
        tmp_path / "deep.png"
    )
    image.quantize(9).save(tmp_path / "transparent.gif", transparency=2)
    for path in sorted(tmp_path.iterdir()):
        assert choose(opened, path) == "inexact", path
        assert labels(opened)


# --- classes -------------------------------------------------------------------------


def test_classes_are_shown_best_first_and_names_are_only_text(
    opened: Any, tab: Tab, photograph: Photograph, tmp_path: Path
) -> None:
    photograph(60, 60).save(tmp_path / "photo.png")
    choose(opened, tmp_path / "photo.png")
    outputs = np.array(opened.evaluate("result.outputs"))
    best = np.argsort(-outputs, kind="stable")[:5]
    assert labels(opened) == [LABELS[index] for index in best]
    chances = opened.locator("#classes .chance").all_text_contents()
    powers = np.exp(outputs) / np.exp(outputs).sum()
    assert chances == [f"{100 * powers[index]:.1f} %" for index in best]
    assert opened.locator("h1").text_content() == HOSTILE
    assert not opened.locator("main img, main b").count()
    assert tab.complaints == []


@pytest.mark.parametrize(
    "kind", [HeadKind.LOGITS, HeadKind.SOFTMAX, HeadKind.SIGMOID, HeadKind.BINARY]
)
@pytest.mark.parametrize("outputs", [[0.2, 0.7, 0.1], [3.0, -1.0, 900.0], [0.25]])
def test_probabilities_are_those_of_python(
    opened: Any, kind: HeadKind, outputs: list[float]
) -> None:
    if kind is not HeadKind.LOGITS and max(outputs) > 1:
        outputs = [0.9, 0.8, 0.1]
    head = Head(kind, len(outputs))
    expected = head.probabilities(head.by_class(np.array([outputs], np.float32)))[0]
    actual = opened.evaluate(
        "([head, outputs]) => { spec.head = head; return probabilities(outputs); }",
        [kind.value, np.array(outputs, np.float32).tolist()],
    )
    np.testing.assert_allclose(actual, expected, atol=1e-12)


# --- bad input -----------------------------------------------------------------------


def test_what_cannot_be_classified_is_a_sentence_and_the_next_picture_works(
    opened: Any, tab: Tab, photograph: Photograph, tmp_path: Path
) -> None:
    image = photograph(90, 70)
    image.save(tmp_path / "good.jpg")
    data = (tmp_path / "good.jpg").read_bytes()
    Image.new("1", (10_000, 10_001)).save(tmp_path / "large.png")
    Image.new("L", (60_000, 2)).save(tmp_path / "narrow.png")
    files = {
        "text.txt": (b"<script>alert(1)</script>", "no_picture"),
        "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no_picture"),
        "empty.png": (b"", "no_picture"),
        "text.bmp": (b"BM, and no more than a text", "broken"),
        "half.jpg": (data[: len(data) // 2], "broken"),
        "end.jpg": (data[:-40], "broken"),
        "large.png": (None, "too_many_pixels"),
        "narrow.png": (None, "too_narrow"),
    }
    opened.evaluate("spec.resize_to.fill(240)")  # of a larger model
    for name, (content, key) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        assert choose(opened, path) == key, name
        assert opened.locator("#result").is_hidden()
        assert choose(opened, tmp_path / "good.jpg") == "done"
    assert tab.complaints == []


def test_a_dropped_file_is_taken_and_a_dropped_text_is_a_sentence(
    opened: Any, photograph: Photograph, tmp_path: Path
) -> None:
    photograph(40, 30).save(tmp_path / "photo.png")
    content = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    drop = """(text) => {
      const data = new DataTransfer();
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      if (text) data.items.add(new File([bytes], "photo.png"));
      else data.setData("text/plain", "https://example.com/cat.jpg");
      const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      return !document.body.dispatchEvent(event);
    }"""
    assert opened.evaluate(drop, content)
    assert settled(opened) == "done"
    assert opened.evaluate(drop, "")
    assert settled(opened) == "no_file"


def test_the_camera_is_classified_until_it_is_stopped(opened: Any) -> None:
    button = opened.locator("#camera")
    button.click()
    opened.locator("#status[data-message=done]").wait_for()
    assert len(labels(opened)) == 5
    assert button.text_content() == "Stop the camera"
    button.click()
    assert button.text_content() == "Use the camera"
    assert opened.evaluate("camera === null")
    opened.evaluate(
        """() => {
          const refuse = async () => { throw Error("not allowed"); };
          navigator.mediaDevices.getUserMedia = refuse;
        }"""
    )
    button.click()
    opened.locator("#status[data-message=no_camera]").wait_for()
    assert "not allowed" in opened.locator("#status").text_content()


def test_outputs_that_are_not_finite_are_a_sentence(
    opened: Any, photograph: Photograph, tmp_path: Path
) -> None:
    photograph(40, 30).save(tmp_path / "photo.png")
    opened.evaluate("spec.std.fill(0)")
    assert choose(opened, tmp_path / "photo.png") == "not_finite"


# --- the page ------------------------------------------------------------------------


def test_languages_and_colors_are_switched_by_the_keyboard(
    opened: Any, tab: Tab
) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "language"
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.documentElement.lang") == "zh-Hans"
    assert "lang=zh" in opened.url
    assert opened.locator("#status").text_content() == demo.words()["zh"]["ready"]
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.evaluate(background) == "rgb(13, 17, 23)"
    order = []
    for _ in range(3):
        opened.keyboard.press("Tab")
        order.append(
            opened.evaluate(
                "document.activeElement.id || document.activeElement.tagName"
            )
        )
    assert order == ["file", "camera", "SUMMARY"]
    opened.keyboard.press("Enter")
    assert opened.locator("#facts").is_visible()
    assert tab.complaints == []


def test_an_old_browser_gets_a_sentence(tab: Tab, address: str) -> None:
    page = tab.tab
    page.add_init_script(
        "if (location.hash === '#old') delete globalThis.DecompressionStream"
    )
    tab.open(address, "old")
    page.locator("#status[data-message=old_browser]").wait_for()


def test_nothing_was_asked_for(tab: Tab, address: str) -> None:
    tab.open(address)
    assert tab.addresses() <= {address, "about:blank"}


# --- the runtime ---------------------------------------------------------------------


def half_quantized() -> Artifact:
    """A convolution in INT8 between Q/DQ pairs, and then one in float."""
    random = np.random.default_rng(0)
    values = {
        "weight": random.integers(-99, 99, (8, 3, 3, 3), np.int8),
        "weight_scale": np.float32(0.004),
        "scale": np.float32(0.03),
        "zero": np.uint8(120),
        "float_weight": random.normal(size=(10, 8, 3, 3)).astype(np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "scale", "zero"], ["cd"]),
        helper.make_node("Sigmoid", ["cd"], ["s"]),
        helper.make_node("Conv", ["s", "float_weight"], ["f"]),
        helper.make_node("ReduceMean", ["f", "axes"], ["y"], keepdims=0),
    ]
    weights = []
    for name, value in values.items():
        weights.append(numpy_helper.from_array(np.asarray(value), name))
    graph = helper.make_graph(
        nodes,
        "half_quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return Artifact(model, "half_quantized", preprocess=Preprocess(size=32))


def test_the_runtime_gives_the_logits_of_python(
    tab: Tab, photograph: Photograph, tmp_path: Path
) -> None:
    if not PACKAGE.is_file():
        pytest.skip(f"{PACKAGE} is not there; `repzoo demo` lets npm fetch it")
    artifact = half_quantized()
    runtime = web_runtime.unpack(PACKAGE.read_bytes())
    path = tmp_path / "demo.html"
    path.write_text(demo.render(demo.contents(artifact), runtime), "utf-8")
    photograph(90, 70).save(tmp_path / "photo.jpg")
    tab.complaints.clear()
    page = tab.open(path.as_uri())
    page.locator("#status[data-message=ready]").wait_for()
    choose(page, tmp_path / "photo.jpg")
    image = prepare(load_image(tmp_path / "photo.jpg"), artifact.require_preprocess())
    expected = OnnxRuntime().open(artifact.model).run(image[None])[0]
    actual = np.array(page.evaluate("result.outputs"))
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    best = np.argsort(-expected, kind="stable")[:5]
    assert labels(page) == [str(index) for index in best]
    assert tab.complaints == []
    assert path.as_uri() in tab.addresses()
    assert not [url for url in tab.addresses() if url.startswith("http")]
