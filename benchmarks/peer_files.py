"""The files that benchmarks/peers.py times, each made once and kept in a folder for each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from benchmarks import models, textures
from repzoo import __version__, verbs
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import DataSource
from repzoo.data.source import open_source
from repzoo.errors import InputError, RepzooError
from repzoo.preprocessing import Preprocess
from repzoo.protobuf_stream import clone
from repzoo.quant.baselines import registry
from repzoo.storage import make_folder
from repzoo.verbs import QuantizeOptions

MODULE = "module.pt"  # weights of the training form
FLOAT = "float"  # what peers are given: timm's fold, or the user's file
OWN_FLOAT = "repzoo"
PEERS = ("ort-static", "nncf-default")
OWN_ENGINES = ("onnxruntime", "openvino")  # those that compute INT8
STATISTICS_IMAGES = 64
HEAD_IMAGES = 640
TRAINING = "train"
LARGEST_EXACT_WEIGHT = 64  # see quant/network/host_arithmetic.py


@dataclass(frozen=True)
class Setting:
    """How files are made.

    data            folder of images; "" for benchmarks/textures.py
    images          that calibrate
    search_seconds  of repzoo's placement search
    threads         of the sessions that it times; more than one may be asked for
    renew           make files anew that are there
    """

    data: str
    images: int
    search_seconds: float | None
    threads: Sequence[int]
    renew: bool

    def source(self) -> DataSource:
        """The images that train, calibrate and judge."""
        return open_source(self.data) if self.data else textures.source()


@dataclass(frozen=True)
class ModelFolder:
    """One model's files.

    model  a name of the catalog or of timm, or an ONNX file
    path   of the folder
    """

    model: str
    path: Path

    @property
    def is_file(self) -> bool:
        """Whether the model is an ONNX file of the user's."""
        return self.model.endswith(".onnx")

    @property
    def name(self) -> str:
        """Of the model, in tables."""
        return Path(self.model).stem if self.is_file else self.model

    def file(self, name: str) -> Path:
        """The ONNX file called `name` in here."""
        return self.path / f"{name}.onnx"

    def read(self, name: str) -> Artifact:
        """The model called `name` in here.

        Raises:
            InputError: it was not made.
        """
        path = self.file(name)
        if not path.exists():
            raise InputError(
                f"{path} was not made; see what --step build and --step quantize print"
            )
        return Artifact.read(path)


def open_folder(work: Path, model: str) -> ModelFolder:
    """The folder of `model` below `work`."""
    folder = ModelFolder(model, work)
    return replace(folder, path=make_folder(work / folder.name))


def build(folder: ModelFolder, setting: Setting) -> None:
    """Make the float files and the INT8 files of other quantizers that are missing."""
    _make_once(folder, FLOAT, setting, partial(_float, folder, setting))
    _make_once(folder, OWN_FLOAT, setting, partial(_own_float, folder, setting))
    for name in PEERS:
        make = partial(_quantize_by_peer, folder, setting, name)
        _make_if_possible(folder, name, setting, make)


def quantize(folder: ModelFolder, setting: Setting) -> None:
    """Make repzoo's INT8 files that are missing, one for each engine and number of threads."""
    for engine, threads in product(OWN_ENGINES, setting.threads):
        make = partial(_quantize_own, folder, setting, engine, threads)
        _make_if_possible(folder, own_int8(engine, threads), setting, make)


def own_int8(engine: str, threads: int = 1) -> str:
    """The name of repzoo's INT8 file for sessions of `engine` with so many threads."""
    several = f"-{threads}-threads" if threads > 1 else ""
    return f"repzoo-{engine}{several}"


def trained_module(folder: ModelFolder) -> tuple[torch.nn.Module, Preprocess]:
    """The training form with the weights that all files have, and its preprocessing.

    Raises:
        InputError: the model is an ONNX file.
    """
    if folder.is_file:
        raise InputError("an ONNX file has no PyTorch module")
    module, preprocess = models.create(folder.model)
    module.load_state_dict(torch.load(folder.path / MODULE, weights_only=True))
    return module.eval(), preprocess


def with_batch(artifact: Artifact, batch: int) -> Artifact:
    """`artifact` for a fixed batch; in its graph a first side of 1 means the batch."""
    model = clone(artifact.model)
    for value in (*model.graph.input, *model.graph.output):
        side = value.type.tensor_type.shape.dim[0]
        side.Clear()
        side.dim_value = batch
    del model.graph.value_info[:]  # they may state another batch
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in shapes:
            sides = numpy_helper.to_array(tensor).copy()
            if sides.size and sides[0] == 1:
                sides[0] = batch
                tensor.CopyFrom(numpy_helper.from_array(sides, tensor.name))
    return Artifact(model, artifact.name, artifact.preprocess, artifact.labels)


