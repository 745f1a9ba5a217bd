"""The whole job: fold, quantize, evaluate and time a model, and write its card with all files."""

from __future__ import annotations

import hashlib
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
from repzoo.graph.tools.cost_result import Cost
from repzoo.measure import accuracy, latency, record, sweep
from repzoo.measure.host import host
from repzoo.measure.record import Record, full_identity_of, identity_of
from repzoo.measure.results import FoldSummary, Latency, LatencyRatio
from repzoo.progress import Progress, silent
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search.gate import QuantReport
from repzoo.remark import Remark
from repzoo.report import card, page
from repzoo.report.board import BoardFacts, board_facts, select_board
from repzoo.report.card import CardContext, CardFile, Training
from repzoo.report.card_facts import BOTH, HALF
from repzoo.settings import above, at_least, setting, validate
from repzoo.storage import json_text, make_folder, write_together
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.model_files import require_float
from repzoo.verbs.quantize_targets import own_engine

JOB_ID_LENGTH = 12


@dataclass(frozen=True)
class JobOptions:
    """Settings of the job. The engine of the INT8 model also evaluates and times."""

    quantize: verbs.QuantizeOptions = field(default_factory=verbs.QuantizeOptions)
    streams: int = setting(
        0,
        help="Clients of the multi-thread row; 0: as many as keep all cores busy.",
        range=at_least(0),
    )
    seconds: float = setting(
        5.0, help="Time for all timing, in seconds.", range=above(0)
    )
    time_on: tuple[str, ...] = setting(
        (),
        help="Engines to also time the float and the INT8 model on, in the same rounds.",
    )
    target: str = setting(
        "",
        help="Board to add a table for, such as rdk-x5: accuracy in its arithmetic, and what "
        "--records say of it.",
    )

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges, and unknown boards."""
        validate(self)
        if self.target:
            load_scheme(self.target)


@dataclass(frozen=True)
class JobResult:
    """What the job made: artifacts by form, Records in order, the certificate, and remarks.

    training  what is known of the images that the model was trained on
    board     what is known of the model on a board; None where none was asked for
    hardened  the model that its maker's quantizer is to be given; None likewise
    """

    artifacts: Mapping[str, Artifact]
    records: tuple[Record[Any], ...]
    certificate: Mapping[str, Any]
    remarks: tuple[str, ...]
    training: Training = field(default_factory=Training)
    board: BoardFacts | None = None
    hardened: Artifact | None = None


def run(
    artifact: Artifact,
    source: DataSource,
    options: JobOptions | None = None,
    progress: Progress = silent,
    board_records: Sequence[Record[Any]] = (),
) -> JobResult:
    """Do the job on a float `artifact`, in training or deploy form, with the images of `source`.

    board_records  what was measured or estimated for the board `options.target`

    Raises:
        InputError: see `verbs.fold`, `quantize` and `evaluate`; board Records without a board, or
            of another model.
        CertificateError: see `verbs.fold`.
        GateError: see `verbs.quantize`.
    """
    options = options or JobOptions()
    require_float(artifact)
    artifact = for_images(artifact)
    _extra_engines(options)  # refuses an unknown name before the work
    of_board, noted = _of_board(board_records, options, artifact)
    calibration, evaluation = source.calibration_split(
        options.quantize.images, options.quantize.seed
    )
    # Refuses classes that the model does not have, before the work.
    accuracy.class_indices(evaluation, artifact)
    first = own_engine(options.quantize)
    deploy = verbs.fold(artifact, calibration, engine=first, progress=progress)
    quantized = _quantize_all(deploy, source, options.quantize, progress)
    options = _on_the_winner(options, quantized["int8"])
    evaluated = verbs.evaluate(
        [deploy, *quantized.values()],
        evaluation,
        against=deploy,
        engine=options.quantize.engine,
        progress=progress,
    )
    artifacts = {artifact.form: artifact, "deploy": deploy, **quantized}
    timed = _without_untimed(artifacts, quantized["int8"])
    timings, left_out = _time_all(timed, options, progress)
    hardened, facts, warnings = _harden(deploy, source, options, of_board, progress)
    training = _training(artifact, evaluation)
    reports = [model.report for model in quantized.values() if model.report]
    remarks = [
        *_training_remarks(training, evaluation),
        *_quantize_remarks(reports),
        *noted,
        *warnings,
        *evaluated.remarks,
        *left_out,
        *sweep.doubts(record.select(timings, Latency)),
    ]
    records = [report.record for report in reports]
    # The first pair is the float model with itself.
    measured = [*records, *evaluated.runs, *evaluated.paired[1:], *timings]
    assert deploy.certificate is not None
    certificate = deploy.certificate.to_json()
    return JobResult(
        artifacts,
        _in_order(artifacts, certificate, measured),
        certificate,
        # The gate and the evaluation may both remark on the same broken image.
        tuple(dict.fromkeys(remarks)),
        training,
        facts,
        hardened,
    )


def _on_the_winner(options: JobOptions, int8: verbs.Artifact) -> JobOptions:
    """`options` with the engine of the best INT8: the winner's, where there was a race."""
    assert int8.report is not None
    name = int8.report.record.engine["name"]
    return replace(options, quantize=replace(options.quantize, engine=name))


