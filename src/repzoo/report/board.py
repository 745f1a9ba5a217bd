"""What a card says of one board: accuracy in the vendor's quantizer or predicted, and speed.

Every figure keeps its source. A prediction, a compiler's estimate and a board's log are never shown
as one another, nor as measurements of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from repzoo.errors import InputError
from repzoo.measure.board import BoardAccuracy, BoardLatency, BoardSimilarity
from repzoo.measure.record import Record, select
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.remark import Remark

T = TypeVar("T")

BOARD_RESULTS = (BoardLatency, BoardAccuracy, BoardSimilarity)


@dataclass(frozen=True)
class BoardSource:
    """A log that figures are from; `sha256` is that of the file."""

    log: str
    sha256: str
    tool: str
    version: str


@dataclass(frozen=True)
class BoardFacts:
    """What is known of one model on one board; None: nobody has measured it.

    predicted   the hardened model in the target's arithmetic against the float model
    measured    the vendor's own quantized model, on a PC
    paired      the same against the float model, image by image
    engine      that ran it
    single      the board's log with one thread
    many        the board's log with the most threads
    estimate    of the vendor's compiler: nothing ran
    accuracies  that the board's script printed
    similarity  of the vendor's quantized model to the float model, node by node
    sources     logs that figures are from
    """

    target: str
    predicted: PairedAccuracy | None = None
    measured: Accuracy | None = None
    paired: PairedAccuracy | None = None
    engine: Mapping[str, Any] | None = None
    single: BoardLatency | None = None
    many: BoardLatency | None = None
    estimate: BoardLatency | None = None
    accuracies: tuple[BoardAccuracy, ...] = ()
    similarity: BoardSimilarity | None = None
    sources: tuple[BoardSource, ...] = ()

    @property
    def difference(self) -> float | None:
        """Predicted drop less the vendor's, in points; None where one of them is not known."""
        if self.predicted is None or self.paired is None:
            return None
        return self.predicted.drop - self.paired.drop

    @property
    def top1_difference(self) -> float | None:
        """Predicted Top-1 less the vendor's, in points; None where one of them is not known.

        The two may be of other images; `difference` is of image by image comparisons.
        """
        if (
            self.measured is None
            or self.predicted is None
            or self.predicted.top1 is None
        ):
            return None
        return self.predicted.top1 - self.measured.top1

    @property
    def output_cosine(self) -> float | None:
        """The lowest cosine similarity of an output; None where no log has one."""
        outputs = self.similarity.outputs if self.similarity else ()
        cosines = [output.cosine for output in outputs if output.cosine is not None]
        return min(cosines, default=None)

    @property
    def on_accelerator(self) -> tuple[int, int] | None:
        """(nodes on the accelerator, nodes on the CPU); None where no log says."""
        for latency in (self.single, self.many, self.estimate):
            if latency and latency.cpu_nodes is not None:
                return latency.accelerator_nodes or 0, latency.cpu_nodes
        nodes = self.similarity.nodes if self.similarity else ()
        if not any(node.device for node in nodes):
            return None
        on_cpu = sum(node.device == "CPU" for node in nodes)
        return len(nodes) - on_cpu, on_cpu


def select_board(
    records: Iterable[Record[Any]], target: str, model: Mapping[str, Any]
) -> tuple[list[Record[Any]], list[str]]:
    """(the Records of `target` that are of one model, remarks).

    Those with the model's own name are taken. Where there are none, all must have one name: a
    hardened file is often called otherwise.

    model  identity of the card's model

    Raises:
        InputError: there are none, they are of several models, or of one with another input size
            or other classes.
    """
    own = [record for record in records if _target_of(record) == target]
    if not own:
        raise InputError(
            f"there are no Records of {target}; make some with repzoo import, repzoo evaluate "
            f"--engine {target} or repzoo pack --compile, each with --append"
        )
    names = sorted({_name_of(record) for record in own})
    remarks: list[str] = []
    if model["name"] in names:
        own = [record for record in own if _name_of(record) == model["name"]]
    elif len(names) > 1:
        raise InputError(
            f"the Records of {target} are of several models ({', '.join(names)}), none of them "
            f"{model['name']}; import logs with --model, or give Records of one model"
        )
    else:
        remarks.append(
            Remark(
                "the Records of {target} are of {name}; they were taken for this model",
                target=target,
                name=names[0],
            )
        )
    for record in own:
        _require_same_shape(record, model)
    return own, remarks


