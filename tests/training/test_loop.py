"""Training for real, two epochs on a few digits: resuming, logging, and what stops it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import ExifTags, Image

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

import torch
from safetensors.torch import load_file
from tests.conftest import Run

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.source import open_source
from repzoo.errors import InputError
from repzoo.progress import Progress
from repzoo.training import loop, state
from repzoo.training.loop import Trainer
from repzoo.training.options import Running
from repzoo.training.recipe import Recipe, recipe, recipes
from repzoo.training.run import train
from repzoo.training.training_images import Share, TrainingImages

# The smallest network of timm with RepVGG's blocks: it starts, trains and exports in a second.
MODEL = "test_byobnet"
CLASSES = ("dark", "light", "striped")
PREPROCESS = Preprocess(
    size=16, crop_fraction=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
SHORT = Recipe(
    "short", "for tests", epochs=2, batch=8, lr=0.02, optimizer="adamw", label_smoothing=0.1, ema_decay=0.9, drop_rate=0.2,
    scale=(0.6, 1.0), erase=0.3, mixup=0.2, cutmix=0.5, mix_off_epochs=1,
)  # fmt: skip


def picture(key: str) -> Image.Image:
    kind, seed = key.split("/")
    pixels = (
        np.random.default_rng(int(seed)).integers(0, 60, (16, 16, 3)).astype(np.uint8)
    )
    pixels[:: (1 if kind == "light" else 2)] += np.uint8(0 if kind == "dark" else 150)
    return Image.fromarray(pixels)


def pictures(
    count: int, start: int = 0, load: Callable[[str], Image.Image] = picture
) -> Dataset:
    keys = tuple(f"{CLASSES[i % 3]}/{start + i}" for i in range(count))
    return Dataset("pictures", CLASSES, keys, tuple(i % 3 for i in range(count)), load)


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3)
    )  # fmt: skip


def trainer(
    output: Path,
    settings: Recipe = SHORT,
    seed: int = 3,
    module: Any = None,
    **running: Any,
) -> Trainer:
    images = TrainingImages(pictures(24), PREPROCESS)
    return Trainer(
        module or network(),
        images,
        settings,
        Running(output=output, seed=seed, **{"workers": 0, "threads": 1, **running}),
    )


class Killed(BaseException):
    """As a signal: nothing in the loop may catch it."""


def kill_in_epoch(number: int) -> Progress:
    def progress(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        steps = (number - 1) * 3 + 2  # of three in an epoch
        if stage == "training (images)" and done == steps * 8:
            raise Killed

    return progress


def same_weights(folder: Path, other: Path) -> bool:
    first, second = load_file(folder / state.WEIGHTS), load_file(other / state.WEIGHTS)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_a_killed_run_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    trainer(straight).run(pictures(9, 100))
    with pytest.raises(Killed):
        trainer(broken).run(pictures(9, 100), kill_in_epoch(2))
    assert not (broken / state.WEIGHTS).exists()
    torch.manual_seed(99)  # another process has another state
    resumed = trainer(broken, module=network(seed=77))
    resumed.run(pictures(9, 100))
    assert same_weights(straight, broken)
    assert [line.epoch for line in resumed.log] == [0, 1]
    trainer(tmp_path / "seed", seed=4).run(None)
    assert not same_weights(
        straight, tmp_path / "seed"
    )  # so that equal weights mean something


def test_a_finished_run_is_not_trained_on(tmp_path: Path) -> None:
    trainer(tmp_path).run(None)
    before = (tmp_path / state.WEIGHTS).read_bytes()
    again = trainer(tmp_path)
    again.run(None, kill_in_epoch(1))
    assert (tmp_path / state.WEIGHTS).read_bytes() == before
    assert len(again.log) == 2


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    training = trainer(tmp_path)
    best = training.run(pictures(9, 100))
    with (tmp_path / state.LOG).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert math.isnan(float(rows[0]["validation_top1"]))  # not due
    assert float(rows[1]["validation_top1"]) == pytest.approx(
        loop.top1(best, pictures(9, 100), PREPROCESS)
    )
    assert all(0 < float(row["loss"]) < 10 for row in rows)
    assert not best.training


def test_top1_counts_right_answers() -> None:
    class Says(torch.nn.Module):
        def forward(self, inputs: Any) -> Any:
            answer = torch.zeros(len(inputs), 3)
            answer[:, 1] = 1
            return answer

    assert loop.top1(Says(), pictures(9), PREPROCESS) == pytest.approx(100 / 3)


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"epochs": 3}, {"erase": 0.0}])
def test_another_runs_folder_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    trainer(tmp_path).run(None)
    with pytest.raises(InputError, match="other settings or data"):
        trainer(tmp_path, SHORT.changed(**change)).run(None)


def test_what_a_recipe_says_of_itself_makes_no_other_run(tmp_path: Path) -> None:
    trainer(tmp_path).run(None)
    before = (tmp_path / "state.pt").read_bytes()
    trainer(tmp_path, SHORT.changed(about="reworded", source="elsewhere")).run(None)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_another_model_or_seed_or_data_is_another_run(tmp_path: Path) -> None:
    trainer(tmp_path).run(None)
    wider = network()
    wider[0], wider[1], wider[6] = (
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Linear(4, 3),
    )
    others = [
        trainer(tmp_path, module=wider),
        trainer(tmp_path, seed=4),
        trainer(tmp_path, accumulate=2),
        Trainer(
            network(),
            TrainingImages(pictures(24, start=1), PREPROCESS),
            SHORT,
            Running(output=tmp_path, seed=3),
        ),
        Trainer(
            network(),
            TrainingImages(pictures(24), replace(PREPROCESS, std=(0.4,) * 3)),
            SHORT,
            Running(output=tmp_path, seed=3),
        ),
    ]
    for other in others:
        with pytest.raises(InputError, match="other settings or data"):
            other.run(None)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04broken"])
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / state.STATE).write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt is damaged; remove it"):
        trainer(tmp_path).run(None)


class Poisoned(torch.nn.Module):
    """Gives NaN from the `number`-th training step on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.inner, self.left = network(), number

    def forward(self, inputs: Any) -> Any:
        self.left -= self.training
        return self.inner(inputs) * (math.nan if self.left <= 0 else 1)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_epoch(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        InputError,
        match=r"loss became nan at step 4; epoch 1 is saved in .*state\.pt.*lower --lr",
    ):
        trainer(tmp_path, module=Poisoned(5)).run(None)
    kept = torch.load(tmp_path / state.STATE, weights_only=True)
    assert len(kept["log"]) == 1
    assert all(torch.isfinite(value).all() for value in kept["module"].values())
    assert not (tmp_path / state.WEIGHTS).exists()


