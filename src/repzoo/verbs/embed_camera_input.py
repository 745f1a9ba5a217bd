"""The verb `embed_input`: a model that takes a camera's buffer instead of normalized floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from repzoo import __version__
from repzoo.artifact import Color, Preprocess, Step
from repzoo.data.preprocess import as_float, model_input, pixel_map
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.verbs.assumed_preprocess import for_images
from repzoo.verbs.fold_model import exact_runner
from repzoo.verbs.image_data import DataLike, first_images, open_dataset
from repzoo.verbs.model_files import ModelLike, open_model
from repzoo.verbs.public_artifact import Artifact

if TYPE_CHECKING:
    from repzoo.graph.certificate.certify import InputCertificate

RANDOM_IMAGES = 3  # of random bytes, and as many of only 0 and 255


@dataclass(frozen=True)
class EmbeddedInput:
    """The result of `embed_input`.

    summary      where in the graph the arithmetic was placed, one sentence
    certificate  how equal the result is to the model with a float input
    """

    artifact: Artifact
    summary: str
    certificate: InputCertificate

    def __str__(self) -> str:
        """What is equal, and where the arithmetic is now."""
        return f"{self.certificate.line()}\n{self.summary}"


def embed_input(
    model: ModelLike,
    input: str,
    *,
    yuv: str | None = None,
    order: Color | None = None,
    data: DataLike | None = None,
    engine: str = DEFAULT_ENGINE,
) -> EmbeddedInput:
    """Move normalization and color conversion into the graph, so that it takes raw pixels.

    input  "uint8": [N, size, size, 3]; "nv12": [N, size * 3 / 2, size, 1]
    yuv    color matrix and range of NV12; default: bt601-full
    order  channel order of the uint8 buffer; default: the model's own
    data   images to certify on besides random bytes

    Raises:
        InputError: the model takes bytes already, is quantized, or has odd sides for NV12.
        CertificateError: the result is not equal to the model with a float input.
    """
    # onnx-ir takes a quarter of a second to import: only verbs that rewrite graphs pay for it.
    from repzoo.graph.certificate.certify import certify_input
    from repzoo.graph.certificate.proof import prove
    from repzoo.graph.certificate.respelled import apply_respellings
    from repzoo.graph.fold.camera_input import embed

    artifact = for_images(open_model(model))
    before = artifact.require_preprocess()
    after = _new_preprocess(artifact.name, before, input, yuv, order)
    matrix, origin = pixel_map(after, before.color)
    # A training form must still fold, so nothing is merged into its first layer.
    is_folded = artifact.form != "train"
    embedded = embed(artifact.model, after, matrix, origin, merge=is_folded)
    proofs: Any = ()
    if embedded.folded:
        prepended = apply_respellings(embedded.prepended, embedded.folded.respellings)
        proofs = prove(prepended, embedded.model, embedded.folded.outputs)
    pairs = [
        (_float_input(buffer, after, before), buffer)
        for buffer in _test_buffers(after, data)
    ]
    certificate = certify_input(
        artifact, embedded.model, exact_runner(engine), pairs, proofs
    )
    settings = {
        "input": after.input,
        "yuv": after.yuv,
        "color": after.color,
        "placed": embedded.summary,
    }
    result = replace(artifact, preprocess=after).then(
        embedded.model,
        Step("embed-input", __version__, settings),
        input_certificate=certificate.to_json(),
    )
    return EmbeddedInput(Artifact.wrap(result), embedded.summary, certificate)


def _new_preprocess(
    name: str, before: Preprocess, input: str, yuv: str | None, order: Color | None
) -> Preprocess:
    """The preprocessing of the model that takes bytes."""
    if before.input != "float":
        raise InputError(
            f"{name} takes {before.input} already; start from the float model it was made from"
        )
    if before.color == "GRAY" or before.layout == "NHWC":
        raise InputError(
            f"{name} takes {before.layout} images with {before.channels} channels; only models "
            "with 3 channels in NCHW can take another input"
        )
    if input not in ("uint8", "nv12"):
        raise InputError(
            f"the input to embed is uint8 or nv12; got {input!r}; "
            "give --input uint8 or --input nv12"
        )
    if order and input == "nv12":
        raise InputError("NV12 has no channel order; leave --order out, or embed uint8")
    values: dict[str, Any] = {**before.document(), "input": input}
    if yuv:
        values["yuv"] = yuv
    if order and order != before.color:
        values["color"] = order
        # Mean and std are in the order of `color`.
        values["mean"] = before.mean[::-1]
        values["std"] = before.std[::-1]
    return Preprocess.from_mapping(values)


def _test_buffers(
    preprocess: Preprocess, data: DataLike | None
) -> list[npt.NDArray[np.uint8]]:
    """Inputs to certify on: random bytes, extreme bytes, and images of `data`."""
    random = np.random.default_rng(0)
    shape = (RANDOM_IMAGES, *preprocess.input_shape)
    buffers = [
        random.integers(0, 256, shape, np.uint8),
        255 * random.integers(0, 2, shape, np.uint8),
    ]
    if data is None:
        return buffers
    as_rgb = {"input": "uint8", "yuv": "bt601-full", "color": "RGB"}
    rgb = Preprocess.from_mapping({**preprocess.document(), **as_rgb})
    pixels = first_images(open_dataset(data, unlabeled=True), rgb)
    if len(pixels):
        buffers.append(model_input(pixels, preprocess))
    return buffers


def _float_input(
    buffer: npt.NDArray[np.uint8], after: Preprocess, before: Preprocess
) -> npt.NDArray[np.float32]:
    """What `buffer` is to the model with a float input, in that model's channel order."""
    floats = as_float(buffer, after)
    if after.color == before.color:
        return floats
    return np.ascontiguousarray(floats[:, ::-1])