def board_facts(
    records: Sequence[Record[Any]],
    target: str,
    predicted: Record[PairedAccuracy] | None = None,
) -> BoardFacts:
    """What `records` say of the board `target`; of several figures the last one counts.

    predicted  the hardened model in the target's arithmetic
    """
    measured = _last(_on_engine(select(records, Accuracy), target))
    latencies = _values(records, BoardLatency)
    logged = [row for row in latencies if row.source == "board log"]
    estimates = [row for row in latencies if row.source == "compiler estimate"]
    similarities = _values(records, BoardSimilarity)
    by_tool = [row for row in similarities if row.source == "vendor tool"]
    return BoardFacts(
        target=target,
        predicted=predicted.values if predicted else None,
        measured=measured.values if measured else None,
        paired=_paired(records, target),
        engine=measured.engine if measured else None,
        single=_single_thread(logged),
        many=_most_threads(logged),
        estimate=_last(estimates),
        accuracies=tuple(_values(records, BoardAccuracy)),
        similarity=_last(by_tool),
        sources=tuple(_sources(records)),
    )


def _values(records: Sequence[Record[Any]], result_type: type[T]) -> list[T]:
    return [record.values for record in select(records, result_type)]


def _on_engine(records: Sequence[Record[T]], engine: str) -> list[Record[T]]:
    return [record for record in records if record.engine.get("name") == engine]


def _paired(records: Sequence[Record[Any]], target: str) -> PairedAccuracy | None:
    """The last comparison on the target; those of preprocessing mistakes are left out."""
    rows = _on_engine(select(records, PairedAccuracy), target)
    return _last([row.values for row in rows if row.values.mismatch is None])


def _last(rows: Sequence[T]) -> T | None:
    return rows[-1] if rows else None


def _single_thread(rows: Sequence[BoardLatency]) -> BoardLatency | None:
    """The last with one thread; a tool that does not say how many uses one."""
    timed = [row for row in rows if row.latency_ms is not None]
    return _last([row for row in timed if row.threads in (None, 1)])


def _most_threads(rows: Sequence[BoardLatency]) -> BoardLatency | None:
    """The last of those with the most threads, where that is more than one."""
    several = [row for row in rows if row.fps and (row.threads or 1) > 1]
    # `max` keeps the first of equals: logs are imported again when the board's software improves.
    return max(reversed(several), key=lambda row: row.threads or 1, default=None)


def _sources(records: Sequence[Record[Any]]) -> list[BoardSource]:
    sources: dict[str, BoardSource] = {}
    for record in records:
        sha256 = str(record.data.get("sha256", ""))
        if not isinstance(record.values, BOARD_RESULTS) or not sha256:
            continue
        sources[sha256] = BoardSource(
            log=str(record.data.get("log", "")),
            sha256=sha256,
            tool=str(record.engine.get("name", "")),
            version=str(record.engine.get("version", "")),
        )
    return list(sources.values())


def _target_of(record: Record[Any]) -> str:
    """The board that a Record is of; that of an evaluation is its engine's name."""
    if isinstance(record.values, BOARD_RESULTS):
        return record.values.target
    if isinstance(record.values, Accuracy | PairedAccuracy):
        return str(record.engine.get("name", ""))
    return ""


def _identity_of(record: Record[Any]) -> Mapping[str, Any]:
    """The model that a Record is of; of a comparison the second, which is the vendor's."""
    second = record.artifact.get("second")
    # Records may come from anywhere, and reading them does not look into this field.
    return second if isinstance(second, Mapping) else record.artifact


def _name_of(record: Record[Any]) -> str:
    return str(_identity_of(record).get("name", ""))


def _require_same_shape(record: Record[Any], model: Mapping[str, Any]) -> None:
    identity = _identity_of(record)
    for what, key in (("classes", "classes"), ("an input of size", "size")):
        other = identity.get(key)
        # JSON has no tuples.
        if other and model[key] and _plain(other) != _plain(model[key]):
            raise InputError(
                f"a Record of {_target_of(record)} is of another model: {_name_of(record)} has "
                f"{what} {other}, {model['name']} {model[key]}; leave it out"
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
