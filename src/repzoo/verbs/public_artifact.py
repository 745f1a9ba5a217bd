"""The Artifact that the public API returns: a model with what the verbs found out about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from repzoo.artifact import Artifact as StoredArtifact
from repzoo.artifact import Step, size_text
from repzoo.data.preprocess import prepare
from repzoo.engines import DEFAULT_ENGINE
from repzoo.verbs.prediction import ImageLike, Prediction, classify, open_image

if TYPE_CHECKING:  # each brings a package that takes long to import, or torch
    from repzoo.graph.certificate.certify import Certificate
    from repzoo.quant.search.gate import QuantReport
    from repzoo.quant.search.harden import HardenReport
    from repzoo.training.run import TrainResult


# A subclass, because `repzoo.artifact` is the layer below the engines and cannot predict.
@dataclass(frozen=True, repr=False)
class Artifact(StoredArtifact):
    """A classifier in ONNX with its preprocessing, labels and history.

    certificate  how equal the folded graph is to the training form; set by `fold`
    report       what the quantizer tried, chose and measured; set by `quantize`
    hardening    what was put on the target's grid, the proof, and what it costs; set by `harden`
    training     the log of the training; set by `train`

    pack         folder of a vendor's pack that it was read from
    origin       where it was fetched from: hf:owner/name/file@commit

    They are None where the verb did not run in this process. The file keeps the certificate as
    `extras["certificate"]` and every step's settings as `steps`.
    """

    certificate: Certificate | None = field(default=None, compare=False)
    report: QuantReport | None = field(default=None, compare=False)
    hardening: HardenReport | None = field(default=None, compare=False)
    training: TrainResult | None = field(default=None, compare=False)
    pack: Path | None = field(default=None, compare=False)
    origin: str = field(default="", compare=False)

    @classmethod
    def wrap(cls, model: StoredArtifact, **results: Any) -> Self:
        """The public form of `model`, with the verbs' `results` by field name."""
        values = {item.name: getattr(model, item.name) for item in fields(model)}
        return cls(**{**values, **results})

    def then(self, model: onnx.ModelProto, step: Step, **extras: Any) -> Self:
        """The artifact with a new graph and `step` added to its history, with the origin in it."""
        if not self.origin:
            return super().then(model, step, **extras)
        settings = {**step.settings, "origin": self.origin}
        changed = super().then(model, replace(step, settings=settings), **extras)
        # One step has it: those after it come from a file of this machine.
        return replace(changed, origin="")

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; the first wins
        self,
        images: str | Path | Image.Image | npt.NDArray[np.uint8],
        top: int = 5,
        *,
        engine: str = DEFAULT_ENGINE,
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], top: int = 5, *, engine: str = DEFAULT_ENGINE
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        top: int = 5,
        *,
        engine: str = DEFAULT_ENGINE,
    ) -> Prediction | list[Prediction]:
        """The `top` most probable classes of an image, or of each image of a list or tuple.

        images  path, PIL image, or uint8 array [height, width, 3] in RGB order

        Every call compiles the model once: give many images as one list.

        Raises:
            InputError: a missing or broken image, or a model without preprocessing.
        """
        if isinstance(images, list | tuple):
            return classify(self, images, top, engine)
        single: Any = images
        return classify(self, [single], top, engine)[0]

    def prepare(self, image: ImageLike) -> npt.NDArray[Any]:
        """The graph's input for one image, [1, ...], to run the file without repzoo.

        image  path, PIL image, or uint8 array [height, width, 3] in RGB order

        Raises:
            InputError: a missing or broken image, or a model without preprocessing.
        """
        tensor = prepare(open_image(image), self.require_preprocess())
        return np.asarray(tensor[None])

    def __repr__(self) -> str:
        """A short description; the graph itself would fill the screen."""
        size = f"{size_text(self.preprocess.size)}, " if self.preprocess else ""
        return f"<Artifact {self.name!r}: {self.form} form, {size}{self.num_classes} classes>"
