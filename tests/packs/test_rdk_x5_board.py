"""The program that a pack ships for the board, with a board and an OpenCV made for the test."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from repzoo.data import nv12 as expected_nv12
from repzoo.data.preprocess import model_input, resized_and_cropped
from repzoo.packs.board import classifier as board
from repzoo.preprocessing import Preprocess

PILLOW = int(PIL.__version__.partition(".")[0])
CONFIG = board.Config(
    "m.bin",
    32,
    32,
    "short",
    (36, 36),
    "bilinear",
    "ignore",
    False,
    PILLOW,
    False,
    ("a", "b"),
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random blocks with noise on them: flat areas, edges and fine structure."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    noise = random.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def settings(preprocess: Preprocess) -> board.Config:
    size = preprocess.resize_to
    return replace(
        CONFIG,
        height=preprocess.height,
        width=preprocess.width,
        resize=preprocess.resize,
        resize_to=(size, size) if isinstance(size, int) else size,
        interpolation=preprocess.interpolation,
        gray=preprocess.color == "GRAY",
    )


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["short", "squash"])
@pytest.mark.parametrize("size", [(83, 140), (141, 60), (20, 31), (36, 36)])
def test_the_board_prepares_images_bit_for_bit_as_repzoo(
    size: tuple[int, int], resize: Any, interpolation: Any
) -> None:
    preprocess = Preprocess(32, resize, 0.875, interpolation)
    image = picture(*size)
    pixels = resized_and_cropped(image, preprocess)
    config = settings(preprocess)
    rgb = np.asarray(image)
    on_board = board.resize_and_crop(rgb, config)
    np.testing.assert_array_equal(on_board, pixels)
    tensor = board.model_input(np.ascontiguousarray(rgb[..., ::-1]), config)
    expected = expected_nv12.from_rgb(on_board, "bt601-full")
    np.testing.assert_array_equal(tensor[0], expected)


def test_a_rectangle_and_gray() -> None:
    rectangle = Preprocess((24, 40), "short", 0.8)
    image = picture(50, 90)
    wide = picture(90, 50)
    for shape in (wide, image):
        np.testing.assert_array_equal(
            board.resize_and_crop(np.asarray(shape), settings(rectangle)),
            resized_and_cropped(shape, rectangle),
        )
    plain = replace(rectangle, color="GRAY", input="uint8")
    tensor = board.model_input(np.asarray(image)[..., ::-1], settings(plain))
    pixels = resized_and_cropped(image, plain)
    np.testing.assert_array_equal(tensor[0], model_input(pixels, plain))


def test_known_colors() -> None:
    """White, black and blue as JFIF defines them: Y, Cb and Cr in full range."""
    pixels = np.zeros((2, 6, 3), np.uint8)
    pixels[:, :2] = 255
    pixels[:, 4:] = (0, 0, 255)
    rows = board.nv12(pixels)
    np.testing.assert_array_equal(rows[0], [255, 255, 0, 0, 29, 29])
    np.testing.assert_array_equal(rows[2], [128, 128, 128, 128, 255, 107])


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))],
)
def test_other_arrays_are_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="expected BGR pixels"):
        board.model_input(image, CONFIG)


class FakeModel:
    """Both runtimes at once. Class 1 wins for bright images, class 0 for dark ones."""

    def __init__(self, path: str) -> None:
        self.model_names = ["m"]
        self.input_names = {"m": ["data"]}
        self.output_names = {"m": ["output"]}
        self.scheduled: dict[str, Any] = {}

    def run(self, inputs: Any) -> Any:
        tensor = inputs["m"]["data"]
        assert tensor.dtype == np.uint8
        assert tensor.shape == (1, 48, 32, 1)
        luma = float(tensor[0, :32].mean())
        return {"m": {"output": np.array([[[[128.0 - luma]], [[luma - 128.0]]]]) / 32}}

    def forward(self, values: Any) -> Any:
        assert values.shape == (48 * 32,)
        outputs = self.run({"m": {"data": values.reshape(1, 48, 32, 1)}})
        return [SimpleNamespace(buffer=outputs["m"]["output"])]

    def set_scheduling_params(self, **values: Any) -> None:
        self.scheduled = values


def fake_opencv() -> ModuleType:
    cv2 = ModuleType("cv2")
    cv2.__dict__.update(
        IMREAD_COLOR=1,
        IMREAD_IGNORE_ORIENTATION=128,
        FONT_HERSHEY_SIMPLEX=0,
        LINE_AA=16,
    )

    def imread(path: str, flags: int) -> Any:
        assert flags == 129
        try:
            return np.asarray(Image.open(path).convert("RGB"))[..., ::-1].copy()
        except OSError:
            return None

    def imwrite(path: str, image: Any) -> bool:
        Image.fromarray(image[..., ::-1]).save(path)
        return True

    def put_text(image: Any, text: str, place: tuple[int, int], *_: Any) -> None:
        assert text.isprintable()
        image[: place[1], : place[0]] = 0

    cv2.__dict__.update(imread=imread, imwrite=imwrite, putText=put_text)
    return cv2


@pytest.fixture(params=["hbm_runtime", "hobot_dnn"])
def fake_board(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The modules of a board with one of its runtimes."""
    monkeypatch.setitem(sys.modules, "cv2", fake_opencv())
    if request.param == "hbm_runtime":
        runtime = ModuleType("hbm_runtime")
        runtime.__dict__["HB_HBMRuntime"] = FakeModel
        monkeypatch.setitem(sys.modules, "hbm_runtime", runtime)
    else:
        package = ModuleType("hobot_dnn")
        module = ModuleType("hobot_dnn.pyeasy_dnn")
        module.__dict__["load"] = lambda path: [FakeModel(path)]
        monkeypatch.setitem(sys.modules, "hobot_dnn", package)
        monkeypatch.setitem(sys.modules, "hobot_dnn.pyeasy_dnn", module)
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path) -> board.Config:
    (tmp_path / "m.bin").write_bytes(b"compiled")
    return replace(CONFIG, model_path=str(tmp_path / "m.bin"))


