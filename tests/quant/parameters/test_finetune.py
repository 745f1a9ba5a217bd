"""Fine-tuning with fake quantization: what is trained is what is written, twice the same, and it mends what INT8 broke."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.quant.conftest import small

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch

from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure.expected_drop import snr_db
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network import placement as place
from repzoo.quant.network.placement import Placement, candidates
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute as plan
from repzoo.quant.parameters import finetune
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan
from repzoo.quant.parameters.finetune import DistillationImages, FinetuneOptions
from repzoo.quant.rewrites import stages as rungs
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget

Inputs = npt.NDArray[np.float32]
COARSE = load_scheme("per-tensor")


@functools.cache
def digits(part: str, count: int) -> Inputs:
    data = open_source("digits").join(part)
    images = data.subset(data.balanced_sample(count, 0))
    return np.concatenate(
        [one.inputs for one in batches(images, small().require_preprocess(), 64, ReadReport())]
    )


def uneven() -> onnx.ModelProto:
    """The small classifier of digits, the same function with channels far apart: one scale for a tensor loses most."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    factors = np.geomspace(0.004, 250, 12).astype(np.float32)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if item.name == "first":
            item.CopyFrom(numpy_helper.from_array(values * factors[:, None, None, None], item.name))
        elif item.name == "second":
            item.CopyFrom(numpy_helper.from_array(values / factors[None, :, None, None], item.name))
    return model


def planned(model: onnx.ModelProto) -> tuple[QuantizationPlan, Placement]:
    one = candidates(model)[0]
    reads = [layer for name, layer in layers.find_layers(model).items() if name in one.nodes]
    tensors = list(dict.fromkeys([*one.tensors, *(layer.source for layer in reads)]))
    seen = collect_statistics(
        model,
        tensors,
        reads,
        CalibrationStream([digits("train", 128)], 128),
        engine("onnxruntime"),
        1,
    )
    return plan.compute_parameters(model, one, seen, COARSE, Corrections()), one


def shuffled(epoch: int) -> Iterator[Inputs]:
    inputs = digits("train", 256)
    yield inputs[np.random.default_rng(epoch).permutation(len(inputs))]


SHUFFLED = DistillationImages(256, shuffled)


def run(model: onnx.ModelProto, inputs: Inputs) -> Inputs:
    return engine("onnxruntime").open(model, exact=True).run(inputs)


def test_it_mends_what_one_scale_for_all_channels_broke() -> None:
    """A sixth of the answers are the float model's before, most after (80 % was seen); weight scales stay."""
    model, held_out = uneven(), digits("test", 300)
    made, placement = planned(model)
    trained = finetune.distill(
        model, made, COARSE, SHUFFLED, FinetuneOptions(epochs=6, mirror=False)
    )
    written = [plan.write_qdq(one, placement, COARSE) for one in (made, trained)]
    onnx.checker.check_model(written[1], full_check=True)
    wanted = run(model, held_out).argmax(1)
    before, after = (float((run(one, held_out).argmax(1) == wanted).mean()) for one in written)
    assert before < 0.5
    assert after > 0.7
    assert all(
        np.array_equal(trained.weights[name].scale, one.scale) for name, one in made.weights.items()
    )


def test_it_takes_nothing_from_a_good_plan() -> None:
    """Second-order rounding is not unlearned: what began where float has the weights went from 47 to 30 dB."""
    model, held_out = small().model, digits("test", 300)
    made, placement = planned(model)
    trained = finetune.distill(model, made, COARSE, SHUFFLED, FinetuneOptions(epochs=3))
    wanted = run(model, held_out)
    before, after = (
        snr_db(wanted, run(plan.write_qdq(one, placement, COARSE), held_out))
        for one in (made, trained)
    )
    assert before > 20
    assert after > before - 0.5


def test_a_plan_that_learns_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().model
    made, _ = planned(model)
    monkeypatch.setattr(finetune, "_mean_loss", lambda *_: 1.0)
    assert (
        finetune.distill(model, made, COARSE, SHUFFLED, FinetuneOptions(epochs=1, batch=128))
        is made
    )


def test_it_comes_out_alike_and_leaves_the_generator_alone() -> None:
    made, placement = planned(uneven())
    state, found = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        options = FinetuneOptions(epochs=1, batch=128, seed=seed)
        trained = finetune.distill(
            uneven(),
            made,
            COARSE,
            DistillationImages(256, lambda _: iter([digits("train", 256)])),
            options,
        )
        found.append(
            plan.write_qdq(trained, placement, COARSE).SerializeToString(deterministic=True)
        )
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_trained_is_what_is_written() -> None:
    """Before any step the student answers as the QDQ graph of its plan does, and as that of the plan that it gives back.

    Only the order of sums differs; one that rounds to the other side moves few logits, so that their mean tells: 1e-5 was seen.
    """
    model, inputs = uneven(), digits("test", 64)
    made, placement = planned(model)
    student = finetune._Student(made, COARSE)
    with torch.inference_mode():
        answers = student(torch.from_numpy(inputs)).numpy()
    for one in (made, student.plan()):
        found = run(plan.write_qdq(one, placement, COARSE), inputs)
        assert np.abs(found - answers).mean() < 1e-3 * np.std(answers)
    assert np.abs(run(model, inputs) - answers).mean() > 0.2 * np.std(
        answers
    )  # INT8 is far from float, so that this says something


def test_answers_that_are_not_finite_end_it() -> None:
    model = uneven()
    made, _ = planned(model)
    poisoned = replace(
        made,
        activations={
            name: replace(one, scale=float("nan")) for name, one in made.activations.items()
        },
    )
    with pytest.raises(InputError, match="not a number"):
        finetune.distill(model, poisoned, COARSE, SHUFFLED, FinetuneOptions(epochs=1))


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}]
)
def test_settings_that_train_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="fine-tuning needs"):
        FinetuneOptions(**change)  # type: ignore[arg-type]


def test_the_ladder_learns_only_when_asked_and_when_corrections_are_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without equalization, which would undo the damage exactly, and without layers that leave INT8."""
    monkeypatch.setattr(gating, "BENCH_SECONDS", 0.02)
    monkeypatch.setattr(ladder, "STAGES", rungs.STAGES[:1])
    monkeypatch.setattr(ladder, "FALLBACK_COUNTS", ())
    everything = place.candidates(uneven())[:1]
    monkeypatch.setattr(place.PlacementSpace, "starting_placements", lambda _: everything)
    found = open_source("digits").split_for_quantization(256, 0)
    split = replace(found, gate=found.gate.subset(range(0, len(found.gate), 2)))
    said = {}
    for epochs in (0, 5):
        target = Target(engine("onnxruntime"), COARSE, 0, epochs)
        _, report = ladder.quantize(
            replace(small(), model=uneven()), split, target, Budget(force=True)
        )
        said[epochs] = {one.stage: one.paired.drop for one in report.candidates}
    assert list(said[0]) == ["rounding"]
    assert list(said[5]) == ["rounding", "rounding, 5 epochs of fine-tuning"]
    assert said[5]["rounding"] == said[0]["rounding"] > 30
    assert said[5]["rounding, 5 epochs of fine-tuning"] < 0.6 * said[0]["rounding"]
