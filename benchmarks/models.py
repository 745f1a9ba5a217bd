"""Models whose latency and INT8 accuracy behave like those of trained ones, made in a minute.

`build` gives random weights, which suffice for a latency. The statistics of BatchNorm are those of
noise: with others, activations shrink from layer to layer to subnormal numbers, which processors
compute some ten times slower.

`train_briefly`, `set_statistics` and `fit_head` make a classifier, so that INT8 has an accuracy to
lose. Random weights alone are not enough: features of a random RepGhost tell nothing about the
image (26 % of ten classes of textures, where a random FasterNet has 99 %).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import timm
import torch
from timm.models import reparameterize_model

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.errors import InputError
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.export import export
from repzoo.verbs.public_artifact import Artifact as PublicArtifact
from repzoo.zoo import catalog, families

CLASSES = 1000
NOISE_IMAGES = 8
IMAGES_AT_ONCE = 16
SEED = 0
TRAINING_STEPS = 240
TRAINING_BATCH = 16
TRAINING_RATE = 3e-3
CROP = 64  # pixels: a twelfth of the work of 224
# Of the features' mean variance: what the least squares add to each variance.
RIDGE = 0.01
# Between these lie the targets of classes without images, so that none of them ever wins.
ABSENT_TARGETS = (-0.5, 0.2)

Images = npt.NDArray[np.float32]  # [n, 3, height, width]
Targets = npt.NDArray[np.int64]  # class of each image, below CLASSES


def create(name: str) -> tuple[torch.nn.Module, Preprocess]:
    """The training form of a model of the catalog or of timm, and its preprocessing.

    Raises:
        InputError: neither has a model of this name.
    """
    torch.manual_seed(SEED)
    try:
        return families.build(name, CLASSES), catalog.spec(name).preprocess
    except InputError:
        if not timm.is_model(name):
            raise
        module = timm.create_model(name, num_classes=CLASSES)
        size = module.pretrained_cfg["input_size"][-1]
        return module, Preprocess(size=size)


def build(name: str) -> tuple[torch.nn.Module, Preprocess]:
    """As `create`, in evaluation mode, with the BatchNorm statistics of noise and no zero weights."""
    module, preprocess = create(name)
    fill_zero_scales(module)
    shape = (NOISE_IMAGES, *preprocess.input_shape)
    noise = torch.randn(shape).numpy()
    return set_statistics(module, noise), preprocess


def fill_zero_scales(module: torch.nn.Module) -> None:
    """Give random scales to BatchNorms whose scales are all 0.

    Such branches begin training as 0. PyTorch's exporter writes their folded weights, which are
    alike, once for all layers; they then stay in the processor's cache. Trained weights do not:
    timm's RepViT-M3 takes 7.9 ms on OpenVINO with them, and 8.7 with weights of each layer's own.
    """
    for part in module.modules():
        is_norm = isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        if is_norm and part.weight is not None and not part.weight.any():
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)


def train_briefly(module: torch.nn.Module, images: Images, targets: Targets) -> None:
    """Train `module` on crops of textures for TRAINING_STEPS steps of Adam."""
    random = np.random.default_rng(SEED)
    optimizer = torch.optim.Adam(module.parameters(), TRAINING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, TRAINING_STEPS)
    module.train()
    for _ in range(TRAINING_STEPS):
        chosen = random.choice(len(images), TRAINING_BATCH, replace=False)
        outputs = module(torch.from_numpy(_random_crops(images[chosen], random)))
        wanted = torch.from_numpy(targets[chosen])
        # A model with two heads, as RepViT, gives the outputs of both while it is trained.
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [torch.nn.functional.cross_entropy(head, wanted) for head in heads]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()


def _random_crops(images: Images, random: np.random.Generator) -> Images:
    """CROP x CROP pixels of all `images`, at the same random place."""
    top, left = random.integers(0, np.array(images.shape[2:]) - CROP + 1)
    return np.ascontiguousarray(images[:, :, top : top + CROP, left : left + CROP])


def set_statistics(module: torch.nn.Module, images: Images) -> torch.nn.Module:
    """`module` in evaluation mode, each BatchNorm with the statistics of `images`."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
            part.momentum = None  # plain averages over the batches
    module.train()
    with torch.no_grad():
        for batch in _batches(images):
            module(batch)
    return module.eval()


