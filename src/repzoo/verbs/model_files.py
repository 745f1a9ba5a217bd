"""Models from ONNX files and from the weights that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from repzoo.artifact import Artifact as StoredArtifact
from repzoo.artifact import Preprocess, labels_fit
from repzoo.errors import InputError
from repzoo.packs.compile import packed_model
from repzoo.packs.pack import MANIFEST
from repzoo.plugins import unknown
from repzoo.preprocessing import require_input_fits
from repzoo.settings import fields_of
from repzoo.storage import read_lines
from repzoo.verbs.assumed_preprocess import assume_preprocess
from repzoo.verbs.public_artifact import Artifact
from repzoo.zoo import catalog, embedded, hub

ModelLike = StoredArtifact | str | Path | onnx.ModelProto
# .ckpt is Lightning's, .bin Hugging Face's, .pdparams Paddle's; PyTorch users write the others.
CHECKPOINT_SUFFIXES = (
    ".pth",
    ".pt",
    ".pth.tar",
    ".ckpt",
    ".bin",
    ".pdparams",
    ".safetensors",
)
SHOWN_CLASSES = 4  # in the message about classes that no embedded model has


def open_models(models: ModelLike | Sequence[ModelLike]) -> list[Artifact]:
    """The models of a list or tuple, or the single one; each as `open_model` accepts it."""
    if isinstance(models, list | tuple):
        return [open_model(model) for model in models]
    # A type checker does not conclude that what is no list is a single model.
    single: Any = models
    return [open_model(single)]


def open_model(model: ModelLike) -> Artifact:
    """The public Artifact of an artifact, an ONNX file, an embedded model's name or a ModelProto.

    Raises:
        InputError: of another type, or as `load_file`.
    """
    if isinstance(model, Artifact):
        return model
    if isinstance(model, StoredArtifact):
        return Artifact.wrap(model)
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model)
    if isinstance(model, str | Path):
        return load_file(model)
    raise InputError(
        "a model must be an Artifact, a path, a name or an onnx.ModelProto; "
        f"got {type(model).__name__}"
    )


def load_file(
    source: str | Path,
    labels: Path | Sequence[str] | None = None,
    **preprocess: Any,
) -> Artifact:
    """The model in an ONNX file, an embedded one such as `repghostnet_050.digits`, or one on
    Hugging Face: `hf:owner/name[/file.onnx][@revision]`.

    labels      names of the outputs in order, or a text file with one a line; None leaves the
                file's own
    preprocess  fields of Preprocess; they replace the file's own, None leaves a field as it is

    Raises:
        InputError: no such file or model (the nearest names are offered), an unreadable file, or
            another number of labels than outputs.
    """
    name, path = str(source), Path(source)
    if hub.is_hub_name(name):
        fetched = hub.fetch(name)
        model = load_file(fetched.path, labels, **preprocess)
        return replace(model, origin=fetched.origin)
    if is_checkpoint(path):
        raise InputError(
            f"{path} is a checkpoint, not a model; export it first: "
            f"repzoo export MODEL --checkpoint {path} -o model.onnx"
        )
    if path.is_dir() and (path / MANIFEST).is_file():
        # The float model; engines of vendors run what was compiled from it.
        model = load_file(packed_model(path), labels, **preprocess)
        return replace(model, pack=path)
    # By its suffix too: the error for a missing file should name the file, not similar models.
    if path.suffix == ".onnx" or path.exists():
        stored = StoredArtifact.read(path)
    elif name in embedded.names():
        stored = embedded.read(name)
    else:
        raise InputError(_why_not_found(name))
    if labels is not None:
        stored = with_labels(stored, labels)
    return with_preprocess(stored, preprocess)


def read_labels(path: Path) -> list[str]:
    """The names of the outputs in a text file, one a line.

    Of a line with tabs, such as those of classes.tsv, the first column counts.
    """
    return [line.split("\t")[0].strip() for line in read_lines(path)]


def with_labels(model: StoredArtifact, labels: Path | Sequence[str]) -> StoredArtifact:
    """`model` with the names `labels` of its outputs, or those in a text file.

    Raises:
        InputError: another number of names than of outputs, or an unreadable file.
    """
    names = read_labels(labels) if isinstance(labels, Path) else list(labels)
    if not labels_fit(len(names), model.num_classes):
        where = f"{labels} has" if isinstance(labels, Path) else "labels has"
        raise InputError(
            f"{where} {len(names)} names for the {model.num_classes} outputs of {model.name}; "
            "expected one name for each output, in order"
        )
    return replace(model, labels=tuple(names))


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a file whose suffix is that of a checkpoint."""
    return path.name.lower().endswith(CHECKPOINT_SUFFIXES) and path.is_file()


