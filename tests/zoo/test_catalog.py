"""The catalog against the papers' architecture tables, and against every figure it quotes.

No torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from repzoo.artifact import Preprocess
from repzoo.errors import InputError, MissingExtra, RepzooError
from repzoo.zoo import catalog
from repzoo.zoo.catalog import Figure, ModelSpec

SEEDS = Path(__file__).resolve().parents[2].parent / "shared" / "seeds"
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


@pytest.fixture(scope="module")
def seeds() -> dict[str, str]:
    if not SEEDS.is_dir():
        pytest.skip(
            "the source documents are not beside this checkout (../shared/seeds)"
        )
    texts = [path.read_text(encoding="utf-8") for path in SEEDS.glob("*.txt")]
    return {title(text): text for text in texts}


def title(text: str) -> str:
    heading = re.search(r"^#+ ([^:\n]+)", text, re.MULTILINE)
    return heading[1] if heading else ""


def rows_of(text: str) -> list[list[str]]:
    """Table rows that hold a number in their last two cells."""
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows if re.search(r"\d", row[-1] + row[1])]


def published_figure(name: str, source: str) -> Figure:
    (figure,) = (
        item
        for item in catalog.spec(name).figures
        if item.source == source and not item.setting
    )
    return figure


@pytest.mark.parametrize(
    ("family", "count"), [("RepGhost", 5), ("RepViT", 3), ("FasterNet", 4)]
)
def test_the_boards_tables_are_complete(
    seeds: dict[str, str], family: str, count: int
) -> None:
    text, source = seeds[f"CNN - {family}"], f"rdk_{family.lower()}"
    rows = rows_of(text)
    assert len(rows) == count
    for model, size, *numbers in rows:
        figure = published_figure(
            model.lower().replace("repghost", "repghostnet"), source
        )
        printed = (
            figure.classes,
            figure.parameters.removesuffix("M"),
            figure.top1,
            figure.int8_top1,
        )
        speed = (figure.latency_1thread_ms, figure.latency_multithread_ms, figure.fps)
        assert size == f"{figure.size}x{figure.size}"
        assert [str(item) for item in printed + speed] == numbers
    links = set(re.findall(r"https://\S+\.bin", text))
    assert links == {
        link
        for row in catalog.models()
        for item in row.figures
        if item.source == source
        for link in item.files
    }


def test_repghosts_own_table_is_complete(seeds: dict[str, str]) -> None:
    rows = rows_of(seeds["RepGhost"])
    assert len(rows) == 8
    for width, parameters, flops, latency, top1, top5, checkpoint, log in rows:
        figure = published_figure(
            f"repghostnet_{round(float(width[:-1]) * 100):03d}", "repghost_official"
        )
        assert [
            str(item) for item in (figure.latency_ms, figure.top1, figure.top5)
        ] == [
            latency,
            top1,
            top5,
        ]
        assert (figure.parameters, figure.flops) == (f"{parameters}M", f"{flops}M")
        assert f"({figure.files[0]})" in checkpoint
        assert figure.files[1].endswith(log.split("./")[1].rstrip(")"))


def test_vastais_table_is_complete(seeds: dict[str, str]) -> None:
    rows = [row for row in rows_of(seeds["RepVGG"]) if row[0].startswith("RepVGG-")]
    assert len(rows) == 11
    for model, _, top1, top5, flops, parameters, size in rows:
        figure = published_figure(model.lower().replace("-", "_"), "vastai")
        assert [str(item) for item in (figure.top1, figure.top5, figure.size)] == [
            top1,
            top5,
            size,
        ]
        assert (figure.flops, figure.parameters) == (f"{flops}G", f"{parameters}M")


def test_vastais_measured_accuracies_are_there(seeds: dict[str, str]) -> None:
    (card,) = (
        item for item in catalog.spec("repvgg_a0").figures if item.fp16_top1 is not None
    )
    measured = [
        str(item)
        for item in (card.fp16_top1, card.fp16_top5, card.int8_top1, card.int8_top5)
    ]
    assert re.findall(r"top\d_rate: ([\d.]+)", seeds["RepVGG"]) == measured
    conditions = " ".join(catalog.sources()["vastai"].conditions)
    for fact in re.findall(r"commit: (\w+)", seeds["RepVGG"]) + re.findall(
        r"tag: (v[\d.]+)", seeds["RepVGG"]
    ):
        assert fact in conditions


# Looking up, and strictness.


def test_models_takes_a_glob_and_keeps_the_order() -> None:
    assert [row.name for row in catalog.models("repvgg_a*")] == [
        "repvgg_a0",
        "repvgg_a1",
        "repvgg_a2",
    ]
    assert catalog.models("resnet*") == []


def test_an_unknown_model_names_its_neighbors() -> None:
    with pytest.raises(
        InputError,
        match=r"no model is called 'repghostnet_50'; did you mean .*repghostnet_050",
    ):
        catalog.spec("repghostnet_50")


def test_preprocessing_is_the_authors() -> None:
    assert catalog.spec("repvgg_a0").preprocess == Preprocess()
    assert catalog.spec("repvgg_d2se").preprocess == Preprocess(
        size=320, crop_fraction=1.0
    )
    assert catalog.spec("repvit_m0_9").preprocess == Preprocess(interpolation="bicubic")
    assert catalog.spec("fasternet_t0").preprocess.resize_to == 248


def test_a_row_becomes_json_without_empty_fields() -> None:
    document = json.loads(json.dumps(catalog.spec("repvgg_a0").document()))
    assert document["parameters_deploy"] == 8309384
    assert document["figures"][1]["int8_top1"] == 0.602
    assert set(document["figures"][0]) == {
        "source",
        "size",
        "parameters",
        "flops",
        "top1",
        "top5",
    }


def test_checkpoints_belong_to_variants() -> None:
    rows = {row.name: row for row in catalog.checkpoints()}
    assert [name for name, row in rows.items() if row.file] == [
        "repghostnet_050.digits",
        "repghostnet_050.clothing",
    ]
    assert rows["repghostnet_050.digits"].file == "repghostnet_050.digits.onnx.xz"
    assert all(
        row.command == f"make reference MODELS={row.variant}"
        for name, row in rows.items()
        if name.endswith(".clothing")
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.34G", "3.4E+8"),
        ("8.30M", "8.30E+6"),
        ("8309384", "8309384"),
        ("43M", "43E+6"),
    ],
)
def test_a_printed_count_keeps_its_precision(text: str, value: str) -> None:
    assert catalog.as_number(text).as_tuple() == Decimal(value).as_tuple()


@pytest.mark.parametrize("text", ["", "M", "1.2.3M", "5T", "-3M", "1 M", "2MG"])
def test_what_is_not_a_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a count"):
        catalog.as_number(text)


VALID = """
[sources.paper]
title = "t"
url = "u"
parameters = "deploy"
[families.f]
paper = "p"
repository = "r"
preprocess = { size = 64 }
[[model]]
name = "m"
family = "f"
title = "M"
parameters_train = 2
parameters_deploy = 1
macs = 1
macs_train = 2
figures = [{ source = "paper", top1 = 70.10, parameters = "1" }]
[[checkpoint]]
name = "m.tag"
variant = "m"
file = ""
classes = 10
labels = "l"
size = 64
command = "c"
"""


def test_a_small_catalog_is_read() -> None:
    row = catalog.parse(VALID).models["m"]
    assert str(row.figures[0].top1) == "70.10"
    assert row.preprocess == Preprocess(size=64)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'title = "M"',
            'titel = "M"',
            "no key of m is called 'titel'; did you mean title",
        ),
        ("top1 = 70.10", "top3 = 70.10", "no key of a figure of m is called 'top3'"),
        ("{ size = 64 }", "{ sise = 64 }", "unknown preprocess field 'sise'"),
        (
            "[families.f]",
            "[families.f]\nlicense = 1",
            "no key of family f is called 'license'",
        ),
        (
            "[[checkpoint]]",
            "[[checkpoints]]",
            "no key of the catalog is called 'checkpoints'",
        ),
        ('url = "u"', "", "source paper is not complete"),
        ("macs = 1", 'macs = "1"', "macs of m must be of type"),
        ("macs = 1", "macs = true", "macs of m must be of type"),
        ("top1 = 70.10", "top1 = true", "top1 of a figure of m must be of type"),
        (
            'source = "paper"',
            'source = "papr"',
            "no source .in m. is called 'papr'; did you mean paper",
        ),
        (
            "top1 = 70.10",
            'top1 = 70.10, wrong = ["top5"]',
            "calls 'top5' wrong but does not give it",
        ),
        (
            'parameters = "deploy"',
            'parameters = "all"',
            "parameters of source paper must be one of",
        ),
        ('name = "m.tag"', 'name = "n.tag"', "must be called m.<tag>"),
        ('variant = "m"', 'variant = "n"', "variant of m.tag must be one of 'm'"),
        (
            '[[checkpoint]]\nname = "m.tag"',
            '[[model]]\nname = "m"',
            "no key of m is called",
        ),
        ("[[model]]", "[[model", "the catalog is not TOML"),
    ],
)
def test_a_damaged_catalog_is_refused(old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(RepzooError, match=message):
        catalog.parse(VALID.replace(old, new, 1))


def test_two_rows_of_one_name_are_refused() -> None:
    model = VALID[VALID.index("[[model]]") : VALID.index("[[checkpoint]]")]
    with pytest.raises(RepzooError, match="two rows called 'm'"):
        catalog.parse(VALID + model)


def test_families_without_timm_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "repzoo.zoo.families", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'repzoo\[torch\]'"):
        importlib.import_module("repzoo.zoo.families")