def _quantize_remarks(reports: Sequence[QuantReport]) -> list[str]:
    """What a user must know of the quantized models."""
    remarks: list[str] = []
    for report in reports:
        remarks += report.warnings
    for report in reports:
        # A card is about INT8 even where the race handed out float.
        remarks += report.int8_warnings
    return remarks


def _without_untimed(
    artifacts: Mapping[str, Artifact], int8: verbs.Artifact
) -> dict[str, Artifact]:
    """`artifacts`, without INT8 where only a board runs it: its time here would mislead."""
    timed = dict(artifacts)
    assert int8.report is not None
    if int8.report.chosen.ratio is None:
        del timed["int8"]
    return timed


def _of_board(
    records: Sequence[Record[Any]], options: JobOptions, artifact: Artifact
) -> tuple[list[Record[Any]], list[str]]:
    """(the Records of the board, remarks); refused before the work where they are of no use."""
    if not records:
        return [], []
    if not options.target:
        raise InputError(
            "--records are of a board; say which with --target, such as rdk-x5"
        )
    return select_board(records, options.target, identity_of(artifact))


def _harden(
    deploy: Artifact,
    source: DataSource,
    options: JobOptions,
    records: Sequence[Record[Any]],
    progress: Progress,
) -> tuple[Artifact | None, BoardFacts | None, tuple[str, ...]]:
    """(the hardened model, what is known of it on the board, remarks); Nones without a board."""
    if not options.target:
        return None, None, ()
    hardened = verbs.harden(
        deploy,
        source,
        target=options.target,
        images=options.quantize.images,
        max_drop=options.quantize.max_drop,
        seed=options.quantize.seed,
        # The card shows the drop, whatever it is; `repzoo harden` refuses it.
        force=True,
        progress=progress,
    )
    report = hardened.hardening
    assert report is not None
    facts = board_facts(records, options.target, report.predicted)
    return hardened, facts, report.warnings


def _quantize_all(
    deploy: verbs.Artifact,
    source: DataSource,
    options: verbs.QuantizeOptions,
    progress: Progress,
) -> dict[str, verbs.Artifact]:
    """The INT8 model, and the one in half precision where that was asked for too, by form."""
    int8 = replace(options, precision="int8")
    quantized = {
        "int8": _int8_of(
            verbs.quantize(deploy, source, options=int8, progress=progress)
        )
    }
    if options.precision != "int8":
        report = quantized["int8"].report
        assert report is not None
        # On the engine of the card.
        half = replace(
            options.without_int8_settings(), engine=report.record.engine["name"]
        )
        quantized[options.precision] = verbs.quantize(
            deploy, source, options=half, progress=progress
        )
    return quantized


def _int8_of(chosen: verbs.Artifact) -> verbs.Artifact:
    """The INT8 model; a card shows it beside float even where the race handed out float."""
    assert chosen.report is not None
    if chosen.report.int8 is None:
        return chosen
    return verbs.Artifact.wrap(
        chosen.report.int8, certificate=chosen.certificate, report=chosen.report
    )


