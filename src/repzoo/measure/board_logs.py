"""Records from the logs of boards and vendors' tools.

What a log says is taken over as it is: no percentile, no interval and no frame rate is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.measure.board import (
    BoardAccuracy,
    BoardLatency,
    BoardSimilarity,
    NodeSimilarity,
)
from repzoo.measure.log_model import output_names
from repzoo.measure.record import Record, identity_of
from repzoo.measure.stats import wilson
from repzoo.remark import Remark
from repzoo.vendors.logs.hb_mapper import Estimate, HbMapperLog
from repzoo.vendors.logs.hb_reports import QuantInfo, SubgraphReport
from repzoo.vendors.logs.hrt_model_exec import HrtLog
from repzoo.vendors.logs.reading import VendorLog
from repzoo.vendors.logs.rknn import LayerError, RknnLog
from repzoo.vendors.logs.sophgo import SophgoLog
from repzoo.vendors.logs.vastai import Profile, VastaiLog

BoardResult = BoardLatency | BoardAccuracy | BoardSimilarity
# Boards by the architecture that hb_mapper compiles for.
MARCHES = {"bayes-e": "rdk-x5", "bernoulli2": "rdk-x3", "bayes": "rdk-ultra"}
HOSTS = {
    "board log": "board",
    "compiler estimate": "compiler",
    "vendor tool": "simulator",
}


@dataclass(frozen=True)
class LogResults:
    """What one log gives.

    Attributes:
        version: of the tool; "" where the log does not say.
        model: name of the model in the log; "" where it does not say.
        values: results, none of them where the log holds no figures.
        remarks: what was left out, and why.
    """

    version: str = ""
    model: str = ""
    values: tuple[BoardResult, ...] = ()
    remarks: tuple[str, ...] = ()


def board_records(
    log: VendorLog,
    model: Artifact | None = None,
    target: str = "",
    images: int | None = None,
) -> tuple[list[Record[Any]], list[str]]:
    """(Records of what a log says, remarks).

    Args:
        log: as `read_log` gives it.
        model: that the log is of; None: what the log itself says identifies it.
        target: of a log that does not say its own.
        images: that a printed accuracy was measured on.

    Raises:
        InputError: a run that failed, or a log of another target or of an unknown one.
    """
    convert = _CONVERTERS[type(log.content)]
    results = convert(log.content, _target(log, target))
    if model is not None:
        results = replace(results, values=_with_outputs(results.values, model))
    identity = _identity(log, results, model)
    records: list[Record[Any]] = []
    for value in results.values:
        if isinstance(value, BoardAccuracy) and images:
            value = _with_interval(value, images)
        record: Record[Any] = Record(
            identity,
            value,
            engine={"name": log.tool, "version": results.version},
            data={"log": log.path.name, "sha256": log.sha256},
            # Nothing of this machine matters to what ran on another.
            host={"kind": HOSTS[value.source]},
        )
        records.append(record)
    return records, [f"{log.path.name}: {remark}" for remark in results.remarks]


def _target(log: VendorLog, target: str) -> str:
    march = log.content.march if isinstance(log.content, HbMapperLog) else ""
    own = MARCHES.get(march, "")
    if own and target and own != target:
        raise InputError(
            f"{log.path.name} is of {own} (march {march}), not of {target}; leave --target out"
        )
    if march and not own and not target:
        raise InputError(
            f"{log.path.name} is of march {march}, and repzoo knows {', '.join(MARCHES)}; name the "
            "board with --target"
        )
    return own or target or log.target


def _identity(
    log: VendorLog, results: LogResults, model: Artifact | None
) -> dict[str, Any]:
    if model is not None:
        return identity_of(model)
    return {
        "name": results.model or log.path.stem,
        "form": "board",
        "sha256": "",
        "classes": None,
        "preprocess": None,
        "size": None,
    }


def _with_interval(accuracy: BoardAccuracy, images: int) -> BoardAccuracy:
    """The accuracy with intervals, now that the number of images is known."""
    top1_low, top1_high = _interval(accuracy.top1, images)
    completed = replace(accuracy, n=images, top1_low=top1_low, top1_high=top1_high)
    if accuracy.top5 is None:
        return completed
    top5_low, top5_high = _interval(accuracy.top5, images)
    return replace(completed, top5_low=top5_low, top5_high=top5_high)


def _interval(percent: float, images: int) -> tuple[float, float]:
    """95 % interval of a percentage of `images`, in percent."""
    # The script rounds: the count next to its percentage is the one that it had.
    interval = wilson(round(percent / 100 * images), images)
    return 100 * interval.low, 100 * interval.high


def _with_outputs(
    values: Sequence[BoardResult], model: Artifact
) -> tuple[BoardResult, ...]:
    """`values` with the model's outputs picked from the nodes, where the tool does not."""
    names = output_names(model.model)
    completed: list[BoardResult] = []
    for value in values:
        if isinstance(value, BoardSimilarity) and not value.outputs:
            outputs = [node for node in value.nodes if _is_output(node.name, names)]
            value = replace(value, outputs=tuple(outputs[-len(names) :]))
        completed.append(value)
    return tuple(completed)


