"""Checkpoints of every source: the authors' logits, each trap of each source, and what a file
that does not fit is told.
"""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("safetensors", reason="the torch extra is not installed")

import ml_dtypes
import torch
from tests.zoo import official
from tests.zoo.official import State

from repzoo.errors import InputError
from repzoo.zoo.checkpoints import Loaded, load, module_of, shapes
from repzoo.zoo.naming import CheckpointOptions

Array = npt.NDArray[Any]
SMALL = "repghostnet_050"


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def tensors(state: State) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        (key, torch.from_numpy(np.array(value))) for key, value in state.items()
    )


def fill(
    model: str,
    rename: Callable[[str], str] = str,
    form: str = "train",
    classes: int = 10,
    heads: bool = True,
    gain: float = 1.0,
) -> State:
    """The model's tensors under a source's names, drawn by those names."""
    own = shapes(model, form, classes, heads)
    return official.fill({rename(name): shape for name, shape in own.items()}, gain)


def logits(loaded: Loaded, inputs: Array) -> Array:
    with torch.no_grad():
        return np.asarray(module_of(loaded)(torch.from_numpy(inputs)).numpy())


def assert_close(actual: Array, expected: Array) -> None:
    assert float(np.abs(actual - expected).max()) <= 1e-4 * float(
        np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("name", "model", "source"),
    [
        (
            "fasternet_official.t0",
            "fasternet_t0",
            "the authors' FasterNet, training form",
        ),
        (
            "repghost_official.0_5x",
            "repghostnet_050",
            "RepGhost (they name alike), training form",
        ),
        (
            "repvgg_official.RepVGG-A0",
            "repvgg_a0",
            "the authors' RepVGG (repvgg.py), training form",
        ),
        (
            "repvgg_official.RepVGG-A0.deploy",
            "repvgg_a0",
            "the authors' RepVGG (repvgg.py), deploy form",
        ),
        (
            "repvit_thu.repvit_m0_9",
            "repvit_m0_9",
            "the authors' (THU) RepViT, training form",
        ),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_authors_logits(
    tmp_path: Path, name: str, model: str, source: str, legacy: bool
) -> None:
    known = official.fixture(name)
    state = tensors(official.fill(known["tensors"], known["gain"]))
    path = save(
        tmp_path / "w.pth",
        {known["container"]: state, "epoch": 3} if known["container"] else state,
        legacy,
    )
    loaded = load(path, model)
    assert loaded.source.endswith(source)
    assert loaded.classes == 1000
    assert_close(
        logits(
            loaded, official.inputs(known["input"]["shape"], known["input"]["seed"])
        ),
        np.array(known["logits"]),
    )


def assert_same_state(loaded: Loaded, expected: State) -> None:
    assert set(loaded.state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.state[name], value, err_msg=name)


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    ("model", "rename", "message"),
    [
        ("repvgg_a0", str, "timm RepVGG"),
        ("repvgg_a0", official.mmpretrain_name, "mmpretrain or mmcls"),
        ("repvgg_b0", official.repvgg_name, "the authors' RepVGG"),
        (SMALL, str, "RepGhost"),
        ("repghostnet_050_norep", str, "RepGhost"),
        ("repvit_m0_6", str, "timm RepViT"),
        ("repvit_m1", str, "timm RepViT"),
        ("repvit_m0_6", None, "THU"),
        ("repvit_m1", None, "THU"),
        ("fasternet_t0", str, "timm FasterNet"),
    ],
)
def test_every_source_and_form_places_each_tensor_once(
    tmp_path: Path,
    model: str,
    rename: Callable[[str], str] | None,
    message: str,
    form: str,
) -> None:
    if form == "deploy" and model.startswith("fasternet"):
        pytest.skip("FasterNet has no deploy form of its own")
    expected = official.fill(shapes(model, form, 10, True), 1.0)
    renamed = rename or official.repvit_name(shapes(model, form, 10, True))
    assert len({renamed(name) for name in expected}) == len(expected)
    path = save(
        tmp_path / "w.pth",
        {
            "state_dict": tensors(
                {renamed(name): value for name, value in expected.items()}
            )
        },
    )
    loaded = load(path, model)
    assert (loaded.form, loaded.classes) == ("train" if "norep" in model else form, 10)
    assert message in loaded.source
    assert_same_state(loaded, expected)


def test_paddles_linear_layers_are_transposed_and_its_counters_start_at_zero(
    tmp_path: Path,
) -> None:
    for model, rename, head in (
        ("repvgg_a0", official.repvgg_name, "head.fc"),
        ("fasternet_t0", official.fasternet_name, "classifier"),
    ):
        state = fill(model, rename)
        path = tmp_path / f"{model}.pdparams"
        path.write_bytes(
            pickle.dumps(
                {
                    **official.paddle(state),
                    "StructuredToParameterName@@": {"a": "linear_0.w_0"},
                },
                2,
            )
        )
        loaded = load(path, model)
        assert "PaddleClas" in loaded.source
        np.testing.assert_array_equal(
            loaded.state[f"{head}.weight"], state[rename(f"{head}.weight")]
        )
        assert any("counters of batches" in remark for remark in loaded.remarks)
        assert_same_state(loaded, {name: state[rename(name)] for name in loaded.state})


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddles_pairs_of_name_and_array_are_read(
    tmp_path: Path, protocol: int
) -> None:
    class Pair:
        def __init__(self, value: Array) -> None:
            self.value = value

        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return tuple, (("conv2d_0.w_0", self.value),)

    state = official.paddle(fill("fasternet_t0", official.fasternet_name))
    path = tmp_path / "w.pdparams"
    path.write_bytes(
        pickle.dumps({key: Pair(value) for key, value in state.items()}, protocol)
    )
    np.testing.assert_array_equal(
        load(path, "fasternet_t0").state["conv_head.weight"],
        state["avgpool_pre_head.1.weight"],
    )


def test_paddles_merged_repvgg_keeps_its_se_blocks(tmp_path: Path) -> None:
    """PaddleClas saves merged convolutions beside the branches and runs them without SE; here
    branches and SE are loaded.
    """
    state = official.paddle(fill("repvgg_a0", official.repvgg_name))
    merged = {
        key.replace("rbr_dense.conv", "rbr_reparam"): value
        for key, value in state.items()
        if "rbr_dense.conv" in key
    }
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({**state, **merged}, 4))
    loaded = load(path, "repvgg_a0")
    assert loaded.form == "train"
    assert any(
        f"{len(merged)} tensors left out" in remark and "SE block stays" in remark
        for remark in loaded.remarks
    )


