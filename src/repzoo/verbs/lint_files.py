"""The verb `check_pack`: what is wrong in a pack, or in a vendor's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from repzoo import engines
from repzoo.artifact import Artifact as StoredArtifact
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import DataSource
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.measure.accuracy import open_run
from repzoo.packs.lint import run
from repzoo.packs.lint.calibration import Pixels
from repzoo.packs.lint.costs import with_costs
from repzoo.packs.lint.facts import ModelFacts
from repzoo.packs.lint.finding import Finding, in_order
from repzoo.packs.lint.run import LintReport
from repzoo.packs.pack import PackJob, pixel_images
from repzoo.progress import Progress, silent
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.model_files import ModelLike, open_model

COLOR_IMAGES = 256  # of the data, with which calibration files are compared


def check_pack(
    path: str | Path,
    model: ModelLike | None = None,
    data: str | Path | DataSource | None = None,
    *,
    engine: str = DEFAULT_ENGINE,
    progress: Progress = silent,
) -> LintReport:
    """Check a pack, or a vendor's configuration written by hand, against the model.

    path   a folder or a file: hb_mapper's or vamc's YAML, a vdsp_params JSON, a script that calls
           rknn-toolkit2, its dataset.txt, shell steps of tpu-mlir, Hailo's YAML or .alls, or a
           folder of calibration files
    model  that it is for; None: the ONNX file that it names, where that is there
    data   labeled images, to measure what mistakes cost and to find swapped channels

    Raises:
        InputError: no such path, nothing that can be checked, a single file that cannot be
            parsed, or an unusable model or data.
    """
    path = Path(path)
    given = open_model(model) if model is not None else None
    source = open_data_source(data) if data is not None else None
    found = run.find(path)
    models = _models(path, found, given)
    report = run.check(path, found, models, _images(models, source))
    if source is None or not any(item.mistake for item in report.findings):
        return report
    findings = _measure(report, models, source, engine, progress)
    return replace(report, findings=tuple(findings))


def _models(
    path: Path, found: run.Found, given: StoredArtifact | None
) -> dict[str, ModelFacts]:
    """Facts of the model of each configuration."""
    if given is not None:
        facts = ModelFacts(given, f"{given.name}.onnx")
        return {"": facts, **dict.fromkeys(found.lints, facts)}
    root = path if path.is_dir() else path.parent
    loaded: dict[Path, ModelFacts | None] = {}
    models: dict[str, ModelFacts] = {}
    for name, file in run.models_in(path, found).items():
        if file not in loaded:
            loaded[file] = _read(file, root, found)
        facts_of_file = loaded[file]
        if facts_of_file is not None:
            models[name] = facts_of_file
    return models


def _read(file: Path, root: Path, found: run.Found) -> ModelFacts | None:
    """Facts of a file that a configuration names; one that cannot be read is a finding."""
    shown = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
    try:
        return ModelFacts(StoredArtifact.read(file), shown)
    except InputError as error:
        found.unreadable.append(Finding("unreadable", str(error), file=shown))
        return None


def _images(
    models: dict[str, ModelFacts], source: DataSource | None
) -> Sequence[Pixels]:
    """Images of the data as the one model sees them, float32 [C, H, W], pixels 0..255."""
    artifacts = {id(item.artifact): item.artifact for item in models.values()}
    if source is None or len(artifacts) != 1:
        return ()
    (artifact,) = artifacts.values()
    if artifact.preprocess is None or artifact.preprocess.input != "float":
        return ()
    images = source.split_for_quantization(COLOR_IMAGES, 0).calibration
    prepared = pixel_images(PackJob(artifact, images))
    return [pixels.astype(np.float32) for pixels in prepared]


def _measure(
    report: LintReport,
    models: dict[str, ModelFacts],
    source: DataSource,
    engine: str,
    progress: Progress,
) -> list[Finding]:
    """The findings with what they cost, measured with the model that they concern."""
    findings: list[Finding] = []
    by_model: dict[int, list[Finding]] = {}
    known = {id(item.artifact): item.artifact for item in models.values()}
    for item in report.findings:
        facts = models.get(item.file) or models.get("")
        if item.mistake is None or facts is None:
            findings.append(item)
        else:
            by_model.setdefault(id(facts.artifact), []).append(item)
    for key, items in by_model.items():
        session = open_run(known[key], engines.engine(engine))
        findings += with_costs(
            items, session, source.held_out(), ReadReport(), progress
        )
    return in_order(findings)