def test_a_loss_that_is_not_a_number_at_once_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was saved"):
        trainer(tmp_path, module=Poisoned(1)).run(None)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_crash_channels_last_are_refused(tmp_path: Path) -> None:
    nn = torch.nn
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 1, stride=2),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    with pytest.raises(
        InputError,
        match=r"0 is a 1x1 convolution of 3 channels with a stride.*leave --channels-last out",
    ):
        trainer(tmp_path, module=stem, channels_last=True, device="cpu")
    trainer(
        tmp_path, module=network(), channels_last=True, device="cpu"
    )  # a 3x3 one is not such a layer


def test_fewer_images_than_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"24 images, fewer than one batch of 32; give a smaller --batch",
    ):
        trainer(tmp_path, SHORT.changed(batch=32))


def test_images_that_no_worker_can_be_sent_are_refused(tmp_path: Path) -> None:
    def load_inside(key: str) -> Image.Image:
        return picture(key)

    images = TrainingImages(pictures(24, 0, load_inside), PREPROCESS)
    with pytest.raises(
        InputError, match="a function of a module, or train with 0 workers"
    ):
        Trainer(network(), images, SHORT, Running(output=tmp_path / "with")).run(None)
    Trainer(
        network(), images, SHORT, Running(output=tmp_path / "without", workers=0)
    ).run(None)


def picture_noted(notes: Path, key: str) -> Image.Image:
    with notes.open("a") as file:
        file.write(f"{os.getpid()} {key}\n")
    return picture(key)