def has_8_bit_weights(model: onnx.ModelProto) -> bool:
    """Whether a quantized weight exceeds what hosts without VNNI add exactly."""
    stored = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        tensor = stored.get(node.input[0]) if node.input else None
        if node.op_type != "DequantizeLinear" or tensor is None:
            continue
        if tensor.data_type != onnx.TensorProto.INT8:
            continue
        values = numpy_helper.to_array(tensor).astype(np.int16)
        if values.size and np.abs(values).max() > LARGEST_EXACT_WEIGHT:
            return True
    return False


def _float(folder: ModelFolder, setting: Setting) -> Artifact:
    """The user's file as it is, or timm's fold of a model that is trained for a moment here."""
    if folder.is_file:
        return verbs.load(folder.model)
    module, preprocess = models.create(folder.model)
    source = setting.source()
    images, targets = _arrays(source, preprocess)
    models.train_briefly(module, images, targets)
    models.set_statistics(module, images[:STATISTICS_IMAGES])
    models.fit_head(module, images, targets)
    torch.save(module.state_dict(), folder.path / MODULE)
    return models.by_timm(folder.name, module, preprocess, labels_for(source.classes))


def _own_float(folder: ModelFolder, setting: Setting) -> Artifact:
    """repzoo's fold of the same."""
    if folder.is_file:
        artifact = verbs.load(folder.model)
        return verbs.fold(artifact) if artifact.form == "train" else artifact
    module, preprocess = trained_module(folder)
    labels = labels_for(setting.source().classes)
    return models.by_repzoo(folder.name, module, preprocess, labels)


def labels_for(classes: Sequence[str]) -> tuple[str, ...]:
    """A label for each of the model's outputs; those without images are called by their number."""
    others = [f"unused {index}" for index in range(len(classes), models.CLASSES)]
    return (*classes, *others)


def _arrays(
    source: DataSource, preprocess: Preprocess
) -> tuple[models.Images, models.Targets]:
    """HEAD_IMAGES prepared training images with their classes."""
    training = source.join(*source.training_parts())
    sample = training.subset(training.balanced_sample(HEAD_IMAGES, models.SEED))
    images: list[models.Images] = []
    targets: list[int] = []
    for batch in batches(sample, preprocess, models.IMAGES_AT_ONCE, ReadReport()):
        images.append(batch.inputs)
        for index in batch.indices:
            targets.append(sample.targets[index])
    order = np.random.default_rng(models.SEED).permutation(len(targets))
    return np.concatenate(images)[order], np.array(targets)[order]


def _quantize_by_peer(folder: ModelFolder, setting: Setting, name: str) -> Artifact:
    artifact = folder.read(FLOAT)
    calibration, gate = setting.source().calibration_split(setting.images, models.SEED)
    max_drop = QuantizeOptions().max_drop
    task = registry.make_task(artifact, calibration, gate, max_drop, ReadReport())
    model = registry.load_quantizer(name)(task)
    return artifact.then(model, Step("quantize", __version__, {"recipe": name}))


def _quantize_own(
    folder: ModelFolder, setting: Setting, engine: str, threads: int
) -> Artifact:
    options = QuantizeOptions(
        engine=engine,
        images=setting.images,
        search=setting.search_seconds,
        new_search=True,
        threads=threads,
        force=True,
    )
    artifact = folder.read(OWN_FLOAT)
    int8 = verbs.quantize(artifact, setting.source(), options=options)
    report = int8.report
    assert report is not None
    paired = report.paired.values
    print(
        f"    {report.chosen.stage} {report.chosen.placement}: drop {paired.drop:.2f}, "
        f"{paired.same_prediction:.1f} % unchanged",
        flush=True,
    )
    return int8


def _make_if_possible(
    folder: ModelFolder, name: str, setting: Setting, make: Callable[[], Artifact]
) -> None:
    """As `_make_once`; a quantizer's refusal is printed, and others go on."""
    try:
        _make_once(folder, name, setting, make)
    except RepzooError as error:
        print(f"{folder.name}: {name}: {error}", flush=True)


def _make_once(
    folder: ModelFolder, name: str, setting: Setting, make: Callable[[], Artifact]
) -> None:
    """Write the file `name` unless it is there."""
    path = folder.file(name)
    if path.exists() and not setting.renew:
        return
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    make().save(path)
    print(f"{folder.name}: {name}: {time.perf_counter() - began:.0f} s", flush=True)
