"""How a training starts and runs, apart from its recipe; without torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repzoo.errors import InputError


@dataclass(frozen=True)
class TrainOptions:
    """Settings of `train`. Of how it runs only `seed` changes what comes out, and `accumulate` through the batch statistics.

    checkpoint      weights to start from: a file of any known source, or the name of published ones
    source          whose naming it has, or "auto"
    reset_head      start the last layer anew when its number of classes is another (recipes that fine-tune do)
    pretrained      start from timm's ImageNet weights
    teacher         for recipes that distil: an artifact FILE.onnx, a model NAME with timm's weights, or NAME=FILE with given ones
    accumulate      parts of a batch that are taken one after another, for want of memory
    device          auto, cpu or cuda
    workers         processes that read and augment images, for each training process
    channels_last   memory format of images and kernels
    save_minutes    keep the state within epochs too, every so many minutes; 0: at the end of each
    validate_every  epochs between validations
    tensorboard     write a log for TensorBoard too
    """

    checkpoint: str | None = None
    source: str = "auto"
    reset_head: bool = False
    pretrained: bool = False
    teacher: str = ""
    seed: int = 0
    accumulate: int = 1
    device: str = "auto"
    workers: int = 2
    channels_last: bool = False
    save_minutes: float = 0.0
    validate_every: int = 5
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing, and two sets of weights."""
        if (
            self.accumulate < 1
            or self.workers < 0
            or self.validate_every < 1
            or not self.save_minutes >= 0
        ):
            raise InputError(
                "accumulate and validate_every must be at least 1, workers and save_minutes at least 0"
            )
        if self.checkpoint is not None and self.pretrained:
            raise InputError(
                "two sets of weights are asked for; give --checkpoint or --pretrained, not both"
            )

    @property
    def given_weights(self) -> bool:
        """Whether it starts from trained weights."""
        return self.checkpoint is not None or self.pretrained


@dataclass(frozen=True, kw_only=True)
class Running(TrainOptions):
    """The settings and the folder of one run."""

    output: Path
