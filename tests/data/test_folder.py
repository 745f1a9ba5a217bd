"""Class folders on disk: layouts, order, odd names, and files that are not what their names say."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from repzoo.data import image_file
from repzoo.data.dataset import UnreadableImage
from repzoo.data.folder import read
from repzoo.data.image_file import load_image
from repzoo.data.source import open_source
from repzoo.errors import InputError

Photograph = Callable[..., Image.Image]


def save_images(root: Path, *names: str, color: int = 0) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (color, 0, 0)).save(path, "PNG")


def test_a_flat_folder_has_one_part_sorted_by_class_and_name(tmp_path: Path) -> None:
    save_images(tmp_path, "b/2.png", "b/10.png", "a/x.png")
    source = read(tmp_path)
    assert source.classes == ("a", "b")
    assert list(source.parts) == ["all"]
    assert source.parts["all"].keys == ("a/x.png", "b/10.png", "b/2.png")
    assert source.parts["all"].targets == (0, 1, 1)
    assert not source.parts["all"].ordered


@pytest.mark.parametrize("held", ["validation", "val", "test"])
def test_parts_share_the_classes_even_where_one_lacks_some(
    tmp_path: Path, held: str
) -> None:
    save_images(
        tmp_path, "train/a/1.png", "train/c/1.png", f"{held}/b/1.png", f"{held}/c/2.png"
    )
    source = read(tmp_path)
    assert list(source.parts) == ["train", held]
    assert [part.classes for part in source.parts.values()] == [("a", "b", "c")] * 2
    assert source.parts[held].targets == (1, 2)
    assert source.held_out().keys == (f"{held}/b/1.png", f"{held}/c/2.png")
    loaded = source.held_out().load(f"{held}/c/2.png")
    assert loaded.size == (4, 4)


def test_a_part_without_images_is_no_part(tmp_path: Path) -> None:
    save_images(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "test" / "a").mkdir(parents=True)
    assert list(read(tmp_path).parts) == ["train"]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    save_images(tmp_path, "bus/1.png", "train/1.png")
    assert read(tmp_path).parts["all"].keys == ("bus/1.png", "train/1.png")


def test_classes_tsv_gives_the_order_of_the_outputs(tmp_path: Path) -> None:
    save_images(tmp_path, "b/1.png", "a/1.png")
    (tmp_path / "classes.tsv").write_bytes(
        "\ufeffb\tthe second\r\nnone\tno folder\r\na\tthe first\r\n\r\n".encode()
    )
    source = read(tmp_path)
    assert source.classes == ("b", "none", "a")
    assert source.parts["all"].ordered
    assert dict(
        zip(source.parts["all"].keys, source.parts["all"].targets, strict=True)
    ) == {
        "b/1.png": 0,
        "a/1.png": 2,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n", "does not list the folder 'b'"),
        (b"a\nb\na\n", "lists 'a' twice"),
        (b"a\nb\xff\n", r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_a_wrong_classes_tsv_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    save_images(tmp_path, "b/1.png", "a/1.png")
    (tmp_path / "classes.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_what_is_hidden_is_not_looked_at(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.png", "b/1.png", ".cache/1.png", "a/._1.png")
    assert read(tmp_path).parts["all"].keys == ("a/1.png", "b/1.png")


def test_suffixes_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    save_images(
        tmp_path, "a/1.JPG", "a/2.Jpeg", "a/3.PNG", "a/4.webp", "a/5.bmp", "b/1.png"
    )
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "jpg").write_text("no suffix")
    (tmp_path / "a" / "folder.jpg").mkdir()
    (tmp_path / "readme.png").write_text("beside the classes")
    assert [key for key in read(tmp_path).parts["all"].keys if key[0] == "a"] == [
        "a/1.JPG",
        "a/2.Jpeg",
        "a/3.PNG",
        "a/4.webp",
        "a/5.bmp",
    ]


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=12,
).filter(
    lambda name: (
        not name.startswith(".")
        and len(name.encode()) < 200
        and name not in ("train", "validation", "val", "test")
    )
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sets(NAMES, min_size=2, max_size=4), NAMES)
def test_any_name_is_kept_and_can_be_loaded(
    tmp_path_factory: pytest.TempPathFactory, classes: set[str], file: str
) -> None:
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(sorted(classes)):
        save_images(root, f"{name}/{file}.png", color=number)
    data = read(root).parts["all"]
    assert data.classes == tuple(sorted(classes))
    pixels = [data.load(key).getpixel((0, 0)) for key in data.keys]
    assert (
        pixels
        == [(target, 0, 0) for target in data.targets]
        == [(number, 0, 0) for number in range(len(classes))]
    )


def test_a_name_that_is_not_utf8_is_refused_and_shown(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.png", "b/1.png")
    try:
        (tmp_path / "b" / "1.png").rename(
            os.fsdecode(os.fsencode(tmp_path / "b") + b"/caf\xe9.png")
        )
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match=r"not UTF-8: 'caf\\udce9\.png'; rename it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "no images in subfolders"), (("a/1.png",), "only the class 'a'")],
)
def test_fewer_than_two_classes_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    save_images(tmp_path, *names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_images_beside_no_folder_are_refused(tmp_path: Path) -> None:
    save_images(tmp_path, "1.png", "2.png")
    with pytest.raises(InputError, match="expected one subfolder of images"):
        read(tmp_path)


def test_open_source_says_what_was_wrong(tmp_path: Path) -> None:
    save_images(tmp_path, "1.png")
    with pytest.raises(InputError, match="is a file; --data takes a folder"):
        open_source(tmp_path / "1.png")
    with pytest.raises(
        InputError,
        match=r"does not exist, and there is no data set of that name; known names: digits",
    ):
        open_source(tmp_path / "none")


def header_only_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(100_000, 100_000), (10_000, 9_500), (8_000, 8_001)]
)
def test_a_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(header_only_png(width, height))
    decoded: list[str] = []
    monkeypatch.setattr(
        Image.Image, "load", lambda image: decoded.append(image.filename)
    )
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image.filename)
    )
    with pytest.raises(
        UnreadableImage, match=r"pixels; at most 64,000,000 are decoded"
    ):
        load_image(path)
    assert not decoded


def test_exactly_the_limit_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_file, "MAX_PIXELS", 16)
    save_images(tmp_path, "1.png")
    assert load_image(tmp_path / "1.png").size == (4, 4)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 15)
    with pytest.raises(UnreadableImage, match="4x4"):
        load_image(tmp_path / "1.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = tmp_path / "moving.png"
    frames[0].save(
        path, kind, save_all=True, append_images=frames[1:], duration=100, lossless=True
    )
    with Image.open(path) as again:
        assert getattr(again, "n_frames", 1) == 2
    assert load_image(path).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_the_two_pictures_in_one_jpeg_that_phones_write_are_read_as_the_first(
    tmp_path: Path,
) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "1.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "1.jpg").getpixel((8, 8)) == (255, 255, 255)


def test_each_broken_file_is_named_with_a_reason(
    tmp_path: Path, photograph: Photograph
) -> None:
    whole = tmp_path / "whole.jpg"
    photograph(64, 64).save(whole)
    broken = {
        "truncated.jpg": whole.read_bytes()[:900],
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "head.jpg": whole.read_bytes()[:2],
    }
    for name, data in broken.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UnreadableImage, match=name):
            load_image(path)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "gone.jpg"):
        with pytest.raises(UnreadableImage, match=name):
            load_image(tmp_path / name)
    assert load_image(whole).size == (64, 64)


def test_postscript_behind_a_picture_suffix_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    started: list[object] = []
    monkeypatch.setattr(
        "subprocess.Popen", lambda *command, **_: started.append(command)
    )
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(UnreadableImage, match="not an image"):
        load_image(path)
    assert not started


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"]),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12
    ),
    st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_an_image_or_unreadable_image(
    tmp_path: Path,
    photograph: Photograph,
    kind: str,
    changes: list[tuple[float, int]],
    kept: float,
) -> None:
    path = tmp_path / "damaged"
    photograph(20, 16).save(path, kind)
    data = bytearray(path.read_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    path.write_bytes(data[: int(len(data) * kept) + 1] if kept < 0.7 else data)
    with contextlib.suppress(UnreadableImage):  # any other exception fails
        assert np.asarray(load_image(path)).size > 0
