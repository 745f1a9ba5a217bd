"""Whether an INT8 model behaves differently in the default sessions of ONNX Runtime.

repzoo opens sessions whose INT8 sums are exact on every host. Others open default sessions, which
saturate on x86 without VNNI (network/host_arithmetic.py). A user who ships the model to such a
host must know if that changes what the model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.measure.accuracy import EvaluationRun, logits_of
from repzoo.quant.network.host_arithmetic import saturates
from repzoo.remark import Remark

COMPARED_IMAGES = 64
BATCH = 16


def saturation_remark(
    int8: Artifact, images: Dataset, engine: Engine, facts: Mapping[str, Any]
) -> str:
    """A remark on `int8` where default sessions change its outputs on some `images`; else "".

    `facts` of the host are those of measure.host.
    """
    with_default_precision = getattr(engine, "with_default_precision", None)
    if with_default_precision is None or not saturates(facts):
        return ""
    sample = images.subset(images.balanced_sample(COMPARED_IMAGES, 0))
    exact = _logits(int8, sample, engine)
    saturated = _logits(int8, sample, with_default_precision())
    # without saturation both compute the same integers
    if np.array_equal(exact, saturated):
        return ""
    changed = int((exact.argmax(1) != saturated.argmax(1)).sum())
    return sentence(changed, len(exact))


def sentence(changed: int, images: int) -> str:
    """The remark, where saturation changes the prediction of `changed` of `images` images."""
    return Remark(
        "this host has no VNNI, where ONNX Runtime's default sessions saturate sums of 8-bit "
        "products: they change {changed} of {images} predictions of this model. What is measured "
        "here is exact; get the same by the session option session.x64quantprecision = 1, or by "
        "--scheme ort-cpu-7bit",
        changed=changed,
        images=images,
    )


def _logits(
    model: Artifact, images: Dataset, engine: Engine
) -> npt.NDArray[np.float32]:
    """The outputs [n, classes] of `model` on those of `images` that can be read."""
    run = EvaluationRun(model, engine, engine.open(model.model))
    preprocess = model.require_preprocess()
    outputs = []
    for batch in batches(images, preprocess, BATCH, ReadReport()):
        # A file may fix its batch, as torch's exporter does by default.
        outputs.append(logits_of(run, batch.inputs))
    return np.concatenate(outputs)
