"""The calibration pass: run images through the float model once and collect its statistics.

Every statistic that a later step needs is declared before the pass. Memory does not grow with the
number of images. For each tensor: exact extremes, a histogram and a mean of each channel. For each
layer: the mean and the Gram matrix X'X of its im2col columns, which GPTQ rounding, bias correction
and the SQNR report need.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from repzoo.engines import Engine, Session
from repzoo.engines.batches import run_in_batches
from repzoo.errors import InputError
from repzoo.graph.tools.head import find_head
from repzoo.graph.tools.pieces import Pieces, split_model, trim_heap
from repzoo.graph.tools.skeleton import initializer_bytes, without_weights
from repzoo.measure.expected_drop import Margins
from repzoo.onnx_file import classifier_input, fixed_batch
from repzoo.progress import Progress, silent
from repzoo.quant.calibration.disk_buffer import DiskBuffer
from repzoo.quant.calibration.observers import (
    GramObserver,
    HistogramObserver,
    MagnitudeCheck,
    Observer,
    gram_width,
    positions_per_image,
)
from repzoo.quant.calibration.open_batch import (
    can_open_batch,
    mixes_images,
    open_batch,
)
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.layers import Layer

Images = npt.NDArray[np.float32]

WHOLE_BYTES = 2**26  # a model with more weights runs piece by piece
PIECE_BYTES = 2**24  # weights of one piece
PROBED_BYTES = 2**28  # observed activations of one batch
MAX_BATCH = 16
# Shares of a batch's observers for each thread. With more, threads wait for one another more often.
TASKS_PER_THREAD = 2


@dataclass(frozen=True)
class CalibrationStream:
    """The images of one calibration pass.

    Attributes:
        batches: float32 inputs, [N, 3, H, W]; iterated once.
        images: expected number of images in all, so that sampling can be spread evenly.
        progress: called after each batch.
    """

    batches: Iterable[Images]
    images: int
    progress: Progress = silent

    def with_progress(
        self,
        batches: Iterable[Images],
        piece: int,
        pieces: int,
    ) -> Iterator[Images]:
        """Yield `batches` and report progress, for piece number `piece` of `pieces`."""
        done = piece * self.images
        self.progress("calibrate", done, pieces * self.images)
        for batch in batches:
            yield batch
            done += len(batch)
            self.progress("calibrate", done, pieces * self.images)


def collect_statistics(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    layers: Sequence[Layer],
    stream: CalibrationStream,
    engine: Engine,
    threads: int,
) -> Statistics:
    """Run the images of `stream` through `model` and collect statistics.

    A model with more than WHOLE_BYTES of weights runs piece by piece, since a runtime needs three
    times the memory of the weights: all images go through one piece before the next is compiled,
    and the activations between pieces wait on disk. The statistics are the same.

    Args:
        model: the float model.
        tensors: activations to make histograms of.
        layers: those whose input moments are collected.
        stream: the images.
        engine: runs the model.
        threads: of the engine and of the observers.

    Raises:
        InputError: no image, a tensor that is not finite or not in the model, or no disk space.
    """
    positions = positions_per_image(stream.images)
    of_tensors: dict[str, HistogramObserver] = {}
    for name in tensors:
        of_tensors[name] = HistogramObserver(name, positions, stream.images)
    # a layer's input is observed even without a histogram, to refuse values that are not finite
    others = {layer.source for layer in layers} - of_tensors.keys()
    checks = [MagnitudeCheck(name) for name in sorted(others)]
    width = gram_width(layers, initializer_bytes(model))
    of_layers = [GramObserver(layer, width, stream.images) for layer in layers]
    observers = [*of_tensors.values(), *checks, *of_layers]
    margins = run_observers(model, observers, stream, engine, threads)

    histograms = {name: observer.histogram for name, observer in of_tensors.items()}
    moments = {observer.layer.name: observer.moments for observer in of_layers}
    images = len(margins.classes)
    return Statistics(histograms, moments, images, margins)


def _check_tensors_exist(model: onnx.ModelProto, observers: Iterable[Observer]) -> None:
    available = _computed_tensors(model) | {classifier_input(model).name}
    missing = {observer.source for observer in observers} - available
    if missing:
        raise InputError(
            f"the model computes no tensor {min(missing)!r}; name outputs of its nodes"
        )


def _computed_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all tensors that nodes of `model` compute."""
    names: set[str] = set()
    for node in model.graph.node:
        names.update(node.output)
    return names


