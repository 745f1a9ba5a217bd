"""What a person (or with --json a program) sees: progress on stderr, tables that read well at 80 columns on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_type_hints

import rich.console
import rich.progress
import rich_click as click
from rich.table import Table

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import ENGINES, engine
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.quant.ladder import QuantReport
from repzoo.report import card as cards
from repzoo.zoo.catalog import ModelSpec
from repzoo.zoo.catalog import Source as FigureSource

if typing.TYPE_CHECKING:  # graph.* brings onnx-ir, which takes long to import
    from repzoo.graph.certify import Certificate
    from repzoo.graph.cost import Cost
    from repzoo.job import JobResult
    from repzoo.train.loop import Epoch

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = {
    "checkpoint": "Weights to load: .safetensors, or a .pth that holds tensors only.",
    "pretrained": "Download timm's ImageNet weights.",
    "num_classes": "Number of outputs.  [default: the labels', else 1000]",
    "opset": "ONNX operator set, 11 to 20.",
    "dynamic_batch": "Leave the batch size open, or fix it at 1.",
    "form": "train (every BatchNormalization kept) or deploy (folded).",
    "seed": "Seed of everything random.",
    "engine": "Engine that runs the model.",
    "scheme": "Preset (ort-cpu, openvino-cpu, mnn, rdk, vastai, per-tensor, ...) or FILE.toml.",
    "max_drop": "Budget: Top-1 points that INT8 may lose; negative: must gain.",
    "images": "Calibration images.",
    "force": "Write the model even when the gate refuses it.",
    "engines": "Engines to time on (repeat the option).",
    "threads": "Client threads that call one model (repeat the option).",
    "batch": "Images a call (repeat the option).",
    "seconds": "Time for each case, over all rounds.",
    "size": "Side of the square input, pixels.",
    "resize": "short: short side to size / crop fraction; squash: both sides.",
    "crop_fraction": "Size over resized side.",
    "interpolation": "nearest, bilinear, bicubic or lanczos.",
    "mean": "Three numbers in 0..1, subtracted for each channel.",
    "std": "Three numbers in 0..1, divided by.",
    "colour": "Channel order: RGB or BGR.",
}


class _Number(click.FloatRange):
    """A range without nan and infinity, which compare as if they lay inside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number.", param, ctx)


POSITIVE = _Number(min=0, min_open=True)
# What an option accepts, where its field's type alone would let nonsense through to the middle of the work.
ACCEPTED: dict[str, click.ParamType[Any]] = {
    "num_classes": click.IntRange(1),
    "opset": click.IntRange(11, 20),
    "form": click.Choice(["train", "deploy"]),
    "max_drop": _Number(),
    "images": click.IntRange(1),
    "threads": click.IntRange(1),
    "batch": click.IntRange(1),
    "seconds": POSITIVE,
    "seed": click.IntRange(0),
}


def options_of(settings: type[Any]) -> Callable[[Command], Command]:
    """Options for every field of the dataclass `settings`, with its defaults."""
    return _options(settings, keep_defaults=True)


def preprocess_options(command: Command) -> Command:
    """Options for every field of Preprocess; unset ones leave what the model says."""
    return _options(Preprocess, keep_defaults=False)(command)


def _options(settings: type[Any], keep_defaults: bool) -> Callable[[Command], Command]:
    hints = get_type_hints(settings)

    def decorate(command: Command) -> Command:
        for field in reversed(dataclasses.fields(settings)):
            flag = f"--{field.name.replace('_', '-')}"
            shape = _click_type(hints[field.name])
            if field.name in ACCEPTED:
                shape["type"] = ACCEPTED[field.name]
            if shape.get("is_flag"):
                flag = f"{flag}/--no-{field.name.replace('_', '-')}" if field.default is True else flag
            default = field.default if keep_defaults else None
            shown = default not in (None, False, (), True)
            command = click.option(flag, field.name, default=default, show_default=shown, help=HELP[field.name], **shape)(command)
        return command

    return decorate


