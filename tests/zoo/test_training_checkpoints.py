"""Checkpoints as training frameworks write them: other modules beside, averages, no last layer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("safetensors", reason="the torch extra is not installed")

import torch
from tests.zoo.test_checkpoints import SMALL, fill, save, tensors

from repzoo.errors import InputError
from repzoo.zoo.checkpoints import load
from repzoo.zoo.naming import CheckpointOptions

STATE = tensors(fill(SMALL))


def prefixed(prefix: str, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{key}": value * scale if value.is_floating_point() else value
        for key, value in STATE.items()
    }


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (
            {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(6)}},
            "1 tensor beside the model, such as 'criterion.weight', left out",
        ),
        (
            prefixed("module.") | {"n_averaged": torch.tensor(3)},
            "1 tensor beside the model, such as 'n_averaged', left out",
        ),
        ({"state_dict": prefixed("_orig_mod.module.")}, ""),
        (
            {"state_dict": prefixed("task.net.") | {"task.loss.weight": torch.ones(6)}},
            "such as 'task.loss.weight', left out",
        ),
    ],
    ids=["lightning", "averaged", "compiled", "nested"],
)
def test_the_model_is_found_beside_other_modules(
    tmp_path: Path, content: object, remark: str
) -> None:
    loaded = load(save(tmp_path / "w.ckpt", content), SMALL)
    for key, value in STATE.items():
        np.testing.assert_array_equal(loaded.state[key], value.numpy())
    assert remark in " ".join(loaded.remarks)


def test_lightnings_average_is_taken_where_the_source_prefers_it(
    tmp_path: Path,
) -> None:
    content = {"state_dict": prefixed("model.") | prefixed("ema_model.module.", 0.5)}
    path = save(tmp_path / "w.ckpt", content)
    key = "conv_stem.weight"
    plain = load(path, SMALL, CheckpointOptions(ema=False)).state[key]
    np.testing.assert_array_equal(plain, STATE[key].numpy())
    averaged = load(path, SMALL).state[key]
    np.testing.assert_array_equal(averaged, STATE[key].numpy() * 0.5)


def test_without_its_last_layer_a_new_one_starts(tmp_path: Path) -> None:
    body = {key: value for key, value in STATE.items() if "classifier" not in key}
    path = save(tmp_path / "w.pth", body)
    with pytest.raises(
        InputError, match="without its last layer; give --reset-head and"
    ):
        load(path, SMALL)
    loaded = load(path, SMALL, CheckpointOptions(num_classes=3, reset_head=True))
    assert loaded.state["classifier.weight"].shape == (3, 1280)
    assert "no last layer: one for 3 classes starts anew" in " ".join(loaded.remarks)
    with pytest.raises(
        InputError, match=r"no last layer .* its other tensors do not fit"
    ):
        load(path, "repghostnet_100")


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
def test_programs_are_refused_by_what_they_are(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2).eval()
    program = torch.jit.trace(module, torch.ones(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(program, tmp_path / "jit.pt")
    torch.export.save(
        torch.export.export(module, (torch.ones(1, 2),)), tmp_path / "e.pt2"
    )
    with pytest.raises(InputError, match=r"TorchScript program.*torch\.jit\.load"):
        load(tmp_path / "jit.pt", SMALL)
    with pytest.raises(
        InputError, match=r"program of torch\.export.*torch\.export\.load"
    ):
        load(tmp_path / "e.pt2", SMALL)


def test_the_same_file_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """The order of safetensors' metadata follows a hash that differs between processes."""
    path = save(tmp_path / "w.pth", STATE)
    script = (
        "import sys, hashlib, repzoo\n"
        f"data = repzoo.convert(sys.argv[1], {SMALL!r}).data\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    import repzoo

    here = repzoo.convert(path, SMALL).data
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()
    (tmp_path / "w.safetensors").write_bytes(here)
    again = load(tmp_path / "w.safetensors", SMALL)
    np.testing.assert_array_equal(
        again.state["conv_stem.weight"], STATE["conv_stem.weight"]
    )
