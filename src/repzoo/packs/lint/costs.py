"""What a finding costs in accuracy: the same images prepared as the file says, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.measure import mismatch
from repzoo.measure.accuracy import EvaluationRun
from repzoo.measure.mismatch import Variant
from repzoo.packs.lint.finding import Finding, Mistake
from repzoo.printable import signed
from repzoo.progress import Progress, silent


def with_costs(
    findings: Sequence[Finding],
    run: EvaluationRun,
    images: Dataset,
    report: ReadReport,
    progress: Progress = silent,
) -> list[Finding]:
    """`findings` with the measured cost of those that change images; the images are decoded once.

    Raises:
        InputError: as `mismatch.predict`.
    """
    mistakes = list(dict.fromkeys(item.mistake for item in findings if item.mistake))
    if not mistakes:
        return list(findings)
    correct = run.artifact.require_preprocess()
    variants = [Variant("as the model says", correct, correct)]
    for number, mistake in enumerate(mistakes):
        variants.append(_variant(str(number), mistake))
    first, *others = mismatch.predict(run, images, variants, report, progress)
    costs: dict[Mistake, str] = {}
    for mistake, predictions in zip(mistakes, others, strict=True):
        values = mismatch.compare_variants(first, predictions).values
        if values.top1 is None:
            continue  # nothing says what the images show
        costs[mistake] = (
            f"Top-1 {values.top1 + values.drop:.1f} % becomes {values.top1:.1f} % "
            f"({signed(-values.drop)} points, 95 % {signed(-values.drop_high)} to "
            f"{signed(-values.drop_low)}, {values.n} images)"
        )
    measured: list[Finding] = []
    for item in findings:
        cost = costs.get(item.mistake, "") if item.mistake else ""
        measured.append(replace(item, cost=cost or item.cost))
    return measured


def _variant(name: str, mistake: Mistake) -> Variant:
    return Variant(name, mistake.geometry, mistake.numbers, swapped=mistake.swapped)
