"""What the engines of vendors' tool chains share: they run compiled packs, and no other model."""

from __future__ import annotations

from typing import NoReturn

import onnx

from repzoo.errors import InputError
from repzoo.vendors.environment import require_installed
from repzoo.vendors.recipes import Recipe, find_recipe


class CompiledPackEngine:
    """An engine that has `open_pack` (see `engines.Engine`) and refuses plain models.

    name  of the engine, of its pack target and of its tool chain
    tool  as its maker calls it
    """

    name: str
    tool: str
    simulates_int8 = True

    def version(self) -> str:
        """Of the tool."""
        recipe = find_recipe(self.name)
        require_installed(recipe)
        return recipe.version

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> NoReturn:
        """Refuse: what the board computes is in the compiled pack, not in `model`."""
        raise InputError(
            f"the engine {self.name} runs packs that {self.tool} compiled; make one with: repzoo "
            f"pack MODEL.onnx -o PACK --target {self.name} --data DIR --compile, then give the "
            f"folder PACK; {self._prediction()}"
        )

    def installed(self) -> Recipe:
        """The tool chain's recipe.

        Raises:
            InputError: it is not installed; the message says what to type.
        """
        recipe = find_recipe(self.name)
        try:
            require_installed(recipe)
        except InputError as error:
            raise InputError(f"{error}; {self._prediction()}") from None
        return recipe

    def _prediction(self) -> str:
        return (
            f"without the tool chain, repzoo harden --target {self.name} predicts the "
            "accuracy"
        )
