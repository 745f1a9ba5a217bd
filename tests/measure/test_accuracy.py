"""Accuracy of a real ONNX model whose outputs are known: gray value g gives row g of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure import accuracy, class_mapping, stats

PLAIN = Preprocess(
    size=2, resize="squash", crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)


def lookup_artifact(
    logits: Sequence[Sequence[float]],
    labels: tuple[str, ...] = (),
    preprocess: Preprocess = PLAIN,
) -> Artifact:
    """A classifier that gives an image of gray value g the logits `answers[g]`."""
    table = np.array(logits, np.float32)
    body = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 2, 2] data) => (float[N, CLASSES] output)
        {
            mean = ReduceMean <axes = [1, 2, 3], keepdims = 0> (data)
            scaled = Mul (mean, full)
            rounded = Round (scaled)
            index = Cast <to = 7> (rounded)
            output = Gather <axis = 0> (table, index)
        }"""
    model = onnx.parser.parse_model(body.replace("CLASSES", str(table.shape[1])))
    tensors = {"table": table, "full": np.array(255, np.float32)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()
    )
    onnx.checker.check_model(model)
    return Artifact(model, "lookup", preprocess, labels)


def gray_images(
    targets: Sequence[int],
    classes: tuple[str, ...],
    ordered: bool = False,
    broken: frozenset[int] = frozenset(),
) -> Dataset:
    """Image i has gray value i and class `targets[i]`."""

    def load(key: str) -> Image.Image:
        if int(key) in broken:
            raise UnreadableImage(f"{key} is broken")
        return Image.new("RGB", (2, 2), (int(key),) * 3)

    return Dataset(
        "grays",
        classes,
        tuple(str(i) for i in range(len(targets))),
        tuple(targets),
        load,
        ordered,
    )


def predictions(
    artifacts: Sequence[Artifact], dataset: Dataset
) -> list[accuracy.ModelPredictions]:
    runner = engine("onnxruntime")
    return accuracy.evaluate(
        [accuracy.open_run(artifact, runner, 1) for artifact in artifacts],
        dataset,
        ReadReport(),
    )


def one_hot(winners: Sequence[int], classes: int) -> list[list[float]]:
    return [[float(index == winner) for index in range(classes)] for winner in winners]


def test_top1_and_top5_of_known_logits() -> None:
    names = tuple("abcdefg")
    falling = [7.0, 6, 5, 4, 3, 2, 1]  # class 0 is best, 4 is fifth, 5 is sixth
    targets = [0, 4, 5, 6]
    record = predictions(
        [lookup_artifact([falling] * 4, names)], gray_images(targets, names)
    )[0].record()
    interval = stats.wilson(1, 4)
    assert record.values.n == 4
    assert (record.values.top1, record.values.top5) == (25.0, 50.0)
    assert (record.values.top1_low, record.values.top1_high) == (
        100 * interval.low,
        100 * interval.high,
    )
    assert record.data["unreadable"] == 0
    assert record.engine["name"] == "onnxruntime"


def test_ties_go_to_the_lower_class() -> None:
    names = ("a", "b", "c")
    result = predictions(
        [lookup_artifact([[1, 1, 1], [0, 2, 2]], names)], gray_images([0, 1], names)
    )[0]
    assert result.top[:, 0].tolist() == [0, 1]


def test_with_fewer_than_five_classes_top5_is_100_percent() -> None:
    names = ("a", "b", "c")
    result = predictions(
        [lookup_artifact(one_hot([0, 0, 0], 3), names)], gray_images([0, 1, 2], names)
    )[0]
    assert result.top.shape == (3, 3)
    assert result.record().values.top5 == 100


def test_predictions_keep_the_order_of_the_images() -> None:
    count = 2 * accuracy.BATCH + 5
    names = tuple("abcdefghij")
    winners = [(3 * i) % 10 for i in range(count)]
    result = predictions(
        [lookup_artifact(one_hot(winners, 10), names)], gray_images([0] * count, names)
    )[0]
    assert result.top[:, 0].tolist() == winners
    assert result.keys == tuple(map(str, range(count)))


