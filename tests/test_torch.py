"""`repzoo.torch.fold` returns equal modules without BatchNorms and branches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import repzoo.torch
from repzoo.errors import CertificateError, InputError
from repzoo.graph.fold import algebra
from repzoo.zoo import catalog, families


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with random BatchNorm parameters."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if (
            isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            and norm.running_mean is not None
            and norm.running_var is not None
        ):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.1)
    return module


def batchnorms(module: nn.Module) -> int:
    return sum(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()
    )


class Squeeze(nn.Module):
    """The block of RepVGG with an SE layer before the ReLU, which some converters lose."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.three, self.one = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = (
            self.norms[0](self.three(x)) + self.norms[1](self.one(x)) + self.norms[2](x)
        )
        weight: torch.Tensor = torch.sigmoid(
            self.up(torch.relu(self.down(hidden.mean((2, 3), keepdim=True))))
        )
        return torch.relu(hidden * weight)


@pytest.mark.parametrize(
    "name", ["repvgg_a0", "repghostnet_050", "repvit_m0_6", "fasternet_t0"]
)
def test_a_variant_of_each_family_has_its_deploy_form(name: str) -> None:
    module = randomize(families.build(name))
    before = copy.deepcopy(module.state_dict())
    images = torch.randn(2, 3, 64, 64)
    folded = repzoo.torch.fold(module, images)
    assert batchnorms(folded) == 0
    assert (
        sum(weight.numel() for weight in folded.parameters())
        == catalog.spec(name).parameters_deploy
    )
    with torch.no_grad():
        expected, got = module.eval()(images), folded(images)
    assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()
    assert all(
        torch.equal(value, before[key]) for key, value in module.state_dict().items()
    )


@pytest.mark.parametrize(
    "name",
    ["fastvit_t8", "mobilenetv3_small_050", "tf_efficientnet_lite0", "ghostnet_050"],
)
def test_other_networks_lose_every_batchnorm(name: str) -> None:
    module = randomize(timm.create_model(name))
    assert batchnorms(module) > 20
    assert batchnorms(repzoo.torch.fold(module, torch.randn(1, 3, 64, 64))) == 0


def test_squeeze_and_excitation_stays_and_branches_fold() -> None:
    module = randomize(Squeeze())
    folded = repzoo.torch.fold(module, torch.randn(2, 8, 9, 9))
    layers = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert sorted(tuple(layer.kernel_size) for layer in layers) == [
        (1, 1),
        (1, 1),
        (3, 3),
    ]
    images = torch.randn(4, 8, 5, 7)
    with torch.no_grad():
        assert torch.allclose(folded(images), module.eval()(images), atol=1e-5)


def test_a_folded_module_can_be_trained() -> None:
    folded = repzoo.torch.fold(randomize(Squeeze()), torch.randn(1, 8, 9, 9)).train()
    optimizer = torch.optim.Adam(folded.parameters(), lr=0.02)
    images, losses = torch.randn(8, 8, 6, 6), []
    for _ in range(60):
        loss = (folded(images) - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


class Twice(nn.Module):
    """One convolution called at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.relu(self.norm(self.conv(x))) * self.other(
            self.conv(torch.relu(x))
        )
        return output


def test_a_layer_that_is_called_twice_is_refused_by_name() -> None:
    module = randomize(Twice())
    result = repzoo.torch.fold_with_log(module, torch.randn(1, 4, 6, 6))
    assert any(
        refusal.node == "conv" and "shared" in refusal.reason
        for refusal in result.refusals
    )
    images = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.allclose(result.module(images), module.eval()(images), atol=1e-5)


class Choosy(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_is_an_input_error() -> None:
    with pytest.raises(
        InputError, match=r"Choosy cannot be traced by torch\.fx .*repzoo fold"
    ):
        repzoo.torch.fold(Choosy(), torch.randn(1, 3, 4, 4))


class Chosen(nn.Module):
    """Chooses its forward when it is made, as FasterNet's authors do."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.conv, self.norm, self.sign = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), sign
        self.forward = self.forward_minus if sign < 0 else self.forward_plus

    def forward_plus(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def forward_minus(self, x: torch.Tensor) -> torch.Tensor:
        return -self.sign * torch.sigmoid(self.norm(self.conv(x)))


@pytest.mark.parametrize("sign", [2.0, -2.0])
def test_a_module_with_its_own_forward_folds_and_stays_as_it_was(sign: float) -> None:
    module, images = randomize(Chosen(sign)).eval(), torch.randn(2, 4, 6, 6)
    folded = repzoo.torch.fold(module, images)
    assert batchnorms(folded) == 0
    with torch.no_grad():
        assert torch.allclose(folded(images), module(images), atol=1e-5)
    assert type(module) is Chosen
    assert "forward" in vars(module)


class Around(nn.Module):
    """A part that no tracer can follow, between layers that fold."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm, self.part = (
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.Sequential(Choosy()),
        )
        self.after, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.last(
            self.after(self.part(self.norm(self.before(x))))
        )
        return output


def test_a_part_that_cannot_be_traced_stays_and_the_rest_folds() -> None:
    module = randomize(Around()).eval()
    folded = repzoo.torch.fold(module, torch.randn(2, 4, 6, 6))
    assert batchnorms(folded) == 0
    assert any(isinstance(layer, Choosy) for layer in folded.modules())
    with torch.no_grad():
        for images in (
            torch.randn(2, 4, 6, 6),
            torch.randn(2, 4, 6, 6) + 3,
            torch.randn(2, 4, 6, 6) - 3,
        ):  # both ways of the choice
            assert torch.allclose(folded(images), module(images), atol=1e-5)


def test_wrong_algebra_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = algebra.from_batchnorm

    def ignore_mean(
        gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float
    ) -> Any:
        return right(gamma, beta, 0 * mean, variance, epsilon)

    monkeypatch.setattr(algebra, "from_batchnorm", ignore_mean)
    with pytest.raises(CertificateError, match="not proven equal"):
        repzoo.torch.fold(randomize(Squeeze()), torch.randn(1, 8, 9, 9))
