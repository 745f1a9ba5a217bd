"""One streaming calibration pass. What later steps need is declared first; memory does not grow with the number of images.

Of a tensor: exact extremes of each channel, and a histogram and a mean of each channel from random positions (the same for a
seed). Of a layer: the mean and the Gram matrix X'X of its columns (see layers.py), from random output positions, which is what
second-order rounding, bias correction and the diagnosis need. Everything can be rescaled afterward as if the model had been
equalized before the pass, so one pass serves with and without equalization.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits

from repzoo.artifact import classifier_input
from repzoo.engines import Engine, Session
from repzoo.errors import InputError
from repzoo.graph.tools.pieces import initializer_bytes, split_model, trim_heap, without_weights
from repzoo.measure.expected_drop import Margins
from repzoo.progress import Progress, silent
from repzoo.quant.calibration.disk_buffer import Spool
from repzoo.quant.network import layers
from repzoo.quant.network.layers import Layer

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
BINS = 256
SAMPLES, LEAST_SPOTS = (
    2**13,
    32,
)  # values of each channel behind a histogram, in all and of each image; extremes take all
KEPT_VALUES = 256  # of each channel, as they are
SCATTER = 7919  # a prime, for positions far from one another
HELD_VALUES = 512  # of a channel, before they are counted
HELD_ROWS = (
    128,
    256,
)  # of a Gram matrix, before they are counted: a large matrix a few times, not often
ROWS_PER_COLUMN, LEAST_ROWS = 4, 4096  # output positions behind a Gram matrix, in all
GRAM_BYTES = (2**26, 2**28)  # of all Gram matrices together, float32: the least and the most
CALIBRATION_BYTES = 10**9  # of the process, while it calibrates
OTHER_BYTES = (
    45 * 10**7
)  # of them for what is neither weights nor Gram matrices: the libraries, a piece at work, a batch
WHOLE_BYTES, PIECE_BYTES = (
    2**26,
    2**24,
)  # of weights: of a model that runs as a whole, and of pieces of larger ones
PROBED_BYTES = 2**26  # of the activations of one batch
MOST_IMAGES = 16  # of a batch
SHARES = (
    2  # of the work on a batch, for each thread: few, since threads wait for one another at each
)
SMALLEST_STEP = 2.0**-100  # of a histogram that is counted in float32
LARGEST = 1e16  # of an activation: sums of some thousand squares stay within float32


class Histogram:
    """Counts of each channel's values over -edge..edge, where edge is a power of two that grows as values ask for it.

    low, high   exact extremes of each channel, [C]
    counts      [C, BINS]; zeros [C] values that are exactly 0 (they cost nothing to quantize) are counted apart
    kept        some of the values [C, up to KEPT_VALUES], of all images alike: a bin may be as wide as a step of what is quantized,
                and does not say to which side its values will be rounded
    """

    def __init__(self, channels: int) -> None:
        self.counts: npt.NDArray[np.int32 | np.uint16] = np.zeros((channels, BINS), np.int32)
        self.zeros: npt.NDArray[np.int64] = np.zeros(channels, np.int64)
        self.edge: Float = np.zeros(channels)
        self.low: Float = np.full(channels, np.inf)
        self.high: Float = np.full(channels, -np.inf)
        self.sum: Float = np.zeros(channels)
        self.kept: npt.NDArray[np.float32] = np.zeros((channels, 0), np.float32)

    @property
    def numbers(self) -> Ids:
        """Values counted of each channel, [C]."""
        return np.asarray(self.counts.sum(1, dtype=np.int64) + self.zeros)

    @property
    def total(self) -> int:
        """Values counted, of all channels."""
        return int(self.numbers.sum())

    def add(
        self,
        values: npt.NDArray[np.float32],
        low: npt.NDArray[np.float32],
        high: npt.NDArray[np.float32],
    ) -> None:
        """Count `values` [C, n], finite, whose channels' extremes (and those of values not given) are `low`, `high` [C]."""
        self.reach(low, high)
        self.count(values)

    def reach(self, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> None:
        """Note the channels' extremes [C]."""
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    def count(self, values: npt.NDArray[np.float32]) -> None:
        """Count `values` [C, n], finite, all within the extremes."""
        self._widen(np.maximum(-self.low, self.high))
        self.sum += values.sum(1, dtype=np.float64)
        step = np.where(self.edge > 0, self.edge, 1.0)[:, None] / (BINS // 2)
        # steps are powers of two: in float32 too the quotient is exact, where it does not leave the range
        exact = (
            np.float32
            if step.max(initial=0) <= 1 and step.min(initial=1) >= SMALLEST_STEP
            else np.float64
        )
        scaled = values * (1 / step).astype(exact)
        np.floor(scaled, out=scaled)
        np.minimum(scaled, BINS // 2 - 1, out=scaled)  # the edge itself
        bins = scaled.astype(np.int64)
        bins += np.arange(len(step))[:, None] * BINS + BINS // 2
        zeros = values.shape[1] - np.count_nonzero(values, axis=1)
        self.zeros += zeros
        self.counts += (
            np.bincount(bins.reshape(-1), minlength=self.counts.size)
            .reshape(self.counts.shape)
            .astype(np.int32)
        )
        self.counts[:, BINS // 2] -= zeros

    def compact(self) -> None:
        """Nothing more will be counted: hold the counts in as little memory as they need."""
        if self.counts.max(initial=0) <= np.iinfo(np.uint16).max:
            self.counts = self.counts.astype(np.uint16)

    def _widen(self, reach: Float) -> None:
        wanted = np.where(
            reach > 0, np.exp2(np.ceil(np.log2(np.maximum(reach, np.finfo(float).tiny)))), 0.0
        )
        for channel in np.flatnonzero(wanted > self.edge):
            if self.edge[channel] > 0:
                self.counts[channel] = _halved(
                    self.counts[channel], round(np.log2(wanted[channel] / self.edge[channel]))
                )
            self.edge[channel] = wanted[channel]

    @property
    def centers(self) -> Float:
        """The middle of each bin, [C, BINS]."""
        return np.asarray(((np.arange(BINS) + 0.5) * (2 / BINS) - 1) * self.edge[:, None])

    @property
    def mean(self) -> Float:
        """Of each channel, [C]."""
        return np.asarray(self.sum / np.maximum(1, self.numbers))

    def rescaled(self, factors: Float) -> Histogram:
        """The histogram of values / factors, factors positive [C]."""
        made = Histogram(len(factors))
        made.counts, made.zeros = self.counts, self.zeros
        made.edge, made.low, made.high, made.sum = (
            item / factors for item in (self.edge, self.low, self.high, self.sum)
        )
        made.kept = (self.kept / factors[:, None]).astype(np.float32)
        return made


def _halved(counts: npt.NDArray[np.int32], times: int) -> npt.NDArray[np.int32]:
    """Counts over a range 2**times as wide."""
    for _ in range(min(times, BINS)):
        quarter = np.zeros(BINS // 4, np.int32)
        counts = np.concatenate([quarter, counts.reshape(-1, 2).sum(1, dtype=np.int32), quarter])
    return counts


@dataclass(frozen=True)
class Moments:
    """Of a layer's columns: their mean [G, K] and, block by block along K, mean of x x' [G, k, k].

    stored   the latter of the columns as gathered; factors [G, K] they have been divided by since: what is divided is made when it
             is asked for, since all layers' together are what calibration holds most of
    blocks   where each block begins and ends; more than one only where the whole matrix would take too much memory
    """

    mean: Float
    stored: tuple[npt.NDArray[np.float32], ...]
    blocks: tuple[tuple[int, int], ...]
    rows: int
    factors: Float | None = None

    @property
    def grams(self) -> tuple[npt.NDArray[np.float32], ...]:
        """Mean of x x', [G, k, k] a block."""
        if self.factors is None:
            return self.stored
        return tuple(
            _divided(gram, self.factors[:, a:b])
            for gram, (a, b) in zip(self.stored, self.blocks, strict=True)
        )

    def rescaled(self, factors: Float) -> Moments:
        """Moments of columns / factors, [G, K]."""
        return replace(
            self,
            mean=self.mean / factors,
            factors=factors if self.factors is None else self.factors * factors,
        )


def _divided(gram: npt.NDArray[np.float32], factors: Float) -> npt.NDArray[np.float32]:
    """`gram` [G, k, k] of columns / factors [G, k], without a copy in float64 of what is large."""
    narrow = factors.astype(np.float32)
    made = np.divide(gram, narrow[:, :, None], dtype=np.float32)
    made /= narrow[:, None, :]
    return made


@dataclass(frozen=True)
class Statistics:
    """What one pass found: histograms by tensor, moments by layer, how many images were seen, and the answers' margins on each."""

    histograms: Mapping[str, Histogram]
    moments: Mapping[str, Moments]
    images: int
    margins: Margins

    def rescaled(self, factors: Mapping[str, Float], reads: Iterable[Layer]) -> Statistics:
        """As if each tensor named in `factors` had been divided by its factors [C] before the pass."""
        scaled = {
            name: one.rescaled(factors[name]) if name in factors else one
            for name, one in self.histograms.items()
        }
        moved = {
            one.name: self.moments[one.name].rescaled(one.per_column(factors[one.source]))
            for one in reads
            if one.source in factors and one.name in self.moments
        }
        return replace(self, histograms=scaled, moments={**self.moments, **moved})


class Observer:
    """What takes in one tensor, batch after batch. Its random positions depend on its name alone, not on what else is taken in."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self._random = np.random.default_rng(zlib.crc32(name.encode()))

    def add(self, values: Images) -> None:
        """Take in a batch."""
        raise NotImplementedError

    def close(self) -> None:
        """After the last batch."""
        raise NotImplementedError


class GramObserver(Observer):
    """Moments of one layer under way."""

    def __init__(self, one: Layer, width: int, images: int) -> None:
        super().__init__(one.source, f"columns of {one.name}")
        self.layer = one
        channels = max(1, width // int(np.prod(one.kernel))) * int(np.prod(one.kernel))
        edges = [*range(0, one.fan_in, channels), one.fan_in]
        self.blocks = tuple(itertools.pairwise(edges))
        self.grams = [np.zeros((one.groups, b - a, b - a), np.float32) for a, b in self.blocks]
        self.sum, self.rows = np.zeros((one.groups, one.fan_in)), 0
        self._each = -(
            -max(LEAST_ROWS, ROWS_PER_COLUMN * one.fan_in) // max(images, 1)
        )  # rows of an image
        self._most = int(np.clip(channels, *HELD_ROWS))
        self._held: list[npt.NDArray[np.float32]] = []

    def add(self, values: Images) -> None:
        at = layers.sample_positions(self.layer, values, self._each, self._random)
        self._held.append(layers.im2col(self.layer, values, at))
        if sum(one.shape[2] for one in self._held) >= self._most:
            self._take()

    def _take(self) -> None:
        found = (
            np.concatenate(self._held, axis=2) if len(self._held) > 1 else self._held[0]
        )  # which would copy even one
        self._held.clear()
        self.rows += found.shape[2]
        self.sum += found.sum(2, dtype=np.float64)
        for gram, (a, b) in zip(self.grams, self.blocks, strict=True):
            if (
                len(gram) == 1
            ):  # two dimensions let NumPy see that it is xx', which BLAS computes in half the time
                gram[0] += found[0, a:b] @ found[0, a:b].T
            else:
                gram += found[:, a:b] @ found[:, a:b].transpose(0, 2, 1)

    def close(self) -> None:
        if self._held:
            self._take()
        for gram in self.grams:
            gram /= max(
                self.rows, 1
            )  # in place: a second copy of every layer's would double what calibration holds most of

    @property
    def moments(self) -> Moments:
        return Moments(self.sum / self.rows, tuple(self.grams), self.blocks, self.rows)


def gram_width(wanted: Sequence[Layer], weights: int) -> int:
    """The widest block for which all Gram matrices together fit beside so many bytes of `weights`."""
    room = np.clip(CALIBRATION_BYTES - OTHER_BYTES - weights, *GRAM_BYTES)
    width = max((one.fan_in for one in wanted), default=1)
    while (
        width > 64
        and sum(4 * one.groups * one.fan_in * min(width, one.fan_in) for one in wanted) > room
    ):
        width //= 2
    return width


@dataclass(frozen=True)
class CalibrationStream:
    """What runs through a model once.

    batches  inputs
    images   how many are expected in all, for sampling positions evenly
    """

    batches: Iterable[Images]
    images: int
    progress: Progress = silent

    def shown(self, batches: Iterable[Images], piece: int, pieces: int) -> Iterator[Images]:
        """`batches` on their way through one of so many pieces of the model, with progress."""
        done = piece * self.images
        for batch in batches:
            yield batch
            done += len(batch)
            self.progress("calibrate", done, pieces * self.images)


def collect_statistics(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    reads: Sequence[Layer],
    feed: CalibrationStream,
    engine: Engine,
    threads: int,
) -> Statistics:
    """Histograms of the float activations `tensors`, and moments of the layers `reads`, of `model` over what it is fed.

    A model of more than WHOLE_BYTES of weights runs piece by piece, all images through one before the next is compiled, since an
    engine takes three times the weights; what goes from piece to piece lies on disk. The statistics are the same.

    Raises:
        InputError: no batch, a tensor that is not finite (it is named) or not there, no room for temporary files.
    """
    known, names = (
        {classifier_input(model).name},
        list(dict.fromkeys([*tensors, *(one.source for one in reads)])),
    )
    if lost := {*names} - known - _computed(model):
        raise InputError(f"the model computes no tensor {min(lost)!r}; name outputs of its nodes")
    width, spots = (
        gram_width(reads, initializer_bytes(model)),
        max(LEAST_SPOTS, SAMPLES // max(feed.images, 1)),
    )
    counted = [HistogramObserver(name, name in tensors, spots, feed.images) for name in names]
    gathered = [GramObserver(one, width, feed.images) for one in reads]
    waiting: list[Observer] = [*counted, *gathered]
    parts = split_model(model, PIECE_BYTES) if initializer_bytes(model) > WHOLE_BYTES else [model]
    flow, done = feed.batches, 0
    with contextlib.ExitStack() as files:
        for part in parts:
            known |= _computed(part)
            takers = [one for one in waiting if one.source in known]
            waiting = [one for one in waiting if one.source not in known]
            # a layer much larger than a piece is compiled as it stands: to rearrange its weights takes six times their memory
            exact = len(parts) > 1 and initializer_bytes(part) > 2 * PIECE_BYTES
            probe = _Probe.of(part, takers, engine, threads, exact)
            del part  # a piece goes with its weights
            trim_heap()
            fed = feed.shown(flow, done, len(parts))
            flow = files.enter_context(Spool(probe.answers(fed)))
            done += 1
            for one in takers:
                one.close()
            del probe  # and its session before the next is opened
            trim_heap()
        margins = [Margins.from_logits(logits.reshape(len(logits), -1)) for logits in flow]
    if not margins:
        raise InputError(
            "no calibration image could be read; give --data with images of the kind the model will see"
        )
    answers = Margins.concatenate(margins)
    histograms = {one.source: one.histogram for one in counted if one.source in tensors}
    return Statistics(
        histograms, {one.layer.name: one.moments for one in gathered}, len(answers.classes), answers
    )


def _computed(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


@dataclass(frozen=True)
class _Probe:
    """A compiled model or piece of one that gives, beside its answer, what its takers want to see."""

    session: Session
    source: str
    outputs: tuple[str, ...]
    target: str
    takers: Sequence[Observer]
    threads: int

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        takers: Sequence[Observer],
        engine: Engine,
        threads: int,
        exact: bool,
    ) -> _Probe:
        source, target = classifier_input(model).name, model.graph.output[0].name
        outputs = tuple(
            dict.fromkeys([*(one.source for one in takers if one.source != source), target])
        )
        with _probed(model, outputs) as probed:
            session = engine.open(probed, threads, exact)
            return cls(session, source, outputs, target, takers, threads)

    def answers(self, batches: Iterable[Images]) -> Iterator[Images]:
        """To each batch, taken in on the way."""
        kinds = [
            [one for one in self.takers if isinstance(one, kind)]
            for kind in (HistogramObserver, GramObserver)
        ]
        # one thread of BLAS for each of ours: many small products, shared among its threads, cost three times what they need
        own = max(1, self.threads // max(1, len(kinds[1])))
        with ThreadPoolExecutor(self.threads) as pool, threadpool_limits(own, "blas"):
            for inputs in batches:
                found = dict(zip(self.outputs, self.session.run_all(inputs), strict=True))
                for takers in kinds:  # what is not finite is refused before sums are made of it
                    shares = [
                        takers[at :: self.threads * SHARES] for at in range(self.threads * SHARES)
                    ]
                    list(pool.map(partial(_take_in, {self.source: inputs, **found}), shares))
                yield found[self.target]


def _take_in(values: Mapping[str, Images], takers: Sequence[Observer]) -> None:
    for one in takers:
        one.add(values[one.source])


def batch_size(model: onnx.ModelProto, tensors: Iterable[str], limit: int = PROBED_BYTES) -> int:
    """Images that one call should take, so that the activations `tensors` of them stay within `limit` bytes."""
    fixed = classifier_input(model).type.tensor_type.shape.dim
    if fixed and fixed[0].dim_value:
        return int(fixed[0].dim_value)
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    shapes = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim][1:]
        for item in graph.value_info
    }
    each = sum(4 * int(np.prod(shapes.get(name, [0]))) for name in set(tensors))
    return int(np.clip(limit // max(each, 1), 1, MOST_IMAGES))


@contextlib.contextmanager
def _probed(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[onnx.ModelProto]:
    """`model` with the outputs `names`, while it is compiled, and not a copy: its weights would be held twice just then."""
    own = list(model.graph.output)
    try:
        del model.graph.output[:]
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
        )
        yield model
    finally:
        del model.graph.output[:]
        model.graph.output.extend(own)


def _require_finite(name: str, low: Images, high: Images) -> None:
    """Raise InputError where the extremes of the tensor `name`, [C], say that it cannot be used."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InputError(
            f"the tensor {name!r} is not finite on calibration images; the float model is broken there"
        )
    if (most := float(np.maximum(-low, high).max(initial=0.0))) > LARGEST:
        raise InputError(
            f"the tensor {name!r} reaches {most:.2g} on calibration images, and squares of it leave float32 (at most {LARGEST:g} "
            "is quantized); scale the layers around it: its values divided, the next layer's weights multiplied"
        )


class HistogramObserver(Observer):
    """The histogram of one tensor under way, of at most `spots` positions an image; its extremes alone, where it is not `wanted`."""

    def __init__(self, name: str, wanted: bool, spots: int, images: int) -> None:
        super().__init__(name, name)
        self._wanted, self._spots, self._images = wanted, spots, max(images, 1)
        self.histogram, self._seen = Histogram(0), 0
        self._held: list[Images] = []
        self._kept: list[Images] = []

    def add(self, values: Images) -> None:
        """Of [N, C, ...], at random positions, the same in all images of the batch."""
        flat = _flat(values)
        low, high = (
            flat.min(2).min(0),
            flat.max(2).max(0),
        )  # along what lies together first: three times as fast
        _require_finite(self.source, low, high)
        if not self._wanted:
            return
        if not len(self.histogram.low):
            self.histogram = Histogram(flat.shape[1])
        self.histogram.reach(low, high)
        if flat.shape[2] > self._spots:
            flat = flat.take(self._random.choice(flat.shape[2], self._spots, replace=False), axis=2)
        self._keep(flat)
        self._held.append(flat.transpose(1, 0, 2).reshape(flat.shape[1], -1))
        if sum(one.shape[1] for one in self._held) >= HELD_VALUES:
            self._count()

    def _keep(self, flat: Images) -> None:
        """A few values of each image of `flat` [N, C, positions], so that all images together make KEPT_VALUES."""
        due = np.arange(self._seen, self._seen + len(flat) + 1) * KEPT_VALUES // self._images
        self._seen += len(flat)
        numbers = np.arange(due[0], min(due[-1], KEPT_VALUES))
        images = np.searchsorted(due, numbers, "right") - 1
        self._kept.append(flat[images, :, numbers * SCATTER % flat.shape[2]].T)

    def _count(self) -> None:
        self.histogram.count(np.concatenate(self._held, axis=1))
        self._held.clear()

    def close(self) -> None:
        if self._held:
            self._count()
        self.histogram.compact()
        if self._kept:
            self.histogram.kept = np.concatenate(self._kept, axis=1)
            self._kept.clear()


def _flat(values: Images) -> Images:
    """[N, C, ...] as [N, C, positions]; anything of fewer axes is one channel."""
    return values.reshape(*values.shape[:2], -1) if values.ndim > 1 else values.reshape(1, 1, -1)