@pytest.mark.usefixtures("fake_board")
def test_a_prediction_on_both_runtimes(config: board.Config) -> None:
    classifier = board.Classifier(config)
    classifier.set_scheduling_params(5, [0])
    classifier.set_scheduling_params()
    bright = np.full((40, 60, 3), 255, np.uint8)
    (best, probability), (other, rest) = classifier(bright)
    assert (best, other) == (1, 0)
    assert probability + rest == pytest.approx(1)
    assert probability == pytest.approx(1 / (1 + np.exp(-2 * 127 / 32)))
    assert classifier.predict(0 * bright, 1)[0][0] == 0
    assert [config.name(index) for index in (1, 7)] == ["b", "class 7"]
    drawn = board.draw(bright, [(1, 0.5)], config)
    assert (drawn != bright).any()
    assert bright.all()


@pytest.mark.usefixtures("fake_board")
def test_outputs_that_are_probabilities_are_not_softmaxed_again(
    config: board.Config,
) -> None:
    classifier = board.Classifier(replace(config, probabilities=True))
    assert classifier.post_process(np.array([0.25, 0.75])) == [(1, 0.75), (0, 0.25)]


def test_without_a_model_or_a_runtime_the_reason_is_named(
    config: board.Config, tmp_path: Path
) -> None:
    with pytest.raises(ImportError, match="hbm_runtime, hobot_dnn, hobot_dnn_rdkx5"):
        board.Classifier(config)
    with pytest.raises(FileNotFoundError, match="copy it to the board"):
        board.Classifier(replace(config, model_path=str(tmp_path / "no.bin")))


@pytest.mark.usefixtures("fake_board")
def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image that OpenCV reads"):
        board.read_image(tmp_path / "broken.png")
