"""What every pack has in common: its parts, and how its folder is written.

A target is a class with `name`, `scheme`, `check` and `files`, one line in `TARGETS`, or an entry
point `repzoo.packs` of another package. What the files of several targets share is in parts.py,
what no target takes in limits.py, and activation ranges in ranges.py. docs/packs.md adds one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from repzoo import __version__
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches, readable_indices
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError
from repzoo.measure.predictions import ModelPredictions
from repzoo.packs.limits import require_opset
from repzoo.plugins import Plugin, PluginTable, unknown
from repzoo.storage import (
    json_text,
    make_folder,
    require_writable_folder,
    sha256_of_file,
)

MANIFEST = "manifest.json"
BATCH = 32  # images that are prepared at once
PackFile = tuple[str, bytes | str]  # path below the pack's folder, content


@dataclass(frozen=True)
class Figures:
    """Accuracy in percent, for the README; None where it is not known.

    Attributes:
        images: number that it was measured on.
        float_top1: of the float model.
        predicted_top1: in the target's arithmetic, a prediction.
        same_prediction: share of predictions that stay, predicted.
    """

    images: int = 0
    float_top1: float | None = None
    predicted_top1: float | None = None
    same_prediction: float | None = None


@dataclass(frozen=True)
class PackJob:
    """What a pack is made from.

    Attributes:
        artifact: the float model as the target takes it.
        images: calibration images; `write_pack` leaves out those that cannot be read.
        figures: what is known of its accuracy.
        fallback: nodes that stay out of INT8, by their names in the packed ONNX.
        gate: the images that judged the model, for evaluation in the vendor's tool.
        predictions: of the model in float on these, where they are known already.
        seed: of every choice of images.
        chip: that the tool compiles for, one of the target's `chips`; "" for its first.
        remarks: what the target has to say to the user; it adds them while it writes the files.
    """

    artifact: Artifact
    images: Dataset
    figures: Figures = Figures()
    fallback: tuple[str, ...] = ()
    gate: Dataset | None = None
    predictions: ModelPredictions | None = None
    seed: int = 0
    chip: str = ""
    remarks: list[str] = field(default_factory=list)


class PackTarget(Protocol):
    """A vendor's tool chain.

    name    of the target
    scheme  of quant/network/schemes.toml, by which models are hardened for it

    A class whose targets differ by an option, as in "qdq:tensorrt", takes it as its one argument
    and lists what is accepted by a static method `options`. One whose tool takes quantized files
    has `form = "int8"`; its `scheme` then says how models are quantized. An optional method
    `lint(folder)` gives findings of `packs/lint/finding.py` for `repzoo pack --check`.

    One whose tool compiles for several chips lists them in `chips`, the usual one first.

    A target whose tool chain repzoo can run has also a member `compiler`; see compile.py.
    """

    name: str
    scheme: str

    def check(self, artifact: Artifact) -> None:
        """Refuse, before the work, a model that the target cannot take."""

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The files of the pack; calibration images one at a time."""


TARGETS = PluginTable(
    "pack target",
    "repzoo.packs",
    {
        "rdk-x5": Plugin("repzoo.packs.rdk_x5:RdkX5"),
        "vastai": Plugin("repzoo.packs.vastai:Vastai"),
        "rknn": Plugin("repzoo.packs.rknn:Rknn"),
        "sophgo": Plugin("repzoo.packs.sophgo:Sophgo"),
        "hailo": Plugin("repzoo.packs.hailo:Hailo"),
        "qdq": Plugin("repzoo.packs.qdq:Qdq"),
    },
)


def open_target(name: str) -> PackTarget:
    """The target called "name" or "name:option".

    Raises:
        InputError: there is none, or it has no such option.
    """
    base, colon, option = name.partition(":")
    target: Callable[..., PackTarget] = TARGETS.load(base)
    if not colon:
        return target()
    options: list[str] = getattr(target, "options", list)()
    if not options:
        raise InputError(f"the pack target {base} has no options; give {base} alone")
    if option not in options:
        raise InputError(unknown(f"option of {base}", option, options))
    return target(option)


def require_chip(target: PackTarget, chip: str) -> None:
    """Refuse a chip that the tool chain does not compile for; "" is the usual one.

    Raises:
        InputError: says which there are.
    """
    chips: tuple[str, ...] = getattr(target, "chips", ())
    if chip and not chips:
        raise InputError(
            f"the pack target {target.name} compiles for one chip only; leave --chip out"
        )
    if chip and chip not in chips:
        raise InputError(unknown(f"chip of {target.name}", chip, chips))


def pixel_images(job: PackJob) -> Iterator[npt.NDArray[np.uint8]]:
    """The calibration images as the model sees them, uint8 [channels, height, width].

    In the model's channel order, before normalization.

    Raises:
        InputError: no image can be read.
    """
    # A model with uint8 input would take the pixels as they are: no rounding can go wrong.
    # It has one layout only.
    preprocess = replace(
        job.artifact.require_preprocess(), input="uint8", layout="NCHW"
    )
    report = ReadReport()
    for batch in batches(job.images, preprocess, BATCH, report):
        yield from np.asarray(batch.inputs).transpose(0, 3, 1, 2)
    report.check(job.images.name, len(job.images))


def readable_images(images: Dataset, report: ReadReport) -> Dataset:
    """The images that decode: a broken one would stop the vendor's tool.

    Raises:
        InputError: more than 1 % do not.
    """
    indices = readable_indices(images, report)
    report.check(images.name, len(images))
    return images.subset(indices)


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something already, or cannot be written.

    Raises:
        InputError: says which.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists already and is not an empty folder; give another with -o"
        )
    require_writable_folder(folder.parent)


def write_pack(target: PackTarget, job: PackJob, folder: Path) -> list[str]:
    """Write the pack into `folder`, which appears only when it is complete; its files.

    Raises:
        InputError: as `require_free` and `readable_images`, what the target refuses, or a full
            disk.
    """
    require_opset(job.artifact, target.name, target.scheme)
    require_chip(target, job.chip)
    require_free(folder)
    report = ReadReport()
    # First, so that the number in configurations, READMEs and the manifest is that of the files.
    job = replace(job, images=readable_images(job.images, report))
    job.remarks.extend(report.sentences())
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".repzoo.", dir=folder.parent) as aside:
        root = Path(aside) / folder.name
        hashes: dict[str, str] = {}
        try:
            for name, content in target.files(job):
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                data = content.encode() if isinstance(content, str) else content
                path.write_bytes(data)
                if path.suffix == ".sh":
                    path.chmod(0o755)
                hashes[name] = sha256_of_file(path)
            (root / MANIFEST).write_text(_manifest(target, job, hashes), "utf-8")
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written: {error.strerror or error}; free room or give "
                "another place"
            ) from None
        if folder.exists():
            folder.rmdir()  # it is empty
        shutil.move(root, folder)
    return [*hashes, MANIFEST]


def _manifest(target: PackTarget, job: PackJob, hashes: dict[str, str]) -> str:
    document = {
        "target": target.name,
        "repzoo": __version__,
        "model": job.artifact.name,
        "model_sha256": job.artifact.sha256,
        "steps": [step.verb for step in job.artifact.steps],
        **({"chip": job.chip} if job.chip else {}),
        "calibration": {"data": job.images.name, "images": len(job.images)},
        "files": hashes,
    }
    return json_text(document, indent=1, ensure_ascii=False) + "\n"
