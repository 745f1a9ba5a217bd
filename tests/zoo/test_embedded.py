"""Embedded checkpoints: what ships, how it is packed, and what a broken one says."""

from __future__ import annotations

import lzma
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import InputError, RepzooError
from repzoo.training.recipe import recipe
from repzoo.zoo import catalog, embedded


def artifact(values: list[float]) -> Artifact:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 2, 2] data) => (float[N, 3] output)
        { flat = GlobalAveragePool (data) square = Flatten (flat) output = Mul (square, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(values, np.float32), "w")
    )
    return Artifact(model, "tiny", Preprocess(size=2), ("a", "b", "c"))


def test_weights_that_do_not_ship_say_which_command_makes_them() -> None:
    absent = [row for row in catalog.checkpoints() if not row.file]
    assert {row.variant for row in absent} == {
        "repghostnet_100",
        "fasternet_t0",
        "repvit_m0_9",
        "repvgg_a0",
    }
    for row in absent:
        with pytest.raises(
            InputError,
            match=f"of {row.name} do not ship with repzoo; .*make reference MODELS={row.variant}",
        ):
            verbs.load(row.name)


def test_every_reference_model_has_its_recipe() -> None:
    """RepGhost 0.5x is trained as `photos`, RepVGG with the optimizer of `repvgg-sgd`."""
    shared = {
        "name",
        "about",
        "source",
        "per_model",
        "full_size_epochs",
        "distill_weight",
        "temperature",
    }
    for row in (row for row in catalog.checkpoints() if row.name.endswith(".clothing")):
        settings = recipe("reference").for_model(row.variant)
        assert settings.preprocess["size"] == row.size
    ships, photos = (
        vars(entry)
        for entry in (
            recipe("reference").for_model("repghostnet_050"),
            recipe("photos"),
        )
    )
    assert {key: value for key, value in ships.items() if key not in shared} == {
        key: value for key, value in photos.items() if key not in shared
    }
    vgg, sgd = recipe("reference").for_model("repvgg_a0"), recipe("repvgg-sgd")
    assert (vgg.optimizer, vgg.lr, vgg.weight_decay, vgg.batch) == (
        sgd.optimizer,
        sgd.lr,
        sgd.weight_decay,
        sgd.batch,
    )
    models = [
        row.variant for row in catalog.checkpoints() if row.name.endswith(".clothing")
    ]
    taught = {name for name in models if recipe("reference").for_model(name).distill}
    assert taught == {"fasternet_t0", "repvit_m0_9", "repvgg_a0"}
    assert recipe("reference-teacher").finetune


def test_a_packed_artifact_keeps_all_metadata() -> None:
    source = artifact([1 / 3, -2.0, 1e-20])
    restored = Artifact.from_bytes(
        embedded.unpacked(embedded.pack(source), "x"), "tiny"
    )
    assert (restored.labels, restored.preprocess) == (source.labels, source.preprocess)
    assert restored.steps[-1].verb == "embed"
    (weight,) = (
        numpy_helper.to_array(item) for item in restored.model.graph.initializer
    )
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, [1 / 3, -2, 1e-20], rtol=2.0**-11)
    assert weight[0] != np.float32(1 / 3)


normal = st.floats(width=32, min_value=-(2.0**15), max_value=2.0**15).filter(
    lambda x: x == 0 or abs(x) >= 2.0**-14
)


@given(arrays.arrays(np.float32, 9, elements=normal))
def test_rounding_is_that_of_half_precision_where_that_has_normal_numbers(
    values: npt.NDArray[np.float32],
) -> None:
    np.testing.assert_array_equal(
        embedded.rounded(values), values.astype(np.float16).astype(np.float32)
    )


def test_rounding_neither_overflows_nor_underflows() -> None:
    values = np.array([1e30, -7e4, 1e-30, 3e-8, 0], np.float32)
    np.testing.assert_allclose(embedded.rounded(values), values, rtol=2.0**-11)


def test_rounding_again_changes_nothing() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    once = embedded.rounded(values)
    np.testing.assert_array_equal(embedded.rounded(once), once)
    assert len(lzma.compress(once.tobytes())) < 0.6 * len(
        lzma.compress(values.tobytes())
    )


def test_the_size_limit_holds_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = embedded.pack(artifact([1, 2, 3]))
    monkeypatch.setattr(embedded, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 can be embedded"):
        embedded.pack(artifact([1, 2, 3]))
    with pytest.raises(RepzooError, match="unpacks to more than 100 bytes"):
        embedded.unpacked(packed, "tiny.xz")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-20], lambda data: data[:50], lambda data: b"PK" + data[2:]],
)
def test_a_damaged_file_says_to_install_again(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(RepzooError, match=r"tiny\.xz .*install repzoo again"):
        embedded.unpacked(damage(embedded.pack(artifact([1, 2, 3]))), "tiny.xz")


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(InputError, match=r"'nothing'.*repghostnet_050\.digits"):
        embedded.read("nothing")


@pytest.mark.parametrize("name", embedded.names())
def test_what_ships_is_a_training_form_with_everything_in_it(name: str) -> None:
    artifact = embedded.read(name)
    assert artifact.form == "train"
    assert artifact.name == name
    assert artifact.num_classes == len(artifact.labels) > 1
    assert artifact.preprocess is not None
    assert [step.verb for step in artifact.steps] == ["train", "export", "embed"]
    for item in artifact.model.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype == np.float32:
            np.testing.assert_array_equal(embedded.rounded(values), values)


def test_no_shipped_file_is_larger_than_5_mb_and_all_are_in_the_catalog() -> None:
    folder = files("repzoo.zoo") / "weights"
    shipped = {
        item.name: len(item.read_bytes())
        for item in folder.iterdir()
        if item.name.endswith(".xz")
    }
    assert shipped
    assert max(shipped.values()) <= 5_000_000
    assert {f"{name}.onnx.xz" for name in embedded.names()} == set(shipped)
