"""Every model of the catalog as a torch module in its training form.

timm builds what it has; the rest is put together here from timm's own classes and never enters timm's registry:

- RepVGG B1g2, B2g2, B3g2: timm's block configuration with two groups in every second layer (arXiv 2101.03697, section 3.4);
- RepViT M0.6: widths 40-80-160-320 (official repository, `model/repvit.py`, released after the paper);
- RepVGGplus L2pse (official repository, `repvggplus.py`): D2's widths and depths, SE after the ReLU; without its auxiliary heads;
- RepGhost 0.5x ablations (arXiv 2211.06088, section 4.3; official repository, `model/repghost.py`): see `_repghost_ablation`.

Importing this module without torch or timm raises MissingExtra; nothing else in the zoo needs them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from repzoo.errors import InputError, MissingExtra, RepzooError
from repzoo.zoo.catalog import spec

try:
    import timm
    import torch
    from timm.layers import SEModule
    from timm.models import reparameterize_model
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, RepVggBlock
    from timm.models.repghost import RepGhostBottleneck, RepGhostModule
    from timm.models.repvit import RepVit
    from torch import nn
except ModuleNotFoundError as error:
    raise MissingExtra("building a model of the zoo", "torch") from error

Builder = Callable[..., nn.Module]
IMAGENET_CLASSES = 1000


def build(name: str, num_classes: int = 1000, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The training form of catalog model `name`, on torch's current default device.

    pretrained  download timm's ImageNet weights (variants that timm has; needs the network)
    kwargs      passed to the model's constructor, such as `in_chans`, `drop_rate`; RepViT: `distillation=False` for one head

    Raises:
        InputError: unknown name, or `pretrained` for a variant that timm has no weights of.
    """
    row = spec(name)
    if name not in _OWN:
        return _typed(
            timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
        )
    if pretrained:
        raise InputError(
            f"timm has no weights of {name}; get a checkpoint from {row.repository} and give its file"
        )
    return _OWN[name](num_classes=num_classes, **kwargs)


def deploy_form(module: nn.Module) -> nn.Module:
    """`module` with the deploy form's tensors, as timm and the authors merge its branches; their values are left undefined.

    For loading a deploy-form checkpoint into. Changes `module`, and returns it.
    """
    for block in module.modules():
        if isinstance(block, RepVggBlock):
            _merge_shapes(block)
    return _typed(reparameterize_model(module, inplace=True))


def _merge_shapes(block: Any) -> None:
    """timm's own merging computes the kernel in a loop over channels; here only its place is wanted."""
    own = block.conv_kxk.conv
    block.reparam_conv = nn.Conv2d(
        own.in_channels,
        own.out_channels,
        own.kernel_size,
        own.stride,
        own.padding,
        groups=own.groups,
    )
    for branch in ("conv_kxk", "conv_1x1", "identity", "drop_path"):
        delattr(block, branch)