def run_observers(
    model: onnx.ModelProto,
    observers: Sequence[Observer],
    stream: CalibrationStream,
    engine: Engine,
    threads: int,
) -> Margins:
    """Show every tensor of `model` to its observers, piece by piece; the margins of the logits.

    Raises:
        InputError: see `collect_statistics`.
    """
    _check_tensors_exist(model, observers)
    pieces: Pieces | list[onnx.ModelProto] = [model]
    if initializer_bytes(model) > WHOLE_BYTES:
        pieces = split_model(model, PIECE_BYTES)
    available = {classifier_input(model).name}
    waiting = list(observers)
    activations = stream.batches
    # Of the whole model: a piece does not say how many images it takes.
    opens_batch = can_open_batch(model)
    batch = fixed_batch(model)
    index = 0
    with contextlib.ExitStack() as buffers:
        # not enumerate(): it would hold on to a piece, and its weights, until the next one
        for piece in pieces:
            available |= _computed_tensors(piece)
            active, waiting = _split_by_source(waiting, available)
            # Runtimes rearrange weights for speed, which takes six times their memory. A single
            # layer much larger than a piece is compiled without that.
            is_oversized = initializer_bytes(piece) > 2 * PIECE_BYTES
            exact = len(pieces) > 1 and is_oversized
            compiler = _Compiler(engine, threads, exact, batch, opens_batch)
            probe = compiler.compile(piece, active)
            if not opens_batch:
                batch = 0  # later pieces get what the first one gives, as it comes
            del piece  # the session has its own copy of the weights
            trim_heap()
            inputs = stream.with_progress(activations, index, len(pieces))
            activations = buffers.enter_context(DiskBuffer(probe.run(inputs)))
            index += 1
            for observer in active:
                observer.close()
            del probe  # frees its session before the next one is opened
            trim_heap()
        return _margins(model, activations)


def _margins(model: onnx.ModelProto, outputs: Iterable[Images]) -> Margins:
    """The logit margins of all images, from the `outputs` of `model` for each batch."""
    head = find_head(model)
    margins: list[Margins] = []
    for batch in outputs:
        rows = batch.reshape(len(batch), -1)
        logits = head.refine(rows).logits(rows)
        margins.append(Margins.from_logits(logits))
    if not margins:
        raise InputError(
            "no calibration image could be read; "
            "give --data with images of the kind that the model will see"
        )
    return Margins.concatenate(margins)


def _split_by_source(
    observers: Iterable[Observer], available: Container[str]
) -> tuple[list[Observer], list[Observer]]:
    """(observers whose tensor is available, the others)."""
    ready: list[Observer] = []
    waiting: list[Observer] = []
    for observer in observers:
        group = ready if observer.source in available else waiting
        group.append(observer)
    return ready, waiting


