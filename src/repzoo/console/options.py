"""Command-line options, derived from the settings dataclasses whose fields they fill."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import rich_click as click
from click.types import convert_type

from repzoo.artifact import Preprocess

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = {
    "checkpoint": "Weights to load: a .pth, .pdparams or .safetensors file of any known source.",
    "source": "Whose names the checkpoint has: auto, official, timm, thu, mmpretrain, paddle.",
    "reset_head": "Start the last layer anew when its number of classes is another.",
    "ema": "Take averaged weights where the source prefers them (timm, RepGhost).",
    "pretrained": "Download timm's ImageNet weights.",
    "num_classes": "Number of outputs.  [default: the labels', else 1000; convert: the checkpoint's]",
    "opset": "ONNX operator set, 11 to 20.",
    "dynamic_batch": "Leave the batch size open, or fix it at 1.",
    "form": "train (every BatchNormalization kept) or deploy (folded).",
    "seed": "Seed of everything random.",
    "engine": "Engine that runs the model (evaluate: a,b or repeat the option).",
    "scheme": "ort-cpu, openvino-cpu, mnn, rdk, vastai, per-tensor, ... or FILE.toml.  [default: the engine's]",
    "recipe": "repzoo; or, to compare: ort-static, ort-static-per-tensor, nncf-default, nncf-accuracy-control.",
    "max_drop": "Budget: Top-1 points that INT8 may lose; negative: must gain.",
    "images": "Calibration images.",
    "search": "Seconds at most to find the fastest placement of Q/DQ.",
    "finetune_epochs": "Where corrections are not enough: epochs of learning from float.",
    "force": "Write the model even when the gate refuses it.",
    "scenario": "closed-loop, or MLPerf's single-stream, multi-stream, offline.",
    "threads": "Threads of a session.",
    "streams": "Client threads that call one session.",
    "batch": "Images a call.  [default: 1; of multi-stream 8]",
    "seconds": "Least time for each case, over all rounds.",
    "drop": "Drop, in points, of which is said how many images show it.",
    "result": "What another tool wrote: result.txt, or a folder of .npz (repeat the option).",
    "datalist": "Text that names the image of each .npz, one a line.",
    "resume": "Keep the answers in this file as they come; the same command goes on with it.",
    "teacher": "Learn from FILE.onnx, a timm model NAME, or NAME=FILE.",
    "accumulate": "Take each batch in so many parts, for want of memory.",
    "device": "auto, cpu or cuda.",
    "workers": "Processes that read images.",
    "channels_last": "Keep images and kernels channels-last in memory.",
    "save_minutes": "Keep the state within epochs too, every so many minutes.",
    "validate_every": "Epochs between validations.",
    "tensorboard": "Write a log for TensorBoard too.",
    "size": "Side of the square input, pixels.",
    "resize": "short: short side to size / crop fraction; squash: both sides.",
    "crop_fraction": "Size over resized side.",
    "interpolation": "nearest, bilinear, bicubic or lanczos.",
    "mean": "Three numbers in 0..1, subtracted for each channel.",
    "std": "Three numbers in 0..1, divided by.",
    "color": "Channel order: RGB or BGR.",
    "input": "Tensor: float, uint8 (pixels) or nv12.",
    "yuv": "Matrix and range of NV12.",
}


class _Number(click.FloatRange):
    """A range without nan and infinity, which compare as if they lay inside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return (
            number
            if math.isfinite(number)
            else self.fail(f"{value!r} is not a finite number.", param, ctx)
        )


class _Several(click.ParamType[Any]):
    """Values with commas between; the option may also be repeated."""

    def __init__(self, one: click.ParamType[Any]) -> None:
        self.name, self._one = one.name, one

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        return tuple(self._one.convert(part.strip(), param, ctx) for part in str(value).split(","))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return "A,B,.."


def _each_once(
    _ctx: click.Context, _param: click.Parameter, found: tuple[tuple[Any, ...], ...]
) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(value for part in found for value in part))


def several(one: Any) -> dict[str, Any]:
    """click's arguments of an option that takes values of type `one`, with commas between or repeated."""
    return {"type": _Several(convert_type(one)), "callback": _each_once, "multiple": True}


POSITIVE = _Number(min=0, min_open=True)
# What an option accepts, where its field's type alone would let nonsense through to the middle of the work.
ACCEPTED: dict[str, click.ParamType[Any]] = {
    "num_classes": click.IntRange(1),
    "opset": click.IntRange(11, 20),
    "form": click.Choice(["train", "deploy"]),
    "max_drop": _Number(),
    "drop": _Number(min=0, max=100, min_open=True),
    "images": click.IntRange(1),
    "threads": click.IntRange(1),
    "streams": click.IntRange(1),
    "batch": click.IntRange(1),
    "seconds": POSITIVE,
    "search": _Number(min=0),
    "finetune_epochs": click.IntRange(0),
    "seed": click.IntRange(0),
    "accumulate": click.IntRange(1),
    "workers": click.IntRange(0),
    "save_minutes": _Number(min=0),
    "validate_every": click.IntRange(1),
}


def options_of(settings: type[Any]) -> Callable[[Command], Command]:
    """Options for every field of the dataclass `settings`, with its defaults."""
    return _options(settings, keep_defaults=True)


def preprocess_options(command: Command) -> Command:
    """Options for every field of Preprocess; unset ones leave what the model says."""
    return _options(Preprocess, keep_defaults=False)(command)


def _options(settings: type[Any], keep_defaults: bool) -> Callable[[Command], Command]:
    hints = get_type_hints(settings)

    def decorate(command: Command) -> Command:
        for field in reversed(dataclasses.fields(settings)):
            flag = f"--{field.name.replace('_', '-')}"
            shape = _click_type(hints[field.name])
            if field.name in ACCEPTED:
                shape["type"] = ACCEPTED[field.name]
            if shape.get("multiple"):
                shape |= several(shape["type"])
            if shape.get("is_flag"):
                flag = (
                    f"{flag}/--no-{field.name.replace('_', '-')}" if field.default is True else flag
                )
            default = field.default if keep_defaults else None
            shown = default not in (None, False, (), True)
            command = click.option(
                flag,
                field.name,
                default=default,
                show_default=shown,
                help=HELP[field.name],
                **shape,
            )(command)
        return command

    return decorate


def _click_type(hint: Any) -> dict[str, Any]:
    """click's arguments for a field's type."""
    if isinstance(hint, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if hint is bool:
        return {"is_flag": True}
    if typing.get_origin(hint) is typing.Literal:
        return {"type": click.Choice(get_args(hint))}
    if typing.get_origin(hint) is tuple:
        inner = get_args(hint)
        return (
            {**_click_type(inner[0]), "multiple": True}
            if inner[-1] is Ellipsis
            else {"type": tuple(inner)}
        )
    return {"type": click.Path(path_type=Path) if hint is Path else hint}
