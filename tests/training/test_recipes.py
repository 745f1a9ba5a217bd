"""Recipes as data: the published figures, scaling by the batch, and what is refused; where a
training starts; what it learns from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

import torch
from tests.training.test_loop import CLASSES, PREPROCESS, SHORT, network, trainer

from repzoo.errors import InputError
from repzoo.training import models
from repzoo.training.distill import Objective
from repzoo.training.loop import Trainer
from repzoo.training.options import Running, TrainOptions
from repzoo.training.recipe import from_table, recipe, recipes

WHOLE = {"about": "", "epochs": 1, "batch": 2, "lr": 0.1}


def test_the_families_are_trained_as_published() -> None:
    """Figures of the authors' READMEs, scripts and configurations."""
    ghost, vgg, vit = recipe("repghost"), recipe("repvgg"), recipe("repvit")
    assert (
        ghost.optimizer,
        ghost.lr,
        ghost.lr_per,
        ghost.epochs,
        ghost.warmup_epochs,
    ) == (
        "sgd",
        0.6,
        1024,
        300,
        5,
    )
    assert (
        ghost.ema_decay,
        ghost.erase,
        ghost.drop_rate,
        ghost.weight_decay,
        ghost.amp,
    ) == (
        0.9999,
        0.2,
        0.2,
        1e-5,
        "on",
    )
    assert (
        vgg.epochs,
        vgg.peak_lr,
        vgg.weight_decay,
        vgg.changed(batch=512).peak_lr,
    ) == (
        120,
        0.1,
        1e-4,
        0.2,
    )
    assert (
        vit.distill,
        vit.repeats,
        vit.clip_mode,
        vit.clip,
        vit.mixup,
        vit.cutmix,
    ) == (
        "hard",
        3,
        "agc",
        0.02,
        0.8,
        1.0,
    )
    assert vit.peak_lr == pytest.approx(1e-3 * 2048 / 512)
    small, large = (
        recipe("fasternet").for_model(name) for name in ("fasternet_t0", "fasternet_l")
    )
    assert (
        small.mixup,
        small.drop_path,
        small.batch,
        large.mixup,
        large.drop_path,
        large.batch,
    ) == (0.05, 0, 4096, 0.7, 0.3, 2048)
    assert [small.size_at(epoch, 224) for epoch in (0, 279, 280, 299)] == [
        192,
        192,
        224,
        224,
    ]
    assert all(entry.source for entry in (ghost, vgg, vit, small))


def test_what_was_trained_with_before_is_as_it_was() -> None:
    for name in ("digits", "photos", "repvgg-sgd"):
        entry = recipes()[name]
        assert (
            entry.lr_per,
            entry.min_lr,
            entry.repeats,
            entry.small_size,
            entry.clip,
            entry.amp,
            entry.distill,
        ) == (
            0,
            None,
            1,
            0,
            0,
            "off",
            "",
        )
    photos = recipe("photos")
    assert (
        photos.epochs,
        photos.batch,
        photos.peak_lr,
        photos.weight_decay,
        photos.mixup,
    ) == (
        180,
        64,
        2e-3,
        0.05,
        0.2,
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({**WHOLE, "mixupp": 1.0}, "did you mean mixup"),
        ({**WHOLE, "lr": "0.1"}, "lr must be of the kind float"),
        ({**WHOLE, "epochs": True}, "epochs must be of the kind int"),
        ({"about": "", "epochs": 1}, "lacks batch, lr"),
        ({**WHOLE, "amp": "fp8"}, "amp must be one of"),
        ({**WHOLE, "erase": 1.5}, "erase must lie in 0..1"),
        ({**WHOLE, "scale": [0.5]}, "scale must be two shares"),
        ({**WHOLE, "per_model": {"x": {"lrr": 1.0}}}, "did you mean lr"),
    ],
)
def test_an_invalid_recipe_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_table("own", table)


def test_no_decay_on_biases_and_norms(tmp_path: Path) -> None:
    training = trainer(tmp_path, recipe("repvgg").changed(batch=8))
    decayed = {
        id(value)
        for group in training.optimizer.param_groups
        if group["weight_decay"]
        for value in group["params"]
    }
    assert {
        name
        for name, value in training.module.named_parameters()
        if id(value) in decayed
    } == {
        "0.weight",
        "6.weight",
    }


def test_a_linear_probe_leaves_the_body_alone(tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in network().state_dict().items()}
    after = (
        trainer(tmp_path, SHORT.changed(trainable="head"), workers=0)
        .run(None)
        .state_dict()
    )
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "6.weight",
        "6.bias",
    }