@dataclass(frozen=True)
class _Probe:
    """A compiled model, or a piece of one, that also returns the tensors its observers watch.

    Attributes:
        session: returns the tensors `outputs`.
        source: the input.
        outputs: the tensors that are watched, and `target`.
        target: the output of the model or piece.
        observers: watch `source` and `outputs`.
        threads: share the observers among them.
        batch: images that the model takes at once; 0 for any number.
        is_opened: whether the session takes any number all the same. What several images give
            together is compared with what each batch gives alone before it is believed.
    """

    session: Session
    source: str
    outputs: tuple[str, ...]
    target: str
    observers: Sequence[Observer]
    threads: int
    batch: int
    is_opened: bool

    def run(self, batches: Iterable[Images]) -> Iterator[Images]:
        """Yield the model's output for each batch, after its observers have seen the batch."""
        others: list[Observer] = []
        grams: list[Observer] = []
        for observer in self.observers:
            group = grams if isinstance(observer, GramObserver) else others
            group.append(observer)
        # One BLAS thread for each of ours: sharing each of many small products among several
        # threads takes three times as long.
        blas_threads = max(1, self.threads // max(1, len(grams)))
        with (
            ThreadPoolExecutor(self.threads) as pool,
            threadpool_limits(blas_threads, "blas"),
        ):
            for inputs, results in self._run_all(batches):
                tensors = dict(zip(self.outputs, results, strict=True))
                tensors[self.source] = inputs
                # Gram matrices last: the others refuse values that are not finite
                self._observe(pool, others, tensors)
                self._observe(pool, grams, tensors)
                yield tensors[self.target]

    def _run_all(
        self, batches: Iterable[Images]
    ) -> Iterator[tuple[Images, list[Images]]]:
        """(the inputs, all outputs of the session) of each batch."""
        batch = self.batch
        is_checked = not self.is_opened
        for inputs in batches:
            if not is_checked and len(inputs) > batch:
                is_checked = True
                if not mixes_images(self.session, inputs, batch):
                    batch = 0
            yield inputs, run_in_batches(self.session, inputs, batch)

    def _observe(
        self,
        pool: ThreadPoolExecutor,
        observers: Sequence[Observer],
        tensors: Mapping[str, Images],
    ) -> None:
        """Show a batch to `observers`, shared among the threads of `pool`."""
        tasks = self.threads * TASKS_PER_THREAD
        shares = [observers[start::tasks] for start in range(tasks)]
        results = pool.map(partial(_add_batch, tensors), shares)
        list(results)  # waits, and raises what a thread raised


@dataclass(frozen=True)
class _Compiler:
    """How the pieces of a model are compiled.

    Attributes:
        engine, threads, exact: see `Engine.open`.
        batch: images that the model takes at once; 0 for any number.
        opens_batch: whether it may take any number all the same.
    """

    engine: Engine
    threads: int
    exact: bool
    batch: int
    opens_batch: bool

    def compile(self, model: onnx.ModelProto, observers: Sequence[Observer]) -> _Probe:
        """Compile `model`, with the tensors that `observers` watch as outputs."""
        source = classifier_input(model).name
        target = model.graph.output[0].name
        outputs = dict.fromkeys(observer.source for observer in observers)
        outputs.pop(source, None)  # an input is known without being an output
        outputs[target] = None
        names = tuple(outputs)
        with _with_outputs(model, names):
            session, is_opened = self._open(model)
        return _Probe(
            session,
            source,
            names,
            target,
            observers,
            self.threads,
            self.batch,
            is_opened,
        )

    def _open(self, model: onnx.ModelProto) -> tuple[Session, bool]:
        """(the session, whether its batch was opened)."""
        if self.opens_batch:
            # An engine may compile for fixed sizes only.
            with contextlib.suppress(InputError), open_batch(model):
                return self.engine.open(model, self.threads, self.exact), True
        return self.engine.open(model, self.threads, self.exact), False


def _add_batch(tensors: Mapping[str, Images], observers: Sequence[Observer]) -> None:
    """Show each of `observers` its tensor of a batch."""
    for observer in observers:
        observer.add(tensors[observer.source])


@contextlib.contextmanager
def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[None]:
    """Give `model` the outputs `names` for as long as it is being compiled."""
    # in place, since a copy would hold the weights twice just when memory is tightest
    original = list(model.graph.output)
    try:
        del model.graph.output[:]
        for name in names:
            kind = onnx.TensorProto.FLOAT
            value = onnx.helper.make_tensor_value_info(name, kind, shape=None)
            model.graph.output.append(value)
        yield
    finally:
        del model.graph.output[:]
        model.graph.output.extend(original)


def batch_size(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    limit: int = PROBED_BYTES,
) -> int:
    """How many images have activations `tensors` within `limit` bytes, 1 to MAX_BATCH.

    Of a model with a fixed batch size, as many of its batches, at least one. Observers see all of
    these images at once, since each call of one has a cost. A model that runs in pieces gets one
    batch, unless it takes any number. An unknown size counts as 0.
    """
    wanted = set(tensors)
    bytes_per_image = 0
    inferred = onnx.shape_inference.infer_shapes(without_weights(model))
    for value in inferred.graph.value_info:
        if value.name in wanted:
            dims = value.type.tensor_type.shape.dim[1:]
            sides = [dim.dim_value for dim in dims]
            bytes_per_image += 4 * math.prod(sides)  # float32
    largest = limit // max(bytes_per_image, 1)
    size = min(max(largest, 1), MAX_BATCH)
    fixed = fixed_batch(model)
    if not fixed:
        return size
    is_whole = initializer_bytes(model) <= WHOLE_BYTES
    return fixed * max(size // fixed, 1) if is_whole or can_open_batch(model) else fixed
