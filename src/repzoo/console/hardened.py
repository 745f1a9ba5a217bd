"""Views of `repzoo harden` and `repzoo pack`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from repzoo.console.board_logs import record_lines
from repzoo.console.output import Summary, make_table
from repzoo.measure.record import to_json
from repzoo.measure.results import PairedAccuracy
from repzoo.quant.search.harden import HardenReport
from repzoo.report import figures
from repzoo.verbs.pack_compilation import Compilation
from repzoo.verbs.pack_model import Pack

# Rows that a person is shown; --json has all.
SHOWN_CANDIDATES = 5
SHOWN_LAYERS = 3
SHOWN_KEPT = 3
SHOWN_FALLBACK = 5


def hardened(report: HardenReport, path: Path) -> Summary:
    """What was chosen, the proof, what it costs, and what the target leaves in float."""
    proof = report.proof
    # Most tools take their scale from the largest weight: at the end, they find this very grid.
    unit = "channels" if report.target.per_channel else "channels of whole tensors"
    if not report.layers:
        return _unchanged(report, path)
    shown: list[Any] = [
        _comparisons(report),
        f"stage: {report.stage}, ranges as {report.target.name} chooses them: {report.ranges}; "
        f"{proof.layers} layers, {proof.weights:,} weights on the grid of "
        f"{report.target.name}",
        f"proof: rounded once more as {report.target.name} does it, all come out as the same "
        f"integers; {proof.ends_reached} of {proof.channels} {unit} reach the end of their grid",
        _noisiest(report),
    ]
    if report.fallback:
        shown.append(_fallback(report))
    for layer in report.kept[:SHOWN_KEPT]:
        shown.append(f"{layer.op} {layer.layer} stays as it is: {layer.reason}")
    hidden = len(report.kept) - SHOWN_KEPT
    if hidden > 0:
        shown.append(f"and {hidden} more stay as they are; --json has all")
    shown.append(f"{path} written")
    return Summary(document(report, path), *shown, remarks=report.warnings)


def _unchanged(report: HardenReport, path: Path) -> Summary:
    """The view of a file whose weights the tool rounds best by itself."""
    return Summary(
        document(report, path),
        _comparisons(report),
        f"{report.target.name} itself does best with the weights as they are, on the images that "
        "judged; so the file has them unchanged",
        f"{path} written",
        remarks=report.warnings,
    )


def document(report: HardenReport, path: Path | None = None) -> dict[str, Any]:
    """The report as JSON."""
    proof = report.proof
    return {
        **({"file": str(path)} if path else {}),
        "target": report.target.name,
        "weight_rule": report.target.weight_rule,
        "per_channel": report.target.per_channel,
        "stage": report.stage,
        "ranges": report.ranges,
        "verdict": report.verdict.name.lower(),
        "proof": {"holds": proof.holds, **to_json(proof)},
        "in_float": to_json(report.in_float.values),
        "predicted": to_json(report.predicted.values),
        "layers": [layer.to_json() for layer in report.layers],
        "kept": [to_json(layer) for layer in report.kept],
        "fallback": [to_json(layer) for layer in report.fallback],
        "stages": [to_json(item.summarize()) for item in report.candidates],
        "in_tool": [to_json(trial) for trial in report.trials],
    }


def _comparisons(report: HardenReport) -> Any:
    """A row for each stage in the target's arithmetic, and two for the written file."""
    table = make_table("", ">drop", ">95 % interval", ">same %", ">dB")
    shown = report.candidates[-SHOWN_CANDIDATES:]
    hidden = len(report.candidates) - len(shown)
    if hidden:
        table.add_row(f"{hidden} before (--json has all)")
    for candidate in shown:
        table.add_row(f"INT8, {candidate.stage}", *_cells(candidate.paired))
    for trial in report.trials:
        name = f"in {report.target.name} itself, {trial.stage}"
        same = figures.percent(trial.figures.same_prediction)
        table.add_row(name, "", "", same, f"{trial.figures.snr_db:.0f}")
    table.add_row("the file in float", *_cells(report.in_float.values))
    name = f"the file in INT8 as {report.target.name} computes"
    table.add_row(name, *_cells(report.predicted.values))
    return table


def _cells(values: PairedAccuracy) -> tuple[str, str, str, str]:
    interval = figures.span(figures.points, values.drop_low, values.drop_high)
    noise = "" if values.logits_snr_db is None else f"{values.logits_snr_db:.0f}"
    same = figures.percent(values.same_prediction)
    return figures.points(values.drop), interval, same, noise


def _noisiest(report: HardenReport) -> Any:
    table = make_table("layers that rounding changes most", ">dB", ">groups", "kernel")
    by_noise = sorted(report.layers, key=lambda layer: layer.weight_db)
    for layer in by_noise[:SHOWN_LAYERS]:
        kernel = "x".join(map(str, layer.kernel))
        table.add_row(layer.layer, f"{layer.weight_db:.0f}", str(layer.groups), kernel)
    return table


def _fallback(report: HardenReport) -> Any:
    """The layers that the target should keep out of INT8, which packs write in its words."""
    precision = report.fallback[0].precision
    table = make_table(f"layers to keep in {precision}", ">gain alone, dB")
    for layer in report.fallback[:SHOWN_FALLBACK]:
        table.add_row(layer.node, f"{layer.gain_db:.1f}")
    hidden = len(report.fallback) - SHOWN_FALLBACK
    if hidden > 0:
        table.add_row(f"and {hidden} more (--json has all)")
    return table


def packed(pack: Pack) -> Summary:
    """`repzoo pack`."""
    report = pack.model.hardening
    shown: list[Any] = [_comparisons(report)] if report else []
    shown.append(f"{pack.folder}: {len(pack.files)} files")
    # Scripts are numbered in the order of their use; those in folders are not steps.
    steps = [name for name in pack.files if re.fullmatch(r"[^/]+\.sh", name)]
    shown.append(f"steps: {', '.join(steps)}")
    result = {
        "folder": str(pack.folder),
        "files": list(pack.files),
        **({"hardening": document(report)} if report else {}),
    }
    if pack.compiled:
        shown += _compiled_lines(pack.compiled)
        result["compiled"] = _compiled_document(pack.compiled)
    remarks = (*(report.warnings if report else ()), *pack.remarks)
    return Summary(result, *shown, remarks=remarks)


def compiled(compilation: Compilation) -> Summary:
    """`repzoo pack FOLDER --compile`."""
    document = {
        "folder": str(compilation.folder),
        "compiled": _compiled_document(compilation),
    }
    shown = _compiled_lines(compilation)
    engine = compilation.target.partition(":")[0]
    shown.append(
        f"measure it: repzoo evaluate {shlex.quote(str(compilation.folder))} --engine {engine} "
        "--data DIR --against FLOAT.onnx"
    )
    return Summary(document, *shown, remarks=compilation.remarks)


def _compiled_lines(compilation: Compilation) -> list[Any]:
    shown: list[Any] = [
        f"compiled by the tool chain {compilation.target} {compilation.version}: "
        f"{compilation.binary}"
    ]
    for record in compilation.records:
        shown += record_lines(record)
    return shown


def _compiled_document(compilation: Compilation) -> dict[str, Any]:
    return {
        "version": compilation.version,
        "binary": str(compilation.binary),
        "simulated": str(compilation.simulated),
        "records": [record.to_json() for record in compilation.records],
    }
