"""The verb `pack`: a folder with all that a vendor's tool chain needs."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.artifact import Artifact as StoredArtifact
from repzoo.data.dataset import Dataset, DataSource
from repzoo.errors import InputError
from repzoo.measure.class_mapping import with_folder_names
from repzoo.packs.compile import compiler_of
from repzoo.packs.judge import first_before_others
from repzoo.packs.limits import require_packable
from repzoo.packs.pack import (
    TARGETS,
    Figures,
    PackJob,
    PackTarget,
    open_target,
    require_chip,
    require_free,
    write_pack,
)
from repzoo.progress import Progress, silent
from repzoo.quant.network.scheme import find_preset, load_scheme
from repzoo.report.figures import percent
from repzoo.settings import (
    above,
    at_least,
    merge_keywords,
    same_setting,
    setting,
    validate,
)
from repzoo.storage import make_folder
from repzoo.summary import Summarized, Summary, Table
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.harden_model import JUDGES, HardenOptions, harden_for
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.model_files import ModelLike, open_model, require_float
from repzoo.verbs.pack_compilation import MINUTES, Compilation, compile_pack
from repzoo.verbs.public_artifact import Artifact
from repzoo.verbs.quantize_model import QuantizeOptions, quantize

STEP = re.compile(r"\d\d_\w+\.sh")  # a script of the pack, to be run in order


@dataclass(frozen=True)
class PackOptions:
    """Settings of `pack`."""

    target: str = setting(
        "rdk-x5",
        help=f"Tool chain that the pack is for: {', '.join(TARGETS.names())}. Some have options: "
        "rknn:layer; qdq:tensorrt, qdq:qnn, qdq:stm32n6, qdq:axera.",
    )
    calibration: int = setting(
        100, help="Images in the pack for the tool's calibration.", range=at_least(1)
    )
    max_drop: float = same_setting(HardenOptions, "max_drop")
    images: int = same_setting(HardenOptions, "images")
    force: bool = same_setting(HardenOptions, "force")
    seed: int = same_setting(HardenOptions, "seed")
    judge: str = setting(
        "auto",
        choices=("auto", *JUDGES),
        help="What chooses how weights are rounded, as for repzoo harden; auto: with --compile the "
        "tool itself.",
    )
    chip: str = setting(
        "",
        help="Chip that the tool compiles for, such as rk3566 for rknn.  [default: the usual one]",
    )
    compile: bool = setting(
        False,
        help="Also run the tool chain (see repzoo toolchains): the pack then holds the compiled "
        "model, and repzoo evaluate --engine TARGET measures it.",
    )
    compile_minutes: float = setting(
        MINUTES, help="End the tool chain after this long.", range=above(0)
    )

    def __post_init__(self) -> None:
        """Refuse values that are not accepted, and unknown targets."""
        validate(self)
        open_target(self.target)


@dataclass(frozen=True)
class Pack(Summarized):
    """What `pack` wrote.

    folder   of the pack
    files    paths below it
    model    the model in it
    remarks  sentences of the target about it
    compiled what its tool chain made of it, with `compile=True`
    """

    folder: Path
    files: tuple[str, ...]
    model: Artifact
    remarks: tuple[str, ...] = ()
    compiled: Compilation | None = None

    def _summary(self) -> Summary:
        """Accuracy in float and as the target computes, then the steps to run."""
        figures = _figures(self.model)
        rows = []
        for name, top1 in (
            ("float", figures.float_top1),
            ("as the target computes, predicted", figures.predicted_top1),
        ):
            if top1 is not None:
                rows.append([name, str(figures.images), percent(top1)])
        tables = [Table(["model", ">n", ">Top-1 %"], rows)] if rows else []
        steps = [name for name in self.files if STEP.fullmatch(name)]
        lines = [f"{self.folder}: {len(self.files)} files; next: {', '.join(steps)}"]
        notes = [f"note: {remark}" for remark in self.remarks]
        return Summary(tables, [*lines, *notes])


def pack(
    model: ModelLike,
    data: str | Path | DataSource,
    output: str | Path,
    *,
    options: PackOptions | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Pack:
    """Write the folder `output` with all that a vendor's tool chain needs.

    The model is hardened for the target first, unless its last step did that. For a target that
    takes INT8 files it is quantized instead.

    data      as for `harden`; calibration images are taken from the same part
    settings  fields of PackOptions, such as `calibration=200`

    Raises:
        InputError: a model that the target cannot take, too few images, a folder that is not
            empty, or as `harden`.
        GateError: see `harden`.
    """
    options = merge_keywords(PackOptions, options, settings)
    target = open_target(options.target)
    require_chip(target, options.chip)
    artifact = for_images(open_model(model))
    require_float(artifact)
    source = open_data_source(data, unlabeled=True)
    # The same split as for `harden`: the tool must not calibrate on images that judge the model.
    split = source.split_for_quantization(options.images, options.seed)
    artifact = with_folder_names(artifact, split.gate)
    # All before hardening, which takes minutes.
    require_packable(artifact)
    target.check(artifact)
    if options.compile:
        compiler_of(options.target)
    _require_images(split.calibration, options)
    require_free(Path(output))
    artifact = _prepared(artifact, target, source, options, progress)
    chosen = calibration_images(artifact, split.calibration, options)
    job = PackJob(
        artifact,
        split.calibration.subset(chosen),
        _figures(artifact),
        _fallback(artifact),
        gate=split.gate,
        predictions=artifact.hardening.predictions if artifact.hardening else None,
        seed=options.seed,
        chip=options.chip,
    )
    folder = Path(output)
    if not options.compile:
        files = write_pack(target, job, folder)
        return Pack(folder, tuple(files), artifact, tuple(job.remarks))
    make_folder(folder.parent)
    # Aside: when the tool chain fails, nothing is left in `folder`.
    with tempfile.TemporaryDirectory(prefix=".repzoo.", dir=folder.parent) as aside:
        uncompiled = Path(aside) / folder.name
        files = write_pack(target, job, uncompiled)
        compiled = compile_pack(
            uncompiled, folder, minutes=options.compile_minutes, progress=progress
        )
    remarks = (*job.remarks, *compiled.remarks)
    return Pack(folder, tuple(files), artifact, remarks, compiled)


def calibration_images(
    artifact: Artifact, images: Dataset, options: PackOptions
) -> list[int]:
    """Indices of the tool's calibration images, the one first that it compares methods on."""
    chosen = images.balanced_sample(options.calibration, options.seed)
    first = artifact.hardening.first_image if artifact.hardening else ""
    return first_before_others(images, tuple(chosen), first)


