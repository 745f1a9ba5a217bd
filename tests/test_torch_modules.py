"""`repzoo.torch.fold` takes modules as people write them, or refuses with a sentence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import repzoo.torch
from repzoo.errors import InputError
from repzoo.torch import FoldedModule

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def randomized(module: nn.Module) -> nn.Module:
    """`module` in eval mode with random BatchNorm statistics."""
    torch.manual_seed(0)
    for norm in module.modules():
        if (
            isinstance(norm, nn.modules.batchnorm._BatchNorm)
            and norm.running_mean is not None
        ):
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def layers(module: nn.Module, kind: Any) -> int:
    return sum(isinstance(layer, kind) for layer in module.modules())


def folded(module: nn.Module, images: torch.Tensor = IMAGES) -> FoldedModule:
    """The fold of `module`, which computes the same, has no more convolutions, and left it alone."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    result = repzoo.torch.fold_with_log(module, images)
    convolution = nn.modules.conv._ConvNd
    assert layers(result.module, convolution) <= max(1, layers(module, convolution))
    with torch.no_grad():
        expected = module(images.clone())
        actual = result.module(images.clone())
    eps = torch.finfo(images.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=64 * eps, atol=64 * eps)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    return result


class Block(nn.Module):
    """A re-parameterized block whose first convolution is changed by `wrap`."""

    def __init__(
        self,
        wrap: Callable[..., Any] = lambda conv: conv,
        output: str = "tensor",
        **conv: Any,
    ) -> None:
        super().__init__()
        self.three = wrap(nn.Conv2d(3, 8, 3, **{"padding": 1, **conv}))
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(3, 8, 1, bias=False)
        self.other = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)
        self.output = output

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(self.three(x))
        y += self.other(self.one(x))
        y = self.relu(y).mean((2, 3))
        if self.output == "tuple":
            return self.head(y), y
        if self.output == "dict":
            return {"scores": self.head(y), "features": [y, x], "class": y.argmax(1)}
        return self.head(y)


def legacy_weight_norm(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv)


def pruned_twice(conv: nn.Module) -> nn.Module:
    prune.l1_unstructured(conv, "weight", 0.5)  # type: ignore[no-untyped-call]
    pruned: nn.Module = prune.ln_structured(conv, "weight", 0.5, 2, 0)  # type: ignore[no-untyped-call]
    return pruned


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"output": "tuple"},
        {"output": "dict"},
        {"wrap": parametrizations.weight_norm},
        {"wrap": parametrizations.spectral_norm},
        {"wrap": legacy_weight_norm},
        {"wrap": pruned_twice},
    ],
    ids=[
        "padding same",
        "padding same, dilated",
        "output tuple",
        "output dict",
        "weight_norm",
        "spectral_norm",
        "weight_norm before parametrizations",
        "pruned twice",
    ],
)
def test_a_block_becomes_one_convolution(settings: dict[str, Any]) -> None:
    result = folded(randomized(Block(**settings)))
    assert layers(result.module, nn.Conv2d) == 1
    assert layers(result.module, nn.BatchNorm2d) == 0
    assert not result.refusals


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_keep_their_number_type(dtype: torch.dtype) -> None:
    result = folded(randomized(Block()).to(dtype), IMAGES.to(dtype))
    assert {weight.dtype for weight in result.module.parameters()} == {dtype}
    assert layers(result.module, nn.Conv2d) == 1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_same_padding_of_an_even_kernel_is_larger_at_the_end() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 8, 4, padding="same"), nn.BatchNorm2d(8))
    assert layers(folded(randomized(conv)).module, nn.BatchNorm2d) == 0


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_an_exported_program_folds(output: str) -> None:
    module = randomized(Block(output=output))
    program = torch.export.export(module, (IMAGES,))
    for item in (program, program.run_decompositions()):
        result = repzoo.torch.fold(item)
        assert layers(result, nn.Conv2d) == 1
        with torch.no_grad():
            torch.testing.assert_close(
                result(IMAGES), module(IMAGES), rtol=1e-5, atol=1e-5
            )


def test_a_program_exported_in_training_mode_is_refused_by_name() -> None:
    program = torch.export.export(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (IMAGES,)
    )
    result = repzoo.torch.fold_with_log(program)
    assert "call eval() before the export" in result.refusals[0].reason


