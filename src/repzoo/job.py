"""The whole job: training form -> folded, INT8, evaluated, timed -> a card, and the files it speaks of."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset, DataSource
from repzoo.engines import Engine, engine
from repzoo.engines.probe import probe
from repzoo.errors import InputError, MissingExtra
from repzoo.graph.tools.cost import Cost, count
from repzoo.measure import accuracy, latency, record
from repzoo.measure.host import host
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import FoldSummary, LatencyRatio
from repzoo.progress import Progress, silent
from repzoo.report import card
from repzoo.report.card import BOTH
from repzoo.storage import make_folder


@dataclass(frozen=True)
class JobOptions:
    """Settings of the job.

    streams  client threads of the multi-thread row, 0 takes one for each core
    seconds  for all timing
    time_on  engines that the float and the INT8 file are timed on beside the one they are quantized for, in the same rounds
    """

    quantize: verbs.QuantizeOptions = field(default_factory=verbs.QuantizeOptions)
    streams: int = 0
    seconds: float = 5.0
    time_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """Everything the job made: the artifacts by form, all Records in order, the certificate and remarks for a person."""

    artifacts: Mapping[str, Artifact]
    records: tuple[Record[Any], ...]
    certificate: Mapping[str, Any]
    remarks: tuple[str, ...]


def run(
    artifact: Artifact,
    source: DataSource,
    options: JobOptions | None = None,
    progress: Progress = silent,
) -> JobResult:
    """Do the job on a training-form (or folded) float `artifact` with the images of `source`.

    Raises:
        InputError, CertificateError, GateError: as the verbs it calls.
    """
    options = options or JobOptions()
    if artifact.form == "int8":
        raise InputError(
            f"{artifact.name} is quantized already; the card starts from the float model"
        )
    _others(options)  # a name that nobody knows is refused before the work
    images, evaluation = source.calibration_split(options.quantize.images, options.quantize.seed)
    accuracy.class_indices(evaluation, artifact)
    progress("fold and certify", 0, 0)
    deploy, certificate = verbs.fold(
        artifact, verbs.first_images(images, artifact.require_preprocess()), options.quantize.engine
    )
    int8, report = verbs.quantize(deploy, source, options.quantize, progress)
    measured = verbs.evaluate(
        [deploy, int8],
        evaluation,
        verbs.EvaluateOptions((options.quantize.engine,)),
        deploy,
        progress,
    )
    artifacts = {artifact.form: artifact} | {"deploy": deploy, "int8": int8}
    folded = Record(identity_of(deploy), _fold_summary(certificate.to_json()))
    timed, left_out = _timings(artifacts, options, progress)
    records = [
        *_costs(artifacts),
        folded,
        report.record,
        *measured.runs,
        measured.paired[1],
        *timed,
    ]
    name = uuid.uuid4().hex[
        :12
    ]  # not the file's hash: the same file may be judged on other images, or timed on another host
    tied = tuple(replace(one, job=name) for one in records)
    said = (*_trained_on(artifact, evaluation), *report.warnings, *measured.remarks, *left_out)
    remarks = dict.fromkeys(said)  # gate and evaluation may read the same broken image
    return JobResult(artifacts, tied, certificate.to_json(), tuple(remarks))


def write(result: JobResult, output: Path) -> list[Path]:
    """Write artifacts, certificate, Records and cards to the folder `output`: all of them, or none.

    Raises:
        InputError: the folder is read-only or full.
    """
    is_new = not output.exists()
    make_folder(output)
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=output) as aside:
            written = _write_all(result, Path(aside))
            return [path.replace(output / path.name) for path in written]
    except OSError as error:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise InputError(
            f"{output} cannot be written: {error.strerror}; free room or give another place with -o"
        ) from None


def _write_all(result: JobResult, folder: Path) -> list[Path]:
    name = result.artifacts["int8"].name
    for form, artifact in result.artifacts.items():
        (folder / f"{name}.{form}.onnx").write_bytes(artifact.to_bytes())
    texts = {
        "certificate.json": json.dumps(result.certificate, indent=1),
        "records.jsonl": "".join(record.line(one) + "\n" for one in result.records),
        **card.render(result.records, result.remarks),
    }
    for file, text in texts.items():
        (folder / file).write_text(text, "utf-8")
    return sorted(folder.iterdir())


def _trained_on(artifact: Artifact, evaluation: Dataset) -> list[str]:
    """The remark that the model has seen these images in training, when its history says so."""
    seen = [str(step.settings.get("data")) for step in artifact.steps if step.verb == "train"]
    if not any(evaluation.name.startswith(name) for name in seen):
        return []
    return [
        f"the model was trained on {evaluation.name} itself, so its accuracy says nothing about new images; "
        "keep some apart: DIR/train, DIR/validation, DIR/test"
    ]


def _costs(artifacts: Mapping[str, Artifact]) -> list[Record[Cost]]:
    return [Record(identity_of(artifact), count(artifact)) for artifact in artifacts.values()]


def _fold_summary(certificate: Mapping[str, Any]) -> FoldSummary:
    """The certificate's JSON document with folds and refusals counted."""
    counts = {name: len(certificate[name]) for name in ("folds", "refusals")}
    return record.read_result(FoldSummary, {**certificate, **counts})