@pytest.mark.parametrize("name", ["finetune", "linear-probe"])
def test_fine_tuning_needs_weights(name: str) -> None:
    with pytest.raises(
        InputError,
        match="starts from trained weights; give --checkpoint FILE or --pretrained",
    ):
        models.student("repghostnet_050", 3, recipe(name), TrainOptions())


def test_a_teacher_is_required_with_distillation_and_refused_without() -> None:
    with pytest.raises(
        InputError, match=r"learns from a teacher \(the source had regnety_160"
    ):
        models.teacher("", ("a", "b"), recipe("repvit"))
    with pytest.raises(InputError, match="does not learn from a teacher"):
        models.teacher("x.onnx", ("a", "b"), SHORT)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_distillation_loss_follows_the_teacher(kind: str) -> None:
    """With all weight on the teacher the loss is what its formula says, of images in the
    teacher's own normalization.
    """
    settings = SHORT.changed(distill=kind, distill_weight=1.0, temperature=2.0)
    student, teacher = network(1).eval(), network(2).eval()
    prepared = {"mean": (0.2, 0.3, 0.4), "std": (0.1, 0.2, 0.3)}
    teacher.pretrained_cfg = prepared  # type: ignore[assignment]
    inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    loss = Objective(student, settings, PREPROCESS, teacher)(inputs, targets)
    pixels = inputs * 0.5 + 0.5
    mean, std = (
        torch.tensor(prepared[key]).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    teacher_logits, own = (
        teacher((pixels - mean) / std).detach(),
        student(inputs).detach(),
    )
    if kind == "hard":
        expected = torch.nn.functional.cross_entropy(own, teacher_logits.argmax(1))
    else:
        share = (teacher_logits / 2).softmax(1)
        expected = 4 * (share * (share.log() - (own / 2).log_softmax(1))).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_training_with_a_teacher_runs(tmp_path: Path) -> None:
    from tests.training.test_loop import pictures

    from repzoo.training.training_images import TrainingImages

    settings = SHORT.changed(
        distill="soft",
        amp="bf16",
        clip=0.02,
        clip_mode="agc",
        repeats=3,
        small_size=12,
        full_size_epochs=1,
    )
    images = TrainingImages(pictures(24), PREPROCESS)
    training = Trainer(
        network(),
        images,
        settings,
        Running(output=tmp_path, workers=0, tensorboard=True),
        teacher=network(5),
    )
    training.run(None)
    assert [0 < epoch.loss < 10 for epoch in training.log] == [True, True]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert "bfloat16" in training.facts()[1]


def export_file(
    folder: Path, size: int = 24, labels: tuple[str, ...] = CLASSES
) -> tuple[torch.nn.Module, Path]:
    """A teacher as a module and as the artifact that repzoo would have exported."""
    from repzoo.artifact import Preprocess, Step
    from repzoo.graph.tools.export import export

    module = network(2).eval()
    prepared = Preprocess(
        size, crop_fraction=1.0, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3)
    )
    export(
        module,
        "teacher",
        prepared,
        labels,
        Step("build", "test", {}),
        dynamic_batch=True,
    ).save(folder / "teacher.onnx")
    return module, folder / "teacher.onnx"


def test_a_teacher_in_a_file_gives_the_loss_of_its_module(tmp_path: Path) -> None:
    """At its own side, in its own normalization, and the same distance in the loss."""
    module, path = export_file(tmp_path)
    settings = SHORT.changed(distill="soft", distill_weight=1.0)
    teacher = models.teacher(str(path), CLASSES, settings)
    assert teacher is not None
    inputs = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    larger = torch.nn.functional.interpolate(
        inputs, size=(24, 24), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(
        teacher(inputs), module(larger).detach(), rtol=1e-4, atol=1e-5
    )
    module.pretrained_cfg = {"mean": (0.2, 0.3, 0.4), "std": (0.1, 0.2, 0.3)}  # type: ignore[assignment]

    class Resized(torch.nn.Module):
        pretrained_cfg = module.pretrained_cfg

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(
                torch.Tensor,
                module(
                    torch.nn.functional.interpolate(
                        x, size=(24, 24), mode="bilinear", antialias=True
                    )
                ),
            )

    targets, student = torch.arange(6) % 3, network(1).eval()
    losses = [
        float(Objective(student, settings, PREPROCESS, guide)(inputs, targets).detach())
        for guide in (teacher, Resized())
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 1e-3


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (("a", "b"), CLASSES, "has 3 classes, the data 2; fine-tune it"),
        (CLASSES, ("x", "y", "z"), "not those of the data"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(
    tmp_path: Path, classes: tuple[str, ...], labels: tuple[str, ...], message: str
) -> None:
    _, path = export_file(tmp_path, labels=labels)
    with pytest.raises(InputError, match=message):
        models.teacher(str(path), classes, SHORT.changed(distill="hard"))
