"""Preprocessing of models from elsewhere: read from the graph where it says, else assumed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from repzoo.artifact import Artifact
from repzoo.errors import AssumedPreprocess, InputError
from repzoo.preprocessing import (
    ASSUMABLE,
    Preprocess,
    preprocess_of_graph,
    size_text,
)

Model = TypeVar("Model", bound=Artifact)


def for_images(model: Model) -> Model:
    """`model` with a preprocessing, assumed where the file does not state it.

    What is assumed is said once, as a warning of the class AssumedPreprocess.

    Raises:
        InputError: the size of the images is open, or the graph is not a classifier's.
    """
    known = model if model.preprocess else assume_preprocess(model, {})
    if known.assumed:
        # Of its own class: the command line shows it as a note, Python code can filter it.
        warnings.warn(_assumptions(known), AssumedPreprocess, stacklevel=2)
    return known


def assume_preprocess(model: Model, options: Mapping[str, Any]) -> Model:
    """`model` with the preprocessing fields of `options`, of its graph, and the usual others.

    Raises:
        InputError: the size of the images is open, the graph is not a classifier's, or `options`
            contradicts it.
    """
    model.input_name  # noqa: B018  raises for a graph that is not a classifier
    # Only the user knows whether bytes of one channel are a gray image or NV12.
    stated = preprocess_of_graph(model.model, str(options.get("input", "")))
    if "size" not in options and "size" not in stated:
        raise InputError(
            f"{model.name} leaves the size of its images open; give it with --size, such as "
            "--size 224"
        )
    preprocess = Preprocess.from_mapping({**stated, **options})
    _require_agreement(model.name, preprocess, options, stated)
    assumed = tuple(name for name in ASSUMABLE if name not in {**stated, **options})
    return replace(model, preprocess=preprocess, assumed=assumed)


def _require_agreement(
    name: str,
    preprocess: Preprocess,
    options: Mapping[str, Any],
    stated: Mapping[str, Any],
) -> None:
    """Refuse options that contradict the graph of a file without repzoo's metadata."""
    if "size" in options and preprocess.size != stated.get("size", preprocess.size):
        raise InputError(
            f"{name} takes images of {size_text(stated['size'])} pixels (height x width), not of "
            f"{size_text(preprocess.size)}; leave out --size, which its graph states"
        )
    for field in ("color", "layout"):
        value = getattr(preprocess, field)
        if field in options and value != stated.get(field, value):
            raise InputError(
                f"{name} takes {stated[field]} images, not {value}; leave out --{field}, which "
                "its graph states"
            )


def _assumptions(model: Artifact) -> str:
    """What of the preprocessing is assumed, and with which options to state it."""
    assumed = model.assumed
    words = []
    for name in assumed:
        value = getattr(model.preprocess, name)
        words.append(ASSUMABLE[name].format(value))
    if {"mean", "std"} <= set(assumed):
        # ASSUMABLE, whose order the words have, begins with these two.
        words[:2] = ["mean and std of ImageNet"]
    options = ", ".join(f"--{name.replace('_', '-')}" for name in assumed)
    return f"{model.name}: {words[0]} assumed{_also(words[1:])}; {options} state them"


def _also(words: Sequence[str]) -> str:
    return f", also {', '.join(words)}" if words else ""
