"""What to type after a command: the last line that a person is shown.

Each function returns the arguments of one command, or None where nothing useful is known to work:
a folder of images cannot be guessed. All paths are those of the command that has ended.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.preprocessing import size_text
from repzoo.settings import fields_of
from repzoo.zoo import catalog

if TYPE_CHECKING:  # they import what takes long
    from repzoo.verbs import EvaluateOptions, Match, Pack, PackOptions

Command = list[str] | None
DIGITS = "digits"
# `repzoo pack` asks for as many calibration images.
PACK_IMAGES = 100


def after_export(model: Artifact, path: Path) -> Command:
    """Fold a training form; time what is folded already."""
    if model.form != "train":
        return after_writing(path)
    return ["repzoo", "fold", _path(path), "-o", _path(_beside(path, "deploy"))]


def after_writing(path: Path) -> Command:
    """Time a model about whose images nothing is known."""
    return ["repzoo", "bench", _path(path)]


def after_convert(model: str, path: Path) -> Command:
    """Make a model of the weights."""
    command = ["repzoo", "export", model, "--checkpoint", _path(path)]
    return [*command, "-o", f"{model}.onnx"]


def after_download(model: str, file: Path) -> Command:
    """Make a model of the weights, if torch is there to build it."""
    if model not in _exportable():
        return None
    return after_convert(model, file)


def after_fold(
    file: str, folded: Artifact, path: Path, data: Any, preprocess: Mapping[str, Any]
) -> Command:
    """Quantize where the images are known; else show what the fold gained."""
    if data is None and tuple(folded.labels) == tuple("0123456789"):
        data = _digits()
    if data is None:
        timed = [_path(file), _path(path)]
        return ["repzoo", "bench", *timed, *_options(preprocess)]
    output = _path(_beside(path, "int8"))
    command = ["repzoo", "quantize", _path(path), "-o", output]
    # The folded file holds the preprocessing, if it was stated.
    return [*command, "--data", _path(data)]


def after_quantize(
    file: str, path: Path, data: str, engine: str, preprocess: Mapping[str, Any]
) -> Command:
    """Compare the quantized model with its float model, image by image."""
    command = ["repzoo", "evaluate", _path(path), "--against", _path(file)]
    command += ["--data", _path(data), *_engine(engine)]
    return [*command, *_options(preprocess)]


def after_evaluate(
    files: Sequence[str],
    against: str | None,
    options: EvaluateOptions,
    append: Path | None,
    preprocess: Mapping[str, Any],
) -> Command:
    """Time what was evaluated, into the same Records."""
    timed = list(dict.fromkeys([against, *files] if against else files))
    # What a vendor's tool has compiled is simulated here, which has no latency.
    if not timed or any(Path(file).is_dir() for file in timed):
        return None
    command = ["repzoo", "bench", *map(_path, timed)]
    command += [*_engine(",".join(options.engine)), *_options(preprocess)]
    return [*command, "--append", _path(append)] if append else command


def after_records(append: Path | None) -> Command:
    """Show Records that were appended."""
    if append is None:
        return None
    return ["repzoo", "page", _path(append), "-o", _path(append.with_suffix(".html"))]


def after_train(artifact: Artifact, output: Path | None, data: str) -> Command:
    """The whole job on the trained model."""
    folder = output or Path("runs") / artifact.name
    model = folder / f"{artifact.name}.onnx"
    return ["repzoo", "card", _path(model), "--data", _path(data)]


def after_card(folder: Path, append: Path | None) -> Command:
    """The page of all Records."""
    records = append or folder / "records.jsonl"
    return ["repzoo", "page", _path(records), "-o", _path(folder / "page.html")]


def after_harden(hardened: Artifact, path: Path, target: str, data: str) -> Command:
    """Pack the hardened model."""
    from repzoo.packs.pack import TARGETS

    # Other schemes have no pack.
    if target not in TARGETS.names():
        return None
    output = path.with_name(f"{path.stem}.pack")
    command = ["repzoo", "pack", _path(path), "--target", target]
    command += ["--data", _path(data), "-o", _path(output)]
    images = int(hardened.steps[-1].settings.get("calibration_images", PACK_IMAGES))
    if images < PACK_IMAGES:
        command += ["--calibration", str(images)]
    return command


def after_pack(
    file: str,
    pack: Pack,
    data: str,
    options: PackOptions,
    preprocess: Mapping[str, Any],
) -> Command:
    """Compile the pack where its tool chain is installed; evaluate what is compiled."""
    if pack.compiled is not None:
        engine = pack.compiled.target.partition(":")[0]
        command = ["repzoo", "evaluate", _path(pack.folder), "--engine", engine]
        command += ["--data", _path(data), "--against", _path(file)]
        return [*command, *_options(preprocess)]
    from repzoo.packs.compile import compiler_of

    try:
        compiler_of(options.target)
    except InputError:
        return None
    return ["repzoo", "pack", _path(pack.folder), "--compile"]


def after_match(result: Match) -> Command:
    """Export the best model, if it is one of the catalog and can be built here."""
    best = result.best
    if best is None or best.model not in _exportable():
        return None
    name = best.model
    options = ["--pretrained", "--form", "deploy", "-o", f"{name}.onnx"]
    return ["repzoo", "export", name, *options]


def _exportable() -> set[str]:
    """The names of the models of the catalog; none without what builds them."""
    if not importlib.util.find_spec("timm"):
        return set()
    return {spec.name for spec in catalog.models()}


def _digits() -> str | None:
    """The name of the embedded images, if the package that holds them is installed."""
    return DIGITS if importlib.util.find_spec("sklearn") else None


def _path(path: str | Path) -> str:
    """A path as an argument. One that begins with a dash would be taken for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _beside(path: Path, form: str) -> Path:
    """m.onnx -> m.int8.onnx; the name of another form is replaced."""
    stem = path.stem
    for known in (".train", ".deploy"):
        stem = stem.removesuffix(known)
    return path.with_name(f"{stem}.{form}.onnx")


def _engine(name: str) -> list[str]:
    return [] if name == DEFAULT_ENGINE else ["--engine", name]


def _options(preprocess: Mapping[str, Any]) -> list[str]:
    """The options that state `preprocess`; None is one that was not given."""
    arguments: list[str] = []
    labels = preprocess.get("labels")
    if labels is not None:
        arguments += ["--labels", _path(labels)]
    for field in fields_of(Preprocess):
        value = preprocess.get(field.name)
        if value is None:
            continue
        if field.name == "size":
            value = size_text(value)
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return arguments
