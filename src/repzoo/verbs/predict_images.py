"""The verb `predict`: the most probable classes of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.engines import DEFAULT_ENGINE
from repzoo.verbs.model_files import ModelLike, open_model
from repzoo.verbs.prediction import ImageLike, Prediction


@overload
def predict(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; the first wins
    model: ModelLike,
    images: str | Path | Image.Image | npt.NDArray[np.uint8],
    top: int = 5,
    *,
    engine: str = DEFAULT_ENGINE,
) -> Prediction: ...


@overload
def predict(
    model: ModelLike,
    images: Sequence[ImageLike],
    top: int = 5,
    *,
    engine: str = DEFAULT_ENGINE,
) -> list[Prediction]: ...


def predict(
    model: ModelLike,
    images: ImageLike | Sequence[ImageLike],
    top: int = 5,
    *,
    engine: str = DEFAULT_ENGINE,
) -> Prediction | list[Prediction]:
    """The same as `Artifact.predict`, also for the path of a model: see there."""
    return open_model(model).predict(images, top, engine=engine)
