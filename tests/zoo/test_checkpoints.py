"""Checkpoints: files that fit are loaded to the bit; all others are refused with a sentence, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("safetensors", reason="the torch extra is not installed")

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from repzoo.errors import InputError
from repzoo.zoo.checkpoints import load_into

State = dict[str, Tensor]


def network(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def state() -> State:
    """Of other weights than those of the network they are loaded into."""
    return dict(network(seed=1).state_dict())


def loaded(path: Path, classes: int = 3) -> State:
    module = network(classes)
    load_into(module, path)
    return dict(module.state_dict())


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def safetensors(path: Path, content: State) -> Path:
    save_file({key: value.contiguous() for key, value in content.items()}, path)
    return path


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_safetensors(tmp_path: Path) -> None:
    assert_same(loaded(safetensors(tmp_path / "w.safetensors", state())), state())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: one,
        lambda one: {"state_dict": one},
        lambda one: {"model": one, "epoch": 3},
        lambda one: {f"module.{key}": value for key, value in one.items()},
    ],
    ids=["plain", "state_dict", "model", "data parallel"],
)
def test_pth_in_its_usual_wrappings(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    assert_same(loaded(written(tmp_path / "w.pth", wrap(state()))), state())


def refused(path: Path, sentence: str, classes: int = 3) -> None:
    """Refused with `sentence`, the network untouched."""
    module = network(classes)
    with pytest.raises(InputError, match=sentence):
        load_into(module, path)
    assert_same(dict(module.state_dict()), dict(network(classes).state_dict()))


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    less = state()
    del less["3.bias"]
    refused(written(tmp_path / "less.pth", less), r"lacks 1 tensors, such as '3\.bias'")
    refused(written(tmp_path / "more.pth", {**state(), "9.weight": torch.zeros(1)}), r"adds 1 tensors, such as '9\.weight'")
    other = {f"x{key}": value for key, value in state().items()}
    refused(safetensors(tmp_path / "other.safetensors", other), r"lacks 9 .* and adds 9 .*source's naming")


def test_another_class_count_says_which_option_to_give(tmp_path: Path) -> None:
    refused(written(tmp_path / "w.pth", state()), r"3\.(bias|weight) has shape \(3.*model has \(7.*--num-classes", classes=7)


class Hostile:
    """Unpickling this by the book would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin"])
def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    refused(written(tmp_path / name, {**state(), "3.bias": Hostile(mark)}), "not a readable file of tensors")
    (tmp_path / f"bare-{name}").write_bytes(pickle.dumps(Hostile(mark)))
    refused(tmp_path / f"bare-{name}", "not a readable file of tensors")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the trap works
    assert mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    written(path, state()) if name.endswith("pth") else safetensors(path, state())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "not a readable file of tensors")


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\xff" * 300])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, r"not a readable file of tensors|lacks 9 tensors")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(2), {"state_dict": {"a": "b"}}])
def test_a_pth_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    refused(written(tmp_path / "w.pth", content), "does not hold a table of tensors")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "does not exist")
    refused(tmp_path, "does not exist")