def _in_order(
    artifacts: Mapping[str, Artifact],
    certificate: Mapping[str, Any],
    measured: Sequence[Record[Any]],
) -> tuple[Record[Any], ...]:
    """All Records of the job: costs, the fold, what was measured."""
    records: list[Record[Any]] = [_cost(model) for model in artifacts.values()]
    fold = Record(identity_of(artifacts["deploy"]), _fold_summary(certificate))
    records += [fold, *measured]
    # A random name, not the file's hash: the same file may be judged on other images or hosts.
    job_id = uuid.uuid4().hex[:JOB_ID_LENGTH]
    return tuple(replace(item, job=job_id) for item in records)


def write(
    result: JobResult, output: Path, command: str = "", license_id: str = ""
) -> list[Path]:
    """Write artifacts, certificate, Records and cards to the folder `output`: all, or none.

    command     that did the job, for the card
    license_id  of the model, as Hugging Face's list has it; "" where it is not known

    Raises:
        InputError: the folder is read-only or full.
    """
    is_new = not output.exists()
    make_folder(output)
    try:
        # In the folder itself: a rename is only one step within a file system.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=output) as temporary:
            written = _write_all(result, Path(temporary), command, license_id)
            return [path.replace(output / path.name) for path in written]
    except OSError as error:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise InputError(
            f"{output} cannot be written: {error.strerror}; "
            "free some space or give another place with -o"
        ) from None


def _write_all(
    result: JobResult, folder: Path, command: str, license_id: str
) -> list[Path]:
    int8 = result.artifacts["int8"]
    name = int8.name
    for form, artifact in result.artifacts.items():
        write_together(artifact.files(folder / f"{name}.{form}.onnx"))
    if result.board and result.hardened:
        path = folder / f"{name}.{result.board.target}.onnx"
        write_together(result.hardened.files(path))
    lines = [record.line(item) + "\n" for item in result.records]
    texts = {
        "certificate.json": json_text(result.certificate, indent=1),
        "records.jsonl": "".join(lines),
    }
    for file_name, text in texts.items():
        (folder / file_name).write_text(text, "utf-8")
    pictures = page.card_files(result.records)
    # Of the files as they are: a graph or an artifact in memory may have other hashes.
    context = CardContext(
        training=result.training,
        labels=int8.labels,
        command=command,
        files=tuple(_card_file(path) for path in sorted(folder.iterdir())),
        board=result.board,
        pictures=tuple(sorted(pictures)),
        license=license_id,
    )
    cards = card.render(result.records, result.remarks, context)
    for file_name, text in {**cards, **pictures}.items():
        (folder / file_name).write_text(text, "utf-8")
    return sorted(folder.iterdir())


def _card_file(path: Path) -> CardFile:
    with path.open("rb") as file:
        return CardFile(path.name, hashlib.file_digest(file, "sha256").hexdigest())


def _training(artifact: Artifact, evaluation: Dataset) -> Training:
    """What the model's history says of its training images.

    A name is all that there is: whether two folders of one name hold the same images is not known.
    """
    names: dict[str, None] = {}
    for step in artifact.steps:
        if step.verb == "train" and step.settings.get("data"):
            names[str(step.settings["data"])] = None
    if not names:
        return Training()
    # What is taken out of a data set is called NAME minus calibration, NAME selection and so on.
    is_evaluated = any(evaluation.name.startswith(name) for name in names)
    return Training("these" if is_evaluated else "named", tuple(names))


def _training_remarks(training: Training, evaluation: Dataset) -> list[str]:
    """A remark where the history says that the model was trained on the evaluation images."""
    if training.kind != "these":
        return []
    return [
        Remark(
            "the model was trained on {data} itself, so its accuracy says nothing about new "
            "images; keep some apart: DIR/train, DIR/validation, DIR/test",
            data=evaluation.name,
        )
    ]


def _cost(artifact: Artifact) -> Record[Cost]:
    # onnx-ir takes long to import, and `repzoo --help` reads only the options of this module.
    from repzoo.graph.tools.cost import count

    return Record(full_identity_of(artifact), count(artifact))


def _fold_summary(certificate: Mapping[str, Any]) -> FoldSummary:
    """The certificate's JSON document with folds and refusals counted."""
    counts = {name: len(certificate[name]) for name in ("folds", "refusals")}
    return record.read_result(FoldSummary, {**certificate, **counts})


