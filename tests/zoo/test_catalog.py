"""The catalog against the papers' architecture tables, and against every figure it quotes.

No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from repzoo.zoo import catalog
from repzoo.zoo.catalog import Figure, ModelSpec

NAMES = [row.name for row in catalog.models()]


# The deploy forms by arithmetic, from the papers' tables; nothing here knows timm.


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the deploy form; `side` of its square output, 1 after
    the pool.
    """

    kernel: int
    inputs: int
    outputs: int
    side: int
    groups: int = 1
    bias: bool = True
    merged: bool = False  # holds an identity branch of the training form

    @property
    def weights(self) -> int:
        return self.kernel**2 * (self.inputs // self.groups) * self.outputs

    @property
    def parameters(self) -> int:
        return self.weights + self.bias * self.outputs

    @property
    def macs(self) -> int:
        return self.weights * self.side**2

    @property
    def elements(self) -> int:
        return self.outputs * self.side**2


def nearest_multiple(value: float, by: int) -> int:
    return max(by, int(value + by / 2) // by * by)


def divisible(value: float, by: int) -> int:
    """MobileNet's rule: the nearest multiple, never more than 10 % below."""
    nearest = nearest_multiple(value, by)
    return nearest + by if nearest < 0.9 * value else nearest


def squeeze(channels: int, hidden: int) -> list[Layer]:
    return [Layer(1, channels, hidden, 1), Layer(1, hidden, channels, 1)]


REPVGG_DEPTHS = {"a": (2, 4, 14, 1), "b": (4, 6, 16, 1), "d": (8, 14, 24, 1)}
REPVGG_WIDTHS = {
    "a0": (0.75, 2.5), "a1": (1, 2.5), "a2": (1.5, 2.75),
    "b0": (1, 2.5), "b1": (2, 4), "b2": (2.5, 5), "b3": (3, 5), "d2": (2.5, 5),
}  # fmt: skip


def repvgg(variant: str, size: int) -> Iterator[Layer]:
    a, b = REPVGG_WIDTHS[variant[:2]]
    groups = int(variant[3:]) if "g" in variant else 1
    blocks = [(min(64, int(64 * a)), size // 2, 1)]
    for stage, (depth, base) in enumerate(
        zip(REPVGG_DEPTHS[variant[0]], (64, 128, 256, 512), strict=True), 2
    ):
        width = int(base * (b if stage == 5 else a))
        blocks += [
            (width, size // 2**stage, groups if index % 2 else 1)
            for index in range(depth)
        ]
    channels = 3
    for width, side, grouped in blocks:
        yield Layer(3, channels, width, side, grouped)
        yield from squeeze(width, width // 16) if "se" in variant else ()
        channels = width
    yield Layer(1, channels, 1000, 1)


def repvggplus(variant: str, size: int) -> Iterator[Layer]:
    """D2 with a wider SE after each block."""
    assert variant == "l2pse"
    *blocks, last = repvgg("d2", size)
    for block in blocks:
        yield from (block, *squeeze(block.outputs, block.outputs // 4))
    yield last


REPGHOST_BLOCKS = (  # kernel, expansion, output, squeeze, stride
    *(
        (3, 8, 16, 0, 1),
        (3, 24, 24, 0, 2),
        (3, 36, 24, 0, 1),
        (5, 36, 40, 1, 2),
        (5, 60, 40, 1, 1),
        (3, 120, 80, 0, 2),
    ),
    *(
        (3, 100, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 240, 112, 1, 1),
        (3, 336, 112, 1, 1),
        (5, 336, 160, 1, 2),
    ),
    *(
        (5, 480, 160, 0, 1),
        (5, 480, 160, 1, 1),
        (5, 480, 160, 0, 1),
        (5, 480, 160, 1, 1),
    ),
)


def repghost_module(inputs: int, outputs: int, side: int) -> list[Layer]:
    return [
        Layer(1, inputs, outputs, side),
        Layer(3, outputs, outputs, side, outputs, merged=True),
    ]


def repghostnet(variant: str, size: int) -> Iterator[Layer]:
    width = int(variant[:3]) / 100
    channels, side = divisible(16 * width, 4), size // 2
    yield Layer(3, 3, channels, side)
    for kernel, expansion, output, squeezed, stride in REPGHOST_BLOCKS:
        middle, outputs, after = (
            divisible(expansion * width, 4),
            divisible(output * width, 4),
            side // stride,
        )
        yield from repghost_module(channels, middle, side)
        if stride == 2:
            yield Layer(kernel, middle, middle, after, middle)
        yield from squeeze(middle, divisible(middle / 4, 4)) if squeezed else ()
        yield from repghost_module(middle, outputs, after)
        if stride == 2 or channels != outputs:
            yield from (
                Layer(kernel, channels, channels, after, channels),
                Layer(1, channels, outputs, after),
            )
        channels, side = outputs, after
    last = divisible(480 * width * 2, 4)
    yield from (
        Layer(1, channels, last, side),
        Layer(1, last, 1280, 1),
        Layer(1, 1280, 1000, 1),
    )


# width of the first stage, blocks of each stage (the one before a downsampling included)
REPVIT = {
    "m0_6": (40, (2, 2, 9, 1)), "m0_9": (48, (3, 3, 15, 2)), "m1_0": (56, (3, 3, 15, 2)),
    "m1_1": (64, (3, 3, 13, 2)), "m1_5": (64, (5, 5, 25, 4)), "m2_3": (80, (7, 7, 35, 2)),
    "m1": (48, (3, 3, 15, 2)), "m2": (64, (3, 3, 13, 2)), "m3": (64, (5, 5, 19, 2)),
}  # fmt: skip


def repvit_mlp(width: int, side: int) -> list[Layer]:
    return [Layer(1, width, 2 * width, side), Layer(1, 2 * width, width, side)]


def repvit(variant: str, size: int) -> Iterator[Layer]:
    width, depths = REPVIT[variant]
    side = size // 4
    yield from (Layer(3, 3, width // 2, size // 2), Layer(3, width // 2, width, side))
    for stage, depth in enumerate(depths):
        if stage:
            side //= 2
            yield from (
                Layer(3, width, width, side, width),
                Layer(1, width, 2 * width, side),
                *repvit_mlp(2 * width, side),
            )
            width *= 2
        for index in range(depth):
            last = index == depth - 1 and stage < 3
            yield Layer(3, width, width, side, width)
            yield from (
                ()
                if index % 2 or last
                else squeeze(width, nearest_multiple(width / 4, 8))
            )
            yield from repvit_mlp(width, side)
    yield Layer(1, width, 1000, 1)


FASTERNET = {"t0": 40, "t1": 64, "t2": 96, "s": 128, "m": 144, "l": 192}
FASTERNET_DEPTHS = {
    "t": (1, 2, 8, 2),
    "s": (1, 2, 13, 2),
    "m": (3, 4, 18, 3),
    "l": (3, 4, 18, 3),
}


def fasternet(variant: str, size: int) -> Iterator[Layer]:
    width, side = FASTERNET[variant], size // 4
    yield Layer(4, 3, width, side)
    for stage, depth in enumerate(FASTERNET_DEPTHS[variant[0]]):
        if stage:
            width, side = 2 * width, side // 2
            yield Layer(2, width // 2, width, side)
        for _ in range(depth):
            yield Layer(3, width // 4, width // 4, side, bias=False)
            yield from (
                Layer(1, width, 2 * width, side),
                Layer(1, 2 * width, width, side, bias=False),
            )
    yield from (Layer(1, width, 1280, 1, bias=False), Layer(1, 1280, 1000, 1))


FAMILIES = {
    "repvgg": repvgg,
    "repvggplus": repvggplus,
    "repghostnet": repghostnet,
    "repvit": repvit,
    "fasternet": fasternet,
}


def layers(name: str, size: int) -> list[Layer]:
    family, _, variant = name.partition("_")
    return list(FAMILIES[family](variant, size))


def parameter_count(row: ModelSpec, convention: str) -> int:
    parts = layers(row.name, row.preprocess.height)
    deploy = sum(part.parameters for part in parts)
    kept = 4 * sum(part.outputs for part in parts if part.merged)
    return {"train": row.parameters_train, "deploy": deploy, "onnx": deploy + kept}[
        convention
    ]


def flop_count(row: ModelSpec, size: int, convention: str) -> int:
    parts = layers(row.name, size)
    macs, maps = (
        sum(part.macs for part in parts),
        [part for part in parts if part.side > 1],
    )
    squeezed = sum(part.elements for part in maps) if len(parts) > len(maps) + 1 else 0
    body = macs - parts[-1].macs + maps[-1].elements
    rectified = 2 * sum(part.elements for part in maps)
    return {
        "macs": macs,
        "ops": 2 * macs,
        "mmpretrain": body + squeezed,
        "mmcls": body + rectified,
    }[convention]


def agrees(exact: int, printed: str, rounding: str) -> bool:
    """Whether `exact`, cut to the digits that are printed, is what is printed."""
    value = catalog.as_number(printed)
    modes = {
        "nearest": (ROUND_HALF_UP,),
        "down": (ROUND_DOWN,),
        "either": (ROUND_HALF_UP, ROUND_DOWN),
    }[rounding]
    return any(Decimal(exact).quantize(value, mode) == value for mode in modes)


def refuted_figures(row: ModelSpec, figure: Figure) -> set[str]:
    source, size = (
        catalog.sources()[figure.source],
        figure.size or row.preprocess.height,
    )
    problems = set()
    if figure.parameters and not agrees(
        parameter_count(row, source.parameters), figure.parameters, source.rounding
    ):
        problems.add("parameters")
    if figure.flops and not agrees(
        flop_count(row, size, source.flops), figure.flops, source.rounding
    ):
        problems.add("flops")
    return problems


def test_every_variant_is_listed_family_by_family() -> None:
    grouped = [f"b{width}{groups}" for width in "123" for groups in ("", "g2", "g4")]
    repvgg_names = [
        f"repvgg_{name}" for name in ("a0", "a1", "a2", "b0", *grouped, "d2se")
    ]
    widths = (
        "050",
        "050_repid",
        "050_norep",
        "050_wo",
        "058",
        "080",
        "100",
        "111",
        "130",
        "150",
        "200",
    )
    others = [f"repvit_{name}" for name in REPVIT] + [
        f"fasternet_{name}" for name in FASTERNET
    ]
    assert [*repvgg_names, "repvggplus_l2pse"] + [
        f"repghostnet_{name}" for name in widths
    ] + others == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_deploy_counts_follow_from_the_papers_tables(name: str) -> None:
    row = catalog.spec(name)
    parts = layers(name, row.preprocess.height)
    assert row.parameters_deploy == sum(part.parameters for part in parts)
    assert row.macs == sum(part.macs for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_flagged_counts_disagree(name: str) -> None:
    row = catalog.spec(name)
    for figure in row.figures:
        assert refuted_figures(row, figure) == set(figure.wrong) & {
            "parameters",
            "flops",
        }, figure
    if any(figure.wrong for figure in row.figures):
        assert row.notes


def move_digit(printed: str, steps: int) -> str:
    digits = Decimal(printed.rstrip("KMG"))
    return f"{digits + steps * Decimal((0, (1,), int(digits.as_tuple().exponent)))}{printed.lstrip('0123456789.')}"


@pytest.mark.parametrize("steps", [-2, 2])
@pytest.mark.parametrize("field", ["parameters", "flops"])
def test_two_in_the_last_printed_digit_would_be_noticed(field: str, steps: int) -> None:
    counted = [
        (row, item)
        for row in catalog.models()
        for item in row.figures
        if getattr(item, field) and field not in item.wrong
    ]
    changes: list[dict[str, Any]] = [
        {field: move_digit(getattr(item, field), steps)} for _, item in counted
    ]
    changed = [
        (row, dataclasses.replace(item, **change))
        for (row, item), change in zip(counted, changes, strict=True)
    ]
    assert len(changed) > 50
    assert [
        item for row, item in changed if field not in refuted_figures(row, item)
    ] == []


def test_these_published_figures_are_wrong_and_no_others() -> None:
    flagged = {
        (row.name, figure.source, field)
        for row in catalog.models()
        for figure in row.figures
        for field in figure.wrong
    }
    shifted = ("repvgg_a1", "repvgg_a2", "repghostnet_100", "repghostnet_200")
    columns = {
        (name, "hailo8l", field) for name in shifted for field in ("top1", "int8_top1")
    }
    assert columns < flagged
    assert flagged - columns == {
        ("repvgg_b0", "mmpretrain", "parameters"),
        ("repvgg_b0", "mmpretrain", "flops"),
        ("repghostnet_200", "hailo10h", "flops"),
        ("fasternet_s", "fasternet_official", "parameters"),
        ("fasternet_s", "rdk_fasternet", "parameters"),
        ("fasternet_s", "paddle_fasternet", "parameters"),
    }


def test_repghost_counts_batchnorm_although_its_readme_denies_it() -> None:
    row = catalog.spec("repghostnet_150")
    parts = layers(row.name, 224)
    without = sum(part.weights for part in parts) + sum(
        part.outputs for part in parts if part.side == 1
    )
    assert agrees(row.parameters_train, "6.6M", "nearest")
    assert not agrees(without, "6.6M", "either")


def test_mmpretrain_counts_are_reproduced_to_the_last_digit() -> None:
    exact = [
        figure
        for row in catalog.models("repvgg_*")
        for figure in row.figures
        if figure.source == "mmpretrain"
    ]
    assert len(exact) == 12
    assert all(
        figure.flops.isdigit() and figure.parameters.isdigit() for figure in exact
    )


# Every number of the documents that the project starts from.
