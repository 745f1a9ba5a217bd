"""The verb `quantize`: a model in INT8, or in half precision, under an accuracy budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from repzoo import engines
from repzoo.artifact import Artifact as StoredArtifact
from repzoo.data.dataset import DataSource, QuantizationSplit
from repzoo.errors import InputError
from repzoo.measure.class_mapping import with_folder_names
from repzoo.measure.host import host
from repzoo.measure.race_result import Objective
from repzoo.plugins import unknown
from repzoo.progress import Progress, silent
from repzoo.quant.baselines import registry as baselines
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search import half_model, ladder
from repzoo.quant.search.default_sessions import saturation_remark
from repzoo.quant.search.engine_race import AUTO
from repzoo.quant.search.gate import QuantReport
from repzoo.quant.search.placement_choice import SEARCH_SECONDS, PlacementChoice
from repzoo.quant.search.verdict import Budget
from repzoo.settings import FINITE, at_least, merge_keywords, setting, validate
from repzoo.storage import require_empty_folder
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.fold_model import fold
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.model_files import ModelLike, open_model, require_float
from repzoo.verbs.optional_torch import needs_torch
from repzoo.verbs.public_artifact import Artifact
from repzoo.verbs.quantization_images import split_images
from repzoo.verbs.quantize_targets import (
    hold_race,
    is_race,
    load_for,
    own_engine,
    target_for,
)

Precision = Literal["int8", "fp16", "bf16"]
INT8_SETTINGS = (
    "scheme",
    "recipe",
    "placement",
    "search",
    "new_search",
    "finetune_epochs",
    "objective",
    "pareto",
)


@dataclass(frozen=True)
class QuantizeOptions:
    """Settings of `quantize`. A scheme of "" is the engine's own."""

    precision: Precision = setting(
        "int8",
        help="Number format: int8; fp16, where operators that float16 would spoil stay in "
        "float32; or bf16.",
    )
    engine: str = setting(
        AUTO,
        help="Engine that will run the model. auto: the fastest of the installed engines, in INT8 "
        "or in float, by one race (onnxruntime for a --scheme, another --recipe, or half "
        "precision).",
    )
    objective: Objective = setting(
        "latency",
        help="What is best: the least latency of a call, the most images a second with all cores "
        "busy, or the smallest file that passes the gate.",
    )
    threads: int = setting(
        1,
        help="Threads of a session while it is timed: as many as will run the model.",
        range=at_least(1),
    )
    pareto: Path | None = setting(
        None,
        help="Also write the frontier of latency, drop and size to this new folder: its files, a "
        "table, Records and a chart.",
    )
    scheme: str = setting(
        "",
        help="Quantization scheme: ort-cpu, openvino-cpu, mnn, rdk-x5, vastai, per-tensor, ... "
        "or FILE.toml.  [default: the engine's]",
    )
    recipe: str = setting(
        baselines.OWN,
        help="Quantizer: repzoo, or to compare with it ort-static, ort-static-per-tensor, "
        "nncf-default, nncf-accuracy-control.",
    )
    max_drop: float = setting(
        0.3,
        help="Accuracy budget: Top-1 points that INT8 may lose. A negative value demands a gain.",
        range=FINITE,
    )
    images: int = setting(256, help="Number of calibration images.", range=at_least(1))
    placement: PlacementChoice = setting(
        "fastest",
        help="What runs in INT8: what makes the model fastest on the engine (by timing), all "
        "convolutions and linear layers, or everything that the scheme knows in INT8.",
    )
    search: float | None = setting(
        None,
        help="Time limit of the search for the fastest Q/DQ placement, in seconds; default: as "
        f"long as calibration took, at most {SEARCH_SECONDS:g}; it ends where nothing gains.",
        range=at_least(0),
    )
    new_search: bool = setting(
        False,
        help="Search the placement even where a search of the same graph on this engine and kind "
        "of host is kept.",
    )
    finetune_epochs: int = setting(
        0,
        help="Epochs of quantization-aware distillation when PTQ is not enough.",
        range=at_least(0),
    )
    force: bool = setting(
        False, help="Write the model even if it exceeds the accuracy budget."
    )
    seed: int = setting(0, help="Seed of every random choice.", range=at_least(0))

    def __post_init__(self) -> None:
        """Refuse settings that only repzoo's own quantizer has together with another one."""
        validate(self)
        if self.recipe == baselines.OWN:
            return
        if self.pareto is not None or self.objective != "latency":
            raise InputError(
                f"the quantizer {self.recipe} makes one model, which leaves nothing to choose; "
                f"leave out pareto and objective, or the recipe {self.recipe}"
            )
        if self.finetune_epochs:
            raise InputError(
                "only repzoo's own quantizer fine-tunes; "
                f"leave out finetune_epochs (--finetune-epochs), or the recipe {self.recipe}"
            )
        if self.placement != "fastest":
            raise InputError(
                f"the quantizer {self.recipe} decides by itself what runs in INT8; leave out "
                f"the placement {self.placement}, or the recipe {self.recipe}"
            )
        if self.scheme:
            raise InputError(
                f"the quantizer {self.recipe} has a number format of its own; "
                f"leave out the scheme {self.scheme}, or the recipe {self.recipe}"
            )

    def without_int8_settings(self) -> QuantizeOptions:
        """These settings with those of INT8 at their defaults."""
        fields = self.__dataclass_fields__
        defaults: dict[str, Any] = {}
        for name in INT8_SETTINGS:
            defaults[name] = fields[name].default
        return replace(self, **defaults)

    def require_consistent(self) -> None:
        """Refuse settings of INT8 together with half precision; a card makes both."""
        if self.precision == "int8":
            return
        for name in INT8_SETTINGS:
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                option = "--" + name.replace("_", "-")
                raise InputError(
                    f"{name} ({option}) is a setting of INT8; leave it out, or the precision "
                    f"{self.precision}"
                )


