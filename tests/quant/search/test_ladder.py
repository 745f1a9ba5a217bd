"""The quantizer as a whole, on embedded models and a real engine: what passes the gate and why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import sets, small

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, QuantizationSplit, UnreadableImage
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import GateError, InputError
from repzoo.graph.tools.int8_share import int8_share
from repzoo.measure import accuracy
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.quant.baselines import registry
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.rewrites.stages import STAGES
from repzoo.quant.search import ladder, placement_search, verdict
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.gate import Gate, QuantReport
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.placement_choice import PlacementChoice
from repzoo.quant.search.placement_search import SearchResult, TimedPlacement
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.zoo import embedded

Run = Callable[..., Any]


@functools.cache
def deploy() -> Artifact:
    """A network with squeeze-and-excitation and depthwise layers; the others are tiny."""
    return verbs.fold(embedded.read("repghostnet_050.digits"))


def gray_image(_: str) -> Image.Image:
    return Image.new("RGB", (8, 8), (127, 127, 127))


def gray() -> QuantizationSplit:
    """Calibration on gray images: every input is near zero, so all ranges are far too small."""
    calibration = sets().calibration.subset(range(16))
    return replace(
        sets(), calibration=replace(calibration, load=gray_image, name="gray")
    )


@functools.cache
def linear() -> Artifact:
    """The classifier of the nearest mean: one linear layer, which every placement quantizes."""
    train = open_source("digits").join("train")
    read = batches(train, small().require_preprocess(), 64, ReadReport())
    inputs = np.concatenate([batch.inputs for batch in read]).reshape(len(train), -1)
    targets = np.array(train.targets)
    means = np.stack([inputs[targets == digit].mean(0) for digit in range(10)])
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 16, 16] data) => (float[N, 10] output)
        { flat = Flatten (data) output = Gemm <transB = 1> (flat, means, lengths) }"""
    model = onnx.parser.parse_model(text)
    lengths = -(means**2).sum(1) / 2
    for name, value in (("means", means), ("lengths", lengths)):
        model.graph.initializer.append(
            numpy_helper.from_array(value.astype(np.float32), name)
        )
    return replace(small(), model=model, name="linear")


def quantize(
    split: QuantizationSplit,
    budget: Budget,
    scheme: str = "ort-cpu",
    artifact: Artifact | None = None,
) -> tuple[Artifact, QuantReport]:
    target = Target(engine("onnxruntime"), load_scheme(scheme), search_seconds=0)
    return ladder.quantize(artifact or small(), split, target, budget)


def keep_only_placements(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[[PlacementSpace], list[Any]]
) -> None:
    monkeypatch.setattr(PlacementSpace, "starting_placements", choose)
    # the engine's profile would add more
    monkeypatch.setattr(placement_search, "profile_costs", lambda *_: None)


def test_a_good_model_passes_and_says_what_was_done() -> None:
    quantized, report = quantize(sets(), Budget(max_drop=1.0), artifact=deploy())
    assert quantized.form == "int8"
    assert quantized.labels == deploy().labels
    assert quantized.preprocess == deploy().preprocess
    assert quantized.steps[-1].verb == "quantize"
    assert quantized.steps[-1].input_sha256 == deploy().sha256
    assert quantized.steps[-1].settings["placement"] == report.chosen.placement
    assert quantized.steps[-1].settings["recipe"] == report.chosen.stage
    assert report.chosen in report.candidates
    assert report.passes
    assert report.chosen.verdict is Verdict.HOLDS
    assert len(report.chosen.layers) >= 1
    assert report.record.artifact["sha256"] == quantized.sha256
    counts = {
        key: report.record.data[key]
        for key in ("images", "selection_images", "gate_images")
    }
    assert counts == {"images": 64, "selection_images": 64, "gate_images": 180}
    operators = report.record.values.operators
    assert operators is not None
    for form in ("float", "int8"):
        shares = [item.share for item in operators if item.form == form]
        assert 0.97 < sum(shares) <= 1.01, form
    kinds = {item.kind for item in operators if item.is_conversion}
    assert "QuantizeLinear" in kinds
    assert any(item.kind.startswith("QLinearConv") for item in operators)
    onnx.checker.check_model(quantized.model, full_check=True)
    runs = [
        accuracy.open_run(artifact, engine("onnxruntime"), 1)
        for artifact in (deploy(), quantized)
    ]
    measured = accuracy.compare(*accuracy.evaluate(runs, sets().gate, ReadReport()))
    # The file that is written is the one that the gate measured.
    assert (
        measured.values.drop == report.paired.values.drop == report.record.values.drop
    )


