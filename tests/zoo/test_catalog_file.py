"""The catalog holds all published figures, and a damaged catalog is refused."""

from __future__ import annotations

import importlib
import json
import re
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from repzoo.artifact import Preprocess
from repzoo.errors import InputError, MissingExtra, RepzooError
from repzoo.zoo import catalog
from repzoo.zoo.catalog import Figure

SEEDS = Path(__file__).resolve().parents[2].parent / "shared" / "seeds"


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
