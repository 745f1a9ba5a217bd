"""The files that benchmarks/peers.py times, each made once and kept in a folder for each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from timm.models import reparameterize_model

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
HEAD_IMAGES = 320
TRAINING = "train"
LARGEST_EXACT_WEIGHT = 64  # see quant/network/host_arithmetic.py


@dataclass(frozen=True)
class Setting:
    """How files are made.

    data            folder of images; "" for benchmarks/textures.py
    images          that calibrate
    search_seconds  of repzoo's placement search
    renew           make files anew that are there
    """

    data: str
    images: int
    search_seconds: float
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
    name = Path(model).stem if model.endswith(".onnx") else model
    return ModelFolder(model, make_folder(work / name))


def build(folder: ModelFolder, setting: Setting) -> None:
    """Make the float files and the INT8 files of other quantizers that are missing."""
    if setting.renew or not folder.file(OWN_FLOAT).exists():
        make_floats = _floats_of_file if folder.is_file else _floats_of_name
        _timed(f"{folder.name}: float files", lambda: make_floats(folder, setting))
    for name in PEERS:
        make = lambda name=name: _quantize_by_peer(folder, setting, name)  # noqa: E731
        _make_once(folder, name, setting, make)


def quantize(folder: ModelFolder, setting: Setting) -> None:
    """Make repzoo's INT8 files that are missing, one for each engine."""
    for engine in OWN_ENGINES:
        make = lambda engine=engine: _quantize_own(folder, setting, engine)  # noqa: E731
        _make_once(folder, own_int8(engine), setting, make)


def own_int8(engine: str) -> str:
    """The name of repzoo's INT8 file for `engine`."""
    return f"repzoo-{engine}"


def deploy_module(folder: ModelFolder) -> torch.nn.Module:
    """timm's reparameterized module, with the weights that all files have.

    Raises:
        InputError: the model is an ONNX file.
    """
    if folder.is_file:
        raise InputError("an ONNX file has no PyTorch module")
    module, _ = models.create(folder.model)
    module.load_state_dict(torch.load(folder.path / MODULE, weights_only=True))
    deploy: torch.nn.Module = reparameterize_model(module.eval())
    return deploy


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


def _floats_of_name(folder: ModelFolder, setting: Setting) -> None:
    """Train a model of the catalog or of timm for a moment; write its folds by timm and repzoo."""
    module, preprocess = models.create(folder.model)
    source = setting.source()
    images, targets = _arrays(source, preprocess)
    models.train_briefly(module, images, targets)
    models.set_statistics(module, images[:STATISTICS_IMAGES])
    models.fit_head(module, images, targets)
    torch.save(module.state_dict(), folder.path / MODULE)
    labels = labels_for(source.classes)
    models.by_timm(folder.name, module, preprocess, labels).save(folder.file(FLOAT))
    own = models.by_repzoo(folder.name, module, preprocess, labels)
    own.save(folder.file(OWN_FLOAT))


def labels_for(classes: Sequence[str]) -> tuple[str, ...]:
    """A label for each of the model's outputs; those without images are called by their number."""
    others = [f"unused {index}" for index in range(len(classes), models.CLASSES)]
    return (*classes, *others)


def _floats_of_file(folder: ModelFolder, setting: Setting) -> None:
    """The user's file as it is, and as repzoo folds it."""
    artifact = verbs.load(folder.model)
    own = verbs.fold(artifact) if artifact.form == "train" else artifact
    artifact.save(folder.file(FLOAT))
    own.save(folder.file(OWN_FLOAT))


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


def _quantize_own(folder: ModelFolder, setting: Setting, engine: str) -> Artifact:
    options = QuantizeOptions(
        engine=engine,
        images=setting.images,
        search=setting.search_seconds,
        force=True,
    )
    artifact = folder.read(OWN_FLOAT)
    int8 = verbs.quantize(artifact, setting.source(), options=options)
    report = int8.report
    assert report is not None
    paired = report.paired
    print(
        f"    {report.chosen.stage} {report.chosen.placement}: drop {paired.drop:.2f}, "
        f"{paired.same_prediction:.1f} % unchanged",
        flush=True,
    )
    return int8


def _make_once(
    folder: ModelFolder, name: str, setting: Setting, make: Callable[[], Artifact]
) -> None:
    """Write the file `name` unless it is there; say why where that is impossible."""
    path = folder.file(name)
    if path.exists() and not setting.renew:
        return
    path.unlink(missing_ok=True)
    try:
        _timed(f"{folder.name}: {name}", lambda: make().save(path))
    except RepzooError as error:
        print(f"{folder.name}: {name}: {error}", flush=True)


def _timed(title: str, work: Callable[[], object]) -> None:
    """Do `work`, and print how long it took."""
    began = time.perf_counter()
    work()
    print(f"{title}: {time.perf_counter() - began:.0f} s", flush=True)