def _click_type(hint: Any) -> dict[str, Any]:
    """click's arguments for a field's type."""
    if isinstance(hint, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if hint is bool:
        return {"is_flag": True}
    if typing.get_origin(hint) is typing.Literal:
        return {"type": click.Choice(get_args(hint))}
    if typing.get_origin(hint) is tuple:
        inner = get_args(hint)
        return {"type": inner[0], "multiple": True} if inner[-1] is Ellipsis else {"type": tuple(inner)}
    return {"type": click.Path(path_type=Path) if hint is Path else hint}


class _Console(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line; rich would exit with 1."""
        raise BrokenPipeError


class Console:
    """Output of one command. As a context manager it shows progress bars on stderr while the block runs."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        # No markup and no emoji: a class may be called "[red]" or ":cat:".
        self._out = _Console(highlight=False, markup=False, emoji=False)
        self._err = rich.console.Console(stderr=True, highlight=False)
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars where stderr is a terminal."""
        if self._err.is_terminal:
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                console=self._err,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bars."""
        if self._bars:
            self._bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """A repzoo.progress.Progress: one bar for each stage."""
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total or None)
            self._bars.update(self._tasks[stage], completed=done, total=total or None)

    @staticmethod
    def document(value: Any) -> str:
        """JSON text in ASCII, for any pipe; numbers that are not finite become null, as JSON has none."""
        return json.dumps(_finite(value), indent=1) + "\n"

    def _say(self, document: Any, *shown: Any, remarks: Sequence[str] = ()) -> None:
        if self._json:
            click.echo(self.document(document), nl=False)
        else:
            for item in shown:
                self._out.print(item)
        for remark in remarks:
            click.echo(f"note: {remark}", err=True)

    def models(self, rows: Sequence[ModelSpec]) -> None:
        """`repzoo list`."""
        table = _table("model", "size", ">train M", ">deploy M", ">MACs M", ">Top-1 %")
        for row in rows:
            top1 = max((figure.top1 for figure in row.figures if figure.top1 is not None), default=None)
            counts = (row.parameters_train, row.parameters_deploy, row.macs)
            table.add_row(row.name, str(row.preprocess.size), *map(cards.millions, counts), "" if top1 is None else str(top1))
        note = "Parameters in training and deploy form; Top-1: the best published (see: repzoo info MODEL)."
        self._say({"models": [row.document() for row in rows]}, table, note)

    def spec(self, row: ModelSpec, sources: Mapping[str, FigureSource]) -> None:
        """`repzoo info` of a catalogue model."""
        document = row.document()
        facts = _table("", "")
        for key, value in document.items():
            if key not in ("figures", "notes", "preprocess"):
                facts.add_row(key, str(value))
        facts.add_row("preprocess", ", ".join(f"{key} {value}" for key, value in document["preprocess"].items()))
        figures = _table("published by", "figures")
        for figure in document["figures"]:
            said = [f"{key} {value}" for key, value in figure.items() if key not in ("source", "files")]
            figures.add_row(sources[figure["source"]].title, ", ".join(said))
        used = {figure["source"]: dataclasses.asdict(sources[figure["source"]]) for figure in document["figures"]}
        self._say({**document, "sources": used}, facts, figures, *[f"note: {note}" for note in row.notes])

    def artifact(self, one: Artifact) -> None:
        """`repzoo info` of a file."""
        facts = {
            "name": one.name,
            "form": one.form,
            "opset": one.opset,
            "classes": one.num_classes,
            "labels": list(one.labels),
            "preprocess": dataclasses.asdict(one.preprocess) if one.preprocess else None,
            "steps": [dataclasses.asdict(step) for step in one.steps],
            "sha256": one.sha256,
        }
        table = _table("", "")
        for key, value in facts.items():
            table.add_row(key, _short(value))
        self._say(facts, table)

    def engines(self) -> None:
        """`repzoo engines`."""
        table, found = _table("engine", "version", "to install"), []
        for name in ENGINES.names():
            try:
                found.append({"name": name, "version": engine(name).version(), "hint": ""})
            except InputError as error:
                found.append({"name": name, "version": "", "hint": str(error)})
            table.add_row(*found[-1].values())
        facts = host()
        self._say(
            {"engines": found, "host": facts},
            table,
            f"host: {facts['cpu']}, INT8 by {', '.join(facts['int8']) or 'nothing special'}",
        )

    def written(self, one: Artifact, path: Path) -> None:
        """A file that was made."""
        document = {"file": str(path), "form": one.form, "opset": one.opset, "classes": one.num_classes, "sha256": one.sha256}
        self._say(document, f"{path}: {one.form} form, opset {one.opset}, {one.num_classes} classes")

    def certificate(self, one: Certificate, path: Path) -> None:
        """`repzoo fold`."""
        table = _table("", ">before", ">after")
        for key in ("nodes", "parameters", "macs", "bytes"):
            table.add_row(key, f"{one.before[key]:,}", f"{one.after[key]:,}")
        folds = _table("folded", "nodes", ">MACs a pixel")
        for fold in one.folds:
            folds.add_row(fold.output, f"{len(fold.nodes)} ({fold.kind})", f"{fold.macs_before:,.0f} -> {fold.macs_after:,.0f}")
        refused = [f"refused: {refusal.node}: {refusal.reason}" for refusal in one.refusals]
        self._say(one.to_json(), folds, *refused, table, one.line(), f"{path} written")

    def cost(self, artifact: Artifact, one: Cost) -> None:
        """`repzoo count`."""
        table = _table(artifact.name, f">{artifact.form} form")
        for key in ("parameters", "macs", "bytes", "nodes"):
            table.add_row(key, f"{getattr(one, key):,}")
        left = ", ".join(f"{count} {name}" for name, count in one.uncounted.items())
        self._say(dataclasses.asdict(one), table, f"not counted in macs: {left or 'nothing'}")

    def quantized(self, report: QuantReport, path: Path) -> None:
        """`repzoo quantize`."""
        table = _table("Q/DQ placement", ">drop", ">95 % interval", ">same %", ">latency ratio", "")
        for rung in report.rungs:
            paired, ratio = rung.paired.values, rung.ratio.values
            mark = "chosen" if rung is report.chosen else ("" if rung.passes else "refused")
            interval = f"{cards.points(paired['drop_low'])} .. {cards.points(paired['drop_high'])}"
            shown = (
                cards.points(paired["drop"]),
                interval,
                cards.percent(paired["same_prediction"]),
                cards.ratio_of(ratio["ratio"]),
            )
            table.add_row(rung.placement, *shown, mark)
        self._say({"file": str(path), **report.record.values}, table, f"{path} written", remarks=report.warnings)

    def evaluation(self, result: verbs.Evaluation) -> None:
        """`repzoo evaluate`."""
        table = _table("file", ">n", ">Top-1 %", ">95 % interval", ">Top-5 %")
        for one in result.runs:
            values = one.values
            interval = f"{cards.percent(values['top1_low'])} .. {cards.percent(values['top1_high'])}"
            table.add_row(
                one.artifact["name"], str(values["n"]), cards.percent(values["top1"]), interval, cards.percent(values["top5"])
            )
        lines = [_paired_line(one) for one in result.paired]
        runs = [{"file": one.artifact["name"], "engine": one.engine["name"], **one.values} for one in result.runs]
        paired = [{**one.values, **one.samples} for one in result.paired]
        document = {"runs": runs, **({"paired": paired[0], "all_paired": paired} if paired else {})}
        self._say(document, table, *lines, remarks=result.remarks)

    def bench(self, records: Sequence[Record], ratios: Sequence[Record]) -> None:
        """`repzoo bench`."""
        table = _table("file", "engine", ">threads", ">batch", ">p50 ms", ">p90", ">p99", ">FPS")
        for one in records:
            values = one.values
            times = (cards.ms(values[key]) for key in ("p50_ms", "p90_ms", "p99_ms"))
            names = (one.artifact["name"], one.engine["name"])
            table.add_row(*names, str(values["streams"]), str(values["batch"]), *times, cards.rate(values["fps"]))
        lines = [
            f"{one.artifact['first']['name']} takes {cards.ratio_of(one.values['ratio'])} times as long as "
            f"{one.artifact['second']['name']} "
            f"(95 % interval {cards.ratio_of(one.values['ratio_low'])} .. {cards.ratio_of(one.values['ratio_high'])})"
            for one in ratios
        ]
        runs = [{"file": one.artifact["name"], "engine": one.engine["name"], **one.values, **one.samples} for one in records]
        paired = [
            {"first": one.artifact["first"]["name"], "second": one.artifact["second"]["name"], **one.values} for one in ratios
        ]
        self._say({"runs": runs, "ratios": paired}, table, *lines)

    def predictions(self, found: Sequence[verbs.Prediction]) -> None:
        """`repzoo predict`."""
        table = _table("image", "class", ">probability")
        for one in found:
            for rank, (label, share) in enumerate(one.best):
                table.add_row("" if rank else one.image, label, f"{share:.4f}")
        document = [
            {"image": one.image, "top": [{"class": name, "probability": share} for name, share in one.best]} for one in found
        ]
        self._say({"predictions": document}, table)

    def trained(self, made: Artifact, log: Sequence[Epoch], remarks: Sequence[str]) -> None:
        """`repzoo train`."""
        scored = [one for one in log if not math.isnan(one.validation_top1)]
        table = _table(">epoch", ">loss", ">held-out Top-1 %", ">images/s")
        for one in scored[-5:]:
            table.add_row(
                str(one.epoch + 1), f"{one.loss:.4f}", cards.percent(one.validation_top1), cards.rate(one.images_per_second)
            )
        document = {"name": made.name, "sha256": made.sha256, "epochs": [dataclasses.asdict(one) for one in log]}
        self._say(document, table, f"{made.name}: trained and written", remarks=remarks)

    def card(self, result: JobResult, files: Sequence[Path]) -> None:
        """`repzoo card`: the seeds' row, one column a form, and where the card is."""
        facts = cards.summary(result.records)
        table = _table(facts["name"], ">float", ">INT8")
        forms = ("deploy", "int8")
        table.add_row("size (pixels)", *[f"{facts['size']}x{facts['size']}"] * 2)
        table.add_row("classes", *[str(facts["classes"])] * 2)
        table.add_row("parameters (M)", *(cards.millions(facts["cost"][form]["parameters"]) for form in forms))
        table.add_row("weights (kB)", *(f"{facts['cost'][form]['bytes'] / 1000:.0f}" for form in forms))
        table.add_row(f"Top-1 % (n = {facts['paired']['n']})", *(cards.percent(facts["accuracy"][form]["top1"]) for form in forms))
        table.add_row("Top-5 %", *(cards.percent(facts["accuracy"][form]["top5"]) for form in forms))
        table.add_row("latency, 1 thread (ms)", *(cards.ms(facts["single"][form]["p50_ms"]) for form in forms))
        table.add_row(
            f"latency, {facts['many']['threads']} threads (ms)", *(cards.ms(facts["many"][form]["p50_ms"]) for form in forms)
        )
        table.add_row("frame rate (FPS)", *(cards.rate(facts["many"][form]["fps"]) for form in forms))
        ratio, fold = facts["ratios"]["int8"], facts["fold"]
        lines = [
            _paired_line(next(one for one in result.records if one.kind == "paired")),
            f"INT8 / float latency {cards.ratio_of(ratio['ratio'])} (95 % interval {cards.ratio_of(ratio['ratio_low'])} .. "
            f"{cards.ratio_of(ratio['ratio_high'])})",
            f"fold: {fold['before']['nodes']} nodes -> {fold['after']['nodes']}, largest error {fold['max_abs_error']:.2g} "
            f"(bound {fold['bound']:.2g})",
        ]
        written = next(path for path in files if path.name == "card.md")
        document = {**facts, "files": [str(path) for path in files], "remarks": list(result.remarks)}
        self._say(document, table, *lines, f"card: {written}", remarks=result.remarks)


def _paired_line(one: Record) -> str:
    values = one.values
    return (
        f"drop {cards.points(values['drop'])} points (95 % interval {cards.points(values['drop_low'])} .. "
        f"{cards.points(values['drop_high'])}, p = {values['p_value']:.3g}), "
        f"{len(one.samples['flips'])} of {values['n']} predictions changed"
    )


def _table(*columns: str) -> Table:
    """A table whose columns named ">x" are right-aligned."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 400 else text[:400] + " ..."


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
