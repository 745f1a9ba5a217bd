"""Layer after layer: each is fitted to what the quantised network before it really gives, not to what the float one gave.

With x the float and x' the quantised network's columns at the same positions (see layers.py), a layer's outputs are kept best by

    minimise over W', b' of E |W' x' + b' - (W x + b)|^2 .

In real numbers that is W* = W + W (C - H) (H + damping)^-1 with H = cov(x', x') and C = cov(x, x'), and for any W'

    b' = b + W E[x] - W' E[x'] .

W' is W* rounded to second order against H (rounding.py). Errors of earlier layers, clipping included, are so undone where they are
linear in what is left, instead of adding up.
Sources: Y. Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", arXiv:2504.02692, section 3 (the
same asymmetric objective); A. Finkelstein et al., "Fighting Quantization Bias With Bias", arXiv:1906.03193 (biases in sequence).

Memory: the statistics of one stage's layers and the activations of a batch; the images themselves are held, prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import classifier_input
from repzoo.engines import Engine
from repzoo.progress import Progress, silent
from repzoo.quant import layers as layering
from repzoo.quant import plan as planning
from repzoo.quant import qdq, rounding
from repzoo.quant.layers import Layer
from repzoo.quant.observe import LEAST_ROWS, ROWS_PER_COLUMN
from repzoo.quant.place import Placement
from repzoo.quant.plan import Plan
from repzoo.quant.scheme import QuantScheme

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
IMAGES = 128  # that are passed again for each stage
STAGES = 32  # at most: each costs a pass over the images through both networks up to it
BATCH = 16
WIDEST = 4096  # columns of a layer beyond which its own Gram matrix is too large: such a layer keeps its plan


@dataclass(frozen=True)
class Paired:
    """Of a layer's columns, float x and quantised x': E[x], E[x'] [G, K]; cov(x', x') and cov(x, x') [G, K, K]."""

    mean: Float
    quantised: Float
    gram: Float
    cross: Float


def target(rows: Float, seen: Paired, damping: float = rounding.DAMPING) -> Float:
    """W* [G, O, K]: the real weights that bring W' x' nearest to W x, whatever the bias. Groups of constant inputs stay."""
    mean = np.einsum("gkk->gk", seen.gram).mean(1)
    alive = mean > 0
    safe = np.where(alive, mean, 1.0)[:, None, None]
    damped = seen.gram / safe + damping * np.eye(seen.gram.shape[-1])
    missing = rows @ ((seen.cross - seen.gram) / safe)
    moved = np.linalg.solve(damped, missing.transpose(0, 2, 1)).transpose(0, 2, 1)  # damped is symmetric
    return np.asarray(rows + np.where(alive[:, None, None], moved, 0.0))


def bias(rows: Float, restored: Float, seen: Paired) -> Float:
    """What to add to the bias, [O], so that mean outputs are the float network's."""
    return np.asarray((np.einsum("gok,gk->go", rows, seen.mean) - np.einsum("gok,gk->go", restored, seen.quantised)).reshape(-1))


def refined(  # noqa: PLR0913
    model: onnx.ModelProto,
    start: Plan,
    placement: Placement,
    scheme: QuantScheme,
    images: Images,
    engine: Engine,
    progress: Progress = silent,
) -> Plan:
    """`start`, a plan for the float `model`, with weights and biases fitted stage by stage on `images` [N, 3, S, S].

    Activations' parameters stay. Deterministic. A layer's scales are those of its new weights.
    """
    found, values = layering.layers(model), layering.constants(model)
    fitted = [one for name, one in found.items() if name in start.rounded and one.fan_in <= WIDEST]
    kept = start.rounded.keys() - {one.name for one in fitted}
    ready, held = layering.layers(start.model), layering.constants(start.model)
    biases = {name: layering.biases(ready[name], held) for name in kept}
    made = replace(start, model=planning.with_biases(model, found, biases), rounded={name: start.rounded[name] for name in kept})
    stages = _stages(model, fitted)
    for number, stage in enumerate(stages):
        reached = _upto(model, placement, frozenset(made.rounded))
        before = planning.write(made, reached, scheme)
        fresh = dict(made.rounded)
        for one, seen in _observed(model, before, stage, images, engine):
            rows, own = layering.weights(one, values), layering.biases(one, values)
            wanted = target(rows, seen)
            room = np.abs(own) / (start.activations[one.source].scale * qdq.INT32_ROOM)
            scale = planning.scales(one, wanted, scheme, room)
            integers = rounding.second_order(wanted, seen.gram, scale, scheme.weight_peak)
            fresh[one.name] = planning.stored(one, integers, scale, scheme)
            biases[one.name] = own + bias(rows, integers * scale, seen)
        made = replace(made, model=planning.with_biases(model, found, biases), rounded=fresh)
        progress("fit", number + 1, len(stages))
    return made


