"""What a training holds out, what it refuses to write, and what shorter trainings change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

import torch
from tests.conftest import Run
from tests.training.test_loop import PREPROCESS, network, pictures

from repzoo.data.dataset import DataSource
from repzoo.errors import InputError
from repzoo.training import models, threads
from repzoo.training.holdout import FEWEST_STEPS, hold_out, require_classes
from repzoo.training.options import TrainOptions
from repzoo.training.recipe import recipe
from repzoo.verbs import RecipeChanges
from repzoo.zoo import families

FLAT = DataSource("flat", {"all": pictures(30)})


def test_a_share_of_each_class_is_held_out() -> None:
    images = pictures(30)
    rest, held_out, remarks = hold_out(FLAT, images, TrainOptions(split=0.2))
    assert held_out is not None
    assert Counter(held_out.targets) == {0: 2, 1: 2, 2: 2}
    assert sorted(rest.keys + held_out.keys) == sorted(images.keys)
    assert remarks == ["6 of 30 images are held out (--split 0.2)"]
    again = hold_out(FLAT, images, TrainOptions(split=0.2))[1]
    other = hold_out(FLAT, images, TrainOptions(split=0.2, seed=1))[1]
    assert again is not None
    assert other is not None
    assert again.keys == held_out.keys != other.keys


def test_training_on_everything_is_said() -> None:
    rest, held_out, remarks = hold_out(FLAT, pictures(30), TrainOptions())
    assert (len(rest), held_out) == (30, None)
    assert "none is held out" in remarks[0]
    assert "--split 0.1" in remarks[0]


def test_splits_that_make_no_sense_are_refused() -> None:
    parts = {"train": pictures(9), "validation": pictures(9, 100)}
    with pytest.raises(InputError, match="holds images out already"):
        hold_out(DataSource("parts", parts), pictures(9), TrainOptions(split=0.1))
    with pytest.raises(InputError, match=r"has 1 image.*too few to hold one out"):
        hold_out(FLAT, pictures(3), TrainOptions(split=0.5))


class Constant(torch.nn.Module):
    """Predicts the second class."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(inputs), 3)
        logits[:, 1] = 1
        return logits


def test_one_class_for_all_is_an_error() -> None:
    images = pictures(9)
    with pytest.raises(
        InputError, match="predicts the class 'light' for all of 9 images"
    ):
        require_classes(Constant(), images, PREPROCESS, FEWEST_STEPS)
    (remark,) = require_classes(Constant(), images, PREPROCESS, 3)
    assert "3 steps are too few" in remark
    assert require_classes(Constant(), images.subset([0, 3]), PREPROCESS, 100) == []
    torch.manual_seed(0)
    varied = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    assert require_classes(varied, pictures(60), PREPROCESS, 100) == []


@pytest.mark.parametrize(
    ("epochs", "warmup", "mix_off"), [(18, 0, 2), (90, 2, 10), (360, 5, 20)]
)
def test_fewer_epochs_shorten_the_phases(
    epochs: int, warmup: int, mix_off: int
) -> None:
    changed = RecipeChanges(epochs=epochs).apply(recipe("photos"))
    assert (changed.warmup_epochs, changed.mix_off_epochs) == (warmup, mix_off)
    assert RecipeChanges().apply(recipe("photos")) == recipe("photos")


def test_fine_tuning_starts_from_weights_that_ship() -> None:
    options = TrainOptions(checkpoint="repghostnet_050.digits")
    start = models.student("repghostnet_050", 4, recipe("finetune"), options)
    state: dict[str, Any] = start.module.state_dict()
    assert state["classifier.weight"].shape[0] == 4
    assert "starts anew" in " ".join(start.remarks)
    from repzoo.zoo import embedded

    stored = {
        item.name: item
        for item in embedded.read(options.checkpoint or "").model.graph.initializer
    }
    assert tuple(stored["conv_stem.weight"].dims) == tuple(
        state["conv_stem.weight"].shape
    )


def test_list_takes_a_part_of_a_name(run: Run) -> None:
    names = [row["name"] for row in run("list", "Ghost", "--json").document["models"]]
    assert names
    assert all("ghost" in name for name in names)
    ran = run("list", "resnet")
    assert ran.code == 2
    assert "no model is called 'resnet'" in " ".join(ran.err.split())


def test_a_folder_of_classes_is_split(run: Run, tmp_path: Path) -> None:
    """Refused by the command line before any work where a part is held out already."""
    for part in ("train", "validation"):
        for label in "ab":
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            pictures(3).load("dark/1").save(folder / "1.png")
    options = ("--data", tmp_path / "data", "-o", tmp_path / "run", "--split", 0.1)
    ran = run("train", "repghostnet_050", *options)
    assert ran.code == 2
    assert "leave --split out" in " ".join(ran.err.split())


def test_weights_that_cannot_be_fetched_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address that nobody answers stands in for a machine without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    tries: list[str] = []

    def create(name: str, **_: Any) -> None:
        tries.append(name)
        assert constants.HF_HUB_OFFLINE
        raise OSError("not in the cache")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(InputError, match=r"cannot be fetched \(not in the cache\)"):
        families.build("repvit_m0_9", 10, pretrained=True)
    assert tries == ["repvit_m0_9"]
    assert not constants.HF_HUB_OFFLINE


def test_fewer_threads_are_chosen_only_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {8: 1.0, 4: 0.9, 2: 0.5, 1: 0.45}
    monkeypatch.setattr(threads, "_step_seconds", lambda _m, _s, count: seconds[count])
    module = torch.nn.Identity()
    assert threads.fastest(module, (3, 16, 16), 8) == 2
    assert threads.fastest(module, (3, 16, 16), 2) == 2
    assert threads.fastest(module, (3, 16, 16), 1) == 1


def test_a_trial_leaves_the_network_and_torch_as_they_were() -> None:
    module, before = network(), torch.get_num_threads()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert threads.fastest(module, (3, 16, 16), 2) in (1, 2)
    assert torch.get_num_threads() == before
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