def test_a_run_can_be_evaluated_twice() -> None:
    names = ("a", "b")
    run = accuracy.open_run(
        lookup_artifact(one_hot([0, 1], 2), names), engine("onnxruntime"), 1
    )
    first, second = (
        accuracy.evaluate([run], gray_images([0, 1], names), ReadReport())[0]
        for _ in range(2)
    )
    assert second.top.tolist() == first.top.tolist()


def test_an_unreadable_image_is_left_out_and_shifts_no_other() -> None:
    names, count = ("a", "b"), 200
    targets = [i % 2 for i in range(count)]
    dataset = gray_images(targets, names, broken=frozenset({3}))
    result = predictions([lookup_artifact(one_hot(targets, 2), names)], dataset)[0]
    assert result.record().values.top1 == 100
    assert result.data["unreadable"] == 1
    assert "3" not in result.keys
    assert (
        result.data["sha256"]
        != predictions(
            [lookup_artifact(one_hot(targets, 2), names)], gray_images(targets, names)
        )[0].data["sha256"]
    )


def test_logits_are_kept_on_request_in_the_order_of_the_images(tmp_path: Path) -> None:
    names, count = tuple("abcdefghij"), 20 * accuracy.BATCH + 5
    draws = np.random.default_rng(0).normal(size=(2, count, 10)).round(3).tolist()
    runs = [
        accuracy.open_run(lookup_artifact(table, names), engine("onnxruntime"), 1)
        for table in draws
    ]
    dataset = gray_images([0] * count, names, broken=frozenset({3}))
    assert accuracy.evaluate(runs, dataset, ReadReport())[0].logits is None
    for result, logits in zip(
        accuracy.evaluate(runs, dataset, ReadReport(), logits=True), draws, strict=True
    ):
        assert result.logits is not None
        np.testing.assert_allclose(
            result.logits, np.delete(np.array(logits), 3, axis=0), rtol=1e-6
        )
    with pytest.raises(ValueError, match="without a journal"):
        accuracy.evaluate(
            runs, dataset, ReadReport(), journal=tmp_path / "run.jsonl", logits=True
        )


def test_too_many_unreadable_images_are_refused() -> None:
    dataset = gray_images([0, 1] * 10, ("a", "b"), broken=frozenset({3}))
    with pytest.raises(InputError, match="1 of 20 images of grays cannot be read"):
        predictions([lookup_artifact(one_hot([0, 1] * 10, 2), ("a", "b"))], dataset)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        predictions(
            [lookup_artifact([[0, float("nan")], [1, 0]], ("a", "b"))],
            gray_images([0, 1], ("a", "b")),
        )


def test_models_with_different_preprocessing_are_not_compared() -> None:
    names = ("a", "b")
    first = lookup_artifact(one_hot([0, 1], 2), names)
    second = lookup_artifact(
        one_hot([0, 1], 2),
        names,
        Preprocess(size=2, resize="squash", crop_fraction=1.0),
    )
    with pytest.raises(InputError, match="prepare their images differently"):
        predictions([first, second], gray_images([0, 1], names))


def indices(
    classes: tuple[str, ...],
    labels: tuple[str, ...],
    outputs: int,
    ordered: bool = False,
) -> list[int]:
    return accuracy.class_indices(
        gray_images([0], classes, ordered),
        lookup_artifact(one_hot([0], outputs), labels),
    )


def test_classes_match_by_name_and_may_be_a_subset() -> None:
    assert indices(("cat", "dog"), ("dog", "emu", "cat"), 3) == [2, 0]


def test_classes_match_by_position_only_when_no_name_contradicts() -> None:
    assert indices(("x", "y"), (), 2) == [0, 1]
    assert indices(("x", "y"), ("dog", "cat"), 2, ordered=True) == [0, 1]
    with pytest.raises(InputError, match=r"'x'.*'dog'"):
        indices(("x", "y"), ("dog", "cat"), 2)


def test_names_take_precedence_over_position() -> None:
    assert indices(("cat", "dog"), ("dog", "cat"), 2, ordered=True) == [1, 0]


