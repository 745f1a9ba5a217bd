"""The quantizer as a whole, on the embedded digits model and a real engine: what passes the gate, what does not, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import sets, small
from tests.sample_results import latency_ratio

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, QuantizationSplit, UnreadableImage
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import GateError, InputError
from repzoo.measure import accuracy, latency
from repzoo.measure.record import Record
from repzoo.quant.baselines import registry as recipes
from repzoo.quant.network import placement as place
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.rewrites.stages import STAGES
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder
from repzoo.quant.search import placement_search as search
from repzoo.quant.search.gate import Budget, QuantReport
from repzoo.quant.search.ladder import Target
from repzoo.zoo import embedded

Run = Callable[..., Any]


@functools.cache
def deploy() -> Artifact:
    return verbs.fold(embedded.read("repghostnet_050.digits"))


def gray() -> QuantizationSplit:
    """Calibration images that say nothing of the images to come: each input is near zero, so the range is."""
    ranges = replace(
        sets().calibration.subset(range(16)),
        load=lambda _: Image.new("RGB", (8, 8), (127, 127, 127)),
        name="gray",
    )
    return replace(sets(), calibration=ranges)


@functools.cache
def linear() -> Artifact:
    """The classifier of the nearest mean: one linear layer, so that no placement can avoid quantizing its input."""
    train, preprocess = open_source("digits").join("train"), small().require_preprocess()
    inputs = np.concatenate(
        [one.inputs for one in batches(train, preprocess, 64, ReadReport())]
    ).reshape(len(train), -1)
    means = np.stack([inputs[np.array(train.targets) == target].mean(0) for target in range(10)])
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 16, 16] data) => (float[N, 10] output)
        { flat = Flatten (data) output = Gemm <transB = 1> (flat, means, lengths) }"""
    model = onnx.parser.parse_model(text)
    tensors = {"means": means, "lengths": -(means**2).sum(1) / 2}
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()
    )
    return replace(small(), model=model, name="linear")


def quantize(
    split: QuantizationSplit,
    budget: Budget,
    name: str = "ort-cpu",
    artifact: Artifact | None = None,
) -> tuple[Artifact, QuantReport]:
    return ladder.quantize(
        artifact or deploy(),
        split,
        Target(engine("onnxruntime"), load_scheme(name), search_seconds=0),
        budget,
    )


def test_a_good_model_passes_and_says_what_was_done() -> None:
    made, report = quantize(sets(), Budget(max_drop=1.0), artifact=deploy())
    assert made.form == "int8"
    assert made.labels == deploy().labels
    assert made.preprocess == deploy().preprocess
    assert [step.verb for step in made.steps][-1] == "quantize"
    assert made.steps[-1].input_sha256 == deploy().sha256
    assert made.steps[-1].settings["placement"] == report.chosen.placement
    assert report.chosen in report.candidates
    assert report.passes
    assert report.chosen.holds
    assert len(report.chosen.layers) >= 1
    assert report.record.values.drop == report.paired.values.drop
    assert report.record.artifact["sha256"] == made.sha256
    counts = {key: report.record.data[key] for key in ("images", "selection_images", "gate_images")}
    assert counts == {"images": 64, "selection_images": 64, "gate_images": 180}
    onnx.checker.check_model(made.model, full_check=True)
    runs = [accuracy.open_run(one, engine("onnxruntime"), 1) for one in (deploy(), made)]
    measured = accuracy.compare(*accuracy.evaluate(runs, sets().gate, ReadReport()))
    assert measured.values.drop == report.record.values.drop  # what is shipped is what was gated


def test_a_model_proven_broken_is_refused_with_the_numbers_and_the_way_out() -> None:
    with pytest.raises(
        GateError,
        match=r"loses \d+\.\d+ points.*180 images.*budget of 0\.3.*from output \(activation side.*--force",
    ):
        quantize(gray(), Budget(), artifact=linear())
    assert quantize(sets(), Budget(), artifact=linear())[1].passes  # the model itself is sound