class Late(nn.Module):
    """Changes a tensor in place after a convolution has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        z: torch.Tensor = self.norm(self.three(y))
        y += 1
        result: torch.Tensor = z + self.other(y)
        return result


class Ignored(Late):
    """Changes its input and a tensor in place, and ignores what that returns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x *= 2
        y: torch.Tensor = self.norm(self.one(x))
        y.relu_()
        functional.hardtanh_(y)
        result: torch.Tensor = self.other(self.three(y)) + y
        return result


@pytest.mark.parametrize("module", [Late(), Ignored()])
def test_changes_in_place_keep_their_order(module: nn.Module) -> None:
    folded(randomized(module))


class View(Late):
    """Changes some channels in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.one(x))
        y[:, :2].add_(1)
        result: torch.Tensor = self.other(self.three(y)) + y
        return result


def test_a_part_that_is_changed_in_place_is_refused() -> None:
    with pytest.raises(InputError, match="changes a part or a view of norm in place"):
        repzoo.torch.fold(randomized(View()), IMAGES)


class Optional(Late):
    """Has parameters that need not be given."""

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: bool = True
    ) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.one(x))
        if mask is not None:
            y = y * mask
        return 2 * y if scale else y


class Functional(nn.Module):
    """A convolution by torch.nn.functional, with a weight that is standardized."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = (
            nn.Parameter(torch.randn(8, 3, 3, 3)),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        y: torch.Tensor = self.norm(functional.conv2d(x, weight, padding=1))
        return y


@pytest.mark.parametrize(
    "module",
    [
        Optional(),
        Functional(),
        nn.DataParallel(Block()),
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)
        ),
        nn.Sequential(
            nn.ConvTranspose2d(3, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False)
        ),
    ],
)
def test_norms_are_folded(module: nn.Module) -> None:
    result = folded(randomized(module))
    assert layers(result.module, nn.BatchNorm2d) == 0
    assert not result.refusals


def test_a_norm_that_no_convolution_can_absorb_stays_and_is_named() -> None:
    before = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))
    result = folded(randomized(before))
    assert layers(result.module, nn.BatchNorm2d) == 1
    assert [refusal.node for refusal in result.refusals] == ["0"]
    assert "no convolution or linear layer" in result.refusals[0].reason
    assert not result.folds


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(3, 6, 3, groups=3), "a ConvTranspose2d folds only with"),
        (nn.BatchNorm2d(3, track_running_stats=False), "no running statistics"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "none of the norms that fold"),
    ],
)
def test_layers_that_do_not_fold_are_named(layer: nn.Module, reason: str) -> None:
    result = repzoo.torch.fold_with_log(nn.Sequential(layer).eval(), IMAGES)
    assert [refusal.node for refusal in result.refusals] == ["0"]
    assert reason in result.refusals[0].reason


def test_two_inputs() -> None:
    class Two(Late):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            result: torch.Tensor = self.norm(self.one(x)) * self.other(self.one(y))
            return result

    module, pair = randomized(Two()), (IMAGES, IMAGES.flip(0))
    result = repzoo.torch.fold(module, pair)
    with torch.no_grad():
        torch.testing.assert_close(result(*pair), module(*pair), rtol=1e-5, atol=1e-5)


class Silent(nn.Module):
    """Returns no tensor."""

    def forward(self, x: torch.Tensor) -> int:
        return 3


@pytest.mark.parametrize(
    ("module", "example", "sentence"),
    [
        (Block(), torch.randn(1, 1, 8, 8), "give an `example` that it takes"),
        (Block(), "picture", "must be a tensor or a tuple of tensors; got str"),
        (
            3,
            IMAGES,
            "torch.nn.Module or torch.export.ExportedProgram is needed; got int",
        ),
        (Silent(), IMAGES, "returns no tensor"),
    ],
)
def test_what_cannot_be_folded_is_a_sentence(
    module: Any, example: Any, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=sentence):
        repzoo.torch.fold(module, example)
    assert capfd.readouterr().err == ""


def test_the_class_of_a_parametrized_module_is_left_alone() -> None:
    """torch's removal of a parametrization changes the class, which copies share."""
    module = randomized(Block(parametrizations.weight_norm))
    twin = copy.deepcopy(module)
    repzoo.torch.fold(module, IMAGES)
    with torch.no_grad():
        assert torch.equal(module(IMAGES), twin(IMAGES))
