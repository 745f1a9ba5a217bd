"""Distillation restores accuracy, is deterministic, and trains what is then written."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.small_model import small

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch
from tests.quant import placements as place
from tests.quant.placements import candidates

from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure.expected_drop import snr_db
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute, fake_quantization, finetune
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan
from repzoo.quant.parameters.finetune import DistillationImages, FinetuneOptions
from repzoo.quant.rewrites import stages
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder, placement_search
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget

Inputs = npt.NDArray[np.float32]
COARSE = load_scheme("per-tensor")


@functools.cache
def digits(part: str, count: int) -> Inputs:
    data = open_source("digits").join(part)
    images = data.subset(data.balanced_sample(count, 0))
    return np.concatenate(
        [
            item.inputs
            for item in batches(images, small().require_preprocess(), 64, ReadReport())
        ]
    )


def uneven() -> onnx.ModelProto:
    """The small digits classifier with channels of very different ranges; same function."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    factors = np.geomspace(0.004, 250, 12).astype(np.float32)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if item.name == "first":
            item.CopyFrom(
                numpy_helper.from_array(
                    values * factors[:, None, None, None], item.name
                )
            )
        elif item.name == "second":
            item.CopyFrom(
                numpy_helper.from_array(
                    values / factors[None, :, None, None], item.name
                )
            )
    return model


def make_plan(model: onnx.ModelProto) -> tuple[QuantizationPlan, Placement]:
    placement = candidates(model)[0]
    reads = [
        layer
        for name, layer in layers.find_layers(model).items()
        if name in placement.nodes
    ]
    tensors = list(
        dict.fromkeys([*placement.tensors, *(layer.source for layer in reads)])
    )
    statistics = collect_statistics(
        model,
        tensors,
        reads,
        CalibrationStream([digits("train", 128)], 128),
        engine("onnxruntime"),
        1,
    )
    return compute.compute_parameters(
        model, placement, statistics, COARSE, Corrections()
    ), placement


def shuffled_epoch(epoch: int) -> Iterator[Inputs]:
    inputs = digits("train", 256)
    yield inputs[np.random.default_rng(epoch).permutation(len(inputs))]


TRAINING_IMAGES = DistillationImages(256, shuffled_epoch)


def run(model: onnx.ModelProto, inputs: Inputs) -> Inputs:
    return engine("onnxruntime").open(model, exact=True).run(inputs)


def test_distillation_restores_accuracy_lost_to_per_tensor_scales() -> None:
    """A sixth of the predictions are unchanged before training, about 80 % after it."""
    model, held_out = uneven(), digits("test", 300)
    quantized, placement = make_plan(model)
    trained = finetune.distill(
        model,
        quantized,
        COARSE,
        TRAINING_IMAGES,
        FinetuneOptions(epochs=6, mirror=False),
    )
    written = [
        compute.write_qdq(item, placement, COARSE) for item in (quantized, trained)
    ]
    onnx.checker.check_model(written[1], full_check=True)
    float_logits = run(model, held_out).argmax(1)
    before, after = (
        float((run(item, held_out).argmax(1) == float_logits).mean())
        for item in written
    )
    assert before < 0.5
    assert after > 0.7
    assert all(
        np.array_equal(trained.weights[name].scale, item.scale)
        for name, item in quantized.weights.items()
    )


def test_distillation_does_not_harm_an_accurate_plan() -> None:
    """Training that started at the float weights undid GPTQ: SQNR fell from 47 to 30 dB."""
    model, held_out = small().model, digits("test", 300)
    quantized, placement = make_plan(model)
    trained = finetune.distill(
        model, quantized, COARSE, TRAINING_IMAGES, FinetuneOptions(epochs=3)
    )
    float_logits = run(model, held_out)
    before, after = (
        snr_db(float_logits, run(compute.write_qdq(item, placement, COARSE), held_out))
        for item in (quantized, trained)
    )
    assert before > 20
    assert after > before - 0.5