def seen_by(
    split: QuantizationSplit, monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> list[tuple[str, str]]:
    """(data set, sha256 of the model) of every evaluation of a quantization."""
    seen: list[tuple[str, str]] = []
    evaluate = accuracy.evaluate

    def noted(
        runs: Sequence[accuracy.EvaluationRun], dataset: Dataset, *rest: Any, **named: Any
    ) -> list[accuracy.ModelPredictions]:
        seen.append((dataset.name, runs[-1].artifact.sha256))
        return evaluate(runs, dataset, *rest, **named)

    monkeypatch.setattr(accuracy, "evaluate", noted)
    quantize(split, Budget(force=True), artifact=artifact)
    return seen


def test_the_gates_images_see_one_model_once_and_choose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With ranges of gray images every rung is bad, so all are tried; the gate still sees only the one that was chosen."""
    seen = seen_by(gray(), monkeypatch, linear())
    selection, gate = sets().selection.name, sets().gate.name
    assert [name for name, _ in seen].count(gate) == 1
    assert seen[-1][0] == gate
    tried = [sha for name, sha in seen if name == selection]
    assert (
        len(set(tried)) > 1
    )  # one layer: nothing to open, absorb or split, and perhaps no placement with less in INT8
    assert seen[-1][1] in tried


def test_a_choice_that_the_gate_refuses_is_not_mended_by_the_gate() -> None:
    """The selection images are as gray as those of the ranges, so the first rung holds there; the gate sees what it is worth."""
    blind = replace(gray(), selection=gray().calibration)
    with pytest.raises(GateError, match="above the budget"):
        quantize(blind, Budget(), artifact=linear())
    _, report = quantize(blind, Budget(force=True), artifact=linear())
    assert [rung.stage for rung in report.candidates] == [STAGES[0].name]
    assert report.chosen.holds
    assert not report.passes
    assert (
        report.record.values.culprits[0]["side"] == "activation"
    )  # by the gate's images; by the gray ones it is flawless


def test_fewer_layers_may_save_what_bad_ranges_break(monkeypatch: pytest.MonkeyPatch) -> None:
    every = place.candidates(qdq.prepare_for_qdq(deploy().model))
    monkeypatch.setattr(place.PlacementSpace, "candidates", lambda _: [every[0], every[-1]])
    monkeypatch.setattr(ladder, "ESCAPES", (1,))
    _, report = quantize(gray(), Budget(max_drop=5.0), artifact=deploy())
    assert report.passes
    assert report.chosen.placement.startswith(
        every[-1].name
    )  # by the ranges of gray images everything in INT8 is lost


@pytest.mark.parametrize("artifact", [deploy, linear, small])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_every_rung_is_reached_from_every_placement(
    place: int, artifact: Callable[[], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which placement is the fastest is the machine's to say, so each must do."""
    found = search.find_fastest

    def other(*arguments: Any) -> search.SearchResult:
        every = found(*arguments)
        ranked = [every.best.placement, *every.others]
        best = ranked[min(place, len(ranked) - 1)]
        others = tuple(one for one in ranked if one is not best)
        return replace(every, best=replace(every.best, placement=best), others=others)

    monkeypatch.setattr(search, "fastest", other)
    monkeypatch.setattr(gating, "ENOUGH", 101.0)
    monkeypatch.setattr(gating, "UNCHANGED", 101.0)
    _, report = quantize(gray(), Budget(force=True), artifact=artifact())
    assert len(report.candidates) > (
        2 if artifact is linear else 3
    )  # of one layer there is nothing less to be had than that one


@pytest.mark.parametrize("alike", [0, 2])
def test_what_is_tried_last_reaches_down_to_the_least_in_int8(alike: int) -> None:
    """Whatever the others cost: the fastest of them may all lose as much as the first."""
    places = place.PlacementSpace(qdq.prepare_for_qdq(deploy().model), load_scheme("ort-cpu"))
    first, *others = places.starting_placements()
    sizes = [(places.count(one), len(one.tensors)) for one in (first, *others)]
    assert sizes == sorted(sizes, reverse=True)
    alone = Record({}, latency_ratio(1.0))
    near = tuple(search.TimedPlacement(one, alone) for one in others[:alike])
    climb, best = (
        SimpleNamespace(places=places),
        SimpleNamespace(timed=search.TimedPlacement(first, alone)),
    )
    found = search.SearchResult(best.timed, tuple(reversed(others)), alike=near)
    tried = ladder._fewer(cast("Any", climb), cast("Any", best), found)
    assert tried[-1] == others[-1]
    assert len(tried) == min(ladder.OTHERS, len(others) - alike)
    assert tried == [one for one in others[alike:] if one in tried]
    least = SimpleNamespace(timed=search.TimedPlacement(others[-1], alone))
    assert not ladder._fewer(cast("Any", climb), cast("Any", least), found)


def test_force_passes_it_and_marks_it() -> None:
    made, report = quantize(gray(), Budget(force=True), artifact=linear())
    assert not report.passes
    assert report.warnings[0].startswith("forced: the drop of ")
    assert made.steps[-1].settings["force"] is True
    assert report.record.values.drop_low > 0.3


def test_too_few_images_to_exclude_a_drop_are_warned_about() -> None:
    few = replace(sets(), gate=sets().gate.subset(range(0, 180, 6)))
    _, report = quantize(few, Budget(0.3))
    warning = next(
        one
        for one in report.warnings
        if one.startswith("30 images cannot exclude a drop of up to ")
    )
    assert "from the noise on their logits" in warning


def test_the_same_images_and_placement_give_the_same_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        place.PlacementSpace,
        "candidates",
        lambda one: [one.placement("everything", ["flat", "output"])],
    )
    first, second = (quantize(sets(), Budget(max_drop=1.0), artifact=linear())[1] for _ in range(2))
    assert [rung.paired.values for rung in first.candidates] == [
        rung.paired.values for rung in second.candidates
    ]
    assert first.paired.samples == second.paired.samples