def test_a_broken_model_is_refused_with_the_numbers_and_what_to_do() -> None:
    sentence = r"loses \d+\.\d+ points.*180 images.*budget of 0\.3.*from output \(activation side.*--force"
    with pytest.raises(GateError, match=sentence):
        quantize(gray(), Budget(), artifact=linear())
    assert quantize(sets(), Budget(), artifact=linear())[
        1
    ].passes  # the model itself is sound


def evaluations(
    split: QuantizationSplit, monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> list[tuple[str, str]]:
    """(name of the images, sha256 of the model) of every evaluation of a quantization."""
    calls: list[tuple[str, str]] = []
    evaluate = accuracy.evaluate

    def record_call(
        runs: Sequence[accuracy.EvaluationRun],
        dataset: Dataset,
        *rest: Any,
        **named: Any,
    ) -> list[accuracy.ModelPredictions]:
        calls.append((dataset.name, runs[-1].artifact.sha256))
        return evaluate(runs, dataset, *rest, **named)

    monkeypatch.setattr(accuracy, "evaluate", record_call)
    quantize(split, Budget(force=True), artifact=artifact)
    return calls


def test_the_gate_images_judge_one_model_once_and_choose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On gray calibration images every stage is bad, so all of them are tried."""
    calls = evaluations(gray(), monkeypatch, linear())
    images = [name for name, _ in calls]
    assert images.count(sets().gate.name) == 1
    assert images[-1] == sets().gate.name
    tried = [sha for name, sha in calls if name == sets().selection.name]
    assert len(set(tried)) > 1
    assert calls[-1][1] in tried


def test_a_choice_that_the_gate_refuses_leads_to_no_other_choice() -> None:
    """The selection images are gray too, so the first stage holds there; the gate knows better."""
    blind = replace(gray(), selection=gray().calibration)
    with pytest.raises(GateError, match="above the budget"):
        quantize(blind, Budget(), artifact=linear())
    _, report = quantize(blind, Budget(force=True), artifact=linear())
    assert [candidate.stage for candidate in report.candidates] == [STAGES[0].name]
    assert report.chosen.verdict is Verdict.HOLDS
    assert report.verdict is Verdict.REFUSED
    assert not report.passes
    # The noise was measured on the gate images: on the gray ones there is none.
    assert report.record.values.culprits[0]["side"] == "activation"


def test_fewer_layers_in_int8_save_what_bad_ranges_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = PlacementSpace(
        qdq_writer.prepare_for_qdq(deploy().model)
    ).starting_placements()
    keep_only_placements(monkeypatch, lambda _: [every[0], every[-1]])
    monkeypatch.setattr(ladder, "FALLBACK_COUNTS", (1,))
    _, report = quantize(gray(), Budget(max_drop=5.0), artifact=deploy())
    assert report.passes
    assert report.chosen.placement.startswith(every[-1].name)


@pytest.mark.parametrize(
    ("rank", "artifact"),
    [(0, linear), (0, small), (2, small), (5, small)],
)
def test_all_steps_of_the_ladder_work_from_every_placement(
    rank: int, artifact: Callable[[], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which placement is the fastest depends on the machine, so each must do."""
    find_fastest = placement_search.find_fastest

    def find_another(*arguments: Any) -> SearchResult:
        result = find_fastest(*arguments)
        ranked = [result.best.placement, *result.others]
        best = ranked[min(rank, len(ranked) - 1)]
        others = tuple(placement for placement in ranked if placement is not best)
        return replace(result, best=replace(result.best, placement=best), others=others)

    monkeypatch.setattr(placement_search, "find_fastest", find_another)
    monkeypatch.setattr(verdict, "ENOUGH", 101.0)
    monkeypatch.setattr(verdict, "UNCHANGED", 101.0)
    _, report = quantize(gray(), Budget(force=True), artifact=artifact())
    # Which placement is tried depends on the timing. One with a single layer in INT8 has no layer
    # that could fall back, so it gives its three stages and no more.
    assert len(report.candidates) >= (3 if artifact is not linear else 2)


def test_zero_points_come_back_where_accuracy_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were left out for latency; nothing is enough here, so they are tried."""
    monkeypatch.setattr(ladder, "choose_forms", lambda _: None)
    monkeypatch.setattr(verdict, "ENOUGH", 101.0)
    monkeypatch.setattr(verdict, "UNCHANGED", 101.0)
    scheme = replace(load_scheme("ort-cpu"), signed_activations=True)
    target = Target(engine("onnxruntime"), scheme, placement="everything")
    int8, report = ladder.quantize(small(), sets(), target, Budget(force=True))
    first, *_ = report.candidates
    (tried,) = [item for item in report.candidates if "zero points" in item.stage]
    # Without them, what is negative has half the steps.
    snr_db = [item.paired.logits_snr_db or 0.0 for item in (tried, first)]
    assert snr_db[0] > snr_db[1] + 1
    is_signed = int8.steps[-1].settings["scheme"]["signed_activations"]
    types = {
        values.dtype.name
        for values in map(numpy_helper.to_array, int8.model.graph.initializer)
        if values.ndim == 0 and values.dtype.itemsize == 1
    }
    # A placement without negative activations has no int8 either.
    assert is_signed or "int8" not in types


@pytest.mark.parametrize("nearly_as_fast", [0, 2])
def test_the_smaller_placements_reach_down_to_the_one_with_least_in_int8(
    nearly_as_fast: int,
) -> None:
    space = PlacementSpace(
        qdq_writer.prepare_for_qdq(deploy().model), load_scheme("ort-cpu")
    )
    first, *others = space.starting_placements()
    sizes = [
        (space.count(placement), len(placement.tensors))
        for placement in (first, *others)
    ]
    assert sizes == sorted(sizes, reverse=True)
    ratio = LatencyRatio(
        setting=Setting(),
        ratio=1.0,
        ratio_low=1.0,
        ratio_high=1.0,
        faster=None,
        rounds=9,
    )
    near = tuple(
        TimedPlacement(placement, ratio) for placement in others[:nearly_as_fast]
    )
    search = SearchResult(
        TimedPlacement(first, ratio), tuple(reversed(others)), nearly_as_fast=near
    )
    chosen = ladder.choose_smaller_placements(space, first, search)
    assert chosen[-1] == others[-1]
    assert len(chosen) == min(ladder.SMALLER_PLACEMENTS, len(others) - nearly_as_fast)
    assert chosen == [
        placement for placement in others[nearly_as_fast:] if placement in chosen
    ]
    assert not ladder.choose_smaller_placements(space, others[-1], search)


@pytest.mark.parametrize("choice", ["everything", "layers"])
def test_a_placement_chosen_by_the_user_is_kept(choice: PlacementChoice) -> None:
    """On gray calibration images every stage is bad, but no layer leaves INT8 for that."""
    scheme = load_scheme("per-tensor")
    target = Target(engine("onnxruntime"), scheme, placement=choice)
    budget = Budget(force=True)
    quantized, report = ladder.quantize(small(), gray(), target, budget)
    assert int8_share(quantized).is_everything
    assert {candidate.placement for candidate in report.candidates} == {choice}
    assert report.record.artifact["int8"]["int8_layers"] == 3


def test_force_writes_a_refused_model_and_marks_it() -> None:
    quantized, report = quantize(gray(), Budget(force=True), artifact=linear())
    assert not report.passes
    assert report.warnings[0].startswith("forced: INT8 loses ")
    assert quantized.steps[-1].settings["force"] is True
    assert report.paired.values.drop_low > 0.3


def test_too_few_gate_images_to_exclude_a_drop_are_warned_about() -> None:
    few = replace(sets(), gate=sets().gate.subset(range(0, 180, 6)))
    _, report = quantize(few, Budget(0.3))
    start = "30 images cannot exclude a drop of up to "
    warnings = [warning for warning in report.warnings if warning.startswith(start)]
    assert len(warnings) == 1
    assert "expected drop on new images" in warnings[0]


def test_the_same_images_and_placement_give_the_same_drops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_only_placements(
        monkeypatch, lambda space: [space.placement("everything", ["flat", "output"])]
    )
    first = quantize(sets(), Budget(max_drop=1.0), artifact=linear())[1]
    second = quantize(sets(), Budget(max_drop=1.0), artifact=linear())[1]
    assert [candidate.paired for candidate in first.candidates] == [
        candidate.paired for candidate in second.candidates
    ]
    assert first.paired.samples == second.paired.samples


@pytest.mark.parametrize("scheme", ["per-tensor", "ort-minmax"])
def test_the_other_schemes_work_too(scheme: str) -> None:
    quantized, _ = quantize(sets(), Budget(max_drop=2.0), scheme)
    assert quantized.steps[-1].settings["scheme"]["name"] == scheme


def break_image(images: Dataset, index: int) -> Dataset:
    """`images`, of which the one at `index` cannot be read."""

    def load(key: str) -> Image.Image:
        if key == images.keys[index]:
            raise UnreadableImage(f"{key} is broken")
        return images.load(key)

    return replace(images, load=load)


def test_an_unreadable_gate_image_is_reported() -> None:
    gate = sets().gate
    _, report = quantize(
        replace(sets(), gate=break_image(gate, 5)), Budget(1.0), artifact=linear()
    )
    assert f"left out: {gate.keys[5]} is broken" in report.warnings
    assert report.paired.values.n == len(gate) - 1


def test_an_unreadable_calibration_image_shifts_no_margin() -> None:
    """The classes of the calibration images are matched with the margins on them."""
    split = open_source("digits").split_for_quantization(256, 0)
    broken = replace(split, calibration=break_image(split.calibration, 3))
    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"), search_seconds=0)
    gate = Gate(FloatComparison(linear(), split.gate, target.engine), Budget())
    evaluator, _ = ladder.calibrate(gate, broken, target)
    margins, targets = evaluator.comparison._more_margins[0]
    assert len(margins.classes) == len(targets) == len(split.calibration) - 1
    assert (margins.classes[:, 0] == targets).mean() > 0.9  # a good model
    # Neighbors are of different classes, so a shift by one would have shown.
    assert (margins.classes[4:, 0] == targets[3:-1]).mean() < 0.5


def test_only_a_folded_float_model_is_accepted() -> None:
    with pytest.raises(InputError, match=r"in train form.*repzoo fold"):
        quantize(sets(), Budget(), artifact=embedded.read("repghostnet_050.digits"))
    quantized, _ = quantize(sets(), Budget(1.0), artifact=linear())
    with pytest.raises(InputError, match="in int8 form"):
        quantize(sets(), Budget(), artifact=quantized)


def test_a_model_without_layers_to_quantize_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 32, 32] data) => (float[N, 10] output)
        <float[10] ten = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
            mean = ReduceMean <axes = [1, 2, 3], keepdims = 1> (data)
            flat = Flatten (mean)
            output = Mul (flat, ten) }"""
    bare = replace(deploy(), model=onnx.parser.parse_model(text))
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize(sets(), Budget(), artifact=bare)


def test_an_unknown_scheme_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean ort-cpu"):
        load_scheme("ort-gpu")


def unlabeled(folder: Path, count: int) -> Path:
    """`count` digits as pictures in one folder, without labels."""
    data = open_source("digits").join("train")
    folder.mkdir()
    stride = max(1, len(data) // count)
    for number, index in enumerate(range(0, len(data), stride)):
        data.load(data.keys[index]).save(folder / f"{number:04d}.png")
    return folder


def test_images_without_labels_are_enough(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    data = unlabeled(tmp_path / "photos", 160)
    options = ("--data", data, "--search", 0)
    ran = run("quantize", small_file, "-o", tmp_path / "out.onnx", *options, "--json")
    assert ran.code == 0
    document = ran.document
    assert document["labeled"] is False
    # The most that can be lost is what changed.
    assert document["drop"] == pytest.approx(100 - document["same_prediction"])
    assert "the images have no labels: at most" in ran.err
    assert "give labeled images" in ran.err
    shown = run("quantize", small_file, "-o", tmp_path / "again.onnx", *options)
    assert shown.code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (
        tmp_path / "out.onnx"
    ).read_bytes()


def test_a_broken_model_is_refused_without_labels_too(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    """The images for calibration and selection are gray, and say nothing of the gate images."""
    data = unlabeled(tmp_path / "photos", 160)
    split = open_source(data, unlabeled=True).split_for_quantization(256, 0)
    for key in (*split.calibration.keys, *split.selection.keys):
        gray_image(key).save(data / key)
    out = tmp_path / "out.onnx"
    ran = run(
        "quantize", small_file, "-o", out, "--data", data, "--search", 0, "--json"
    )
    assert (ran.code, ran.out) == (4, "")
    assert "% of the predictions" in ran.err
    assert "more than the 5.3 % that pass without labels" in ran.err
    assert not out.exists()


def test_no_other_verb_accepts_images_without_labels(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    data = unlabeled(tmp_path / "photos", 8)
    ran = run("evaluate", small_file, "--data", data)
    assert ran.code == 2
    assert "one subfolder of images" in ran.err


def test_no_worse_than_onnxruntimes_own_quantizer() -> None:
    """On the same images, through the same gate."""
    _, ours = quantize(sets(), Budget(max_drop=5.0))
    _, theirs = registry.quantize(
        small(), sets(), engine("onnxruntime"), "ort-static", Budget(force=True)
    )
    assert ours.paired.values.drop <= theirs.paired.values.drop + 1
    # Whichever placement is the fastest here, at most 4 images of 180 more change.
    least = theirs.paired.values.same_prediction - 2.5
    assert ours.paired.values.same_prediction >= least


def test_logits_are_compared_even_where_a_model_does_not_say_how_many_classes_it_has() -> (
    None
):
    model = onnx.ModelProto()
    model.CopyFrom(linear().model)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    artifact = replace(linear(), model=model)
    assert not artifact.num_classes
    comparison = FloatComparison(artifact, sets().selection, engine("onnxruntime"))
    expected = comparison.compare(artifact).values.expected
    assert expected is not None
    assert (expected.changed, expected.drop) == (0, 0)


def test_ladders_that_share_run_the_float_model_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    open_run = accuracy.open_run

    def counted(artifact: Artifact, *arguments: Any, **options: Any) -> Any:
        opened.append(artifact.form)
        return open_run(artifact, *arguments, **options)

    monkeypatch.setattr(accuracy, "open_run", counted)
    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"), search_seconds=0)
    reports = []
    known: Sequence[FloatComparison] = ()
    for _ in range(2):
        own = ladder.Ladder(small(), sets(), target, Budget(5.0))
        own.know_float(known)
        own.place()
        _, report = own.climb()
        reports.append(report)
        known = own.comparisons
    assert opened.count("deploy") == 2  # on the selection and on the gate images
    first, second = (report.paired.values for report in reports)
    assert first.first_top1 == second.first_top1
    assert first.n == second.n


SPIKY = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 10] output) {
        gain = GlobalAveragePool (data)
        grown = Mul (data, gain)
        flat = Flatten (grown)
        output = Gemm <transB = 1> (flat, weights) }"""


def noise_image(key: str) -> Image.Image:
    """Dim noise; every tenth is bright."""
    index = int(key)
    top = 256 if index % 10 == 0 else 40
    pixels = np.random.default_rng(index).integers(0, top, (8, 8, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_typical_ranges_are_the_mean_over_images_as_the_engine_computes_them() -> None:
    model = onnx.parser.parse_model(SPIKY)
    values = np.random.default_rng(0).normal(size=(10, 192)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "weights"))
    plain: dict[str, Any] = {"size": 8, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    preprocess = replace(small().require_preprocess(), **plain)
    artifact = replace(small(), model=model, preprocess=preprocess, labels=())
    keys = tuple(map(str, range(64)))
    images = Dataset("noise", (), keys, (0,) * 64, noise_image, labeled=False)
    target = Target(engine("onnxruntime"), load_scheme("ort-cpu"))
    gate = Gate(FloatComparison(artifact, images, target.engine), Budget())
    split = QuantizationSplit(images, images, images)
    builder = ladder.calibrate(gate, split, target)[0].builder
    everything = builder.space.starting_placements()[0]
    typical = next(stage for stage in STAGES if stage.name == "typical ranges")
    low, high = builder.build(typical, everything).plan.ranges["grown"].bounds
    (read,) = batches(images, preprocess, 64, ReadReport())
    grown = read.inputs * read.inputs.mean(axis=(2, 3), keepdims=True)
    by_image = grown.reshape(64, -1)
    assert low == pytest.approx(by_image.min(axis=1).mean(), rel=1e-5)
    assert high == pytest.approx(by_image.max(axis=1).mean(), rel=1e-5)
    assert high < by_image.max() / 4  # which decides the ranges of the other stages
    assert (
        builder.build(STAGES[1], everything).plan.ranges["grown"].bounds[1] > 2 * high
    )


def test_a_tool_that_has_no_typical_ranges_is_spared_the_stage() -> None:
    stages = {"typical ranges": False, "gptq": True}
    target = Target(engine("onnxruntime"), load_scheme("mnn"))
    comparison = FloatComparison(linear(), sets().gate, target.engine)
    evaluator, _ = ladder.calibrate(Gate(comparison, Budget()), sets(), target)
    for stage in STAGES:
        if stage.name in stages:
            assert evaluator.is_worth_trying(stage) == stages[stage.name]
