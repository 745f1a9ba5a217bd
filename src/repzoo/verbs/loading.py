"""Opening models: from a file, from the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from repzoo.artifact import Artifact, Preprocess
from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.zoo import catalog, embedded


def load(model: str | Path, **preprocess: Any) -> Artifact:
    """An artifact from a file or from the package (`repghostnet_050.digits`).

    preprocess  fields of Preprocess that replace, or for a foreign file supply, what the file says

    Raises:
        InputError: no such file or model; the nearest names are offered.
    """
    path = Path(model)
    if path.suffix == ".onnx" or path.exists():
        found = Artifact.read(path)
    elif str(model) in embedded.names():
        found = embedded.read(str(model))
    elif row := next((row for row in catalog.checkpoints() if row.name == str(model)), None):
        raise InputError(
            f"the weights of {model} do not come with repzoo; in a checkout make them: {row.command}"
        )
    elif str(model) in {row.name for row in catalog.models()}:
        raise InputError(
            f"{model} has no embedded weights; write it first: repzoo export {model} -o {model}.onnx --checkpoint FILE"
        )
    else:
        raise InputError(
            unknown(
                "model", str(model), [*embedded.names(), *(row.name for row in catalog.models())]
            )
        )
    given = {key: value for key, value in preprocess.items() if value is not None}
    if not given:
        return found
    base = asdict(found.preprocess) if found.preprocess else {}
    return replace(found, preprocess=Preprocess.from_mapping({**base, **given}))


def embedded_for(classes: Sequence[str]) -> str:
    """Name of the embedded checkpoint that knows all of `classes`.

    Raises:
        InputError: none does; says what to do.
    """
    for name in embedded.names():
        if set(classes) <= set(embedded.read(name).labels):
            return name
    raise InputError(
        f"no embedded model knows the classes {', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}; give a MODEL.onnx, "
        "or train one: repzoo train repghostnet_050 --data DIR"
    )
