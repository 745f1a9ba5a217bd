"""How many threads train fastest now.

On cores that other programs use, torch's threads wait for each other at every operator: two threads
on two busy cores made 7 images a second where one made 75.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence

import torch

# Fewer threads must be this much faster. Otherwise noise would choose them, and the last bits of
# the weights depend on the number of threads.
GAIN = 1.3
IMAGES = 8  # in a trial step
REPEATS = 2


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """`count` threads for torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(module: torch.nn.Module, shape: Sequence[int], most: int) -> int:
    """The number of threads, up to `most`, that computes a training step fastest.

    module  stays as it is
    shape   of one image: channels, height, width; the module takes float32 [N, *shape]
    """
    best, best_seconds = most, _step_seconds(module, shape, most) if most > 1 else 0.0
    count = most // 2
    while count >= 1:
        seconds = _step_seconds(module, shape, count)
        if seconds * GAIN < best_seconds:
            best, best_seconds = count, seconds
        count //= 2
    return best


def _step_seconds(module: torch.nn.Module, shape: Sequence[int], count: int) -> float:
    """Seconds of the fastest forward and backward pass with `count` threads."""
    # A copy, since a training step changes gradients and BatchNorm's statistics.
    trial = copy.deepcopy(module).train()
    images = torch.zeros(IMAGES, *shape)
    times: list[float] = []
    with num_threads(count):
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            outputs = trial(images)
            # RepViT has two heads while it trains.
            heads = outputs if isinstance(outputs, tuple) else (outputs,)
            total = torch.stack([head.sum() for head in heads]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - started)
    return min(times[1:])  # the first allocates
