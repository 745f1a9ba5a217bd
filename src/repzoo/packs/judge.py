"""The judge of `repzoo harden --judge tool`: each candidate as a pack, through the vendor's tool.

The pack is the one that the user would get, with the same calibration images, so that the tool does
the same to it. It is only quantized, not compiled.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo import engines
from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches, map_in_order
from repzoo.data.dataset import Dataset
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.graph.tools.head import find_head
from repzoo.measure.accuracy import logits_of, open_run
from repzoo.measure.expected_drop import snr_db
from repzoo.packs.compile import compiler_of, quantize_pack
from repzoo.packs.pack import TARGETS, PackJob, PackTarget, open_target, write_pack
from repzoo.processor import available_cores
from repzoo.progress import Progress
from repzoo.quant.search.tool_judge import ToolFigures

Inputs = npt.NDArray[np.float32]
BATCH = 8
JUDGED_IMAGES = 64  # vendors' simulators take up to a second an image
MINUTES = 30.0


@dataclass(frozen=True)
class ToolImages:
    """Images for a tool.

    Attributes:
        calibration: those that it may calibrate on.
        chosen: indices of those that it does.
        judged: others, of which some judge.
    """

    calibration: Dataset
    chosen: tuple[int, ...]
    judged: Dataset

    def ordered(self, first: str) -> Dataset:
        """The chosen ones, that with the key `first` before the others."""
        return self.calibration.subset(
            first_before_others(self.calibration, self.chosen, first)
        )


def first_before_others(
    images: Dataset, chosen: tuple[int, ...], first: str
) -> list[int]:
    """As many indices as `chosen`, that of the key `first` before the others."""
    if first not in images.keys:
        return list(chosen)
    index = images.keys.index(first)
    others = [other for other in chosen if other != index]
    return [index, *others[: len(chosen) - 1]]


def find_tool(scheme: str) -> PackTarget:
    """The pack target for which models are hardened by `scheme`, whose tool is installed.

    Raises:
        InputError: there is none that repzoo can run, or it is not installed.
    """
    able: list[str] = []
    for target in _targets():
        if hasattr(target, "compiler"):
            if target.scheme == scheme:
                compiler_of(target.name)
                return target
            able.append(target.scheme)
    raise InputError(
        f"repzoo cannot run the tool of {scheme}, only those of {', '.join(able)}; leave --judge "
        "tool out"
    )


def _targets() -> list[PackTarget]:
    targets: list[PackTarget] = []
    for name in TARGETS.names():
        options: list[str] = getattr(TARGETS.load(name), "options", list)()
        for full_name in (name, *(f"{name}:{option}" for option in options)):
            targets.append(open_target(full_name))
    return targets


def _unchanged(inputs: Inputs) -> Inputs:
    return inputs


class PackJudge:
    """See `quant.search.tool_judge.ToolJudge`."""

    def __init__(
        self,
        target: PackTarget,
        artifact: Artifact,
        images: ToolImages,
        seed: int,
        progress: Progress,
    ) -> None:
        """`artifact` is the folded float model."""
        self._target = target
        self._images = images
        self._seed = seed
        self._progress = progress
        engine = engines.engine(compiler_of(target.name).toolchain)
        if not engines.runs_packs(engine):
            raise InputError(
                f"the engine {engine.name} does not run compiled packs; leave --judge tool out"
            )
        self._engine = engine
        chosen = images.judged.balanced_sample(JUDGED_IMAGES, seed)
        judged = images.judged.subset(chosen)
        preprocess = artifact.require_preprocess()
        self._inputs: list[Inputs] = []
        for batch in batches(judged, preprocess, BATCH, ReadReport()):
            self._inputs.append(batch.inputs)
        self._float = open_run(artifact, engines.engine(DEFAULT_ENGINE))
        self._head = find_head(artifact.model)

    def compare(self, candidate: Artifact, first_image: str) -> ToolFigures:
        """See `ToolJudge.compare`."""
        with tempfile.TemporaryDirectory(prefix="repzoo.") as aside:
            folder = Path(aside) / "pack"
            images = self._images.ordered(first_image)
            job = PackJob(candidate, images, seed=self._seed)
            write_pack(self._target, job, folder)
            path = self._quantize(folder)
            session = self._engine.open_pack(
                path, candidate.require_preprocess(), streams=available_cores()
            )
            return self._measure(session)

    def _measure(self, session: Any) -> ToolFigures:
        """The tool's model against float, on the pixels that reach both."""
        # Formats of cameras lose colors, of which quantizing is innocent.
        carried = getattr(session, "carried", _unchanged)

        def logits(inputs: Inputs) -> tuple[Inputs, Inputs]:
            return logits_of(self._float, carried(inputs)), session.run(inputs)

        pairs = list(map_in_order(logits, self._inputs))
        in_float = np.concatenate([first for first, _ in pairs])
        in_tool = np.concatenate([second for _, second in pairs])
        in_tool = in_tool.reshape(in_float.shape)
        head = self._head.refine(in_float)
        first, second = head.logits(in_float), head.logits(in_tool)
        same = float((first.argmax(1) == second.argmax(1)).mean()) * 100
        return ToolFigures(len(first), same, snr_db(first, second))

    def _quantize(self, folder: Path) -> Path:
        """What the tool's simulator opens; the tool's log stays where it fails."""
        with tempfile.NamedTemporaryFile(
            prefix="repzoo.", suffix=".log", delete=False
        ) as file:
            log = Path(file.name)
        path = quantize_pack(folder, log, MINUTES, self._progress)
        log.unlink()
        return path