def _time_all(
    artifacts: Mapping[str, Artifact], options: JobOptions, progress: Progress
) -> tuple[list[Record[Any]], list[str]]:
    """(latency and ratio Records, sentences on what could not be timed).

    All forms are timed with one client, the two that ship also by many clients and on the other
    engines. All cases are interleaved, so that the rows of a card may be compared.
    """
    runner = engine(own_engine(options.quantize))
    threads = options.quantize.threads
    clients = options.streams or int(host()["affinity"]) // threads
    shipped = {form: model for form, model in artifacts.items() if form != "train"}
    single = {
        form: latency.case(model, runner, threads=threads)
        for form, model in artifacts.items()
    }
    many = []
    if clients > 1:
        many = [
            latency.case(model, runner, clients, threads) for model in shipped.values()
        ]
    compared = {form: artifacts[form] for form in BOTH if form in artifacts}
    extra, left_out = _extra_cases(compared, options)

    def leave_out(case: latency.Case, error: InputError) -> None:
        """Note a case that failed while it was timed."""
        if case.engine is runner:
            raise error  # without the card's own engine there is no card
        left_out.append(_not_timed(case.artifact.form, case.engine.name, error))

    cases = [*single.values(), *many, *extra]
    records: list[Record[Any]] = latency.run(
        cases,
        options.seconds / len(cases),
        progress=progress,
        openings=0,
        on_error=leave_out,
    )
    if "int8" in single:
        records.append(latency.ratio(single["int8"], single["deploy"]))
    for form in HALF:
        if form in single:
            records.append(latency.ratio(single[form], single["deploy"]))
    if "train" in single:
        records.append(latency.ratio(single["deploy"], single["train"]))
    records.extend(_extra_ratios(extra))
    return records, left_out


def _extra_cases(
    artifacts: Mapping[str, Artifact], options: JobOptions
) -> tuple[list[latency.Case], list[str]]:
    """(cases on the engines of `time_on`, sentences on those that are left out)."""
    runners, left_out = _extra_engines(options)
    cases = []
    for runner, artifact in product(runners, artifacts.values()):
        try:
            cases.append(_extra_case(runner, artifact, options.quantize.threads))
        except InputError as error:
            left_out.append(_not_timed(artifact.form, runner.name, error))
    return cases, left_out


def _extra_engines(options: JobOptions) -> tuple[list[Engine], list[str]]:
    """(the engines of `time_on`, each once, sentences on those that are not installed)."""
    runners: dict[str, Engine] = {}
    left_out: list[str] = []
    for name in options.time_on:
        try:
            runner = engine(name)
        except MissingExtra as error:
            reason = str(error)
            left_out.append(
                Remark("nothing was timed on {engine}: {why}", engine=name, why=reason)
            )
        else:
            runners[runner.name] = runner
    runners.pop(engine(own_engine(options.quantize)).name, None)
    return list(runners.values()), left_out


def _extra_case(runner: Engine, artifact: Artifact, threads: int) -> latency.Case:
    if artifact.form == "int8" and getattr(runner, "simulates_int8", False):
        raise InputError("it computes INT8 models in float arithmetic")
    # In a process of its own first: an engine that crashes must not take the job with it.
    probe(runner.name, artifact.model, latency.inputs_for(artifact))
    return latency.case(artifact, runner, threads=threads)


def _not_timed(form: str, engine_name: str, error: InputError) -> str:
    return Remark(
        "the {form} form was not timed on {engine}: {why}",
        form=form,
        engine=engine_name,
        why=str(error),
    )


def _extra_ratios(cases: Sequence[latency.Case]) -> list[Record[LatencyRatio]]:
    """INT8 over float latency on each engine that ran both."""
    timed = {
        (case.engine.name, case.artifact.form): case for case in cases if case.rounds_us
    }
    ratios = []
    for name in dict.fromkeys(name for name, _ in timed):
        int8 = timed.get((name, "int8"))
        deploy = timed.get((name, "deploy"))
        if int8 and deploy:
            ratios.append(latency.ratio(int8, deploy))
    return ratios
