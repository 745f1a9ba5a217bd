"""Every catalog model as torch builds it: counts of the training form, what the ablations
change, and timm's own folds.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

import torch
from torch import Tensor, nn

from repzoo.errors import InputError
from repzoo.zoo import catalog
from repzoo.zoo.families import build

FIXTURES = (
    Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "checkpoints"
)
NAMES = [row.name for row in catalog.models()]


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return build(name, **kwargs).eval()


def parameters(model: nn.Module) -> int:
    return sum(item.numel() for item in model.parameters())


def macs_by_layer(model: nn.Module, size: int) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer, for one image."""
    macs: dict[str, int] = {}

    def count(name: str, module: nn.Module, _: Any, output: Tensor) -> None:
        macs[name] = output.numel() * module.get_parameter("weight")[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(partial(count, name))
    model(torch.empty(1, 3, size, size, device="meta"))
    return macs


# What folding merges into another branch, by name: RepGhost, RepVGG (two), RepViT's mixer (two)
# and its second head.
MERGED = (
    "fusion_bn",
    "conv_1x1",
    "identity",
    "token_mixer.conv1",
    "token_mixer.bn",
    "head_dist",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_modules_have_the_catalogs_counts(name: str) -> None:
    """In the training form all of them count. In the deploy form merged branches vanish, and each
    BatchNorm too: after a convolution it leaves a bias per channel, elsewhere nothing.
    """
    row, model = catalog.spec(name), on_meta(name)
    macs = macs_by_layer(model, row.preprocess.height)
    assert parameters(model) == row.parameters_train
    assert sum(macs.values()) == row.macs_train
    kept = {
        key: item
        for key, item in model.named_modules()
        if not any(part in key for part in MERGED)
    }
    weights = sum(parameters(kept[key]) for key in macs.keys() & kept.keys())
    norms = [item for item in kept.values() if isinstance(item, nn.BatchNorm2d)]
    biases = sum(item.num_features for item in norms)
    assert weights + biases == row.parameters_deploy
    assert sum(macs[key] for key in macs.keys() & kept.keys()) == row.macs


@pytest.mark.parametrize(
    "name", ["repvgg_a0", "repvit_m0_6", "repvit_m0_9", "repvit_m1"]
)
def test_timms_own_fold_leaves_the_deploy_counts(name: str) -> None:
    """Of RepGhost and FasterNet timm leaves BatchNorms, and the folds of RepVGG need the
    weights: one suffices.
    """
    from timm.models import reparameterize_model

    row, model = (
        catalog.spec(name),
        build(name).eval() if name == "repvgg_a0" else on_meta(name),
    )
    folded = reparameterize_model(model)
    assert not any(
        isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
        for module in folded.modules()
    )
    assert parameters(folded) == row.parameters_deploy


@pytest.mark.parametrize(
    "name",
    [
        "repvgg_b1g2",
        "repvit_m0_6",
        "repghostnet_050_wo",
        "repghostnet_050_repid",
        "fasternet_t0",
    ],
)
def test_any_number_of_classes(name: str) -> None:
    model = on_meta(name, num_classes=10)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 10)


def test_repvit_may_have_one_head() -> None:
    row, model = catalog.spec("repvit_m0_6"), on_meta("repvit_m0_6", distillation=False)
    assert row.parameters_train - parameters(model) == 2 * 320 + 320 * 1000 + 1000


def test_our_grouped_repvgg_is_built_as_timm_builds_its_own() -> None:
    """B1g2 is B1g4 with twice the group size: same names, and weights twice as deep in the
    grouped layers alone.
    """
    two, four = on_meta("repvgg_b1g2").state_dict(), on_meta("repvgg_b1g4").state_dict()
    assert list(two) == list(four)
    ratios = {
        key: two[key].numel() / four[key].numel()
        for key in two
        if two[key].shape != four[key].shape
    }
    assert len(ratios) == 2 * (2 + 3 + 8 + 0)
    assert set(ratios.values()) == {2.0}


def official_keys(fixture: str) -> set[str]:
    path = FIXTURES / fixture
    if not path.is_file():
        pytest.skip(
            "the checkpoint fixtures are not beside this checkout (../shared/fixtures)"
        )
    return set(json.loads(path.read_text(encoding="utf-8"))["tensors"])


@pytest.mark.parametrize(
    ("tag", "missing"),
    [("", ()), ("_wo", ()), ("_repid", ("fusion_bn",)), ("_norep", ("fusion_bn",))],
)
def test_repghosts_forms_have_the_authors_tensor_names(
    tag: str, missing: tuple[str, ...]
) -> None:
    expected = {
        key
        for key in official_keys("repghost_official.0_5x.json")
        if not any(part in key for part in missing)
    }
    assert set(on_meta(f"repghostnet_050{tag}").state_dict()) == expected


def random_model(name: str) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics and scales that no fold could ignore."""
    torch.manual_seed(0)
    model = build(name, num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    return model


def test_repid_adds_the_input_where_norep_does_not() -> None:
    norep, repid = (
        random_model("repghostnet_050_norep"),
        random_model("repghostnet_050_repid"),
    )
    repid.load_state_dict(norep.state_dict())
    plain, identity = (
        item.get_submodule("blocks.0.0.ghost2") for item in (norep, repid)
    )
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        inner = plain.get_submodule("primary_conv")(x)
        torch.testing.assert_close(identity(x), plain(x) + inner)


def test_repid_folds_in_timm() -> None:
    from timm.models import reparameterize_model

    model = random_model("repghostnet_050_repid")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            reparameterize_model(model)(x), model(x), rtol=1e-4, atol=1e-4
        )


def test_wo_lacks_the_identity_shortcut_and_nothing_else() -> None:
    whole, without = random_model("repghostnet_050"), random_model("repghostnet_050_wo")
    without.load_state_dict(whole.state_dict())
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        blocks = [item.get_submodule("blocks.0.0") for item in (whole, without)]
        torch.testing.assert_close(blocks[0](x) - x, blocks[1](x), rtol=1e-4, atol=1e-5)
        strided = [item.get_submodule("blocks.1.0")(x) for item in (whole, without)]
    torch.testing.assert_close(strided[0], strided[1])


def test_timms_registry_is_left_alone() -> None:
    import timm

    ablations = {name for name in NAMES if name.startswith("repghostnet_050_")}
    assert set(NAMES) - set(timm.list_models()) == ablations | {
        "repvgg_b1g2",
        "repvgg_b2g2",
        "repvgg_b3g2",
        "repvggplus_l2pse",
        "repvit_m0_6",
    }


def test_no_weights_are_promised_where_timm_has_none() -> None:
    with pytest.raises(
        InputError,
        match=r"no weights of repvit_m0_6; get a checkpoint from https://github\.com/THU-MIG/RepViT",
    ):
        build("repvit_m0_6", pretrained=True)


def test_an_unknown_model_is_refused_with_its_neighbors() -> None:
    with pytest.raises(InputError, match="did you mean repvgg_b1g"):
        build("repvgg_b1g3")
