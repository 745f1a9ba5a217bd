"""Verbs that make a model: export, fold, quantize, train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.dataset import DataSource
from repzoo.data.source import open_source
from repzoo.engines import DEFAULT_ENGINE, engine
from repzoo.errors import InputError, MissingExtra
from repzoo.measure import accuracy
from repzoo.measure.host import host
from repzoo.progress import Progress, silent
from repzoo.quant.baselines import registry as recipes
from repzoo.quant.network.scheme import adapt_to_host, default_scheme
from repzoo.quant.network.scheme import load_scheme as scheme_called
from repzoo.quant.search import ladder
from repzoo.quant.search.gate import QuantReport
from repzoo.quant.search.verdict import Budget
from repzoo.storage import sha256_of_file
from repzoo.verbs.inputs import embed_input
from repzoo.verbs.loading import load
from repzoo.zoo import catalog, embedded
from repzoo.zoo.download import resolve
from repzoo.zoo.naming import CheckpointOptions

if (
    TYPE_CHECKING
):  # onnx-ir takes a quarter of a second to import: only the verbs that rewrite graphs pay for it
    from repzoo.graph.certificate.certify import Certificate
    from repzoo.zoo.checkpoints import Loaded


def trainer() -> Callable[..., Any]:
    """The `train` verb, imported on use: it needs torch.

    Raises:
        MissingExtra: torch or timm is not installed.
    """
    try:
        from repzoo.training.run import train
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "repzoo":
            raise
        raise MissingExtra("training", "torch") from error
    return train


@dataclass(frozen=True)
class ExportOptions:
    """Settings of `export`.

    checkpoint  a file of weights from any known source, or the name of published ones (`repghostnet_100.in1k`)
    source      whose naming it has, or "auto"
    reset_head  start the last layer anew when its number of classes is another
    ema         take the averaged weights where the source prefers them
    """

    checkpoint: str | Path | None = None
    source: str = "auto"
    reset_head: bool = False
    ema: bool = True
    pretrained: bool = False
    num_classes: int | None = None
    opset: int = 17
    dynamic_batch: bool = True
    form: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is built, what no export could make."""
        if self.form not in ("train", "deploy"):
            raise InputError(f"form must be train or deploy; got {self.form!r}")
        if not 11 <= self.opset <= 20:
            raise InputError(f"opset must lie in 11..20; got {self.opset}")
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"num_classes must be at least 1; got {self.num_classes}")


def export(
    model: str, options: ExportOptions | None = None, labels: Sequence[str] = (), **preprocess: Any
) -> Artifact:
    """The training form (or with form="deploy" the folded form) of a catalog model as an Artifact.

    Weights that ship (`repghostnet_050.digits`) are exported as they are. Of any other model, without a checkpoint or `pretrained`,
    they are random (seeded): right for counting and timing, not for accuracy.

    Raises:
        InputError: unknown model, checkpoint that does not fit, opset outside 11..20; settings that weights which ship cannot take.
        MissingExtra: torch or timm is not installed.
    """
    options = options or ExportOptions()
    given = {key: value for key, value in preprocess.items() if value is not None}
    kind, yuv = given.pop("input", "float"), given.pop("yuv", None)
    shipped = _shipped(model, options, labels, given) if model in embedded.names() else None
    usual = shipped.require_preprocess() if shipped else catalog.spec(model).preprocess
    prepared = Preprocess.from_mapping({**asdict(usual), **given})
    replace(
        prepared, input=kind, yuv=yuv or prepared.yuv
    )  # refuses, before anything is built, what cannot be
    made = shipped or _exported(model, prepared, options, labels)
    made = fold(made)[0] if options.form == "deploy" else made
    return made if kind == "float" else embed_input(made, kind, yuv).artifact


