"""The race of engines and forms, as the command line and cards show it."""

from __future__ import annotations

from collections.abc import Mapping

from repzoo.measure.race_result import RaceEntry
from repzoo.report import figures

FORMS = {"deploy": "float", "int8": "INT8"}


def race_cells(
    entry: RaceEntry, to: str = "to", forms: Mapping[str, str] = FORMS
) -> list[str]:
    """Form, milliseconds, images a second, ratio to the fastest float with interval, and drop.

    to     that word in the language of the text
    forms  the names of the forms in that language
    """
    drop = figures.ABSENT if entry.drop is None else figures.points(entry.drop)
    cells = [forms[entry.form]]
    if (
        entry.p50_ms is None
        or entry.fps is None
        or entry.ratio is None
        or entry.ratio_low is None
        or entry.ratio_high is None
    ):
        return [*cells, *[figures.ABSENT] * 4, drop]
    return [
        *cells,
        figures.ms(entry.p50_ms),
        figures.rate(entry.fps),
        figures.ratio_of(entry.ratio),
        figures.span(figures.ratio_of, entry.ratio_low, entry.ratio_high, to),
        drop,
    ]