def test_a_class_that_the_model_lacks_is_named_with_advice() -> None:
    with pytest.raises(
        InputError, match=r"\(2, such as 'emu'\).*\(3, such as 'dog'\).*classes.tsv"
    ):
        indices(("dog", "emu"), ("dog", "cat", "owl"), 3)


def test_labels_match_as_people_read_them() -> None:
    assert indices(("Hot_Dog", "CAT"), ("cat", "owl", "hot dog"), 3) == [2, 0]
    with pytest.raises(InputError, match="'CAT'"):
        indices(("owl", "CAT"), ("cat", "Cat", "owl"), 3)


def test_numbers_of_outputs_may_lack_some() -> None:
    assert indices(("1", "7"), (), 10) == [1, 7]
    assert indices(("1", "7"), (), 2) == [0, 1]
    with pytest.raises(
        InputError, match=r"2 classes, but .* tells 5 apart and has no labels"
    ):
        indices(("1", "7"), (), 5)


def test_numbered_folders_in_doubt_are_named() -> None:
    names = tuple(map(str, range(1, 12)))
    unlabeled = lookup_artifact(one_hot([0], 11))
    (remark,) = class_mapping.order_remarks(gray_images([0], names), unlabeled)
    assert "classes.tsv" in remark
    assert not class_mapping.order_remarks(gray_images([0], names, True), unlabeled)
    assert not class_mapping.order_remarks(
        gray_images([0], names), lookup_artifact(one_hot([0], 11), names)
    )
    assert not class_mapping.order_remarks(gray_images([0], names[:9]), unlabeled)


def test_a_repeated_label_is_refused_only_if_the_data_uses_it() -> None:
    labels = ("crane", "owl", "crane", "emu")
    assert indices(("emu", "owl"), labels, 4) == [3, 1]
    with pytest.raises(InputError, match="two classes called 'crane'"):
        indices(("crane", "owl"), labels, 4)


def test_imagenet_labels_match_by_wordnet_id() -> None:
    labels = (
        "n01440764 tench, Tinca tinca",
        "n02012849 crane",
        "n03126707 crane",
        "n0144076 short",
        "n014407641 long",
    )
    assert indices(("n03126707", "n01440764"), labels, 5) == [2, 0]
    assert indices(("n02012849 crane", "n01440764"), labels, 5) == [1, 0]
    for stranger in ("crane", "n0144076", "n014407641", "tench"):
        with pytest.raises(InputError, match=repr(stranger)):
            indices(("n01440764", stranger), labels, 5)


def test_bare_wordnet_ids_are_ordinary_labels() -> None:
    assert indices(("n03126707", "n01440764"), ("n01440764", "n03126707"), 2) == [1, 0]


def test_compare_counts_and_lists_the_flips() -> None:
    names = tuple("abc")
    targets = [0, 0, 1, 1, 2, 2]
    before = lookup_artifact(one_hot([0, 0, 1, 1, 0, 1], 3), names)  # 4 right
    after = lookup_artifact(
        one_hot([0, 1, 1, 2, 2, 1], 3), names
    )  # 3 right: lost images 1 and 3, gained image 4
    first, second = predictions([before, after], gray_images(targets, names))
    record = accuracy.compare(first, second)
    interval = stats.paired_difference(2, 2, 1, 1)
    assert record.values.drop == pytest.approx(100 / 6)
    assert (record.values.drop_low, record.values.drop_high) == pytest.approx(
        (100 * interval.low, 100 * interval.high)
    )
    assert record.values.p_value == stats.mcnemar(2, 1)
    assert record.values.same_prediction == pytest.approx(50)
    assert (record.values.lost, record.values.gained) == (2, 1)
    assert [tuple(flip.values()) for flip in record.samples["flips"]] == [
        ("1", 0, 0, 1, "a", "a", "b"),
        ("3", 1, 1, 2, "b", "b", "c"),
        ("4", 2, 0, 2, "c", "a", "c"),
    ]
    assert list(record.samples["flips"][0])[:4] == ["key", "target", "first", "second"]
    assert accuracy.compare(second, first).values.drop == -record.values.drop


