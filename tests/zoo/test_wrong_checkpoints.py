"""A checkpoint that does not fit the model is refused with what does not fit; convert and export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("safetensors", reason="the torch extra is not installed")

import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tests.conftest import Run
from tests.zoo import official
from tests.zoo.official import State
from tests.zoo.test_checkpoints import (
    SMALL,
    assert_close,
    assert_same_state,
    fill,
    save,
    tensors,
)

from repzoo.errors import InputError
from repzoo.zoo.checkpoints import load
from repzoo.zoo.naming import CheckpointOptions


@pytest.fixture(scope="module")
def ghost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ten classes of the smallest RepGhost."""
    return save(
        tmp_path_factory.mktemp("ghost") / "ghost.pth",
        {"state_dict": tensors(fill(SMALL))},
    )


def edit_file(path: Path, edit: Callable[[State], None]) -> Path:
    state = fill(SMALL)
    edit(state)
    return save(path, tensors(state))


def test_what_is_missing_too_much_or_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(InputError, match=r"lacks 1 tensors, such as 'conv_head\.bias'"):
        load(edit_file(path, lambda state: state.__delitem__("conv_head.bias")), SMALL)
    with pytest.raises(InputError, match=r"adds 1 tensors, such as 'extra\.weight'"):
        load(
            edit_file(
                path,
                lambda state: state.update({"extra.weight": np.zeros(2, np.float32)}),
            ),
            SMALL,
        )
    with pytest.raises(
        InputError,
        match=r"has 1 of other shapes, such as 'bn1\.bias', \(3,\) where \(8,\) is expected",
    ):
        load(
            edit_file(
                path, lambda state: state.update({"bn1.bias": np.zeros(3, np.float32)})
            ),
            SMALL,
        )
    with pytest.raises(
        InputError, match=r"'bn1\.bias' holds values that are not finite"
    ):
        load(
            edit_file(
                path,
                lambda state: state.update(
                    {"bn1.bias": np.full(8, np.nan, np.float32)}
                ),
            ),
            SMALL,
        )
    with pytest.raises(InputError, match=r"'bn1\.bias' has elements of type int64"):
        load(
            edit_file(
                path, lambda state: state.update({"bn1.bias": np.zeros(8, np.int64)})
            ),
            SMALL,
        )


def test_weights_of_another_model_are_refused_with_the_model_that_fits(
    ghost: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"does not fit repghostnet_100: .*; it fits repghostnet_050 and repghostnet_050_wo$",
    ):
        load(ghost, "repghostnet_100")
    with pytest.raises(
        InputError,
        match=r"is of .*RepGhost.*, not of repvgg_a0; it fits repghostnet_050 and repghostnet_050_wo$",
    ):
        load(ghost, "repvgg_a0")
    with pytest.raises(InputError, match=r"adds .*fusion_bn.*it fits repghostnet_050 "):
        load(ghost, "repghostnet_050_norep")
    other = save(
        tmp_path / "o.pth", {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}
    )
    with pytest.raises(
        InputError,
        match=r"2 tensors \('a\.weight', 'b\.weight', \.\.\.\) are not named as those of a model of the zoo",
    ):
        load(other, SMALL)


def test_a_source_that_is_given_must_be_right(ghost: Path) -> None:
    assert (
        load(ghost, SMALL, CheckpointOptions("timm")).state.keys()
        == load(ghost, SMALL, CheckpointOptions("official")).state.keys()
    )
    with pytest.raises(
        InputError, match="by the source paddle; check the file and --source"
    ):
        load(ghost, SMALL, CheckpointOptions("paddle"))
    with pytest.raises(
        InputError, match="no source is called 'tim'; did you mean timm"
    ):
        load(ghost, SMALL, CheckpointOptions("tim"))


