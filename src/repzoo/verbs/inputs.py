"""Verbs about a model's input: embed_input, mismatch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__
from repzoo.artifact import Artifact, Color, Preprocess, Step
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import as_float, model_input, pixel_map
from repzoo.engines import DEFAULT_ENGINE, engine
from repzoo.errors import InputError
from repzoo.measure import accuracy, mismatch
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.progress import Progress, silent
from repzoo.verbs.measuring import first_images

if TYPE_CHECKING:
    from repzoo.graph.certificate.certify import InputCertificate

RANDOM_IMAGES = 3  # of noise, and as many of black and white


@dataclass(frozen=True)
class EmbeddedInput:
    """What `embed_input` made: where the arithmetic went, and how equal the result is."""

    artifact: Artifact
    said: str
    certificate: InputCertificate


def embed_input(
    artifact: Artifact, kind: str, yuv: str | None = None, order: Color | None = None, data: Dataset | None = None,
    engine_name: str = DEFAULT_ENGINE,
) -> EmbeddedInput:  # fmt: skip
    """`artifact` with normalization and color conversion in its graph, so that a camera's buffer goes straight in.

    kind   "uint8": [N, size, size, 3]; "nv12": [N, size * 3 / 2, size, 1]
    yuv    matrix and range of NV12; default bt601-full
    order  channel order of the uint8 buffer; default the model's own
    data   real images to certify on besides random bytes

    Raises:
        InputError: the model takes bytes already, is quantized, or has odd sides for NV12.
        CertificateError: the result is not proven equal to the float input.
    """
    from repzoo.graph.certificate.certify import certify_input
    from repzoo.graph.certificate.proof import prove
    from repzoo.graph.fold import input as inputs

    given = artifact.require_preprocess()
    wanted = _wanted(artifact.name, given, kind, yuv, order)
    made = inputs.embed(
        artifact.model, wanted, *pixel_map(wanted, given.color), merge=artifact.form == "deploy"
    )
    proofs = prove(made.prepended, made.model, made.folded.outputs) if made.folded else ()
    runner = engine(engine_name)

    def run(model: onnx.ModelProto, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return runner.open(model, host()["affinity"], exact=True).run(values)

    certificate = certify_input(
        artifact,
        made.model,
        run,
        [(_floats(raw, wanted, given), raw) for raw in _raws(wanted, data)],
        proofs,
    )
    settings = {
        "input": wanted.input,
        "yuv": wanted.yuv,
        "color": wanted.color,
        "placed": made.summary,
    }
    step = Step("embed-input", __version__, settings)
    result = replace(artifact, preprocess=wanted).then(
        made.model, step, input_certificate=certificate.to_json()
    )
    return EmbeddedInput(result, made.summary, certificate)


def _wanted(
    name: str, given: Preprocess, kind: str, yuv: str | None, order: Color | None
) -> Preprocess:
    if given.input != "float":
        raise InputError(
            f"{name} takes {given.input} already; start from the float model it was made from"
        )
    if kind not in ("uint8", "nv12"):
        raise InputError(
            f"the input to embed is uint8 or nv12; got {kind!r}; give --input uint8 or --input nv12"
        )
    if order and kind == "nv12":
        raise InputError("NV12 has no channel order; leave --order out, or embed uint8")
    fields = {**given.document(), "input": kind, **({"yuv": yuv} if yuv else {})}
    if order and order != given.color:
        fields |= {"color": order, "mean": given.mean[::-1], "std": given.std[::-1]}
    return Preprocess.from_mapping(fields)


def _raws(wanted: Preprocess, data: Dataset | None) -> list[npt.NDArray[np.uint8]]:
    random, shape = np.random.default_rng(0), (RANDOM_IMAGES, *wanted.input_shape)
    raws = [random.integers(0, 256, shape, np.uint8), 255 * random.integers(0, 2, shape, np.uint8)]
    if data:
        pixels = first_images(
            data,
            Preprocess.from_mapping(
                {**wanted.document(), "input": "uint8", "yuv": "bt601-full", "color": "RGB"}
            ),
        )
        raws += [model_input(pixels, wanted)] if len(pixels) else []
    return raws


def _floats(
    raw: npt.NDArray[np.uint8], wanted: Preprocess, given: Preprocess
) -> npt.NDArray[np.float32]:
    """The float model's input, in its own channel order."""
    made = as_float(raw, wanted)
    return made if wanted.color == given.color else np.ascontiguousarray(made[:, ::-1])


@dataclass(frozen=True)
class Mismatches:
    """Accuracy as the model says, and the paired drop of every wrong way."""

    right: Record[Accuracy]
    wrong: tuple[Record[PairedAccuracy], ...]
    remarks: tuple[str, ...]


def measure_mismatch(
    artifact: Artifact,
    data: Dataset,
    engine_name: str = DEFAULT_ENGINE,
    progress: Progress = silent,
) -> Mismatches:
    """What every usual mistake in preparing images costs in Top-1, on the same images.

    Raises:
        InputError: classes or preprocessing that do not fit, or more than 1 % unreadable images.
    """
    report, runner = ReadReport(), engine(engine_name)
    right, wrong = mismatch.measure(accuracy.open_run(artifact, runner), data, report, progress)
    return Mismatches(right, tuple(wrong), tuple(report.sentences()))
