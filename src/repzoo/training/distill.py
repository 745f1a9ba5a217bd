"""The loss: cross entropy and, with a teacher, distillation by timm's tasks.

The teacher sees the same augmented and mixed images as the student, in its own normalization
(arXiv:2012.12877, section 4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.task import DistillationTeacher, LogitDistillationTask, TokenDistillationTask
from torch.nn.functional import cross_entropy, interpolate

from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import DEFAULT_ENGINE, engine
from repzoo.errors import InputError
from repzoo.processor import available_cores
from repzoo.training.recipe import Recipe


class Classification(torch.nn.Module):
    """Cross entropy of logits [N, classes], a scalar.

    Targets are class indices (with label smoothing) or the class shares of mixed images.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`targets` int64 [N] or float32 [N, classes]."""
        return cross_entropy(
            logits,
            targets,
            # Of mixed images the mixing has smoothed the shares already.
            label_smoothing=0.0 if targets.is_floating_point() else self.smoothing,
        )


class Objective:
    """The loss of a batch for `student`, which may be wrapped for several processes."""

    def __init__(
        self,
        student: torch.nn.Module,
        recipe: Recipe,
        preprocess: Preprocess,
        teacher: torch.nn.Module | None,
    ) -> None:
        self._student = student
        self._criterion = Classification(recipe.label_smoothing)
        self._task: Any = None
        if teacher is not None:
            self._task = _task(student, recipe, preprocess, teacher, self._criterion)

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar with gradient."""
        loss: torch.Tensor = (
            self._criterion(self._student(inputs), targets)
            if self._task is None
            else self._task(inputs, targets)["loss"]
        )
        return loss


def _task(
    student: torch.nn.Module,
    recipe: Recipe,
    preprocess: Preprocess,
    teacher: torch.nn.Module,
    criterion: Any,
) -> Any:
    # timm's tasks look behind DistributedDataParallel for the network's attributes.
    own = (
        student.module
        if isinstance(student, torch.nn.parallel.DistributedDataParallel)
        else student
    )
    device = next(own.parameters()).device
    # timm's tasks read the student's normalization from here.
    own.pretrained_cfg = {"mean": preprocess.mean, "std": preprocess.std}
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    wrapped = DistillationTeacher(teacher, device=device)
    settings = {
        "task_loss_weight": 1 - recipe.distill_weight,
        "distill_loss_weight": recipe.distill_weight,
    }
    options = {
        "criterion": criterion,
        "temperature": recipe.temperature,
        "device": device,
        "verbose": False,
        **settings,
    }
    # RepViT's second head learns from the teacher.
    if getattr(getattr(own, "head", None), "distillation", False):
        return TokenDistillationTask(
            student, wrapped, distill_type=recipe.distill, **options
        )
    # timm distills into a single head by soft labels only.
    return (LogitDistillationTask if recipe.distill == "soft" else _HardTask)(
        student, wrapped, **options
    )


class _HardTask(LogitDistillationTask):  # type: ignore[misc]  # timm has no types
    """Hard labels of the teacher for a student with one head (arXiv:2012.12877, equation 3)."""

    def forward(
        self, input: torch.Tensor, target: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{"loss": a scalar}."""
        logits = self.trainable_module(input)
        with torch.no_grad():
            labels = self.teacher(
                self.teacher.normalize_input(input, self.student_mean, self.student_std)
            ).argmax(-1)
        loss = self.task_loss_weight * self.criterion(
            logits, target
        ) + self.distill_loss_weight * cross_entropy(logits, labels)
        return {"loss": loss}


class OnnxTeacher(torch.nn.Module):
    """An artifact as a teacher, run by an engine.

    Images are resized to its input size (bilinear, antialiased).
    """

    def __init__(
        self, path: Path, classes: tuple[str, ...], engine_name: str = DEFAULT_ENGINE
    ) -> None:
        super().__init__()
        artifact = Artifact.read(path)
        prepared = artifact.require_preprocess()
        if prepared.input != "float" or prepared.color != "RGB":
            raise InputError(
                f"{path} takes {prepared.input} {prepared.color}; a teacher must take float RGB"
            )
        _require_classes(str(path), artifact.num_classes, len(classes))
        if artifact.labels and artifact.labels != classes:
            raise InputError(
                f"the teacher {path} has the classes {artifact.labels[:3]}..., not those of the "
                f"data, {classes[:3]}..."
            )
        self.pretrained_cfg: Any = {"mean": prepared.mean, "std": prepared.std}
        self._size = prepared.height
        # No more threads than torch has: several training processes may share this host.
        self._session = engine(engine_name).open(
            artifact.model, min(available_cores(), torch.get_num_threads())
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, H, W] -> float32 [N, classes]."""
        if inputs.shape[-1] != self._size:
            inputs = interpolate(
                inputs,
                size=(self._size, self._size),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        answers = self._session.run(np.ascontiguousarray(inputs.float().cpu().numpy()))
        return torch.from_numpy(np.asarray(answers, np.float32)).to(inputs.device)


def require_teacher(recipe: Recipe, teacher: str) -> None:
    """Refuse, before the work, a recipe and a teacher that do not go together."""
    if recipe.distill and not teacher:
        hint = f" (the source had {recipe.teacher})" if recipe.teacher else ""
        raise InputError(
            f"the recipe {recipe.name} learns from a teacher{hint}; give --teacher FILE.onnx, NAME "
            "or NAME=FILE, or --distill none"
        )
    if teacher and not recipe.distill:
        raise InputError(
            f"the recipe {recipe.name} does not learn from a teacher; give --distill soft or hard "
            "with --teacher"
        )


def _require_classes(name: str, actual: int, wanted: int) -> None:
    if actual != wanted:
        raise InputError(
            f"the teacher {name} has {actual} classes, the data {wanted}; fine-tune it on the data "
            "first"
        )