def _timings(
    artifacts: Mapping[str, Artifact], options: JobOptions, progress: Progress
) -> tuple[list[Record[Any]], list[str]]:
    """One-thread latency of all forms and many-client throughput of the two that ship, and what of it could not be measured.

    All are interleaved, on whichever engine: the rows of a card may be compared.
    """
    runner = engine(options.quantize.engine)
    clients = options.streams or host()["affinity"]
    single = {form: latency.case(one, runner) for form, one in artifacts.items()}
    many = [latency.case(artifacts[form], runner, clients) for form in BOTH] if clients > 1 else []
    beside, left_out = _beside({form: artifacts[form] for form in BOTH}, options)

    def leave_out(one: latency.Case, error: InputError) -> None:
        if one.engine is runner:
            raise error
        left_out.append(f"the {one.artifact.form} form was not timed on {one.engine.name}: {error}")

    cases = [*single.values(), *many, *beside]
    records = latency.run(
        cases, options.seconds / len(cases), progress=progress, openings=0, on_error=leave_out
    )
    gained = [latency.ratio(single["deploy"], single["train"])] if "train" in single else []
    return [
        *records,
        latency.ratio(single["int8"], single["deploy"]),
        *gained,
        *_ratios(beside),
    ], left_out


def _beside(
    artifacts: Mapping[str, Artifact], options: JobOptions
) -> tuple[list[latency.Case], list[str]]:
    """The cases of the other engines, tried in a process of their own first, and why some are left out."""
    runners, left_out = _others(options)
    cases = []
    for runner, artifact in product(runners, artifacts.values()):
        try:
            cases.append(_case_beside(runner, artifact))
        except InputError as error:
            left_out.append(f"the {artifact.form} form was not timed on {runner.name}: {error}")
    return cases, left_out


def _others(options: JobOptions) -> tuple[list[Engine], list[str]]:
    """The engines of `time_on`, each once however it was called, and why some are left out."""
    found, left_out = dict[str, Engine](), list[str]()
    for name in options.time_on:
        try:
            runner = engine(name)
            found[runner.name] = runner
        except MissingExtra as error:
            left_out.append(f"nothing was timed on {name}: {error}")
    found.pop(engine(options.quantize.engine).name, None)
    return list(found.values()), left_out


def _case_beside(runner: Engine, artifact: Artifact) -> latency.Case:
    if artifact.form == "int8" and getattr(runner, "simulates_int8", False):
        raise InputError("it computes INT8 files in float arithmetic")
    probe(runner.name, artifact.model, latency.inputs_for(artifact, 1))
    return latency.case(artifact, runner)


def _ratios(cases: Sequence[latency.Case]) -> list[Record[LatencyRatio]]:
    """INT8 over float on each engine that ran both."""
    ran = {(one.engine.name, one.artifact.form): one for one in cases if one.rounds_us}
    names = dict.fromkeys(name for name, _ in ran)
    pairs = [[ran.get((name, form)) for form in ("int8", "deploy")] for name in names]
    return [latency.ratio(int8, deploy) for int8, deploy in pairs if int8 and deploy]