def test_another_class_count_needs_to_be_asked_for(ghost: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"has 10 classes where 7 are wanted; give --num-classes 10, or --reset-head",
    ):
        load(ghost, SMALL, CheckpointOptions(num_classes=7))
    reset = load(ghost, SMALL, CheckpointOptions(num_classes=7, reset_head=True))
    assert reset.state["classifier.weight"].shape == (7, 1280)
    assert any("starts anew" in remark for remark in reset.remarks)
    kept = {
        name: value
        for name, value in load(ghost, SMALL).state.items()
        if not name.startswith("classifier")
    }
    assert all(np.array_equal(reset.state[name], value) for name, value in kept.items())
    again = load(ghost, SMALL, CheckpointOptions(num_classes=7, reset_head=True))
    np.testing.assert_array_equal(
        again.state["classifier.weight"], reset.state["classifier.weight"]
    )


def test_keys_that_meet_under_one_name_are_refused(tmp_path: Path) -> None:
    state = fill("repvgg_a0", official.repvgg_name)
    state["stem.conv_kxk.conv.weight"] = state["stage0.rbr_dense.conv.weight"]
    with pytest.raises(InputError, match=r"gives stem\.conv_kxk\.conv\.weight twice"):
        load(save(tmp_path / "w.pth", tensors(state)), "repvgg_a0")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95, 0.9999])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "legacy.pth"])
def test_a_half_downloaded_file_is_refused(
    tmp_path: Path, name: str, share: float
) -> None:
    state, path = fill(SMALL), tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else save(
        path, tensors(state), name.startswith("legacy")
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        InputError,
        match=r"refused: .*(truncated|cut short|no end|beyond|does not begin)",
    ):
        load(path, SMALL)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputError, match="does not exist or is no file"):
            load(path, SMALL)


def test_convert_and_export_from_the_command_line(
    run: Run, ghost: Path, tmp_path: Path
) -> None:
    """convert writes what export reads; the graph computes what the module does; both say whose
    the weights were.
    """
    out = tmp_path / "w.safetensors"
    ran = run("convert", ghost, "--model", SMALL, "-o", out, "--json")
    assert (ran.code, ran.document["classes"], ran.document["form"]) == (0, 10, "train")
    assert_same_state(load(ghost, SMALL), load_file(out))
    with safe_open(out, "numpy") as file:
        assert file.metadata()["model"] == SMALL
    for weights in (ghost, out):
        result = run(
            "export",
            SMALL,
            "--checkpoint",
            weights,
            "--num-classes",
            10,
            "--size",
            32,
            "-o",
            tmp_path / f"{weights.stem}.onnx",
        )
        assert result.code == 0
        assert "weights of" in result.err
    onnx = [(tmp_path / name).read_bytes() for name in ("ghost.onnx", "w.onnx")]
    assert len(onnx[0]) > 1_000_000
    ran = run("export", SMALL, "--checkpoint", ghost, "-o", tmp_path / "x.onnx")
    assert (ran.code, (tmp_path / "x.onnx").exists()) == (2, False)
    assert "has 10 classes where 1000 are wanted" in ran.err
    ran = run("convert", ghost, "--model", SMALL, "-o", tmp_path / "w.pth")
    assert (ran.code, "give it that suffix" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("model", "ending"), [("repvit_m0_9", "safetensors"), ("fasternet_t0", "pth")]
)
def test_timms_own_file_exported_answers_as_timms_module(
    run: Run, tmp_path: Path, model: str, ending: str
) -> None:
    """Nothing of the catalog makes the file: timm builds, saves and answers; RepViT's answer is
    the mean of its heads.
    """
    import onnxruntime as ort
    import timm

    torch.manual_seed(0)
    module = timm.create_model(model, num_classes=7).eval()
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save(module.state_dict(), path)
    else:
        save_file(
            {name: value.numpy() for name, value in module.state_dict().items()}, path
        )
    ran = run(
        "export",
        model,
        "--checkpoint",
        path,
        "--num-classes",
        7,
        "--size",
        64,
        "-o",
        tmp_path / "m.onnx",
    )
    assert ran.code == 0, ran.err
    assert "timm" in ran.err
    inputs = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    session = ort.InferenceSession(
        (tmp_path / "m.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    with torch.inference_mode():
        assert_close(
            session.run(None, {session.get_inputs()[0].name: inputs})[0],
            module(torch.from_numpy(inputs)).numpy(),
        )