def test_a_flip_between_two_wrong_classes_is_listed_and_is_no_drop() -> None:
    names = tuple("abc")
    first, second = predictions(
        [
            lookup_artifact(one_hot([1], 3), names),
            lookup_artifact(one_hot([2], 3), names),
        ],
        gray_images([0], names),
    )
    record = accuracy.compare(first, second)
    assert record.values.drop == 0
    assert len(record.samples["flips"]) == 1


def test_classes_are_listed_worst_first_with_their_commonest_mistake() -> None:
    names = tuple("abc")
    rows = predictions(
        [lookup_artifact(one_hot([0, 0, 2, 2, 1, 2, 2], 3), names)],
        gray_images([0, 0, 1, 1, 1, 2, 2], names),
    )[0].by_class()
    assert [
        (row["class"], row["index"], row["n"], row["taken_for"]) for row in rows
    ] == [
        ("b", 1, 3, "c"),
        ("a", 0, 2, None),
        ("c", 2, 2, None),
    ]
    interval = stats.wilson(1, 3)
    assert (
        rows[0]["top1"],
        rows[0]["top1_low"],
        rows[0]["top1_high"],
    ) == pytest.approx((100 / 3, 100 * interval.low, 100 * interval.high))


def test_the_folders_name_the_classes_of_a_model_without_labels() -> None:
    result = predictions(
        [lookup_artifact(one_hot([1, 1], 2))], gray_images([0, 1], ("x", "y"))
    )[0]
    assert [(row["class"], row["taken_for"]) for row in result.by_class()] == [
        ("x", "y"),
        ("y", None),
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_size_gives_the_same_predictions(batch: int) -> None:
    names, winners = tuple("abc"), [(2 * i) % 3 for i in range(11)]
    fixed = lookup_artifact(one_hot(winners, 3), names)
    fixed.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    fixed.model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    result = predictions([fixed], gray_images([0] * 11, names))[0]
    assert result.top[:, 0].tolist() == winners


def test_a_size_that_contradicts_the_model_is_refused_before_reading_images() -> None:
    large = replace(
        lookup_artifact(one_hot([0], 2), ("a", "b")), preprocess=replace(PLAIN, size=4)
    )
    with pytest.raises(
        InputError,
        match=r"takes images of 2x2 pixels .* but its preprocessing makes 4x4; give --size 2",
    ):
        predictions([large], gray_images([0], ("a", "b"), broken=frozenset({0})))


def test_more_labels_than_outputs_are_refused() -> None:
    liar = lookup_artifact(one_hot([0, 1], 2), ("a", "b", "c"))
    del liar.model.graph.output[0].type.tensor_type.shape.dim[1:]
    liar.model.graph.output[0].type.tensor_type.shape.dim.add()
    with pytest.raises(
        InputError,
        match=r"shape \(2, 2\) for 2 images, but the data's labels reach to output 2",
    ):
        predictions([liar], gray_images([0, 2], ("a", "b", "c")))


def test_compare_refuses_different_images_and_class_orders() -> None:
    names = ("a", "b")
    long = predictions(
        [lookup_artifact(one_hot([0, 1], 2), names)], gray_images([0, 1], names)
    )[0]
    short = predictions(
        [lookup_artifact(one_hot([0], 2), names)], gray_images([0], names)
    )[0]
    with pytest.raises(InputError, match="different images"):
        accuracy.compare(long, short)
    reordered = lookup_artifact(one_hot([1, 0], 2), ("b", "a"))
    first, second = predictions(
        [lookup_artifact(one_hot([0, 1], 2), names), reordered],
        gray_images([0, 1], names),
    )
    assert first.record().values.top1 == second.record().values.top1 == 100
    with pytest.raises(InputError, match="different orders"):
        accuracy.compare(first, second)


def test_a_model_without_preprocessing_is_refused_with_the_options_to_give() -> None:
    bare = replace(lookup_artifact([[0, 1]], ("a", "b")), preprocess=None)
    with pytest.raises(InputError, match="--size"):
        predictions([bare], gray_images([0], ("a", "b")))