def _is_output(name: str, outputs: Sequence[str]) -> bool:
    # Sophgo appends the operator to a tensor's name.
    return any(name == output or name.startswith(f"{output}_") for output in outputs)


def _of_hb_mapper(log: HbMapperLog, target: str) -> LogResults:
    if not log.finished:
        reason = log.errors[-1] if log.errors else "the log ends before its last step"
        raise InputError(
            f"hb_mapper {log.command} of {log.model or 'the model'} did not finish: {reason}"
        )
    values: list[BoardResult] = []
    remarks: list[str] = []
    if log.nodes:
        values.append(_hb_similarity(log, target))
    if log.total and log.command == "makertbin":
        values.append(_hb_estimate(log, log.total, target))
    elif log.total:
        # Measured: 0.94 ms where makertbin's is 0.31 ms, of RepGhost 0.5x at 128 pixels.
        remarks.append(
            Remark(
                "hb_mapper checker compiles without optimizing, so its estimate of the speed was "
                "left out; that of makertbin holds"
            )
        )
    return LogResults(
        version=log.versions.get("hb_mapper", ""),
        # The board's tools call the model by the name of the .bin.
        model=log.prefix or log.model,
        values=tuple(values),
        remarks=tuple(remarks),
    )


def _hb_similarity(log: HbMapperLog, target: str) -> BoardSimilarity:
    nodes = []
    for node in log.nodes:
        nodes.append(
            NodeSimilarity(
                name=node.name,
                op=node.op_type,
                device=node.device,
                dtype=node.out_dtype,
                cosine=node.cosine,
                threshold=node.threshold,
            )
        )
    outputs = []
    for output in log.similarities:
        outputs.append(
            NodeSimilarity(
                name=output.name,
                cosine=output.cosine,
                l1=output.l1,
                l2=output.l2,
                chebyshev=output.chebyshev,
            )
        )
    return BoardSimilarity(
        target=target,
        calibration=log.calibration,
        outputs=tuple(outputs),
        nodes=tuple(nodes),
    )


def _hb_estimate(log: HbMapperLog, total: Estimate, target: str) -> BoardLatency:
    on_cpu = len(log.nodes_on("CPU"))
    return BoardLatency(
        target=target,
        source="compiler estimate",
        latency_ms=total.latency_ms,
        fps=total.fps,
        ddr_bytes=total.ddr_bytes,
        accelerator_nodes=len(log.nodes) - on_cpu,
        cpu_nodes=on_cpu,
    )


def _of_quant_info(info: QuantInfo, target: str) -> LogResults:
    nodes = []
    for node in info.nodes:
        first = node.thresholds[0] if node.thresholds else ()
        nodes.append(
            NodeSimilarity(
                name=node.name,
                op=node.op_type,
                cosine=node.cosine,
                # Of weights there is one for each channel.
                threshold=first[0] if len(first) == 1 else None,
            )
        )
    return LogResults(values=(BoardSimilarity(target=target, nodes=tuple(nodes)),))


def _of_subgraph(report: SubgraphReport, target: str) -> LogResults:
    latency = BoardLatency(
        target=target,
        source="compiler estimate",
        latency_ms=report.estimate.latency_ms,
        fps=report.estimate.fps,
        ddr_bytes=report.estimate.ddr_bytes,
    )
    remark = Remark(
        "it estimates subgraph {name} alone; what runs outside of it is not in it",
        name=report.name or "?",
    )
    return LogResults(version=report.version, values=(latency,), remarks=(remark,))


def _of_hrt(log: HrtLog, target: str) -> LogResults:
    values = []
    for run in log.runs:
        values.append(
            BoardLatency(
                target=target,
                source="board log",
                threads=run.threads,
                latency_ms=run.average_ms,
                min_ms=run.min_ms,
                max_ms=run.max_ms,
                fps=run.fps,
                frames=run.frames or None,
            )
        )
    remarks = []
    if not values:
        remarks.append(
            Remark(
                "it describes the model and holds no latency; hrt_model_exec perf measures one"
            )
        )
    return LogResults(
        version=log.runtime,
        model=log.model.removesuffix(".bin"),
        values=tuple(values),
        remarks=tuple(remarks),
    )


