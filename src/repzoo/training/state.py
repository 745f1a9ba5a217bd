"""The files in a training's folder: state to continue from, log, settings, weights."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from repzoo.errors import InputError, MissingExtra
from repzoo.storage import write_atomically, written_aside

STATE, LOG, WEIGHTS, SETTINGS, BOARD = (
    "state.pt",
    "log.csv",
    "weights.safetensors",
    "run.json",
    "tensorboard",
)
MAX_STATE_BYTES = 2**33


@dataclass(frozen=True)
class Epoch:
    """One line of the log.

    validation_top1  percent, EMA weights on validation images; nan if not measured
    """

    epoch: int
    lr: float
    loss: float
    validation_top1: float
    images_per_second: float
    seconds: float


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the state in one rename: the old one is complete until the new one is."""
    with written_aside(folder / STATE) as aside:
        try:
            torch.save(state, aside)
        except RuntimeError as error:  # torch's writer says so of a disk that is full
            raise OSError(str(error).splitlines()[0]) from None


def save_log(folder: Path, log: Sequence[Epoch]) -> None:
    """Write the log as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(field.name for field in dataclasses.fields(Epoch))
    writer.writerows(dataclasses.astuple(line) for line in log)
    write_atomically(folder / LOG, text.getvalue())


def save_weights(folder: Path, module: torch.nn.Module) -> None:
    """Write the weights of `module` as .safetensors, float32 in the catalog's naming."""
    from safetensors.torch import save as safetensors

    state = {
        # safetensors refuses tensors in channels-last order.
        name: value.detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    write_atomically(folder / WEIGHTS, safetensors(state))


def save_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of the run, for people only: nothing reads them again."""
    write_atomically(
        folder / SETTINGS, json.dumps(settings, indent=1, default=str) + "\n"
    )


def read(folder: Path) -> bytes:
    """The bytes of the state behind a plus sign; b"" where there is none."""
    path = folder / STATE
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise InputError(
                f"{path} has more than {MAX_STATE_BYTES:,} bytes, which no state has; remove it to "
                "start again"
            )
        # The sign keeps an empty file, which is damaged, apart from none.
        return b"+" + path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give another -o"
        ) from None


def decoded(folder: Path, data: bytes, fingerprint: str) -> dict[str, Any]:
    """The state in the bytes of `read`. Nothing in it is executed.

    Raises:
        InputError: damaged, or of a run with another `fingerprint`.
    """
    path = folder / STATE
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(data[1:]), map_location="cpu", weights_only=True
        )
        stored_fingerprint = state["fingerprint"]
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
    ):
        raise InputError(
            f"{path} is damaged; remove it to start again, or give another -o"
        ) from None
    if stored_fingerprint != fingerprint:
        raise InputError(
            f"{path} belongs to a run with other settings or data; give another -o, or remove it "
            "to start again"
        )
    return state


class Board:
    """The log for TensorBoard in the folder `tensorboard`.

    Lines that an interrupted run wrote after its last state are dropped.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingExtra("a log for TensorBoard", "tensorboard") from error
        self._writer = SummaryWriter(str(folder / BOARD), purge_step=done)

    def add(self, line: Epoch) -> None:
        """Write one epoch."""
        for key in ("lr", "loss", "images_per_second", "validation_top1"):
            value = getattr(line, key)
            # An epoch without validation has no Top-1.
            if not math.isnan(value):
                self._writer.add_scalar(key, value, line.epoch)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