def _require_images(calibration: Dataset, options: PackOptions) -> None:
    """Refuse to write fewer calibration images than were asked for."""
    available = len(calibration)
    if options.calibration > available:
        more = " (--images limits them)" if available == options.images else ""
        raise InputError(
            f"{calibration.name} has {available} images for calibration{more}, and --calibration "
            f"asks for {options.calibration}; give --calibration {available}, or more images"
        )


def _prepared(
    artifact: StoredArtifact,
    target: PackTarget,
    source: DataSource,
    options: PackOptions,
    progress: Progress,
) -> Artifact:
    """The model in the form that the target takes.

    Raises:
        InputError: it was hardened for another grid.
        GateError: the drop is proven to be above the budget.
    """
    shared: dict[str, Any] = {}
    for name in ("max_drop", "images", "force", "seed"):
        shared[name] = getattr(options, name)
    if getattr(target, "form", "float") == "int8":
        quantizing = QuantizeOptions(scheme=target.scheme, **shared)
        return quantize(artifact, source, options=quantizing, progress=progress)
    if _is_hardened(artifact):
        _require_same_grid(artifact, target)
        return Artifact.wrap(artifact)
    judge = options.judge
    if judge == "auto":
        judge = "tool" if options.compile else "simulation"
    hardening = HardenOptions(target=target.scheme, judge=judge, **shared)
    return harden_for(artifact, source, hardening, progress, options.calibration)


def _is_hardened(artifact: StoredArtifact) -> bool:
    # A step after it may have moved weights off the grid.
    return bool(artifact.steps) and artifact.steps[-1].verb == "harden"


def _fallback(artifact: Artifact) -> tuple[str, ...]:
    """The nodes that hardening wants out of INT8, from the file's history."""
    names = artifact.steps[-1].settings.get("fallback", [])
    # The history is in the file, which may come from anywhere.
    if not isinstance(names, list):
        return ()
    nodes = [node.name for node in artifact.model.graph.node]
    return tuple(name for name in names if name in nodes)


def _require_same_grid(artifact: StoredArtifact, target: PackTarget) -> None:
    """Refuse a model whose weights or ranges were chosen for a tool that rounds otherwise."""
    scheme = load_scheme(target.scheme)
    settings = dict(artifact.steps[-1].settings)
    hardened_for = find_preset(str(settings.get("target")))
    if hardened_for is not None:
        settings["activation_symmetric"] = hardened_for.activation_symmetric
    for key in ("weight_rule", "per_channel", "activation_symmetric"):
        expected = getattr(scheme, key)
        if settings.get(key, expected) != expected:
            raise InputError(
                f"{artifact.name} was hardened for {settings.get('target')}, which rounds "
                f"otherwise than {target.name} ({key} {settings[key]}, not {expected}); give the "
                "model from before repzoo harden"
            )


def _figures(artifact: Artifact) -> Figures:
    """What was measured in the target's arithmetic, now or when the file was hardened."""
    if artifact.report is not None:
        predicted = artifact.report.paired.values
    elif artifact.hardening is not None:
        predicted = artifact.hardening.predicted.values
    else:
        return _earlier_figures(artifact)
    return Figures(
        images=predicted.n,
        float_top1=predicted.first_top1,
        predicted_top1=predicted.top1,
        same_prediction=predicted.same_prediction,
    )


def _earlier_figures(artifact: Artifact) -> Figures:
    """What the file's history says of an earlier hardening."""
    known = artifact.steps[-1].settings.get("predicted")
    # The history is in the file, which may come from anywhere.
    if not isinstance(known, dict) or not isinstance(known.get("images"), int):
        return Figures()
    return Figures(
        images=known["images"],
        float_top1=_percentage(known.get("float_top1")),
        predicted_top1=_percentage(known.get("top1")),
        same_prediction=_percentage(known.get("same_prediction")),
    )


def _percentage(value: Any) -> float | None:
    if isinstance(value, int | float) and 0 <= value <= 100:
        return float(value)
    return None
