"""Float graphs by the rewrites that made them, so that stages with the same rewrites share one."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.quant.rewrites.stages import FloatModel, Rewrite, Stage

Chain = tuple[Rewrite, ...]


class RewriteCache:
    """The float model after each chain of rewrites, made when it is first asked for.

    A chain extends the one without its last rewrite: stages that begin alike share that work. The
    original model, after no rewrite, is always kept.
    """

    def __init__(self, original: FloatModel) -> None:
        self._models: dict[Chain, FloatModel | None] = {(): original}

    @property
    def original(self) -> FloatModel:
        """The model that nothing was rewritten in, with its calibration statistics."""
        model = self._models[()]
        assert model is not None
        return model

    def changes(self, stage: Stage) -> bool:
        """Whether the rewrites of `stage` find anything to change in this model."""
        return self._find(stage.rewrites) is not None

    def get(self, stage: Stage) -> FloatModel:
        """The float model that `stage` quantizes; only for a stage that changes something."""
        model = self._find(stage.rewrites)
        assert model is not None
        return model

    def keep_only(self, stages: Sequence[Stage]) -> None:
        """Drop the graphs and statistics that none of `stages` is built from."""
        kept: dict[Chain, FloatModel | None] = {(): self.original}
        for stage in stages:
            for length in range(1, len(stage.rewrites) + 1):
                chain = stage.rewrites[:length]
                if chain in self._models:
                    kept[chain] = self._models[chain]
        self._models = kept

    def _find(self, chain: Chain) -> FloatModel | None:
        """The model after `chain`, or None where one of its rewrites would change nothing."""
        if chain not in self._models:
            before = self._find(chain[:-1])
            self._models[chain] = chain[-1](before) if before else None
        return self._models[chain]
