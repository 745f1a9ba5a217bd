"""What several tools' rules share: the normalization, the color and the size of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from repzoo.artifact import Preprocess
from repzoo.packs.lint import normalization
from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import ModelFacts, Workspace
from repzoo.packs.lint.finding import Finding, Mistake
from repzoo.packs.lint.normalization import Normalization, Values, numbers

PLACEHOLDERS = ("/path/to", "path/to", "${")


@dataclass(frozen=True)
class Spelling:
    """How a tool writes a normalization.

    Attributes:
        mean: key of the mean.
        std: key of std, or of its reciprocal.
        write_mean: the value for a mean in units of 0..255.
        write_std: the value for a std in units of 0..255.
        formula: what the tool computes, in words.
    """

    mean: tuple[str, ...]
    std: tuple[str, ...]
    write_mean: Callable[[Values], str] = numbers
    write_std: Callable[[Values], str] = numbers
    formula: str = ""


def reciprocal(values: Values) -> str:
    """A std in units of 0..255 as a scale."""
    return numbers([1 / value for value in values])


def in_unit(values: Values) -> str:
    """A mean or std in units of 0..255 as one in units of 0..1."""
    return numbers([value / normalization.LEVELS for value in values])


def normalization_findings(
    document: Document,
    model: ModelFacts | None,
    actual: Normalization,
    color: str,
    spelling: Spelling,
) -> Iterator[Finding]:
    """Mean and scale against the model's; without a model, what no model wants.

    Args:
        document: the configuration.
        model: facts of the model, if there is one.
        actual: what the configuration makes the tool compute.
        color: order of the channels in the configuration, "" for the model's.
        spelling: how the tool writes it.
    """
    if len(actual.mean) not in (1, 3) or len(actual.std) not in (1, 3):
        yield document.finding(
            "value-count",
            f"{len(actual.mean)} means and {len(actual.std)} scales; expected one for each of the "
            "channels, or one for all",
            *spelling.mean,
        )
        return
    if model is None or model.preprocess is None:
        doubt, mean = normalization.suspicion(actual, color)
        if doubt:
            fix = f"{spelling.mean[-1]}: {spelling.write_mean(mean)}" if mean else ""
            yield document.finding(
                "unusual-normalization", doubt, *spelling.mean, fix=fix
            )
        return
    expected = normalization.expected_for(model.preprocess, color)
    own = normalization.expected_for(model.preprocess)
    if not any(normalization.differences(actual, own)):
        return  # right for the model; a wrong order of channels is a finding of its own
    for item in normalization.differences(actual, expected):
        # What to write is in the model's order, for the same reason.
        right = own.mean if item.part == "mean" else own.std
        yield _difference(document, model, expected, item, spelling, right)


def _difference(
    document: Document,
    model: ModelFacts,
    expected: Normalization,
    item: normalization.Difference,
    spelling: Spelling,
    right: Values,
) -> Finding:
    is_mean = item.part == "mean"
    keys = spelling.mean if is_mean else spelling.std
    write = spelling.write_mean if is_mean else spelling.write_std
    alone = replace(expected, **{"mean" if is_mean else "std": item.actual})
    reason = f": {item.reason}" if item.reason else ""
    formula = f"; {spelling.formula}" if spelling.formula else ""
    return document.finding(
        "wrong-mean" if is_mean else "wrong-scale",
        f"{keys[-1]} is {write(item.actual)}, expected {write(right)} "
        f"({model.source}{formula}){reason}",
        *keys,
        fix=f"{keys[-1]}: {write(right)}",
        mistake=arithmetic(model, alone),
    )


def arithmetic(
    model: ModelFacts, actual: Normalization, color: str = ""
) -> Mistake | None:
    """The mistake of a normalization alone; None where no image could be prepared so."""
    preprocess = normalization.as_preprocess(model, actual, color)
    if preprocess is None or model.preprocess is None:
        return None
    return Mistake(preprocess, model.preprocess)


def color_finding(
    document: Document, model: ModelFacts | None, color: str, *keys: str, fix: str
) -> Iterator[Finding]:
    """The order of channels against the model's."""
    if model is None or model.preprocess is None or not color:
        return
    preprocess = model.preprocess
    if color == preprocess.color:
        return
    swapped = {color, preprocess.color} == {"RGB", "BGR"}
    mistake = Mistake(preprocess, preprocess, swapped=True) if swapped else None
    yield document.finding(
        "color-order",
        f"{keys[-1]} says {color}, but the model takes {preprocess.color} ({model.source})",
        *keys,
        fix=fix,
        mistake=mistake,
    )


def resize_finding(
    document: Document,
    model: ModelFacts,
    geometry: Preprocess,
    message: str,
    *keys: str,
    fix: str,
) -> Finding:
    """A resize or crop other than the model's; its cost can be measured."""
    assert model.preprocess is not None
    return document.finding(
        "resize",
        message,
        *keys,
        fix=fix,
        mistake=Mistake(model.preprocess, geometry),
    )


def named_files(
    document: Document,
    workspace: Workspace,
    files: Sequence[tuple[tuple[str, ...], str]],
) -> Iterator[Finding]:
    """Files and folders that a configuration names, by their keys.

    Where none of them is there the configuration was moved by itself, which is no fault. Empty
    names and placeholders such as /path/to are passed over.
    """
    missing: list[tuple[tuple[str, ...], str]] = []
    is_alone = not workspace.is_pack
    for keys, name in files:
        if name and beside(document, name):
            is_alone = False
        elif name and not name.startswith(PLACEHOLDERS):
            missing.append((keys, name))
    for keys, name in missing:
        yield document.finding(
            "file-elsewhere" if is_alone else "missing-file",
            f"{keys[-1]} names {name}, which is not there"
            + (", so it was not checked" if is_alone else ""),
            *keys,
            fix="" if is_alone else f"{keys[-1]}: the path from {document.path.parent}",
        )


def beside(document: Document, name: str) -> Path | None:
    """The file or folder `name` as the tool would find it; None where it is not there.

    Links that lead elsewhere are followed as the tool would follow them, but only to look.
    """
    try:
        path = Path(os.path.normpath(document.path.parent / name))
        return path if path.exists() else None
    except (OSError, ValueError):
        return None