def _shipped(
    model: str, options: ExportOptions, labels: Sequence[str], given: Mapping[str, Any]
) -> Artifact:
    """The weights that ship as `model`, with the preprocessing that is `given`; what would make another model of them is refused."""
    other = [
        key
        for key, value in asdict(options).items()
        if key != "form" and value != getattr(ExportOptions(), key)
    ]
    other += ["labels"] if labels else []
    if other:
        raise InputError(
            f"{model} ships as a finished graph, which cannot take another {', '.join(other)}; leave that out, or export "
            f"{model.partition('.')[0]} with a checkpoint"
        )
    return load(model, **given)


def _exported(
    model: str, preprocess: Preprocess, options: ExportOptions, labels: Sequence[str]
) -> Artifact:
    """The training form, built anew."""
    classes = options.num_classes or len(labels) or catalog.spec(model).num_classes
    module, weights = _built(model, classes, options)
    step = Step(
        "build",
        __version__,
        {"model": model, **weights, "num_classes": classes, "seed": options.seed},
    )
    from repzoo.graph.tools import export as exporting
    from repzoo.zoo import families

    names = tuple(labels) or (
        families.imagenet_labels() if classes == families.IMAGENET_CLASSES else ()
    )
    return exporting.export(
        module,
        model,
        preprocess,
        names,
        step,
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
    )


def _built(model: str, classes: int, options: ExportOptions) -> tuple[Any, dict[str, Any]]:
    """(module, what its history says of its weights)."""
    from repzoo.zoo import families

    if options.checkpoint is None:
        module = families.seeded(model, classes, options.seed, options.pretrained)
        return module, {"weights": "pretrained" if options.pretrained else "random"}
    if options.pretrained:
        raise InputError(
            "two sets of weights are asked for; give a checkpoint, or pretrained, not both"
        )
    from repzoo.zoo import checkpoints

    path = resolve(options.checkpoint)
    loading = CheckpointOptions(options.source, classes, options.reset_head, options.ema, options.seed)
    found = checkpoints.load(path, model, loading)
    return checkpoints.module_of(found), {
        "weights": path.name,
        "source": found.source,
        "remarks": list(found.remarks),
    }


def convert(
    checkpoint: str | Path, model: str, options: CheckpointOptions | None = None
) -> tuple[bytes, Loaded]:
    """(.safetensors file, what is in it): the weights of a checkpoint of any known source, in the catalog's naming.

    Raises:
        InputError: not a checkpoint of tensors, or not one of `model` (which it fits is said); nothing in it is run.
        MissingExtra: torch, timm or safetensors is not installed.
    """
    from repzoo.zoo import checkpoints

    path = resolve(checkpoint)
    found = checkpoints.load(path, model, options)
    return checkpoints.to_safetensors(found, sha256_of_file(path)), found


