"""The verb `harden`: a float file that a closed tool quantizes to the integers chosen here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repzoo import engines
from repzoo.data.dataset import DataSource
from repzoo.engines import DEFAULT_ENGINE
from repzoo.packs.judge import PackJudge, ToolImages, find_tool
from repzoo.progress import Progress, silent
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import harden as hardening
from repzoo.quant.search import ladder
from repzoo.quant.search.verdict import Budget
from repzoo.settings import at_least, merge_keywords, same_setting, setting, validate
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.fold_model import fold
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.model_files import ModelLike, open_model, require_float
from repzoo.verbs.public_artifact import Artifact
from repzoo.verbs.quantization_images import split_images
from repzoo.verbs.quantize_model import QuantizeOptions

JUDGES = ("simulation", "tool")
CALIBRATION = 100  # images for a tool, as many as a pack has


@dataclass(frozen=True)
class HardenOptions:
    """Settings of `harden`."""

    target: str = setting(
        "rdk-x5",
        help="Tool that will quantize the file: rdk-x5, vastai, rknn, rknn-layer, sophgo, any "
        "other scheme, or FILE.toml.",
    )
    max_drop: float = same_setting(QuantizeOptions, "max_drop")
    images: int = setting(256, help="Number of calibration images.", range=at_least(1))
    force: bool = same_setting(QuantizeOptions, "force")
    seed: int = setting(0, help="Seed of every random choice.", range=at_least(0))
    judge: str = setting(
        "simulation",
        choices=JUDGES,
        help="What chooses among the ways to round weights: a simulation of the target, or the "
        "tool itself (rdk-x5, rknn; see repzoo toolchains), which takes minutes.",
    )

    def __post_init__(self) -> None:
        """Refuse values that are not accepted, and unknown targets."""
        validate(self)
        load_scheme(self.target)


def harden(
    model: ModelLike,
    data: str | Path | DataSource,
    *,
    options: HardenOptions | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Artifact:
    """The float-on-grid form of a model for a vendor's tool; the result's `hardening` says more.

    Its weights are equalized, rounded by GPTQ and lie exactly on the grid of the target, so that
    the tool's own rounding finds the same integers; biases are corrected. It is an ordinary float
    model: no Q/DQ, in the opset that the tool takes. A training form is folded first.

    data      as for `quantize`: one part sets ranges and rounding, one chooses, the rest judges
    settings  fields of HardenOptions, such as `target="rknn", max_drop=0.5`

    Raises:
        InputError: unusable images, model or settings, or an operator that the target's opset
            lacks.
        CertificateError: see `fold`.
        GateError: the drop in the target's arithmetic is proven to be above the budget.
    """
    options = merge_keywords(HardenOptions, options, settings)
    return harden_for(model, data, options, progress)


def harden_for(
    model: ModelLike,
    data: str | Path | DataSource,
    options: HardenOptions,
    progress: Progress,
    calibration: int = CALIBRATION,
) -> Artifact:
    """See `harden`; `calibration` images are given to a tool that is the judge."""
    # Before the work, which takes minutes.
    tool = find_tool(options.target) if options.judge == "tool" else None
    artifact = for_images(open_model(model))
    require_float(artifact)
    artifact.require_preprocess()
    source = open_data_source(data, unlabeled=True)
    if artifact.form == "train":
        artifact = fold(artifact, progress=progress)
    split, remarks = split_images(source, artifact, options.images, options.seed)
    # No engine here computes as a board does: only number formats matter, and this one is exact.
    target = ladder.Target(engines.engine(DEFAULT_ENGINE), load_scheme(options.target))
    budget = Budget(options.max_drop, options.force)
    judge = None
    if tool is not None:
        chosen = split.calibration.balanced_sample(calibration, options.seed)
        images = ToolImages(split.calibration, tuple(chosen), split.selection)
        judge = PackJudge(tool, artifact, images, options.seed, progress)
    hardened, report = hardening.harden(
        artifact, split, target, budget, progress, judge
    )
    report = replace(report, warnings=(*remarks, *report.warnings))
    return Artifact.wrap(hardened, certificate=artifact.certificate, hardening=report)