def test_a_plan_without_improvement_is_returned_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small().model
    quantized, _ = make_plan(model)
    monkeypatch.setattr(finetune, "_mean_loss", lambda *_: 1.0)
    assert (
        finetune.distill(
            model,
            quantized,
            COARSE,
            TRAINING_IMAGES,
            FinetuneOptions(epochs=1, batch=128),
        )
        is quantized
    )


def test_training_is_deterministic_and_keeps_the_random_state() -> None:
    quantized, placement = make_plan(uneven())
    state, outputs = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        options = FinetuneOptions(epochs=1, batch=128, seed=seed)
        trained = finetune.distill(
            uneven(),
            quantized,
            COARSE,
            DistillationImages(256, lambda _: iter([digits("train", 256)])),
            options,
        )
        outputs.append(
            compute.write_qdq(trained, placement, COARSE).SerializeToString(
                deterministic=True
            )
        )
    assert outputs[0] == outputs[1] != outputs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_student_computes_the_outputs_of_the_written_model() -> None:
    """Both for the plan that it starts from and for the plan that it returns.

    Only the order of sums differs. A sum that rounds the other way changes few logits, so the mean
    is compared; 1e-5 was measured.
    """
    model, inputs = uneven(), digits("test", 64)
    quantized, placement = make_plan(model)
    student = fake_quantization.FakeQuantizedModel(quantized, COARSE)
    with torch.inference_mode():
        answers = student(torch.from_numpy(inputs)).numpy()
    for item in (quantized, student.plan()):
        outputs = run(compute.write_qdq(item, placement, COARSE), inputs)
        assert np.abs(outputs - answers).mean() < 1e-3 * np.std(answers)
    assert np.abs(run(model, inputs) - answers).mean() > 0.2 * np.std(
        answers
    )  # INT8 is far from float, so that this says something


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = uneven()
    quantized, _ = make_plan(model)
    poisoned = replace(
        quantized,
        activations={
            name: replace(item, scale=float("nan"))
            for name, item in quantized.activations.items()
        },
    )
    with pytest.raises(InputError, match="not a number"):
        finetune.distill(
            model, poisoned, COARSE, TRAINING_IMAGES, FinetuneOptions(epochs=1)
        )


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}]
)
def test_settings_that_train_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"fine-tuning {next(iter(change))} must be"):
        FinetuneOptions(**change)  # type: ignore[arg-type]


def test_the_ladder_trains_only_on_request_and_if_corrections_are_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without equalization, which would restore the model exactly, and without float fallback."""
    monkeypatch.setattr(gating, "BENCH_SECONDS", 0.02)
    monkeypatch.setattr(ladder, "STAGES", stages.STAGES[:1])
    monkeypatch.setattr(ladder, "FALLBACK_COUNTS", ())
    everything = place.candidates(uneven())[:1]
    monkeypatch.setattr(PlacementSpace, "starting_placements", lambda _: everything)
    monkeypatch.setattr(placement_search, "profile_costs", lambda *_: None)
    images = open_source("digits").split_for_quantization(256, 0)
    split = replace(images, gate=images.gate.subset(range(0, len(images.gate), 2)))
    drops = {}
    for epochs in (0, 5):
        target = Target(engine("onnxruntime"), COARSE, 0, epochs)
        _, report = ladder.quantize(
            replace(small(), model=uneven()), split, target, Budget(force=True)
        )
        drops[epochs] = {item.stage: item.paired.drop for item in report.candidates}
    assert list(drops[0]) == ["rounding"]
    assert list(drops[5]) == ["rounding", "rounding, 5 epochs of fine-tuning"]
    assert drops[5]["rounding"] == drops[0]["rounding"] > 30
    assert drops[5]["rounding, 5 epochs of fine-tuning"] < 0.6 * drops[0]["rounding"]
