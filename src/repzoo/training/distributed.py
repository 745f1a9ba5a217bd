"""Several processes that train one model.

DistributedDataParallel over gloo (CPU) or nccl (CUDA), with batch statistics of all processes.

torch's SyncBatchNorm does not run on a CPU. There the statistics are computed here by an all-reduce
with gradient, over the n values of a channel in all processes (arXiv:1502.03167, algorithm 1):

    mean = sum(x) / n        var = sum((x - mean)^2) / n
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from repzoo.errors import InputError
from repzoo.measure.distributed import Group
from repzoo.processor import available_cores


class Crew:
    """The processes of one training, and the device of this one.

    Raises:
        InputError: a device that is not there.
    """

    def __init__(self, group: Group, device: str) -> None:
        self.group, self.device = group, _device(device)
        # Tensors on GPUs go by nccl. Bytes and counts stay with gloo, by which the processes met.
        self._channel: Any = (
            dist.new_group(backend="nccl")
            if group.size > 1 and self.device.type == "cuda"
            else None
        )
        if group.size > 1:
            torch.set_num_threads(group.threads(available_cores()))

    def joined(self, module: torch.nn.Module) -> torch.nn.Module:
        """`module`, whose gradients and batch statistics are those of all processes."""
        if self.group.size == 1:
            return module
        if self.device.type == "cuda":
            synced = convert_sync_batchnorm(module, self._channel)
            return _distributed(
                synced, device_ids=[self.device], process_group=self._channel
            )
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                # In place: tensors keep their names, timm's subclasses their activation.
                layer.__class__ = type(
                    f"Synced{type(layer).__name__}", (_Synced, type(layer)), {}
                )
        return _distributed(module)

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over all processes, the same in each: all stop at the same step."""
        total = value.detach().double()
        if self.group.size > 1:
            dist.all_reduce(total, group=self._channel)
        return float(total) / self.group.size

    def sums(self, *counts: int) -> list[int]:
        """Each count, summed over the processes."""
        gathered = [
            json.loads(data) for data in self.group.gather(json.dumps(counts).encode())
        ]
        return [sum(column) for column in zip(*gathered, strict=True)]

    def spread(self, data: bytes) -> bytes:
        """The `data` of process 0, in every process."""
        if self.group.size == 1:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0)
        # As a bytearray: torch wants memory that may be written.
        bytes_ = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if data and not self.group.rank
            else None
        )
        content = (
            bytes_ if bytes_ is not None else torch.empty(int(size), dtype=torch.uint8)
        )
        if len(content):
            dist.broadcast(content, 0)
        return content.numpy().tobytes()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Report a broken connection as what it is: another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.group.size == 1 or not (
                # gloo raises plain RuntimeErrors, which only their text tells from a defect.
                isinstance(error, dist.DistError) or "gloo" in str(error).lower()
            ):
                raise
            line = str(error).strip().splitlines()[0]
            raise InputError(
                f"another of the {self.group.size} processes has ended ({line}); start them again: "
                "the run continues from its last state"
            ) from None


def unsynced(
    module: torch.nn.Module, last: bool
) -> contextlib.AbstractContextManager[Any]:
    """The context of a backward pass. Gradients are only synchronized in the `last` part."""
    return (
        contextlib.nullcontext()
        if last or not isinstance(module, DistributedDataParallel)
        else module.no_sync()
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"there is no device {name!r}; give auto, cpu or cuda"
        ) from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and not torch.cuda.is_available()
    ):
        raise InputError(f"the device {name} is not there; give --device cpu, or auto")
    if device.type == "cuda" and device.index is None:
        # torchrun numbers the processes of a host; each takes a GPU of its own.
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
        torch.cuda.set_device(device)
    return device


class _Synced(_BatchNorm):
    """Mixin before a class of batch normalization: training statistics over all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, ...] -> the same shape."""
        if not self.training:
            return super().forward(x)
        normalized, own = _over_all(self, x), cast(Any, self)
        # timm's BatchNormAct2d also drops and activates.
        return cast(
            torch.Tensor,
            own.act(own.drop(normalized)) if hasattr(self, "act") else normalized,
        )

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Any number of axes behind the channels."""


def _over_all(layer: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * dist.get_world_size()
    # Under autocast x has 16 bits, too few for sums over all images.
    wide = x.float()
    mean = _summed(wide.sum(axes)) / count
    centered = wide - mean.view(shape)
    var = _summed(centered.square().sum(axes)) / count
    if (
        layer.running_mean is not None
        and layer.running_var is not None
        and layer.num_batches_tracked is not None
    ):
        with torch.no_grad():
            layer.num_batches_tracked += 1
            # A momentum of None means the mean of all batches so far (torch.nn.BatchNorm2d).
            share = (
                layer.momentum
                if layer.momentum is not None
                else 1 / float(layer.num_batches_tracked)
            )
            layer.running_mean.lerp_(mean.detach(), share)
            # torch normalizes by the biased variance, and keeps the unbiased one.
            layer.running_var.lerp_(var.detach() * count / max(1, count - 1), share)
    normalized: torch.Tensor = centered * torch.rsqrt(var + layer.eps).view(shape)
    if layer.affine:
        normalized = normalized * layer.weight.view(shape) + layer.bias.view(shape)
    return normalized.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum of the gradients in all of them."""

    @staticmethod
    def forward(_ctx: Any, value: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """As forward."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _summed(value: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, _Sum.apply(value))


def _distributed(module: torch.nn.Module, **more: Any) -> torch.nn.Module:
    """DistributedDataParallel that sends no buffers: equal batch statistics keep them equal."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # the option's new name is not in the oldest torch that is supported
        return DistributedDataParallel(module, broadcast_buffers=False, **more)
