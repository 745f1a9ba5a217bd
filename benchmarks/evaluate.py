"""What evaluation leaves of what decoding and inference allow, and how it stands beside timm's loader and PyTorch.

    python -m benchmarks.evaluate IMAGES [MODEL] [--images 704] [--rounds 11]

IMAGES is a folder of class folders with an optional classes.tsv; MODEL an ONNX file with repzoo's metadata, an embedded model
(default: repghostnet_050.clothing), or `efficientnet_lite0` (ImageNet weights). Interleaved, round by round, on the same first images:

- whole      repzoo's evaluation, from files to predictions
- decode     from the files to the model's inputs alone (decoding, resizing, cropping, normalizing: what a loader does), by as many threads
- inference  the same session on inputs prepared before, in the same batches, called from as many threads
- timm       the same images through timm's create_loader, in worker processes, one a core, that stay from round to round, into
             PyTorch eager; the model is the file's graph as PyTorch runs it

Decoding and inference both take every core, so one after the other they allow 1 / (1 / decode + 1 / inference) images a second:
printed is which share of it the whole reaches (wanted: 90 %), and images a second over timm's. Last, peak memory of a process
that evaluates the images once over that of one to which they are given 20 times: what grows with the data is 20 bytes an image.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, available_cores, map_in_order, read_image
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import model_input
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.measure import accuracy, stats
from repzoo.measure.journal import chunk_numbers, chunk_range

TIMES = 20
Work = Callable[[], object]


def opened(name: str) -> Artifact:
    """The model called `name`."""
    from benchmarks.int8 import efficientnet_lite0

    return efficientnet_lite0() if name == "efficientnet_lite0" else verbs.load(name)


def works(artifact: Artifact, data: Dataset) -> dict[str, Work]:
    """The three of ours, by name."""
    run, preprocess = (
        accuracy.open_run(artifact, engine("onnxruntime")),
        artifact.require_preprocess(),
    )
    chunks = chunk_numbers(len(data))

    def prepared(number: int) -> np.ndarray:
        read = [
            read_image(data, data.keys[index], preprocess).pixels
            for index in chunk_range(number, len(data))
        ]
        return model_input(np.stack([one for one in read if one is not None]), preprocess)

    inputs = list(map(prepared, chunks))
    return {
        "whole": lambda: accuracy.evaluate([run], data, ReadReport()),
        "decode": lambda: sum(len(one) for one in map_in_order(prepared, chunks)),
        "inference": lambda: [
            len(one) for one in map_in_order(lambda one: accuracy.logits_of(run, one), inputs)
        ],
    }


def timm_work(artifact: Artifact, data: Dataset, images: Path) -> Work:
    """timm's loader and PyTorch eager on the same files."""
    import timm.data
    import torch

    preprocess = artifact.require_preprocess()
    files = [
        (str(images / key), target) for key, target in zip(data.keys, data.targets, strict=True)
    ]

    class Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
        transform = None

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[object, int]:
            from PIL import Image

            return self.transform(Image.open(files[index][0]).convert("RGB")), files[index][1]  # type: ignore[misc]

    loader = timm.data.create_loader(
        Files(), (3, preprocess.size, preprocess.size), 32, use_prefetcher=False, num_workers=available_cores(), mean=preprocess.mean,
        std=preprocess.std, crop_pct=preprocess.crop_fraction, interpolation=preprocess.interpolation,
        device=torch.device("cpu"), persistent_workers=True,
    )  # fmt: skip
    list(
        loader
    )  # forks the workers, which stay, before this process has threads that a fork would lose
    session = engine("pytorch").open(artifact.model, available_cores())
    return lambda: sum(
        int((session.run(inputs.numpy()).argmax(1) == targets.numpy()).sum())
        for inputs, targets in loader
    )


def timed(works_by_name: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in works_by_name}
    for turn in range(rounds + 1):
        for name in sorted(works_by_name, reverse=bool(turn % 2)):
            began = time.perf_counter()
            works_by_name[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def said(title: str, values: list[float]) -> None:
    """The median with its interval."""
    found = stats.median_interval(values)
    print(
        f"{title}: {found.value:.3f} (95 % interval {found.low:.3f} .. {found.high:.3f}, {len(values)} rounds)",
        flush=True,
    )


def peak(model: str, images: Path, count: int, times: int) -> float:
    """Peak resident MiB of a process that evaluates the first `count` images `times` times over, in one data set."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.evaluate",
        str(images),
        model,
        "--images",
        str(count),
        "--times",
        str(times),
    ]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
    )


def main() -> None:
    """Print the shares, the ratio and the memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model", nargs="?", default="repghostnet_050.clothing")
    parser.add_argument("--images", type=int, default=704)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--times", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    artifact, data = opened(given.model), open_source(given.data).held_out()
    places = np.random.default_rng(0).permutation(len(data))[: given.images].tolist()
    if given.times:
        run = accuracy.open_run(artifact, engine("onnxruntime"))
        accuracy.evaluate([run], data.subset(places * given.times), ReadReport())
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        print(
            int(status["VmHWM"].split()[0]) / 1024
        )  # not ru_maxrss, which begins with what the parent had
        return
    data = data.subset(places)
    beside = timm_work(artifact, data, given.data)
    seconds = timed({**works(artifact, data), "timm": beside}, given.rounds)
    for name, values in seconds.items():
        print(f"{name}: {len(data) / np.median(values):.0f} images a second", flush=True)
    rounds = list(
        zip(seconds["whole"], seconds["decode"], seconds["inference"], seconds["timm"], strict=True)
    )
    said(
        "share of what decoding and inference allow",
        [(decode + infer) / whole for whole, decode, infer, _ in rounds],
    )
    said(
        "images a second over timm's loader + PyTorch",
        [other / whole for whole, _, _, other in rounds],
    )
    once, often = (peak(given.model, given.data, given.images, times) for times in (1, TIMES))
    print(
        f"peak memory: {once:.0f} MiB on {len(data)} images, {often:.0f} MiB on the same {TIMES} times: {often / once:.3f}"
    )


if __name__ == "__main__":
    main()
