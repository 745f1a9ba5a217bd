"""Build every model of the catalog as a torch module in its training form.

timm builds what it has. The rest is built here from timm's own classes, without entering timm's
registry:

- RepVGG B1g2, B2g2, B3g2: timm's block configuration with two groups in every second layer
  (arXiv:2101.03697, section 3.4);
- RepViT M0.6: widths 40-80-160-320 (official repository, `model/repvit.py`, newer than the paper);
- RepVGGplus L2pse (official repository, `repvggplus.py`): widths and depths of D2, SE after the
  ReLU, without its auxiliary heads;
- RepGhost 0.5x ablations (arXiv:2211.06088, section 4.3; official repository,
  `model/repghost.py`): see `_repghost_ablation`.

Importing this module without torch or timm raises MissingExtra.
"""

from __future__ import annotations

import contextlib
import importlib
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator
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
HUB_SECONDS = 10  # to wait for an answer


def build(
    name: str, num_classes: int = 1000, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """The training form of catalog model `name`, on torch's current default device.

    pretrained  download timm's ImageNet weights (only for variants that timm has)
    kwargs      constructor arguments such as `in_chans` and `drop_rate`; for RepViT,
                `distillation=False` gives one head

    Raises:
        InputError: unknown name, or `pretrained` for a variant without weights in timm.
    """
    repository = spec(name).repository
    if name not in _OWN:
        return timm_model(name, num_classes, pretrained, **kwargs)
    if pretrained:
        raise InputError(
            f"timm has no weights of {name}; get a checkpoint from {repository} and give its file"
        )
    return _OWN[name](num_classes=num_classes, **kwargs)


def timm_model(
    name: str, num_classes: int, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """timm's model `name`, with its ImageNet weights if `pretrained`.

    Raises:
        InputError: the weights are not in the cache and cannot be fetched.
    """
    if not pretrained:
        return _typed(timm.create_model(name, num_classes=num_classes, **kwargs))
    try:
        with _offline_if_unreachable():
            return _typed(
                timm.create_model(
                    name, pretrained=True, num_classes=num_classes, **kwargs
                )
            )
    # Of the network, of the hub (all of them are OSErrors), or of timm without such weights.
    except (OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"timm's weights of {name} cannot be fetched ({reason}); check the connection, or give "
            "a file or weights that ship: --checkpoint"
        ) from error


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the hub's client use its cache alone where the hub does not answer.

    By itself it would try five times for each file.
    """
    # The client reads the environment once, when it is imported, but this constant at each call.
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            with urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_SECONDS):
                pass
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def deploy_form(module: nn.Module) -> nn.Module:
    """Change `module` to the structure of its deploy form, and return it.

    Tensor values are undefined: a deploy-form checkpoint is loaded into them afterward.
    """
    for block in module.modules():
        if isinstance(block, RepVggBlock):
            _merge_shapes(block)
    return _typed(reparameterize_model(module, inplace=True))


def _merge_shapes(block: Any) -> None:
    """Replace the branches of `block` by one convolution of the right shape.

    timm's own merging also computes the kernel, in a slow loop over channels.
    """
    branch = block.conv_kxk.conv
    block.reparam_conv = nn.Conv2d(
        branch.in_channels,
        branch.out_channels,
        branch.kernel_size,
        branch.stride,
        branch.padding,
        groups=branch.groups,
    )
    # What timm's own merging deletes, so that the tensors left are those of its deploy form.
    for name in ("conv_kxk", "conv_1x1", "identity", "drop_path"):
        delattr(block, name)


def seeded(
    name: str, num_classes: int, seed: int, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """`build` with weights drawn from `seed`: the same seed gives the same weights."""
    torch.manual_seed(seed)
    return build(name, num_classes, pretrained, **kwargs)


def imagenet_labels() -> tuple[str, ...]:
    """The ImageNet-1k classes in output order, such as "n01440764 tench, Tinca tinca"."""
    info = timm.data.ImageNetInfo()
    labels: list[str] = []
    for index in range(IMAGENET_CLASSES):
        synset = info.index_to_label_name(index)
        labels.append(f"{synset} {info.index_to_description(index)}")
    return tuple(labels)


def _typed(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise RepzooError(f"timm built a {type(model).__name__}, not a torch module")
    return model


def _repvgg_b_grouped(width: float, last_width: float, groups: int) -> Builder:
    """RepVGG-B with 4, 6, 16, 1 blocks. Even layers of each stage have `groups` groups."""

    def group_size(channels: int, index: int) -> int:
        """What timm asks for: the channels of a group, not the number of groups; 0: no groups."""
        return channels // groups if index % 2 else 0

    depths = (4, 6, 16, 1)
    widths = (64 * width, 128 * width, 256 * width, 512 * last_width)
    stages = _rep_stages(depths, widths, group_size)

    def grouped(**kwargs: Any) -> nn.Module:
        """The network, in its training form."""
        return _typed(
            ByobNet(ByoModelCfg(blocks=stages, stem_type="rep", stem_chs=64), **kwargs)
        )

    return grouped


def _rep_stages(
    depths: tuple[int, ...], widths: tuple[float, ...], group_size: Any
) -> tuple[ByoBlockCfg, ...]:
    """timm's block configuration of RepVGG stages."""
    stages: list[ByoBlockCfg] = []
    for depth, width in zip(depths, widths, strict=True):
        stages.append(ByoBlockCfg(type="rep", d=depth, c=int(width), gs=group_size))
    return tuple(stages)


class _ReluThenSE(SEModule):  # type: ignore[misc]  # timm has no types
    """The end of a RepVGGplus block: ReLU, then squeeze-and-excitation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> the same shape."""
        gated: torch.Tensor = super().forward(torch.relu(x))
        return gated


def _repvggplus_l2pse(**kwargs: Any) -> nn.Module:
    """RepVGG-D2 whose blocks end in ReLU and SE with a quarter of the channels."""
    stages = _rep_stages((8, 14, 24, 1), (160, 320, 640, 2560), 0)
    model = _typed(
        ByobNet(ByoModelCfg(blocks=stages, stem_type="rep", stem_chs=64), **kwargs)
    )
    for block in model.modules():
        if isinstance(block, RepVggBlock):
            channels = block.conv_kxk.conv.out_channels
            block.attn = _ReluThenSE(channels, rd_channels=channels // 4)
            # Its ReLU is part of `_ReluThenSE`.
            block.act = nn.Identity()
    return model


def _repvit_m0_6(**kwargs: Any) -> nn.Module:
    return _typed(
        RepVit(**{"embed_dim": (40, 80, 160, 320), "depth": (1, 1, 8, 1), **kwargs})
    )


def _repghost_ablation(edit: Callable[[nn.Module], None], reparam: bool) -> Builder:
    """RepGhost 0.5x with modules changed by `edit`.

    The published module computes dw(x) + BN(x), the published block f(x) + x. Ablations:

    norep  dw(x) alone
    repid  dw(x) + x. The identity branch has no tensors, so checkpoints look like those of norep
    wo     no identity shortcut in stride-1 blocks that keep their width; other shortcuts stay
    """

    def ablated(**kwargs: Any) -> nn.Module:
        """The changed network, in its training form."""
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
    """Replace blocks with an identity shortcut by the chain of their parts, same names."""
    # As a list, since the loop changes the tree that it walks.
    for name, block in list(model.named_modules()):
        if isinstance(block, RepGhostBottleneck) and len(block.shortcut) == 0:
            parts = OrderedDict(ghost1=block.ghost1, se=block.se, ghost2=block.ghost2)
            if block.se is None:
                del parts["se"]
            model.set_submodule(name, nn.Sequential(parts))


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
