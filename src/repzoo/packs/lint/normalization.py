"""Mean and scale of a configuration against the model's, with the mix-ups that explain them.

All tools compute y = (x - mean) / std of pixels x in 0..255, but write it differently: std, its
reciprocal (scale), or both in units of 0..1. Here everything is in units of 0..255 and std.

A value is wrong where it moves the input by more than half a level of an 8-bit pixel. Less cannot
be told from rounding: half precision moves it by 0.06 levels.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

from repzoo.artifact import Preprocess
from repzoo.errors import InputError
from repzoo.packs.lint.facts import ModelFacts

HALF_LEVEL = 0.5  # of pixels 0..255
SAME_RATIO = 0.005  # mix-ups are a factor of 2 and more apart
# ImageNet's std of G and B differ by 0.44 %: their order needs a closer look.
SAME_CHANNEL_RATIO = 0.0025
# ImageNet's mean and Caffe's differ by 0.4 % in G and B.
SAME_MEAN_RATIO = 0.001
LEVELS = 255.0
Values = tuple[float, ...]


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / std of pixels 0..255, a value for each channel in the tensor's order."""

    mean: Values
    std: Values


@dataclass(frozen=True)
class Difference:
    """One way in which a normalization differs from the expected one.

    Attributes:
        part: "mean" or "scale".
        actual: values in units of 0..255 (of std, for the scale).
        expected: the same of the model.
        reason: the mix-up that explains it; "" where none does.
    """

    part: str
    actual: Values
    expected: Values
    reason: str


def expected_for(preprocess: Preprocess, color: str = "") -> Normalization:
    """What the model expects, its channels in the order `color`; "": its own."""
    if preprocess.input != "float":
        return Normalization((0.0,), (1.0,))  # the graph itself normalizes
    mean = [LEVELS * value for value in preprocess.mean]
    std = [LEVELS * value for value in preprocess.std]
    if preprocess.color == "GRAY":
        return Normalization((sum(mean) / 3,), (sum(std) / 3,))
    if color and color != preprocess.color:
        mean.reverse()
        std.reverse()
    return Normalization(tuple(mean), tuple(std))


def differences(actual: Normalization, expected: Normalization) -> Iterator[Difference]:
    """Where `actual` moves the input by more than half a pixel level."""
    mean = _for_channels(actual.mean, len(expected.mean))
    if not _is_same_mean(mean, expected.mean):
        yield Difference("mean", mean, expected.mean, explain_mean(mean, expected.mean))
    std = _for_channels(actual.std, len(expected.std))
    if not _is_same_std(std, expected.std):
        yield Difference("scale", std, expected.std, explain_std(std, expected.std))


def _for_channels(values: Values, channels: int) -> Values:
    # One value stands for all channels; a gray image has one of equal ones.
    if len(values) == 1:
        return values * channels
    if channels == 1 and len(set(values)) == 1:
        return values[:1]
    return values


def _is_same_mean(actual: Sequence[float], expected: Sequence[float]) -> bool:
    if len(actual) != len(expected):
        return False
    return all(abs(a - b) <= HALF_LEVEL for a, b in zip(actual, expected, strict=True))


def _is_same_std(actual: Sequence[float], expected: Sequence[float]) -> bool:
    # A std that is off by this ratio moves white, 255 levels from black, by half a level.
    return _within(actual, expected, HALF_LEVEL / LEVELS)


def _within(actual: Sequence[float], expected: Sequence[float], limit: float) -> bool:
    if len(actual) != len(expected):
        return False
    pairs = zip(actual, expected, strict=True)
    return all(abs(a - b) <= limit * max(abs(b), 1e-12) for a, b in pairs)


def explain_mean(actual: Values, expected: Values) -> str:
    """The mix-up that turns `expected` into `actual`; "" for none."""
    spellings: list[tuple[str, Callable[[float], float]]] = [
        ("in units of 0..1, but the tool subtracts it from pixels 0..255", _unit),
        ("multiplied by 255 twice", lambda value: value * LEVELS),
        ("with the opposite sign", lambda value: -value),
    ]
    for reason, spelling in spellings:
        values = tuple(map(spelling, expected))
        if any(values) and _within(actual, values, SAME_RATIO):
            return reason
    return _order_or_known(actual, expected, "mean")