def with_preprocess(model: StoredArtifact, changes: Mapping[str, Any]) -> Artifact:
    """`model` with the Preprocess fields of `changes` that are not None replaced.

    Raises:
        InputError: an unknown field (the nearest are offered), or a value that is not accepted.
    """
    known = [field.name for field in fields_of(Preprocess)]
    for name in changes:
        if name not in known:
            raise InputError(unknown("preprocessing field", name, known))
    new = {name: value for name, value in changes.items() if value is not None}
    if not new:
        return Artifact.wrap(model)
    if model.preprocess is None:
        return Artifact.wrap(assume_preprocess(model, new))
    preprocess = Preprocess.from_mapping({**asdict(model.preprocess), **new})
    if "size" in new:
        # Here, and not where images are read: `fold` reads none, but writes the size.
        require_input_fits(model.model, preprocess, model.name)
    assumed = tuple(name for name in model.assumed if name not in new)
    return Artifact.wrap(replace(model, preprocess=preprocess, assumed=assumed))


def embedded_for(classes: Sequence[str]) -> str:
    """The name of the embedded model that knows all of `classes`.

    Raises:
        InputError: there is none.
    """
    for name in embedded.names():
        if set(classes) <= set(embedded.read(name).labels):
            return name
    more = ", ..." if len(classes) > SHOWN_CLASSES else ""
    raise InputError(
        f"no embedded model knows the classes {', '.join(classes[:SHOWN_CLASSES])}{more}; "
        "give a MODEL.onnx, or train one: repzoo train repghostnet_050 --data DIR"
    )


def require_float(model: StoredArtifact) -> None:
    """Refuse a model in INT8 or in half precision where a float one is needed.

    Raises:
        InputError: `model` is quantized.
    """
    if model.form in ("fp16", "bf16"):
        raise InputError(
            f"{model.name} is in half precision ({model.form}); give the float32 model it was made "
            "from"
        )
    if model.form == "int8":
        raise InputError(
            f"{model.name} is quantized already; give the float model it was made from"
        )


def _from_proto(model: onnx.ModelProto) -> Artifact:
    try:
        data = model.SerializeToString()
    except ValueError as error:  # protobuf cannot write more than 2 GiB
        raise InputError(f"the ONNX model cannot be serialized: {error}") from None
    name = model.graph.name or "model"
    # Through bytes, so that it is checked as a file is, and the caller's model is never changed.
    return Artifact.wrap(StoredArtifact.from_bytes(data, name, where="the ONNX model"))


def _why_not_found(name: str) -> str:
    models = [row.name for row in catalog.models()]
    for row in catalog.checkpoints():
        if row.name == name:
            return (
                f"the weights of {name} do not ship with repzoo; "
                f"train them in a checkout of the repository: {row.command}"
            )
    if name in models:
        return (
            f"{name} has no embedded weights; export it first: repzoo export {name} -o "
            f"{name}.onnx (random weights; those of a file with --checkpoint FILE)"
        )
    # repghostnet_050.digit is a misspelled name of weights, my_model.onx a misspelled file.
    path = Path(name)
    if (path.suffix or len(path.parts) > 1) and path.stem not in models:
        return (
            f"there is no file {name}, and no embedded model of that name; check the path, or see "
            "what `repzoo list` shows"
        )
    return unknown("model", name, [*embedded.names(), *models])