def test_paddles_bfloat16_and_split_tensors_are_refused_by_name(tmp_path: Path) -> None:
    state = official.paddle(fill("fasternet_t0", official.fasternet_name))
    path, key = tmp_path / "w.pdparams", "avgpool_pre_head.1.weight"
    path.write_bytes(pickle.dumps({**state, key: state[key].astype(np.uint16)}, 4))
    with pytest.raises(
        InputError,
        match=rf"'{key}' has elements of type uint16 .*Paddle stores bfloat16 so: save it as float32",
    ):
        load(path, "fasternet_t0")
    parts = {
        "head.weight@@.0": state["head.weight"][:5].ravel(),
        "head.weight@@.1": state["head.weight"][5:].ravel(),
    }
    info = {
        "UnpackBigParamInfor@@": {
            "head.weight": {"OriginShape": (1280, 10), "slices": list(parts)}
        }
    }
    path.write_bytes(
        pickle.dumps(
            {
                **{
                    name: value
                    for name, value in state.items()
                    if name != "head.weight"
                },
                **parts,
                **info,
            },
            2,
        )
    )
    with pytest.raises(InputError):
        load(path, "fasternet_t0")


def test_repvit_with_one_head_and_fused(tmp_path: Path) -> None:
    for heads, form, last in (
        (False, "train", "head.head.l.weight"),
        (True, "deploy", "head.weight"),
    ):
        own = shapes("repvit_m0_6", form, 10, heads)
        state = fill("repvit_m0_6", official.repvit_name(own), form, heads=heads)
        loaded = load(
            save(tmp_path / "w.pth", {"model": tensors(state)}), "repvit_m0_6"
        )
        assert (loaded.two_heads, loaded.form, last in loaded.state) == (
            heads and form == "train",
            form,
            True,
        )
        assert logits(loaded, official.inputs((1, 3, 64, 64))).shape == (1, 10)


def test_legacy_repvit_and_its_successor_are_distinguished(tmp_path: Path) -> None:
    """M1 has M0.9's widths and depths, but a BatchNorm in each 1x1 branch."""
    own = shapes("repvit_m1", "train", 10, True)
    path = save(
        tmp_path / "w.pth", tensors(fill("repvit_m1", official.repvit_name(own)))
    )
    with pytest.raises(
        InputError, match=r"does not fit repvit_m0_9: it lacks .*; it fits repvit_m1$"
    ):
        load(path, "repvit_m0_9")


def test_only_the_two_smallest_fasternets_have_gelu() -> None:
    from repzoo.zoo import families

    for name in ("t0", "t1", "t2", "s", "m", "l"):
        with torch.device("meta"):
            kinds = {
                type(module) for module in families.build(f"fasternet_{name}").modules()
            }
        assert (torch.nn.GELU in kinds, torch.nn.ReLU in kinds) == (
            name in ("t0", "t1"),
            name not in ("t0", "t1"),
        )


def test_averaged_weights_are_used_where_the_source_prefers_them(
    tmp_path: Path,
) -> None:
    plain, mean = fill(SMALL), fill(SMALL, gain=0.5)
    wrapped = {f"module.{key}": value for key, value in tensors(mean).items()}
    path = save(
        tmp_path / "w.pth",
        {
            "state_dict": tensors(plain),
            "state_dict_ema": wrapped,
            "args": argparse.Namespace(lr=0.6),
        },
    )
    assert_same_state(load(path, SMALL), mean)
    assert (
        "of 'state_dict', 'state_dict_ema' the table 'state_dict_ema' was taken"
        in load(path, SMALL).remarks
    )
    assert_same_state(load(path, SMALL, CheckpointOptions(ema=False)), plain)


def test_a_training_checkpoint_with_its_optimizer_is_read(tmp_path: Path) -> None:
    expected = fill("fasternet_t0")
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    content = {
        "model": tensors(expected),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(a=Path("x")),
    }
    content |= {
        "best": np.float64(71.5),
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "epoch": 299,
    }
    assert_same_state(load(save(tmp_path / "w.pth", content), "fasternet_t0"), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32_with_a_remark(tmp_path: Path, dtype: str) -> None:
    state = fill(SMALL)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    half = {
        key: torch.from_numpy(np.array(value)).to(getattr(torch, dtype))
        if value.ndim
        else torch.tensor(0)
        for key, value in state.items()
    }
    loaded = load(save(tmp_path / "w.pth", half), SMALL)
    assert f"weights of type {dtype} became float32" in loaded.remarks
    assert_same_state(
        loaded,
        {
            key: value.astype(kind).astype(np.float32) if value.ndim else value
            for key, value in state.items()
        },
    )
    if dtype != "float64":
        from safetensors.torch import save_file as save_torch

        save_torch(half, tmp_path / "w.safetensors")
        assert_same_state(load(tmp_path / "w.safetensors", SMALL), dict(loaded.state))
