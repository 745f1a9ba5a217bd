"""How fast evaluation and fold are, beside what a user would write without repzoo.

Prints ratios from interleaved rounds, with intervals.

    python -m benchmarks.spine [PHOTOS]

1. Evaluation: repzoo (decode threads + ONNX Runtime, folded) against timm's loader + PyTorch
eager on the same photographs.
2. Fold: repzoo's fold of RepVGG-A0's ONNX against timm.utils.reparameterize_model plus torch's
export of the deploy form.

PHOTOS is a folder of class folders; by default 256 are drawn here from noise and written to a
temporary folder.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import timm.data
import timm.utils
import torch
from PIL import Image

from repzoo import verbs
from repzoo.data.source import open_source
from repzoo.graph.fold.engine import fold
from repzoo.measure import stats

ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(
    title: str, ours: Callable[[], object], theirs: Callable[[], object]
) -> None:
    """Run both in turns and print how many times as long theirs takes."""
    # The first run of each compiles and fills caches.
    ours()
    theirs()
    ratios = [seconds(theirs) / seconds(ours) for _ in range(ROUNDS)]
    median = stats.median_interval(ratios)
    print(
        f"{title}: {median.value:.2f} times as long (95 % interval {median.low:.2f} .. "
        f"{median.high:.2f}, {ROUNDS} rounds)"
    )


def noise_photos(folder: Path) -> Path:
    """256 JPEG files of 500x375 in two classes."""
    generator = np.random.default_rng(0)
    for index in range(256):
        target = folder / f"class{index % 2}"
        target.mkdir(exist_ok=True)
        coarse = generator.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(target / f"{index:03}.jpg")
    return folder


def evaluation(photos: Path) -> None:
    """The same photographs, model and accuracy by both."""
    data = open_source(photos).held_out()
    model = timm.create_model("repghostnet_050", num_classes=len(data.classes)).eval()
    artifact = verbs.export(
        "repghostnet_050",
        num_classes=len(data.classes),
        form="deploy",
        labels=data.classes,
    )
    config = timm.data.resolve_data_config({}, model=model)
    paths = [photos / key for key in data.keys]

    class Files(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        """The photographs with their targets, as timm's example loads them."""

        transform = timm.data.create_transform(**config)

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image = Image.open(paths[index]).convert("RGB")
            return self.transform(image), data.targets[index]

    def theirs() -> None:
        """Predict every photograph."""
        with torch.inference_mode():
            for images, _ in torch.utils.data.DataLoader(Files(), 32, num_workers=2):
                model(images).argmax(1)

    compare(
        "evaluation, timm loader + PyTorch against repzoo",
        lambda: verbs.evaluate(artifact, data),
        theirs,
    )


def folding() -> None:
    """From what each user holds (a module; a training-form ONNX) to a deploy ONNX."""
    trained = verbs.export("repvgg_a0", size=64)
    module = timm.create_model("repvgg_a0").eval()

    def theirs() -> None:
        """Fold and export."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folded = timm.utils.reparameterize_model(module)
            torch.onnx.export(
                folded,
                (torch.zeros(1, 3, 64, 64),),
                io.BytesIO(),
                dynamo=False,
                opset_version=17,
            )

    compare(
        "fold of RepVGG-A0, timm reparameterize + torch export against repzoo",
        lambda: fold(trained.model),
        theirs,
    )


def main() -> None:
    """Compare evaluation, then folding."""
    if len(sys.argv) > 1:
        evaluation(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            evaluation(noise_photos(Path(folder)))
    folding()


if __name__ == "__main__":
    main()