def _stages(model: onnx.ModelProto, wanted: Sequence[Layer]) -> list[list[Layer]]:
    """`wanted` in at most STAGES groups, such that a layer depends on layers of its own group or earlier ones alone."""
    named, depth = {one.name: one for one in wanted}, dict[str, int]()
    for node in model.graph.node:
        here = max((depth.get(value, 0) for value in node.input), default=0)
        depth.update((value, here + (node.output[0] in named)) for value in node.output)
    deepest = max((depth[name] for name in named), default=1)
    count = min(STAGES, deepest)
    groups: list[list[Layer]] = [[] for _ in range(count)]
    for one in wanted:
        groups[(depth[one.name] - 1) * count // deepest].append(one)
    return [group for group in groups if group]


def _upto(model: onnx.ModelProto, placement: Placement, done: frozenset[str]) -> Placement:
    """`placement` as far as every layer before is `done`: its tensors behind others are float still."""
    known = {item.name for item in (*model.graph.input, *model.graph.initializer)} | {""}
    layered = frozenset(layering.layers(model)) & placement.nodes
    for node in model.graph.node:
        if known.issuperset(node.input) and (node.output[0] in done or node.output[0] not in layered):
            known.update(node.output)
    return Placement(placement.name, done, tuple(name for name in placement.tensors if name in known))


class _Gathering:
    """Paired moments of one layer under way."""

    def __init__(self, one: Layer, images: int) -> None:
        self.layer, size = one, (one.groups, one.fan_in, one.fan_in)
        self.count = -(-max(LEAST_ROWS, ROWS_PER_COLUMN * one.fan_in) // images)
        self.gram, self.cross, self.rows = np.zeros(size), np.zeros(size), 0
        self.sums = np.zeros((2, one.groups, one.fan_in))

    def add(self, exact: Images, given: Images, seed: int) -> None:
        """Both activations of a batch, at the same positions."""
        own, theirs = (layering.columns(self.layer, one, self.count, np.random.default_rng(seed)) for one in (exact, given))
        self.rows += own.shape[1]
        self.sums += np.stack([own.sum(1, dtype=np.float64), theirs.sum(1, dtype=np.float64)])
        self.gram += theirs.transpose(0, 2, 1) @ theirs
        self.cross += own.transpose(0, 2, 1) @ theirs

    def done(self) -> Paired:
        mean, quantised = self.sums / self.rows
        outer = quantised[:, None, :]
        gram = self.gram / self.rows - quantised[:, :, None] * outer
        return Paired(mean, quantised, gram, self.cross / self.rows - mean[:, :, None] * outer)


def _observed(
    model: onnx.ModelProto, before: onnx.ModelProto, stage: Sequence[Layer], images: Images, engine: Engine
) -> list[tuple[Layer, Paired]]:
    """What each layer of `stage` reads in the float `model` and in the quantised `before`."""
    restored = _restored(before)
    sources = [one.source for one in stage]
    exact, given = _Probe(model, sources, engine), _Probe(before, [restored.get(name, name) for name in sources], engine)
    gathered = [_Gathering(one, len(images)) for one in stage]
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        ours, theirs = exact.run(batch), given.run(batch)
        for one in gathered:
            source = one.layer.source
            one.add(ours[source], theirs[restored.get(source, source)], start)
    return [(one.layer, one.done()) for one in gathered]


def _restored(model: onnx.ModelProto) -> dict[str, str]:
    """Quantised tensor -> what its DequantizeLinear gives."""
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    pairs = ((node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "DequantizeLinear")
    return {stored[value]: restored for value, restored in pairs if value in stored}


class _Probe:
    """A session that gives some tensors of a model and computes no more than these need."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], engine: Engine) -> None:
        self.source = classifier_input(model).name
        self.names = [name for name in dict.fromkeys(names) if name != self.source]
        made, needed = onnx.ModelProto(), set(self.names)
        made.CopyFrom(model)
        kept = []
        for node in reversed(model.graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        del made.graph.node[:], made.graph.output[:]
        made.graph.node.extend(reversed(kept))
        made.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in self.names)
        unread = [item for item in made.graph.initializer if item.name not in needed]
        for item in unread:
            made.graph.initializer.remove(item)
        self.session = engine.open(made) if self.names else None

    def run(self, inputs: Images) -> dict[str, Images]:
        """The tensors by name; the input is one of them."""
        values = self.session.run_all(inputs) if self.session else []
        return {self.source: inputs, **dict(zip(self.names, values, strict=True))}
