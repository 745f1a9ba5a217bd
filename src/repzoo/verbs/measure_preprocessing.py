"""The verb `measure_mismatch`: what mistakes in preparing images cost in accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repzoo import engines
from repzoo.data.batches import ReadReport
from repzoo.engines import DEFAULT_ENGINE
from repzoo.measure import mismatch
from repzoo.measure.accuracy import open_run
from repzoo.measure.class_mapping import order_remarks, require_classes
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.progress import Progress, silent
from repzoo.report import figures
from repzoo.summary import Summarized, Summary, Table
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.image_data import DataLike, open_dataset
from repzoo.verbs.model_files import ModelLike, open_model


@dataclass(frozen=True)
class Mismatches(Summarized):
    """Accuracy with the model's own preprocessing, and the paired drop with each wrong one."""

    right: Record[Accuracy]
    wrong: tuple[Record[PairedAccuracy], ...]
    remarks: tuple[str, ...]

    def _summary(self) -> Summary:
        """A row for the right preparation, and one for each mistake."""
        rows = [["the model's own", figures.percent(self.right.values.top1), "", ""]]
        for record in self.wrong:
            values = record.values
            interval = figures.span(figures.points, values.drop_low, values.drop_high)
            top1 = "" if values.top1 is None else figures.percent(values.top1)
            cells = [top1, figures.points(values.drop), interval]
            rows.append([str(values.mismatch), *cells])
        headings = ["preprocessing", ">Top-1 %", ">drop", ">95 % interval"]
        notes = [f"note: {remark}" for remark in self.remarks]
        return Summary([Table(headings, rows)], notes)


def measure_mismatch(
    model: ModelLike,
    data: DataLike,
    *,
    part: str | Sequence[str] = (),
    engine: str = DEFAULT_ENGINE,
    progress: Progress = silent,
) -> Mismatches:
    """Measure the Top-1 drop of every common preprocessing mistake, on the same images.

    data  labeled images: a folder, a name such as `digits`, or a data set
    part  the parts of the data to use; default: all that are held out from training

    Raises:
        InputError: classes or preprocessing that do not fit, or more than 1 % unreadable images.
    """
    report = ReadReport()
    artifact = for_images(open_model(model))
    require_classes(artifact)
    run = open_run(artifact, engines.engine(engine))
    images = open_dataset(data, part)
    right, wrong = mismatch.measure(run, images, report, progress)
    remarks = [*images.remarks(), *order_remarks(images, run.artifact)]
    return Mismatches(right, tuple(wrong), (*remarks, *report.sentences()))
