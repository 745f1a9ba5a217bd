"""The verb `fold`: the deploy form of a model, with a certificate that both are equal."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import onnx

from repzoo import __version__, engines
from repzoo.artifact import Step
from repzoo.engines import DEFAULT_ENGINE, Array, Engine, Feeds
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.progress import Progress, silent
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.image_data import DataLike, first_images, open_dataset
from repzoo.verbs.model_files import ModelLike, open_model
from repzoo.verbs.public_artifact import Artifact

# A folded file is not for one engine alone.
TIMED_ENGINES = ("onnxruntime", "openvino", "mnn")


def fold(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    engine: str = DEFAULT_ENGINE,
    timed: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Fold a model into its deploy form; the result's `certificate` says how equal both are.

    data    images to certify on besides random ones: a folder, a name, or a data set
    engine  runs both graphs for the certificate
    timed   refuse folds that make the graph slower on this machine, on `engine` or on one of
            TIMED_ENGINES that is installed; otherwise only MACs and weights decide, and the
            result is the same everywhere

    Raises:
        InputError: the graph is quantized, or `data` is given and it is not a classifier.
        CertificateError: the two graphs are not equal.
    """
    # onnx-ir takes a quarter of a second to import: only verbs that rewrite graphs pay for it.
    from repzoo.graph.certificate.certify import certify
    from repzoo.graph.fold.engine import fold as fold_graph
    from repzoo.measure.fold_timing import compare_on_engines

    artifact = open_model(model)
    images = None
    if data is not None:
        preprocess = for_images(artifact).require_preprocess()
        images = first_images(open_dataset(data, unlabeled=True), preprocess)
    runners = _engines_to_time(engine) if timed else []
    timer = functools.partial(compare_on_engines, engines=runners) if timed else None
    progress("fold", 0, 0)
    result = fold_graph(artifact.model, timer)
    certificate = certify(
        artifact,
        result,
        fold_graph,
        exact_runner(engine),
        images,
        run_feeds=_exact_feed_runner(engine),
        progress=progress,
    )
    settings: dict[str, Any] = {
        "folds": len(result.folds),
        "refusals": len(result.refusals),
    }
    if timed:
        # The result then depends on it.
        settings["timed"] = ", ".join(runner.name for runner in runners)
    step = Step("fold", __version__, settings)
    folded = artifact.then(result.model, step, certificate=certificate.to_json())
    return Artifact.wrap(folded, certificate=certificate)


def _engines_to_time(chosen: str) -> list[Engine]:
    """The chosen engine, and those of TIMED_ENGINES that are installed."""
    runners = [engines.engine(chosen)]
    for name in TIMED_ENGINES:
        if name == runners[0].name:
            continue
        with contextlib.suppress(InputError):
            runners.append(engines.engine(name))
    return runners


def exact_runner(engine_name: str) -> Callable[[onnx.ModelProto, Array], Array]:
    """A function that runs a model on an array with the engine's graph optimizations turned off."""
    runner = engines.engine(engine_name)

    def run(model: onnx.ModelProto, inputs: Array) -> Array:
        """The output of `model`."""
        # A runtime's optimizer folds BatchNorms itself: both graphs would run as deploy forms.
        return runner.open(model, host()["affinity"], exact=True).run(inputs)

    return run


def _exact_feed_runner(
    engine_name: str,
) -> Callable[[onnx.ModelProto, Feeds], list[Array]]:
    """As `exact_runner`, from the arrays of all inputs to all outputs."""
    runner = engines.engine(engine_name)

    def run(model: onnx.ModelProto, inputs: Feeds) -> list[Array]:
        """All outputs of `model` as float32."""
        return runner.open(model, host()["affinity"], exact=True).run_all(inputs)

    return run
