"""The digits that scikit-learn carries, against its own arrays."""

from __future__ import annotations

import numpy as np
import pytest

from repzoo.data import digits
from repzoo.data.source import open_source

datasets = pytest.importorskip(
    "sklearn.datasets", reason="the demo extra is not installed"
)


def test_the_parts_are_the_whole_set_in_its_order_without_overlap() -> None:
    source, bunch = digits.read(), datasets.load_digits()
    joined = source.join("train", "validation", "test")
    assert joined.keys == tuple(map(str, range(1797)))
    assert list(joined.targets) == bunch.target.tolist()
    assert source.classes == tuple("0123456789")
    assert [len(part) for part in source.parts.values()] == [1077, 360, 360]
    assert source.held_out().keys == tuple(map(str, range(1077, 1797)))


def test_pixels_0_to_16_become_0_to_255_in_three_equal_channels() -> None:
    source, bunch = digits.read(), datasets.load_digits()
    image = np.asarray(source.parts["test"].load("1796"))
    assert image.shape == (8, 8, 3)
    assert (image == image[..., :1]).all()
    assert np.array_equal(np.round(image[..., 0] * (16 / 255)), bunch.images[1796])
    assert (
        max(np.asarray(source.parts["train"].load(str(key))).max() for key in range(20))
        == 255
    )


def test_every_part_has_every_class() -> None:
    for part in digits.read().parts.values():
        assert set(part.targets) == set(range(10))


def test_the_name_opens_it() -> None:
    assert open_source("digits").name == "digits"