def fold(
    artifact: Artifact,
    images: npt.NDArray[np.float32] | None = None,
    engine_name: str = DEFAULT_ENGINE,
    timed: bool = False,
) -> tuple[Artifact, Certificate]:
    """The deploy form with its certificate, which also goes into the artifact's metadata.

    images  real inputs, float32 [n, 3, size, size], to certify on besides random ones
    timed   refuse what the engine takes longer for on this machine; else only MACs and weights decide, alike everywhere

    Raises:
        InputError: the graph is quantized, or not a classifier.
        CertificateError: the result is not proven equal.
    """
    artifact.input_name  # noqa: B018  refuses what is not a classifier
    from repzoo.graph.certificate import certify as certifying
    from repzoo.graph.fold import engine as folding
    from repzoo.measure.compare import compare_latency

    runner = engine(engine_name)
    result = folding.fold(
        artifact.model,
        (lambda before, after: compare_latency(before, after, runner)) if timed else None,
    )

    def run(model: onnx.ModelProto, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return runner.open(model, host()["affinity"], exact=True).run(inputs)

    certificate = certifying.certify(artifact, result, folding.fold, run, images)
    settings = {
        "folds": len(result.folds),
        "refusals": len(result.refusals),
        **({"timed": engine_name} if timed else {}),
    }
    return artifact.then(
        result.model, Step("fold", __version__, settings), certificate=certificate.to_json()
    ), certificate


@dataclass(frozen=True)
class QuantizeOptions:
    """Settings of `quantize`.

    scheme  "" for the engine's own
    recipe  "repzoo", or another of recipes.names() to compare with
    search  the most seconds for a better placement of Q/DQ than the best of the usual ones; never more than half those of calibration
    finetune_epochs  where no correction is enough: passes over the calibration images in which the INT8 model learns from the float one
    """

    engine: str = DEFAULT_ENGINE
    scheme: str = ""
    recipe: str = recipes.OWN
    max_drop: float = 0.3
    images: int = 256
    search: float = ladder.SEARCH_SECONDS
    finetune_epochs: int = 0
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a budget or a count that means nothing."""
        if not math.isfinite(self.max_drop):
            raise InputError(f"max_drop must be a finite number of points; got {self.max_drop}")
        if self.images < 1:
            raise InputError(f"images must be at least 1; got {self.images}")
        if not 0 <= self.search < math.inf:
            raise InputError(f"search must be a number of seconds, 0 or more; got {self.search}")
        if self.finetune_epochs < 0:
            raise InputError(f"finetune_epochs must be 0 or more; got {self.finetune_epochs}")
        if self.recipe != recipes.OWN and self.finetune_epochs:
            raise InputError(
                f"only repzoo's own recipe fine-tunes; leave --finetune-epochs out, or --recipe {self.recipe}"
            )
        if self.recipe != recipes.OWN and self.scheme:
            raise InputError(
                f"the recipe {self.recipe} represents numbers in its own way; leave --scheme out, or --recipe"
            )


def _require_finetuning() -> None:
    try:
        from repzoo.quant.parameters import finetune  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("fine-tuning", "torch") from error


def quantize(
    artifact: Artifact,
    data: str | Path | DataSource,
    options: QuantizeOptions | None = None,
    progress: Progress = silent,
) -> tuple[Artifact, QuantReport]:
    """The INT8 form of `artifact` (folded first when it is not), with the report of what was tried.

    data  labeled images, or a folder of images that nobody labeled; a part of it sets ranges, a part says which attempt is the
          best, and the rest judges that one: see data.dataset.Source.quantizing_split and quant.gate

    Raises:
        InputError: bad images or model; CertificateError: see `fold`; GateError: the drop is proven above the budget.
    """
    options = options or QuantizeOptions()
    if options.recipe != recipes.OWN:
        recipes.load_quantizer(
            options.recipe
        )  # refuses a strange name or a missing package before the work
    if options.finetune_epochs:
        _require_finetuning()
    source = data if isinstance(data, DataSource) else open_source(data, unlabeled=True)
    if artifact.form == "train":
        artifact, _ = fold(artifact)
    split = source.split_for_quantization(options.images, options.seed)
    if split.gate.labeled:
        accuracy.class_indices(
            split.gate, artifact
        )  # refuses strange classes before the work, not after it
    budget, runner = Budget(options.max_drop, options.force), engine(options.engine)
    fewer = len(split.calibration) < options.images
    said = (
        [f"{len(split.calibration)} calibration images, of {options.images} asked for"]
        if fewer
        else []
    )
    if options.recipe != recipes.OWN:
        made, report = recipes.quantize(artifact, split, runner, options.recipe, budget, progress)
    else:
        wanted = scheme_called(options.scheme) if options.scheme else default_scheme(options.engine)
        scheme, remark = adapt_to_host(wanted, runner, host())
        said += [remark] if remark else []
        target = ladder.Target(runner, scheme, options.search, options.finetune_epochs)
        made, report = ladder.quantize(artifact, split, target, budget, progress)
    return made, replace(report, warnings=(*said, *report.warnings))
