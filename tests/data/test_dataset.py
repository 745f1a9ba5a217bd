"""Data sets and sources in memory: subsets, balanced samples, joins and the calibration split."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from repzoo.data.dataset import Dataset, DataSource
from repzoo.errors import InputError


def dataset(name: str, targets: list[int], start: int = 0) -> Dataset:
    keys = tuple(f"{start + number}" for number in range(len(targets)))
    return Dataset(
        name,
        ("a", "b", "c"),
        keys,
        tuple(targets),
        lambda key: Image.new("RGB", (int(key) + 1, 1)),
    )


TARGETS = st.lists(st.integers(0, 2), min_size=4, max_size=60)


def test_a_subset_keeps_the_order_asked_for() -> None:
    some = dataset("d", [0, 1, 2, 0]).subset([3, 1])
    assert (some.keys, some.targets, len(some), some.name) == (
        ("3", "1"),
        (0, 1),
        2,
        "d",
    )
    assert some.load("3").size == (4, 1)
    assert dataset("d", [0]).subset([0], "other").name == "other"


@given(TARGETS, st.integers(0, 70), st.integers(0, 5))
def test_a_sample_is_balanced_deterministic_and_without_repeats(
    targets: list[int], count: int, seed: int
) -> None:
    whole = dataset("d", targets)
    chosen = whole.balanced_sample(count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(targets))
    assert chosen == sorted(chosen) == whole.balanced_sample(count, seed)
    have, sampled = Counter(targets), Counter(targets[index] for index in chosen)
    fullest = max(sampled.values(), default=0)
    assert all(sampled[target] >= min(have[target], fullest - 1) for target in have)


def test_another_seed_draws_other_images() -> None:
    whole = dataset("d", [0, 1, 2] * 20)
    assert len({tuple(whole.balanced_sample(6, seed)) for seed in range(5)}) == 5


@given(TARGETS, st.integers(1, 70), st.integers(0, 5))
def test_a_flat_set_is_split_without_overlap_and_most_of_it_judges(
    targets: list[int], count: int, seed: int
) -> None:
    split = DataSource("s", {"all": dataset("all", targets)}).split_for_quantization(
        count, seed
    )
    assert len(split.calibration) == min(count, len(targets) // 4)
    assert len(split.selection) == max(1, len(targets) // 8)
    keys = split.calibration.keys + split.selection.keys + split.gate.keys
    assert sorted(map(int, keys)) == list(range(len(targets)))
    assert list(map(int, split.gate.keys)) == sorted(map(int, split.gate.keys))
    assert (
        DataSource("s", {"all": dataset("all", targets)})
        .calibration_split(count, seed)[1]
        .keys
        == split.gate.keys
    )


def split_source() -> DataSource:
    parts = {
        "train": dataset("t", [0, 1, 2] * 4),
        "validation": dataset("v", [1, 2], 100),
        "test": dataset("e", [0], 200),
    }
    return DataSource("s", parts)


def test_with_parts_ranges_and_selection_are_drawn_from_train_and_the_rest_is_held_out() -> (
    None
):
    split = split_source().split_for_quantization(6, 0)
    assert (
        Counter(split.calibration.targets)
        == Counter(split.selection.targets)
        == {0: 2, 1: 2, 2: 2}
    )
    assert set(map(int, split.calibration.keys + split.selection.keys)) == set(
        range(12)
    )
    assert split.gate.keys == ("100", "101", "200")
    assert split.gate.name == "s[validation+test]"


def test_a_small_part_train_is_shared_three_to_one() -> None:
    split = split_source().split_for_quantization(256, 0)
    assert (len(split.calibration), len(split.selection), len(split.gate)) == (9, 3, 3)
    assert not set(split.calibration.keys) & set(split.selection.keys)


def test_only_train_is_treated_as_flat() -> None:
    split = DataSource(
        "s", {"train": dataset("t", [0, 1, 2, 0])}
    ).split_for_quantization(4, 0)
    assert (len(split.calibration), len(split.selection), len(split.gate)) == (1, 1, 2)


@pytest.mark.parametrize(
    "source", [split_source(), DataSource("s", {"all": dataset("all", [0, 1] * 4)})]
)
def test_no_calibration_images_are_refused(source: DataSource) -> None:
    with pytest.raises(
        InputError, match="at least 1 calibration image is needed; got 0"
    ):
        source.calibration_split(0, 0)


def test_three_images_cannot_be_split() -> None:
    with pytest.raises(InputError, match="has 3 images; at least 4 are needed"):
        DataSource("s", {"all": dataset("all", [0, 1, 2])}).calibration_split(1, 0)


def test_held_out_is_everything_where_nothing_was_trained_on() -> None:
    assert DataSource("s", {"all": dataset("all", [0, 1])}).held_out().keys == (
        "0",
        "1",
    )
    assert DataSource("s", {"train": dataset("t", [0, 1])}).held_out().keys == (
        "0",
        "1",
    )
    assert split_source().held_out().targets == (1, 2, 0)


def test_a_join_keeps_the_order_of_its_parts_and_refuses_unknown_and_repeated_ones() -> (
    None
):
    source = split_source()
    joined = source.join("test", "validation")
    assert (joined.keys, joined.targets) == (("200", "100", "101"), (0, 1, 2))
    assert joined.load("100").size == (101, 1)
    assert source.join("val").keys == source.join("validation").keys
    with pytest.raises(
        InputError, match="no part 'extra'; it has train, validation, test"
    ):
        source.join("extra")
    with pytest.raises(InputError, match="named twice in test, test"):
        source.join("test", "test")