@pytest.mark.parametrize("name", ["per-tensor", "ort-minmax"])
def test_the_other_schemes_work_too(name: str) -> None:
    made, _ = quantize(sets(), Budget(max_drop=2.0), name)
    assert made.steps[-1].settings["scheme"]["name"] == name


def test_an_unreadable_gate_image_is_told() -> None:
    gate = sets().gate

    def load(key: str) -> Image.Image:
        if key == gate.keys[5]:
            raise UnreadableImage(f"{key} is broken")
        return gate.load(key)

    _, report = quantize(
        replace(sets(), gate=replace(gate, load=load)), Budget(1.0), artifact=linear()
    )
    assert f"left out: {gate.keys[5]} is broken" in report.warnings
    assert report.paired.values.n == len(gate) - 1


def test_an_unreadable_image_of_the_ranges_shifts_no_margin() -> None:
    """The classes of the images that set ranges are matched with the answers to them."""
    split = open_source("digits").split_for_quantization(256, 0)

    def load(key: str) -> Image.Image:
        if key == split.calibration.keys[3]:
            raise UnreadableImage(f"{key} is broken")
        return split.calibration.load(key)

    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"), search_seconds=0)
    broken = replace(split, calibration=replace(split.calibration, load=load))
    climb = ladder._Climb(
        gating.Gate(linear(), split.gate, target.engine, Budget()), target, broken
    )
    climb.calibrate()
    margins, targets = climb.judge._more[0]
    assert len(margins.classes) == len(targets) == len(split.calibration) - 1
    assert (margins.classes[:, 0] == targets).mean() > 0.9  # a good model
    assert (
        margins.classes[4:, 0] == targets[3:-1]
    ).mean() < 0.5  # which neighbors would not show, were they of one class


def test_only_a_folded_float_model_is_taken() -> None:
    with pytest.raises(InputError, match=r"in train form.*repzoo fold"):
        quantize(sets(), Budget(), artifact=embedded.read("repghostnet_050.digits"))
    made, _ = quantize(sets(), Budget(1.0), artifact=linear())
    with pytest.raises(InputError, match="in int8 form"):
        quantize(sets(), Budget(), artifact=made)