def fit_head(module: torch.nn.Module, images: Images, targets: Targets) -> None:
    """Replace the weights of each last linear layer by those that least squares find.

    module  in evaluation mode
    Classes without images get a mixture of the others that stays below them.

    Raises:
        InputError: no linear layer has CLASSES outputs.
    """
    heads = []
    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and part.out_features == CLASSES:
            heads.append(part)
    if not heads:
        raise InputError(
            f"the model has no linear layer with {CLASSES} outputs, so no head can be fitted"
        )
    inputs = _inputs_of(heads, module, images)
    wanted = wanted_outputs(targets)
    for head, features in zip(heads, inputs, strict=True):
        weight, bias = least_squares(features, wanted)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            if head.bias is not None:
                head.bias.copy_(torch.from_numpy(bias))


def wanted_outputs(targets: Targets) -> npt.NDArray[np.float64]:
    """[n, CLASSES]: 1 for the right class, 0 for others with images, less for those without."""
    present = np.unique(targets)
    random = np.random.default_rng(SEED)
    rows = random.uniform(*ABSENT_TARGETS, (CLASSES, CLASSES))
    rows[:, present] = np.eye(CLASSES)[:, present]
    return rows[targets]


def least_squares(
    features: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(weight [classes, features], bias [classes]) of ridge regression.

    features  [n, features]
    wanted    [n, classes]
    """
    mean = features.mean(0)
    centered = features - mean
    covariance = centered.T @ centered / len(features)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    covariance += ridge * np.eye(len(covariance))
    products = centered.T @ (wanted - wanted.mean(0)) / len(features)
    weight = np.linalg.solve(covariance, products).T
    bias = wanted.mean(0) - weight @ mean
    return weight, bias


def _inputs_of(
    layers: list[torch.nn.Linear], module: torch.nn.Module, images: Images
) -> list[npt.NDArray[np.float64]]:
    """What each of `layers` reads for all `images`, [n, features]."""
    seen: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = []
    for layer, inputs in zip(layers, seen, strict=True):
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, arguments, inputs=inputs: inputs.append(arguments[0])
            )
        )
    with torch.inference_mode():
        for batch in _batches(images):
            module(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(inputs).double().numpy() for inputs in seen]


def _batches(images: Images) -> list[torch.Tensor]:
    return list(torch.from_numpy(images).split(IMAGES_AT_ONCE))


def by_timm(
    name: str,
    module: torch.nn.Module,
    preprocess: Preprocess,
    labels: tuple[str, ...] = (),
) -> Artifact:
    """timm's fold of `module`, as torch's exporter writes it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        folded = reparameterize_model(module)
        example: tuple[Any, ...] = (torch.zeros(1, *preprocess.input_shape),)
        torch.onnx.export(
            folded,
            example,
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a file object
            dynamo=False,
            opset_version=17,
            input_names=["data"],
            output_names=["output"],
        )
    model = onnx.load_from_string(buffer.getvalue())
    return Artifact(model, f"{name} by timm", preprocess, labels)


def by_repzoo(
    name: str,
    module: torch.nn.Module,
    preprocess: Preprocess,
    labels: tuple[str, ...] = (),
) -> PublicArtifact:
    """repzoo's fold of `module`, with a fixed batch as timm's file has one."""
    step = Step("export", "benchmark")
    exported = export(module, name, preprocess, labels, step, dynamic_batch=False)
    # The certificate would take longer than all the rest.
    folded = fold(exported.model).model
    return PublicArtifact.wrap(replace(exported, model=folded))