def quantize(
    model: ModelLike,
    data: str | Path | DataSource,
    *,
    options: QuantizeOptions | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Artifact:
    """Quantize a model to INT8; the result's `report` says what was tried, chosen and measured.

    With engine="auto" it is made for the fastest of the installed engines. Where float on one of
    them is faster than every INT8 model, the float model is returned, and `report.int8` has the
    INT8 model. An engine or a placement that is named gets INT8, however fast that is.

    A training form is folded first. With precision="fp16" or "bf16" the result is an ordinary ONNX
    file with half-precision weights and activations, and float32 inputs and outputs.

    data      labeled images, or a folder of unlabeled ones: a folder, a name, or a DataSource.
              One part sets the ranges, one chooses the best candidate, the rest judges it: see
              `DataSource.split_for_quantization`
    settings  fields of QuantizeOptions, such as `max_drop=0.5, engine="openvino"`

    Raises:
        InputError: unusable images, model or settings.
        CertificateError: see `fold`.
        GateError: the drop is proven to be above the budget.
    """
    options = merge_keywords(QuantizeOptions, options, settings)
    options.require_consistent()
    artifact = for_images(open_model(model))
    require_float(artifact)
    # Before the work, which takes minutes.
    artifact.require_preprocess()
    _check_names(options)
    source = open_data_source(data, unlabeled=True)
    if artifact.form == "train":
        artifact = fold(artifact, progress=progress)
    split, remarks = split_images(source, artifact, options.images, options.seed)
    if split.gate.labeled:
        artifact = with_folder_names(artifact, split.gate)
    if is_race(options):
        chosen, report = hold_race(artifact, split, options, progress)
    else:
        chosen, report = _run_quantizer(artifact, split, options, progress)
    report = replace(report, warnings=(*remarks, *report.warnings))
    return Artifact.wrap(chosen, certificate=artifact.certificate, report=report)


def _check_names(options: QuantizeOptions) -> None:
    """Refuse unknown or uninstalled engines, schemes and quantizers, and a used folder."""
    _require_engine(options)
    _require_cores(options)
    if options.scheme and load_scheme(options.scheme).runs_on_board:
        _refuse_timing(options)
    if options.pareto is not None:
        require_empty_folder(options.pareto, "--pareto")
    if options.recipe != baselines.OWN:
        baselines.load_quantizer(options.recipe)
    if options.finetune_epochs:
        with needs_torch("fine-tuning"):
            from repzoo.quant.parameters import finetune  # noqa: F401


def _require_engine(options: QuantizeOptions) -> None:
    """Refuse an engine that is unknown, or that is not installed."""
    name = own_engine(options)
    known = engines.ENGINES.names()
    if name.partition(":")[0] not in known:
        raise InputError(unknown("engine", name, [AUTO, *known]))
    engines.engine(name)


def _require_cores(options: QuantizeOptions) -> None:
    """Refuse more threads than can run at once: their latency is that of waiting."""
    cores = int(host()["affinity"])
    if options.threads > cores:
        raise InputError(
            f"threads (--threads) is {options.threads}, and this process may use {cores} cores; "
            f"give at most {cores}, or quantize on a machine with more"
        )


def _refuse_timing(options: QuantizeOptions) -> None:
    """Refuse settings that need latencies, which this host does not have of a board."""
    timed = {
        "pareto": options.pareto is not None,
        "objective": options.objective == "throughput",
        "threads": options.threads > 1,
    }
    for name, is_set in timed.items():
        if is_set:
            raise InputError(
                f"the scheme {options.scheme} is for a board, whose latency is not measured on "
                f"this host; leave out {name} (--{name}), or the scheme"
            )


def _run_quantizer(
    model: StoredArtifact,
    split: QuantizationSplit,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[StoredArtifact, QuantReport]:
    """(the model, its report), from repzoo's own quantizer or from the named baseline."""
    budget = Budget(options.max_drop, options.force)
    runner = engines.engine(own_engine(options))
    if options.precision != "int8":
        return half_model.quantize(
            model, split, runner, options.precision, budget, progress, load_for(options)
        )
    if options.recipe != baselines.OWN:
        return baselines.quantize(
            model, split, runner, options.recipe, budget, progress, load_for(options)
        )
    target, remark = target_for(runner, options)
    int8, report = ladder.quantize(model, split, target, budget, progress)
    # Both speak of hosts without VNNI: one is enough.
    remark = remark or saturation_remark(int8, split.gate, runner, host())
    if remark:
        report = replace(report, warnings=(remark, *report.warnings))
    return int8, report
