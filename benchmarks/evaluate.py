"""How fast evaluation is against its parts, and against timm's loader with PyTorch.

    python -m benchmarks.evaluate IMAGES [MODEL] [--images 704] [--rounds 11]

IMAGES is a folder of class folders with an optional classes.tsv. MODEL is an ONNX file with
repzoo's metadata, an embedded model (default: repghostnet_050.clothing), or `efficientnet_lite0`
(ImageNet weights). These are timed in interleaved rounds, on the same first images:

- whole      repzoo's evaluation, from files to predictions
- decode     from the files to the model's inputs only (decoding, resizing, cropping, normalizing:
             what a loader does), by as many threads
- inference  the same session on inputs prepared before, in the same batches, called from as many
             threads
- timm       the same images through timm's create_loader, in one worker process for each core,
             kept from round to round, into PyTorch eager; the model is the file's graph as PyTorch
             runs it

Decoding and inference both take every core, so one after the other they allow
1 / (1 / decode + 1 / inference) images a second. Printed are the share of it that the whole
reaches (target: 90 %), and images a second over timm's. Last comes the peak memory of a process
that evaluates the images once, and of one that is given them 20 times: what grows with the data is
20 bytes an image.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.medians import print_median
from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, available_cores, map_in_order, read_image
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import model_input
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.measure import accuracy
from repzoo.measure.journal import chunk_numbers, chunk_range

REPETITIONS = 20  # of the images, for the second reading of the peak memory
TIMM_BATCH = 32
Work = Callable[[], object]


def load_model(name: str) -> Artifact:
    """The model called `name`."""
    from benchmarks.int8 import efficientnet_lite0

    return efficientnet_lite0() if name == "efficientnet_lite0" else verbs.load(name)


def repzoo_works(artifact: Artifact, data: Dataset) -> dict[str, Work]:
    """Evaluation as a whole, and its two parts, by name."""
    run = accuracy.open_run(artifact, engine("onnxruntime"))
    preprocess = artifact.require_preprocess()
    chunks = chunk_numbers(len(data))

    def prepare(number: int) -> np.ndarray:
        """The model's inputs of one chunk of images."""
        images = []
        for index in chunk_range(number, len(data)):
            pixels = read_image(data, data.keys[index], preprocess).pixels
            if pixels is not None:
                images.append(pixels)
        return model_input(np.stack(images), preprocess)

    prepared = [prepare(number) for number in chunks]

    def evaluate() -> object:
        """From files to predictions."""
        return accuracy.evaluate([run], data, ReadReport())

    def decode() -> int:
        """From files to inputs."""
        return sum(map(len, map_in_order(prepare, chunks)))

    def infer() -> int:
        """From inputs to logits."""
        outputs = map_in_order(lambda inputs: accuracy.logits_of(run, inputs), prepared)
        return sum(map(len, outputs))

    return {"whole": evaluate, "decode": decode, "inference": infer}


def timm_work(artifact: Artifact, data: Dataset, images: Path) -> Work:
    """timm's loader and PyTorch eager on the same files."""
    import timm.data
    import torch
    from PIL import Image

    preprocess = artifact.require_preprocess()
    paths = [str(images / key) for key in data.keys]

    class Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """The image files with their targets, as timm expects them."""

        transform = None  # timm sets it

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[object, int]:
            image = Image.open(paths[index]).convert("RGB")
            return self.transform(image), data.targets[index]  # type: ignore[misc]

    loader = timm.data.create_loader(
        Files(),
        (3, preprocess.size, preprocess.size),
        TIMM_BATCH,
        use_prefetcher=False,
        num_workers=available_cores(),
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_fraction,
        interpolation=preprocess.interpolation,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    # Fork the workers, which stay, before this process has threads that a fork would lose.
    list(loader)
    session = engine("pytorch").open(artifact.model, available_cores())

    def evaluate() -> int:
        """How many images are classified correctly."""
        correct = 0
        for inputs, targets in loader:
            predicted = session.run(inputs.numpy()).argmax(1)
            correct += int((predicted == targets.numpy()).sum())
        return correct

    return evaluate


def time_rounds(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work by round; every other round runs backwards, the first is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in sorted(works, reverse=bool(turn % 2)):
            began = time.perf_counter()
            works[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def peak_memory(model: str, images: Path, count: int, repetitions: int) -> float:
    """Peak resident MiB of a process that evaluates `count` images `repetitions` times."""
    command = [sys.executable, "-m", "benchmarks.evaluate", str(images), model]
    command += ["--images", str(count), "--repetitions", str(repetitions)]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ
    )
    return float(result.stdout)


def print_own_peak_memory(artifact: Artifact, data: Dataset) -> None:
    """Evaluate `data` and print this process's peak resident MiB."""
    run = accuracy.open_run(artifact, engine("onnxruntime"))
    accuracy.evaluate([run], data, ReadReport())
    # Not ru_maxrss, which begins with what the parent process had.
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert match
    print(int(match[1]) / 1024)


def compare(artifact: Artifact, data: Dataset, images: Path, rounds: int) -> None:
    """Print images a second of each work, and the two ratios."""
    timm = timm_work(artifact, data, images)
    seconds = time_rounds({**repzoo_works(artifact, data), "timm": timm}, rounds)
    for name, values in seconds.items():
        print(
            f"{name}: {len(data) / np.median(values):.0f} images a second", flush=True
        )
    arrays = {name: np.array(values) for name, values in seconds.items()}
    whole = arrays["whole"]
    shares = (arrays["decode"] + arrays["inference"]) / whole
    print_median("share of what decoding and inference allow", shares.tolist())
    ratios = arrays["timm"] / whole
    print_median("images a second over timm's loader + PyTorch", ratios.tolist())


def main() -> None:
    """Print the shares, the ratio and the memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model", nargs="?", default="repghostnet_050.clothing")
    parser.add_argument("--images", type=int, default=704)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repetitions", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    artifact = load_model(options.model)
    data = open_source(options.data).held_out()
    order = np.random.default_rng(0).permutation(len(data))
    chosen = order[: options.images].tolist()
    if options.repetitions:
        print_own_peak_memory(artifact, data.subset(chosen * options.repetitions))
        return
    compare(artifact, data.subset(chosen), options.data, options.rounds)
    peak = functools.partial(peak_memory, options.model, options.data, options.images)
    once = peak(1)
    often = peak(REPETITIONS)
    print(
        f"peak memory: {once:.0f} MiB on {len(chosen)} images, {often:.0f} MiB on the same "
        f"{REPETITIONS} times: {often / once:.3f}"
    )


if __name__ == "__main__":
    main()
