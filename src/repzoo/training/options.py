"""How a training starts and runs, apart from its recipe. Needs no torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repzoo.errors import InputError
from repzoo.settings import at_least, between, same_setting, setting, validate
from repzoo.zoo.naming import CheckpointOptions


@dataclass(frozen=True)
class TrainOptions:
    """Settings of `train`.

    Of those about how it runs, only `seed` and, through batch statistics, `accumulate` change
    the trained weights; `threads` changes their last bits.
    """

    checkpoint: str | None = setting(
        None,
        help="Weights to start from: a .pth, .pt, .pdparams or .safetensors file, a published "
        "name, or weights that ship, such as repghostnet_050.clothing.",
    )
    source: str = same_setting(CheckpointOptions, "source")
    reset_head: bool = same_setting(CheckpointOptions, "reset_head")
    pretrained: bool = setting(False, help="Start from timm's ImageNet weights.")
    teacher: str = setting(
        "", help="Teacher for distillation: FILE.onnx, a timm model NAME, or NAME=FILE."
    )
    seed: int = same_setting(CheckpointOptions, "seed")
    accumulate: int = setting(1, help="Gradient-accumulation steps.", range=at_least(1))
    device: str = setting("auto", help="Device: auto, cpu or cuda.")
    workers: int = setting(
        2,
        help="Worker processes that load images, for each training process.",
        range=at_least(0),
    )
    threads: int = setting(
        0,
        help="Threads of one training process; 0: the fastest in a short trial.",
        range=at_least(0),
    )
    channels_last: bool = setting(False, help="Use the channels-last memory format.")
    save_minutes: float = setting(
        0.0,
        help="Minutes between saves within an epoch; 0: save only at the end of each epoch.",
        range=at_least(0),
    )
    validate_every: int = setting(
        5, help="Epochs between validations.", range=at_least(1)
    )
    split: float = setting(
        0.0,
        help="Share of the training images to hold out for validation, where nothing else is.",
        range=between(0, 0.9),
    )
    tensorboard: bool = setting(False, help="Also write a TensorBoard log.")

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges, and two sets of weights."""
        validate(self)
        if self.checkpoint is not None and self.pretrained:
            raise InputError(
                "checkpoint and pretrained both name weights to start from; "
                "give only --checkpoint or only --pretrained"
            )

    @property
    def given_weights(self) -> bool:
        """Whether it starts from trained weights."""
        return self.checkpoint is not None or self.pretrained


@dataclass(frozen=True, kw_only=True)
class Running(TrainOptions):
    """The settings and the folder of one run."""

    output: Path
