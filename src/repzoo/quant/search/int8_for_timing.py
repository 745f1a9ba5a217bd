"""INT8 models of random weights, of which only the latency matters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.engines import Engine
from repzoo.errors import InputError
from repzoo.measure.host import host
from repzoo.progress import silent
from repzoo.quant.network.host_arithmetic import adapt_to_host
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import default_scheme
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.rewrites.single_nodes import with_single_nodes
from repzoo.quant.rewrites.stages import STAGES, FloatModel
from repzoo.quant.search.builder import Builder
from repzoo.quant.search.calibrator import Calibrator
from repzoo.quant.search.gate import require_folded
from repzoo.quant.search.rewrite_cache import RewriteCache

IMAGES = 2  # latency does not depend on the ranges that they set


def int8_for_timing(artifact: Artifact, engine: Engine) -> list[Artifact]:
    """The folded float `artifact` in INT8 at each placement that the ladder's search starts from.

    The fastest of them is about what that search finds.

    Raises:
        InputError: there is no layer to quantize, or activations are not finite.
    """
    require_folded(artifact)
    scheme, _ = adapt_to_host(default_scheme(engine.name), engine, host())
    model = qdq_writer.prepare_for_qdq(artifact.model)
    if scheme.single_nodes:
        model = with_single_nodes(model)
    space = PlacementSpace(model, scheme)
    starts = space.starting_placements()
    if not starts:
        raise InputError(f"{artifact.name} has no layer to quantize")
    calibrator = Calibrator(artifact, engine, silent)
    calibration = calibrator.calibrate(model, _noise(), starts)
    original = FloatModel(model, calibration.statistics, per_channel=scheme.per_channel)
    builder = Builder(artifact, space, scheme, RewriteCache(original))
    first = builder.build(STAGES[0], starts[0])
    others = [builder.build_from(first, placement) for placement in starts[1:]]
    return [build.artifact for build in (first, *others)]


def _noise() -> Dataset:
    """Unlabeled images of noise."""
    keys = tuple(map(str, range(IMAGES)))
    return Dataset("noise", (), keys, (0,) * IMAGES, _noise_image, labeled=False)


def _noise_image(key: str) -> Image.Image:
    random = np.random.default_rng(int(key))
    pixels: npt.NDArray[np.uint8] = random.integers(
        0, 256, (256, 256, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)
