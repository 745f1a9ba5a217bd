"""Reading in batches: order, memory, and what is counted, named and refused."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches, readable_indices
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.preprocess import prepare
from repzoo.errors import InputError

WANTED = Preprocess(size=8, crop_fraction=1.0)


def picture(key: str) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(int(key)).integers(0, 256, (9, 11, 3), np.uint8)
    )


def dataset(count: int, load: Callable[[str], Image.Image] = picture) -> Dataset:
    return Dataset(
        "d",
        ("a", "b"),
        tuple(map(str, range(count))),
        tuple(number % 2 for number in range(count)),
        load,
    )


def loader_failing_on(bad: set[int]) -> Callable[[str], Image.Image]:
    def load(key: str) -> Image.Image:
        if int(key) in bad:
            raise UnreadableImage(f"image {key} is broken")
        return picture(key)

    return load


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 23),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sets(st.integers(0, 22)),
)
def test_every_readable_image_comes_once_in_order_as_prepared(
    count: int, size: int, workers: int, bad: set[int]
) -> None:
    report = ReadReport()
    loaded = list(
        batches(dataset(count, loader_failing_on(bad)), WANTED, size, report, workers)
    )
    indices = [index for batch in loaded for index in batch.indices]
    assert indices == [index for index in range(count) if index not in bad]
    assert report.unreadable == [
        f"image {index} is broken" for index in sorted(bad) if index < count
    ]
    assert all(
        0 < len(batch.indices) <= size and len(batch.inputs) == len(batch.indices)
        for batch in loaded
    )
    for batch in loaded:
        for index, inputs in zip(batch.indices, batch.inputs, strict=True):
            assert np.array_equal(inputs, prepare(picture(str(index)), WANTED))


def test_at_most_two_batches_are_decoded_ahead() -> None:
    loaded: list[str] = []
    lock = threading.Lock()

    def load(key: str) -> Image.Image:
        with lock:
            loaded.append(key)
        return picture(key)

    ahead, consumed = [], 0
    for batch in batches(dataset(100, load), WANTED, 5, ReadReport(), workers=4):
        consumed += len(batch.indices)
        ahead.append(len(loaded) - consumed)
    assert max(ahead) <= 2 * 5
    assert (consumed, len(loaded)) == (100, 100)


def test_images_are_decoded_only_when_they_are_read() -> None:
    loaded: list[str] = []

    def load(key: str) -> Image.Image:
        loaded.append(key)
        return picture(key)

    stream = batches(dataset(10, load), WANTED, 2, ReadReport())
    assert not loaded
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert 2 <= len(loaded) <= 6


def test_an_unexpected_error_of_a_loader_is_not_swallowed() -> None:
    def load(key: str) -> Image.Image:
        raise KeyError(key)

    with pytest.raises(KeyError):
        list(batches(dataset(3, load), WANTED, 2, ReadReport()))


@pytest.mark.parametrize(
    ("bad", "total", "fatal"),
    [
        (0, 1, False),
        (1, 100, False),
        (2, 200, False),
        (1, 99, True),
        (3, 200, True),
        (2, 100, True),
    ],
)
def test_one_in_a_hundred_may_be_unreadable_and_no_more(
    bad: int, total: int, fatal: bool
) -> None:
    report = ReadReport([f"image {number}" for number in range(bad)])
    if fatal:
        with pytest.raises(
            InputError,
            match=rf"{bad} of {total} images of d cannot be read \(at most 1% may be\): image 0",
        ):
            report.check("d", total)
    else:
        report.check("d", total)


def test_the_report_says_what_was_left_out_and_what_was_converted() -> None:
    def load(key: str) -> Image.Image:
        return picture(key).convert({0: "L", 1: "CMYK"}.get(int(key) % 5, "RGB"))

    report = ReadReport()
    list(batches(dataset(200, load), WANTED, 7, report, workers=4))
    assert report.sentences() == ["converted to RGB: 40 CMYK, 40 L"]
    report.unreadable.append("x.jpg is broken")
    assert report.sentences() == [
        "left out: x.jpg is broken",
        "converted to RGB: 40 CMYK, 40 L",
    ]
    assert ReadReport().sentences() == []


def test_an_image_too_long_to_resize_is_skipped_and_named() -> None:
    report = ReadReport()
    stripes = dataset(
        2, lambda key: Image.new("RGB", (60_000, 1) if key == "1" else (9, 9))
    )
    loaded = list(batches(stripes, Preprocess(size=224), 2, report))
    assert [batch.indices for batch in loaded] == [(0,)]
    assert report.unreadable[0].startswith(
        "1: an image of 60000x1 pixels would be resized to"
    )


def test_readable_gives_the_indices_that_decode_and_names_the_rest_in_order() -> None:
    report, seen = ReadReport(), []
    good = readable_indices(
        dataset(30, loader_failing_on({3, 17, 4})),
        report,
        lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert good == [index for index in range(30) if index not in (3, 4, 17)]
    assert report.unreadable == [f"image {number} is broken" for number in (3, 4, 17)]
    assert seen == [("check images", done, 30) for done in range(31)]