def _of_vastai(log: VastaiLog, target: str) -> LogResults:
    values: list[BoardResult] = []
    for rates in log.rates:
        values.append(
            BoardAccuracy(
                target=target,
                source="board log",
                precision=rates.precision,
                top1=rates.top1,
                top5=rates.top5,
            )
        )
    values += [_vastai_latency(profile, target) for profile in log.profiles]
    return LogResults(values=tuple(values))


def _vastai_latency(profile: Profile, target: str) -> BoardLatency:
    times = profile.latencies_ms
    percentiles = {name: time for name, time in times.items() if name.startswith("p")}
    return BoardLatency(
        target=target,
        source="board log",
        threads=profile.instances,
        batch=profile.batch,
        latency_ms=times["avg"],
        min_ms=times.get("min"),
        max_ms=times.get("max"),
        percentiles_ms=percentiles or None,
        fps=profile.throughput,
        frames=profile.samples,
    )


def _of_rknn(log: RknnLog, target: str) -> LogResults:
    values: list[BoardResult] = []
    if log.layers:
        nodes = tuple(_rknn_node(layer) for layer in log.layers)
        values.append(BoardSimilarity(target=target, nodes=nodes))
    # With a board attached the tool compares its outputs too.
    on_board = [layer for layer in log.layers if layer.board_cosine is not None]
    if on_board:
        nodes = tuple(_rknn_board_node(layer) for layer in on_board)
        values.append(BoardSimilarity(target=target, source="board log", nodes=nodes))
    for run in log.performance:
        values.append(
            BoardLatency(
                target=target,
                source="board log",
                latency_ms=run.latency_ms,
                fps=run.fps,
                ddr_bytes=run.traffic_bytes,
                memory_bytes=log.memory_bytes,
                accelerator_nodes=run.npu_nodes,
                cpu_nodes=run.cpu_nodes,
            )
        )
    if log.memory_bytes is not None and not log.performance:
        values.append(
            BoardLatency(
                target=target, source="board log", memory_bytes=log.memory_bytes
            )
        )
    return LogResults(version=log.version, values=tuple(values))


def _rknn_board_node(layer: LayerError) -> NodeSimilarity:
    return NodeSimilarity(
        name=layer.name,
        op=layer.op,
        cosine=layer.board_cosine,
        euclid=layer.board_euclid,
    )


def _rknn_node(layer: LayerError) -> NodeSimilarity:
    return NodeSimilarity(
        name=layer.name,
        op=layer.op,
        cosine=layer.cosine,
        alone=layer.cosine_alone,
        euclid=layer.euclid,
    )


def _of_sophgo(log: SophgoLog, target: str) -> LogResults:
    values: list[BoardResult] = []
    nodes = []
    comparison = log.quantized
    for tensor in comparison.tensors if comparison else ():
        nodes.append(
            NodeSimilarity(name=tensor.name, cosine=tensor.cosine, snr_db=tensor.snr_db)
        )
    for row in log.thresholds:
        nodes.append(NodeSimilarity(name=row.name, threshold=row.threshold))
    if nodes:
        values.append(
            BoardSimilarity(target=target, calibration=log.method, nodes=tuple(nodes))
        )
    times = [launch.latency_ms for launch in log.launches]
    if times:
        several = len(times) > 1
        values.append(
            BoardLatency(
                target=target,
                source="board log",
                latency_ms=sum(times) / len(times),
                min_ms=min(times) if several else None,
                max_ms=max(times) if several else None,
                frames=len(times),
            )
        )
    remarks = []
    if log.comparisons and comparison is None:
        remarks.append(
            Remark(
                "its comparisons are of float models; model_deploy compares a quantized one"
            )
        )
    elif not values:
        remarks.append(
            Remark(
                "it holds no figures; run_calibration writes them into its calibration table"
            )
        )
    network = log.launches[0].network if log.launches else ""
    return LogResults(
        version=log.version, model=network, values=tuple(values), remarks=tuple(remarks)
    )


_CONVERTERS: dict[type, Callable[[Any, str], LogResults]] = {
    HbMapperLog: _of_hb_mapper,
    QuantInfo: _of_quant_info,
    SubgraphReport: _of_subgraph,
    HrtLog: _of_hrt,
    VastaiLog: _of_vastai,
    RknnLog: _of_rknn,
    SophgoLog: _of_sophgo,
}