def test_a_model_without_layers_to_quantize_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 32, 32] data) => (float[N, 10] output)
        <float[10] ten = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
        { one = ReduceMean <axes = [1, 2, 3], keepdims = 1> (data) flat = Flatten (one) output = Mul (flat, ten) }"""
    bare = replace(deploy(), model=onnx.parser.parse_model(text))
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize(sets(), Budget(), artifact=bare)


def test_unknown_schemes_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean ort-cpu"):
        load_scheme("ort-gpu")


def test_fewer_layers_take_over_what_was_worked_out() -> None:
    """Leaving a layer in float changes no number of the others, so that it need not be planned anew."""
    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"), search_seconds=0)
    climb = ladder._Climb(
        gating.Gate(small(), sets().gate, target.engine, Budget()), target, sets()
    )
    climb.calibrate()
    every = climb.starts[0]
    for recipe in STAGES[:3]:
        one = climb.timed_rung(recipe, recipe.name, every)
        fewer = climb.without(every, ["c"])
        (taken, _), (anew, _) = climb.moved(one, fewer), climb.write(recipe, fewer)
        data = latency.random_input(small().model, (4, 3, 16, 16), 0)
        found, expected = (
            engine("onnxruntime").open(made.model).run(data) for made in (taken, anew)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def unlabeled(folder: Path, count: int) -> Path:
    """`count` digits as pictures in one folder, without a word on what they are."""
    data = open_source("digits").join("train")
    folder.mkdir()
    for number, index in enumerate(range(0, len(data), max(1, len(data) // count))):
        data.load(data.keys[index]).save(folder / f"{number:04d}.png")
    return folder


def test_images_without_labels_are_enough(run: Run, small_file: Path, tmp_path: Path) -> None:
    data = unlabeled(tmp_path / "photos", 160)
    ran = run(
        "quantize", small_file, "-o", tmp_path / "out.onnx", "--data", data, "--search", 0, "--json"
    )
    assert ran.code == 0
    told = ran.document
    assert told["labeled"] is False
    assert told["drop"] == pytest.approx(100 - told["same_prediction"])  # at most that much is lost
    assert "the images have no labels: at most" in ran.err
    assert "takes labeled images" in ran.err
    shown = run(
        "quantize", small_file, "-o", tmp_path / "again.onnx", "--data", data, "--search", 0
    )
    assert shown.code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_without_labels_a_broken_model_is_refused_all_the_same(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    """Half of its pictures are black, and those set the ranges: what `ranges` sees says nothing of the gate's."""
    data = unlabeled(tmp_path / "photos", 160)
    split = open_source(data, unlabeled=True).split_for_quantization(256, 0)
    for key in (*split.calibration.keys, *split.selection.keys):
        Image.new("RGB", (8, 8), (127, 127, 127)).save(data / key)
    ran = run(
        "quantize", small_file, "-o", tmp_path / "out.onnx", "--data", data, "--search", 0, "--json"
    )
    assert (ran.code, ran.out) == (4, "")
    assert "% of the predictions" in ran.err
    assert "more than the 5.3 % that pass without labels" in ran.err
    assert not (tmp_path / "out.onnx").exists()


def test_no_other_verb_takes_images_without_labels(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    data = unlabeled(tmp_path / "photos", 8)
    ran = run("evaluate", small_file, "--data", data)
    assert ran.code == 2
    assert "one subfolder of images" in ran.err


def test_no_worse_than_onnxruntimes_own_quantizer() -> None:
    """On the same images, through the same gate; whichever placement is the fastest here, at most 4 images of 180 more change."""
    _, ours = quantize(sets(), Budget(max_drop=5.0))
    _, theirs = recipes.quantize(
        small(), sets(), engine("onnxruntime"), "ort-static", Budget(force=True)
    )
    assert ours.paired.values.drop <= theirs.paired.values.drop + 1
    assert (
        ours.paired.values.same_prediction >= theirs.paired.values.same_prediction - 2.5
    )  # 4 of 180: the fastest placement here may be any


def test_rungs_are_told_apart_by_their_logits_where_a_model_does_not_say_how_many_classes_it_has() -> (
    None
):
    model = onnx.ModelProto()
    model.CopyFrom(linear().model)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    artifact = replace(linear(), model=model)
    assert not artifact.num_classes
    found = (
        gating.FloatComparison(artifact, sets().selection, engine("onnxruntime"))
        .compare(artifact)
        .values
    )
    assert found.expected is not None
    assert (found.expected.changed, found.expected.drop) == (0, 0)
