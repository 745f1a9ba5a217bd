"""The verb `match`: the models that keep within a budget, with what each figure rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo import engines
from repzoo.data.dataset import DataSource
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError, MissingExtra
from repzoo.measure import record as records_file
from repzoo.measure.match_figures import match_candidates
from repzoo.measure.match_hosts import THIS, MatchHost, find_hosts, timed_devices
from repzoo.measure.match_records import (
    IMAGENET_CLASSES,
    Wanted,
    unusable_records,
)
from repzoo.measure.matching import (
    Limits,
    Match,
    MatchCandidate,
    choose,
    missed_limits,
    unknown_figures,
)
from repzoo.measure.predictions import describe_images
from repzoo.measure.record import Record
from repzoo.measure.results import Latency
from repzoo.plugins import unknown
from repzoo.progress import Progress, silent
from repzoo.settings import (
    above,
    at_least,
    between,
    merge_keywords,
    setting,
    validate,
)
from repzoo.verbs.benchmark_models import benchmark
from repzoo.verbs.export_model import export
from repzoo.verbs.image_data import open_data_source
from repzoo.verbs.public_artifact import Artifact
from repzoo.zoo import catalog

OnRecords = Callable[[Sequence[Record[Any]]], None]


def parse_count(text: str) -> float:
    """A number of operations: "300M", "0.3G" or "300000000".

    Raises:
        ValueError: not a count; the message says what is.
    """
    try:
        return float(catalog.as_number(text.upper()))
    except (ValueError, ArithmeticError):
        raise ValueError(
            f"{text!r} is not a count such as 300M, 0.3G or 300000000"
        ) from None


@dataclass(frozen=True)
class MatchOptions:
    """Settings of `match`. None: no limit."""

    max_ms: float | None = setting(
        None, help="Most milliseconds of a call with one image.", range=above(0)
    )
    min_top1: float | None = setting(
        None, help="Least Top-1 in percent of images.", range=between(0, 100)
    )
    max_mb: float | None = setting(
        None,
        help="Most megabytes of weights: 4 bytes a parameter in float32, 1 in INT8.",
        range=above(0),
    )
    max_macs: float | None = setting(
        None,
        help="Most multiply-accumulates of an image, such as 300M or 0.3G.",
        range=above(0),
        parse=parse_count,
    )
    host: str = setting(
        THIS,
        help="Whose latencies count: this machine (this), a device (rdk-x5, v100, iphone-12, ...), "
        "a machine of the Records by a part of its name, or any.",
    )
    engine: str | None = setting(
        None,
        help=f"Engine of latencies on machines; devices have their own.  [default: "
        f"{DEFAULT_ENGINE}]",
    )
    threads: int = setting(
        1,
        help="Threads of a session; on a board, threads that call it at once.",
        range=at_least(1),
    )
    size: int | None = setting(
        None,
        help="Side of the image in pixels.  [default: each model's own]",
        range=at_least(32),
    )
    family: tuple[str, ...] = setting(
        (), help="Families to choose from: repvgg, repghost, repvit, fasternet."
    )
    measure: bool = setting(
        False,
        help="Time the candidates that lack a latency on this machine first: random weights, "
        "folded, in float and in INT8.",
    )
    seconds: float = setting(
        1.0, help="With --measure: seconds of timing for each model.", range=above(0)
    )

    def __post_init__(self) -> None:
        """Refuse values that are not accepted, and settings that contradict each other."""
        validate(self)
        self._check_names()
        bounds = (self.max_ms, self.min_top1, self.max_mb, self.max_macs)
        if all(bound is None for bound in bounds):
            raise InputError(
                "no limit is set; give at least one of max_ms (--max-ms), min_top1 (--min-top1), "
                "max_mb (--max-mb) and max_macs (--max-macs); repzoo list shows all models"
            )
        if self.measure and self.host != THIS:
            raise InputError(
                f"measure (--measure) times models on this machine, not on {self.host}; leave it "
                "out, or the host (--host)"
            )
        devices = {source.host for source in catalog.sources().values()} - {""}
        if self.engine is not None and self.host in devices:
            raise InputError(
                f"the figures of {self.host} are of its own runtime; leave out the engine "
                f"{self.engine} (--engine)"
            )

    def _check_names(self) -> None:
        families = list(dict.fromkeys(spec.family for spec in catalog.models()))
        for family in self.family:
            if family not in families:
                raise InputError(unknown("family", family, families))
        # Not opened: Records may be of an engine that is not installed here.
        known = engines.ENGINES.names()
        if self.engine is not None and self.engine.partition(":")[0] not in known:
            raise InputError(unknown("engine", self.engine.partition(":")[0], known))

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(self.max_ms, self.min_top1, self.max_mb, self.max_macs)


def _ignore(_records: Sequence[Record[Any]]) -> None:
    """An `on_records` that does nothing."""


def match(
    records: str | Path | Sequence[str | Path] = (),
    data: str | Path | DataSource | None = None,
    *,
    options: MatchOptions | None = None,
    progress: Progress = silent,
    on_records: OnRecords = _ignore,
    **settings: Any,
) -> Match:
    """The models of the catalog that keep within limits: highest Top-1 first, then lowest latency.

    Each figure says what it rests on. Where nothing fits, `Match.misses` has the nearest first.

    records     files of Records, whose measured figures then count too
    data        images that Top-1 must be measured on: the choice is then among the models whose
                accuracy on its held-out images is in `records`. None: ImageNet's, as published
    on_records  is called with the Records of each model that `measure` times
    settings    fields of MatchOptions, such as `max_ms=5, min_top1=74`

    Raises:
        InputError: no limit, settings that contradict each other, an unknown name, Records that
            cannot be read or whose hosts the name does not tell apart.
        MissingExtra: `measure` needs torch and timm.
    """
    options = merge_keywords(MatchOptions, options, settings)
    paths = [records] if isinstance(records, str | Path) else list(records)
    read: list[Record[Any]] = []
    for path in paths:
        read += records_file.read(Path(path))
    _check_data(data, paths, options)
    wanted = Wanted(
        options.engine or DEFAULT_ENGINE,
        options.threads,
        options.size,
        options.family,
        _hash_of_images(data),
    )
    hosts = find_hosts(options.host, read)
    remarks = _record_remarks(read, data)
    if options.measure:
        lacking = _lacking_latency(
            match_candidates(hosts, read, wanted), options.limits
        )
        timed, noted = _measure(lacking, wanted, options.seconds, progress, on_records)
        read += timed
        remarks += noted
    candidates = match_candidates(hosts, read, wanted)
    remarks += _latency_remarks(candidates, hosts, wanted, options)
    return choose(candidates, options.limits, remarks)


def _check_data(
    data: str | Path | DataSource | None,
    paths: Sequence[str | Path],
    options: MatchOptions,
) -> None:
    if data is None:
        return
    if not paths:
        raise InputError(
            "Top-1 on images of your own is in Records: give those that repzoo evaluate --append "
            "wrote (--records), or leave the data out (--data)"
        )
    if options.measure:
        raise InputError(
            "measure (--measure) times models of the catalog, and data (--data) chooses among your "
            "own; time those with repzoo bench FILES --append RECORDS"
        )


def _hash_of_images(data: str | Path | DataSource | None) -> str:
    """The SHA-256 that Records have for the held-out images of `data`; "" without data."""
    if data is None:
        return ""
    images = open_data_source(data).held_out()
    return str(describe_images(images.name, images.keys)["sha256"])


def _record_remarks(
    records: Sequence[Record[Any]], data: str | Path | DataSource | None
) -> list[str]:
    remarks: list[str] = []
    unusable = unusable_records(records)
    if unusable:
        remarks.append(
            f"{unusable} of {len(records)} Records hold a latency or an accuracy that is not a "
            "number of its kind; they are passed over"
        )
    others = 0
    for record in records:
        others += record.artifact.get("classes", IMAGENET_CLASSES) not in (
            None,
            IMAGENET_CLASSES,
        )
    if data is None and others:
        remarks.append(
            f"{others} of {len(records)} Records are of models with other classes than ImageNet's "
            "and are passed over; --data DIR chooses among those models"
        )
    return remarks


def _latency_remarks(
    candidates: Sequence[MatchCandidate],
    hosts: Sequence[MatchHost],
    wanted: Wanted,
    options: MatchOptions,
) -> list[str]:
    """Where latencies could come from, if no candidate has one."""
    if options.max_ms is None or any(item.latency_ms for item in candidates):
        return []
    if hosts[0].name == THIS:
        return [
            "no latency on this machine is known; --measure takes them, --records FILE reads "
            f"them, and --host uses those of {', '.join(timed_devices())}"
        ]
    threads = f"{wanted.threads} thread{'' if wanted.threads == 1 else 's'}"
    if hosts[0].machine is not None:
        return [
            f"no latency of {hosts[0].name} on {wanted.engine} with {threads} is known; those of "
            "another engine (--engine) or number of threads (--threads) may be"
        ]
    return [
        f"no latency of {options.host} with {threads} is known; those of another number of "
        "threads (--threads) may be"
    ]


# Measuring


def _lacking_latency(
    candidates: Sequence[MatchCandidate], limits: Limits
) -> dict[str, list[str]]:
    """The precisions of each model to time: those that only a latency keeps from being judged."""
    lacking: dict[str, list[str]] = {}
    for candidate in candidates:
        others = set(unknown_figures(candidate, limits)) - {"latency_ms"}
        is_open = not others and not missed_limits(candidate, limits)
        if is_open and candidate.latency_ms is None:
            lacking.setdefault(candidate.model, []).append(candidate.precision)
    return lacking


def _measure(
    lacking: dict[str, list[str]],
    wanted: Wanted,
    seconds: float,
    progress: Progress,
    on_records: OnRecords,
) -> tuple[list[Record[Latency]], list[str]]:
    """(latencies on this machine, why some could not be taken), one model after the other."""
    engines.engine(
        wanted.engine
    )  # refuses one that is not installed before anything is built
    records: list[Record[Latency]] = []
    remarks: list[str] = []
    for done, (name, precisions) in enumerate(lacking.items()):
        progress("measure", done, len(lacking))
        try:
            forms = _forms(name, precisions, wanted)
            result = benchmark(
                forms, engine=wanted.engine, threads=wanted.threads, seconds=seconds
            )
        except MissingExtra:
            raise
        except InputError as error:
            remarks.append(f"{name} could not be timed: {error}")
            continue
        fastest = _fastest_of_each_form(result.records)
        on_records(fastest)
        records += fastest
        remarks += [str(item) for item in result.left_out]
        if result.interrupted:
            remarks.append("interrupted: models that were not timed are judged without")
            break
    progress("measure", len(lacking), len(lacking))
    return records, list(dict.fromkeys(remarks))


def _forms(name: str, precisions: Sequence[str], wanted: Wanted) -> list[Artifact]:
    """The folded model with random weights, in each of `precisions`; INT8 at several placements."""
    from repzoo.quant.search.int8_for_timing import int8_for_timing

    folded = export(name, form="deploy", size=wanted.size)
    forms: list[Artifact] = []
    if "float32" in precisions:
        forms.append(folded)
    if "int8" in precisions:
        runner = engines.engine(wanted.engine)
        forms += map(Artifact.wrap, int8_for_timing(folded, runner))
    return forms


def _fastest_of_each_form(records: Sequence[Record[Latency]]) -> list[Record[Latency]]:
    """Of several placements in INT8 the fastest, which `quantize` would choose too."""
    fastest: dict[str, Record[Latency]] = {}
    for record in records:
        form = record.artifact["form"]
        known = fastest.get(form)
        if known is None or record.values.p50_ms < known.values.p50_ms:
            fastest[form] = record
    return list(fastest.values())