def seeded(
    name: str, num_classes: int, seed: int, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """As `build`, with the weights that `seed` gives: same seed, same weights."""
    torch.manual_seed(seed)
    return build(name, num_classes, pretrained, **kwargs)


def imagenet_labels() -> tuple[str, ...]:
    """The ImageNet-1k classes in output order, each its WordNet id and its words: "n01440764 tench, Tinca tinca"."""
    known = timm.data.ImageNetInfo()
    return tuple(
        f"{known.index_to_label_name(index)} {known.index_to_description(index)}"
        for index in range(IMAGENET_CLASSES)
    )


def _typed(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise RepzooError(f"timm built a {type(model).__name__}, not a torch module")
    return model


def _repvgg_b_grouped(width: float, last_width: float, groups: int) -> Builder:
    """RepVGG-B: 4, 6, 16, 1 blocks; every second layer of the network (the even ones of each stage) in `groups`."""

    def group_size(channels: int, index: int) -> int:
        return channels // groups if index % 2 else 0

    widths = (64 * width, 128 * width, 256 * width, 512 * last_width)
    stages = tuple(
        ByoBlockCfg(type="rep", d=d, c=int(c), gs=group_size)
        for d, c in zip((4, 6, 16, 1), widths, strict=True)
    )

    def grouped(**kwargs: Any) -> nn.Module:
        return _typed(ByobNet(ByoModelCfg(blocks=stages, stem_type="rep", stem_chs=64), **kwargs))

    return grouped


class _ReluThenSE(SEModule):  # type: ignore[misc]  # timm has no types
    """The end of a RepVGGplus block: SE that looks at what the ReLU has left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> the same shape."""
        gated: torch.Tensor = super().forward(torch.relu(x))
        return gated


def _repvggplus_l2pse(**kwargs: Any) -> nn.Module:
    """RepVGG-D2 (8, 14, 24, 1 blocks; widths 2.5, 2.5, 2.5, 5) whose blocks end in ReLU and SE of a quarter of the channels."""
    stages = tuple(
        ByoBlockCfg(type="rep", d=d, c=int(c), gs=0)
        for d, c in zip((8, 14, 24, 1), (160, 320, 640, 2560), strict=True)
    )
    model = _typed(ByobNet(ByoModelCfg(blocks=stages, stem_type="rep", stem_chs=64), **kwargs))
    for block in model.modules():
        if isinstance(block, RepVggBlock):
            channels = block.conv_kxk.conv.out_channels
            block.attn, block.act = _ReluThenSE(channels, rd_channels=channels // 4), nn.Identity()
    return model


def _repvit_m0_6(**kwargs: Any) -> nn.Module:
    return _typed(RepVit(**{"embed_dim": (40, 80, 160, 320), "depth": (1, 1, 8, 1), **kwargs}))


def _repghost_ablation(edit: Callable[[nn.Module], None], reparam: bool) -> Builder:
    """RepGhost 0.5x whose modules `edit` has changed. The published form of a module is dw(x) + BN(x), and of a block f(x) + x.

    norep  dw(x) alone
    repid  dw(x) + x: the identity branch has no BN, hence no tensors: its checkpoints look exactly like norep's
    wo     without the identity shortcut of the stride-1 blocks that keep their width; the convolved shortcuts stay
    """

    def ablated(**kwargs: Any) -> nn.Module:
        model = _typed(timm.create_model("repghostnet_050", reparam=reparam, **kwargs))
        edit(model)
        return model

    return ablated


def _keep(model: nn.Module) -> None:
    """Change nothing."""


def _add_plain_identity(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, RepGhostModule):
            module.fusion_conv.append(nn.Identity())
            module.fusion_bn.append(nn.Identity())


def _drop_identity_shortcuts(model: nn.Module) -> None:
    """Replace each such block by the chain of its parts; parameter names do not change."""
    for name, block in list(model.named_modules()):
        if isinstance(block, RepGhostBottleneck) and len(block.shortcut) == 0:
            parts = (("ghost1", block.ghost1), ("se", block.se), ("ghost2", block.ghost2))
            chain = nn.Sequential(
                OrderedDict((part, module) for part, module in parts if module is not None)
            )
            model.set_submodule(name, chain)


_OWN: dict[str, Builder] = {
    "repvgg_b1g2": _repvgg_b_grouped(2, 4, groups=2),
    "repvgg_b2g2": _repvgg_b_grouped(2.5, 5, groups=2),
    "repvgg_b3g2": _repvgg_b_grouped(3, 5, groups=2),
    "repvggplus_l2pse": _repvggplus_l2pse,
    "repvit_m0_6": _repvit_m0_6,
    "repghostnet_050_repid": _repghost_ablation(_add_plain_identity, reparam=False),
    "repghostnet_050_norep": _repghost_ablation(_keep, reparam=False),
    "repghostnet_050_wo": _repghost_ablation(_drop_identity_shortcuts, reparam=True),
}