def explain_std(actual: Values, expected: Values) -> str:
    """The mix-up that turns the divisor `expected` into `actual`; "" for none."""
    spellings: list[tuple[str, Callable[[float], float]]] = [
        ("std where its reciprocal was due, or the reverse", lambda value: 1 / value),
        ("std in units of 0..1, without the factor 255", _unit),
        (
            "std in units of 0..1 where its reciprocal was due, and without the factor 255",
            lambda value: LEVELS / value,
        ),
        ("multiplied by 255 twice", lambda value: value * LEVELS),
        (
            "std divided by 255, where 1 / (255 std) was due",
            lambda value: LEVELS * LEVELS / value,
        ),
        ("pixels are only divided by 255, std is missing", lambda _: LEVELS),
        ("pixels are not scaled at all", lambda _: 1.0),
    ]
    for reason, spelling in spellings:
        if _within(actual, tuple(map(spelling, expected)), SAME_RATIO):
            return reason
    return _order_or_known(actual, expected, "std")


def _unit(value: float) -> float:
    return value / LEVELS


def _order_or_known(actual: Values, expected: Values, part: str) -> str:
    if _is_reversed(actual, expected):
        return "channels in reverse order (BGR for RGB)"
    if _is_shuffled(actual, expected):
        return "channels in an order that is neither RGB nor BGR"
    for item in known():
        for values in (tuple(item[part]), tuple(reversed(item[part]))):
            if _within(actual, values, SAME_RATIO):
                return f"that is {item['name']}, which this model does not have"
    return ""


def _is_reversed(actual: Values, expected: Values) -> bool:
    reverse = tuple(reversed(expected))
    return reverse != expected and _within(actual, reverse, SAME_RATIO)


def _is_shuffled(actual: Values, expected: Values) -> bool:
    orders = itertools.permutations(expected)
    return any(_within(actual, order, SAME_CHANNEL_RATIO) for order in orders)


@functools.cache
def known() -> list[dict[str, Any]]:
    """Preprocessings of many published models."""
    text = (package_files("repzoo.packs.lint") / "known.toml").read_text("utf-8")
    items: list[dict[str, Any]] = tomllib.loads(text)["known"]
    return items


def suspicion(actual: Normalization, color: str) -> tuple[str, Values]:
    """What no model is known to want, judged without a model, and the mean to write instead.

    Args:
        actual: the normalization.
        color: RGB, BGR, or "" where the order of the channels is not known.

    Returns:
        a sentence, "" for nothing; the mean is () where it cannot be guessed.
    """
    if any(0 < abs(value) <= 1 for value in actual.mean):
        sentence = (
            f"a mean of {numbers(actual.mean)} subtracts at most one level of pixels 0..255; it is "
            "in units of 0..1, or meant for pixels that are divided already"
        )
        # x / 127.5 - 1 written as (x - 1) / 127.5, and means in units of 0..1.
        is_one = set(actual.mean) == {1.0}
        factor = actual.std if is_one else (LEVELS,) * len(actual.mean)
        if len(factor) != len(actual.mean):
            return sentence, ()
        pairs = zip(actual.mean, factor, strict=True)
        return sentence, tuple(mean * value for mean, value in pairs)
    if any(0 < value < 1 for value in actual.std):
        factors = numbers([1 / value for value in actual.std])
        return (
            f"pixels 0..255 are multiplied by {factors}; std stands where its reciprocal is due, "
            "or in units of 0..1"
        ), ()
    return _wrong_order(actual.mean, color)


def _wrong_order(mean: Values, color: str) -> tuple[str, Values]:
    for item in known():
        right: Values = tuple(item["mean"])
        if len(set(right)) == 1 or len(mean) != len(right):
            continue
        if _within(mean, right, SAME_MEAN_RATIO):
            return "", ()  # also for BGR: some models were trained so
        if _within(mean, tuple(reversed(right)), SAME_MEAN_RATIO):
            if color != "RGB":
                return "", ()
            return (
                f"the mean {numbers(mean)} is in BGR order, but the channels are RGB"
            ), right
        for order in itertools.permutations(right):
            if _within(mean, order, SAME_MEAN_RATIO):
                return (
                    f"the mean {numbers(mean)} is {item['name']} in an order that is neither RGB "
                    "nor BGR"
                ), right
    return "", ()


def numbers(values: Sequence[float]) -> str:
    """Values as a configuration would write them."""
    return " ".join(f"{value:.7g}" for value in values)


def as_preprocess(
    model: ModelFacts, actual: Normalization, color: str
) -> Preprocess | None:
    """The model's preprocessing with the arithmetic of a configuration, to measure its cost."""
    if model.preprocess is None or len(actual.mean) not in (1, 3):
        return None
    mean = [value / LEVELS for value in _for_channels(actual.mean, 3)]
    std = [value / LEVELS for value in _for_channels(actual.std, 3)]
    changes = {"mean": mean, "std": std, **({"color": color} if color else {})}
    try:
        return Preprocess.from_mapping({**model.preprocess.document(), **changes})
    except InputError:
        return None  # beyond what any image could be measured with