def test_held_out_images_are_scored_and_never_trained_on(tmp_path: Path) -> None:
    """Training reads images in worker processes, scoring in this one; each reading is noted
    with its process.
    """
    notes, here = tmp_path / "notes", os.getpid()

    noted = partial(picture_noted, notes)
    source = DataSource(
        "toys",
        {
            "train": pictures(24, 0, noted),
            "validation": pictures(6, 100, noted),
            "test": pictures(6, 200, noted),
        },
    )
    settings = replace(SHORT, preprocess={"size": 32, "crop_fraction": 1.0})
    running = Running(output=tmp_path / "run", workers=1)
    result = train(MODEL, source, settings, running)
    artifact, log = result.artifact, result.log
    read = [line.split() for line in notes.read_text().splitlines()]
    trained = {key for process, key in read if int(process) != here}
    assert trained <= set(source.parts["train"].keys)
    assert len(trained) == 24
    assert set(source.held_out().keys) <= {key for _, key in read}
    assert len(log) == 2
    saved = Artifact.read(tmp_path / "run" / f"{MODEL}.toys.onnx")
    assert saved.form == artifact.form == "train"
    assert saved.labels == CLASSES
    assert saved.preprocess is not None
    assert saved.preprocess.size == 32
    assert [step.verb for step in saved.steps] == ["train", "export"]
    assert saved.steps[0].settings["images"] == 24
    assert saved.steps[0].settings["recipe"]["epochs"] == 2


def test_an_unreadable_image_is_left_out_and_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for index in range(120):
        folder = data / CLASSES[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(f"{CLASSES[index % 2]}/{index}").save(folder / f"{index}.png")
    (data / "dark" / "50.png").write_bytes((data / "dark" / "50.png").read_bytes()[:60])
    preprocess = {"size": 32, "crop_fraction": 1.0}
    settings = replace(SHORT, epochs=1, batch=56, preprocess=preprocess)
    running = Running(output=tmp_path / "run", workers=0)
    result = train(MODEL, open_source(data), settings, running)
    assert result.artifact.steps[0].settings["images"] == 119
    assert "50.png" in result.remarks[-1]


def test_a_class_without_images_is_named_before_any_work(
    run: Run, tmp_path: Path
) -> None:
    for index in range(8):
        folder = tmp_path / "data" / CLASSES[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(f"{CLASSES[index % 2]}/{index}").save(folder / f"{index}.png")
    (tmp_path / "data" / "striped").mkdir()
    ran = run(
        "train",
        "repghostnet_050",
        "--data",
        tmp_path / "data",
        "-o",
        tmp_path / "run",
        "--batch",
        2,
    )
    assert ran.code == 2
    assert (
        "has no image of the class 'striped', so it cannot be learned; add images, or remove"
        in " ".join(ran.err.split())
    )
    assert not list(tmp_path.glob("run/*"))


def test_every_recipe_is_complete() -> None:
    assert {"digits", "photos"} <= set(recipes())
    with pytest.raises(InputError, match="did you mean digits"):
        recipe("digit")


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch": 7}, {"batch": 0}, {"lr": 0.0}, {"lr": math.nan}]
)
def test_settings_that_cannot_train_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="recipe short"):
        SHORT.changed(**change)


def lying_picture(key: str) -> Image.Image:
    """A picture whose EXIF tag says that it lies on its side."""
    image = picture(key)
    image.getexif()[ExifTags.Base.Orientation] = 6
    return image


def upright_picture(key: str) -> Image.Image:
    """The same picture, turned as the tag says."""
    return picture(key).transpose(Image.Transpose.ROTATE_270)


@pytest.mark.parametrize(
    ("orientation", "load"), [("apply", upright_picture), ("ignore", picture)]
)
def test_training_images_are_turned_where_the_preprocessing_says_so(
    orientation: Literal["apply", "ignore"], load: Callable[[str], Image.Image]
) -> None:
    preprocess = replace(PREPROCESS, orientation=orientation)
    lying = TrainingImages(pictures(8, 0, lying_picture), preprocess)
    expected = TrainingImages(pictures(8, 0, load), PREPROCESS)
    batches = []
    for images in (lying, expected):
        parts = images.parts(SHORT, 0, Share())
        batches.append(next(iter(images.loader(SHORT, 32, 0, parts, 0)))[0])
    assert torch.equal(*batches)
