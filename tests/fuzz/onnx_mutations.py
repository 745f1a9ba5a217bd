"""Small classifiers, and changes that keep them parseable but seldom meaningful.

Each mutation changes a model in place. It draws from `random`, so that the same seed gives the
same model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

Mutation = Callable[[onnx.ModelProto, Random], None]

SIDE = 16
CLASSES = 3
SIZES = (0, 1, -1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
NUMBERS = (0.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), -float("inf"))
TEXTS = (
    "",
    "x",
    "a|b",
    "<script>",
    "\x1b[31m",
    "line\nbreak",
    "é" * 300,
    "../x",
    "\ud800",
)
OPERATORS = (
    "Conv",
    "BatchNormalization",
    "Relu",
    "Add",
    "Mul",
    "Div",
    "Reshape",
    "Flatten",
    "Gemm",
    "MatMul",
    "Transpose",
    "Concat",
    "Split",
    "Pad",
    "Slice",
    "Resize",
    "Expand",
    "Tile",
    "Range",
    "ConstantOfShape",
    "Softmax",
    "ArgMax",
    "GlobalAveragePool",
    "MaxPool",
    "AveragePool",
    "QuantizeLinear",
    "DequantizeLinear",
    "Identity",
    "Cast",
    "Shape",
    "NonZero",
    "Loop",
    "If",
    "NoSuchOperator",
)
ELEMENTS = (1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99)
DOCUMENTS: tuple[Any, ...] = (
    None,
    [],
    {},
    "text",
    -1,
    1e308,
    float("nan"),
    [[[[[[1]]]]]],
    {"size": 0},
    {"size": 1e9},
    {"size": "x"},
    {"mean": [float("nan")] * 3},
    {"std": [0, 0, 0]},
    ["a", "a", "a"],
    ["a|b", "<script>", "\x1b[2J"],
    [1, 2, 3],
    [{"verb": "train", "version": 1}],
    [{"verb": "train", "version": "1", "settings": {"data": float("inf")}}],
)

_HEAD = "p = GlobalAveragePool(x)\nf = Flatten(p)\ny = Gemm<transB = 1>(f, head, bias)"
_BODIES = {
    "plain": f"c = Conv<pads = [1, 1, 1, 1]>(data, w)\nb = BatchNormalization(c, s, s, s, s)\n"
    f"x = Relu(b)\n{_HEAD}",
    "branches": "a = Conv<pads = [1, 1, 1, 1]>(data, w)\nb = Conv<pads = [1, 1, 1, 1]>(data, w)\n"
    f"d = BatchNormalization(b, s, s, s, s)\ne = Add(a, d)\nx = Relu(e)\n{_HEAD}",
    "softmax": f"x = Conv<strides = [2, 2]>(data, w)\n{_HEAD.replace('y =', 'z =')}\n"
    "y = Softmax(z)",
    "shapes": "c = Conv(data, w)\nq = Shape(c)\nzero = Constant<value_ints = [0]>()\n"
    "n = Gather(q, zero)\nrest = Constant<value_ints = [-1]>()\nto = Concat<axis = 0>(n, rest)\n"
    "x = Relu(c)\nr = Reshape(x, to)\nm = ReduceMean<axes = [1]>(r)\n"
    "y = MatMul(m, row)",
    "qdq": "q = QuantizeLinear(data, scale, zero)\nd = DequantizeLinear(q, scale, zero)\n"
    f"x = Conv(d, w)\n{_HEAD}",
    "range": "c = Conv(data, w)\nlow = Constant<value_int = 0>()\nend = Constant<value_int = 9>()\n"
    "step = Constant<value_int = 1>()\nr = Range(low, end, step)\nk = Cast<to = 1>(r)\n"
    f"t = ReduceSum<keepdims = 0>(k)\nx = Mul(c, t)\n{_HEAD}",
    "loop": "c = Conv(data, w)\ntrips = Constant<value_int = 3>()\n"
    "go = Constant<value = bool {1}>()\n"
    "x = Loop(trips, go, c) <body = again (int64 i, bool on, float[N, 4, H, W] v) => "
    "(bool on2, float[N, 4, H, W] v2) { on2 = Identity(on)\nv2 = Relu(v) }>\n" + _HEAD,
    "function": f"c = Conv(data, w)\nx = own.act(c)\n{_HEAD}",
}
_FUNCTION = '<domain: "own", opset_import: ["" : 17]>\nact (v) => (u) { u = Relu(v) }'


def base_models() -> dict[str, onnx.ModelProto]:
    """A valid classifier of three classes for each kind of graph, by name."""
    return {name: _model(body) for name, body in _BODIES.items()}


def _model(body: str) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    own = ', "own" : 1' if "own." in body else ""
    function = _FUNCTION if own else ""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17{own}]>\n'
        f"main (float[N, 3, {SIDE}, {SIDE}] data) => (float[N, {CLASSES}] y) {{\n{body}\n}}\n"
        f"{function}"
    )
    shapes = {"w": (4, 3, 3, 3), "s": (4,), "head": (CLASSES, 4), "bias": (CLASSES,)}
    shapes |= {"row": (1, CLASSES), "scale": ()}
    for name, shape in shapes.items():
        values = random.uniform(0.2, 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(128, np.uint8), "zero")
    )
    _keep_read_weights(model)
    preprocess = {"size": SIDE, "resize": "squash", "crop_fraction": 1.0}
    set_metadata(model, "repzoo.preprocess", json.dumps(preprocess))
    return model


def _keep_read_weights(model: onnx.ModelProto) -> None:
    read: set[str] = set()
    made: set[str] = set()
    for node in model.graph.node:
        read.update(node.input)
        made.update(node.output)
    kept = []
    for item in model.graph.initializer:
        if item.name in read and item.name not in made:
            kept.append(item)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    """Replace, or add, one entry of the metadata."""
    others = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=key, value=value)


def mutate(model: onnx.ModelProto, random: Random, changes: int) -> bytes:
    """The bytes of `model` after so many changes; sometimes bytes change too."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(changes):
        random.choice(MUTATIONS)(changed, random)
    data = bytearray(changed.SerializeToString())
    if random.random() < 0.1:
        place = random.randrange(len(data))
        data[place] ^= 1 << random.randrange(8)
    if random.random() < 0.05:
        del data[random.randrange(len(data)) :]
    return bytes(data)


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto | None:
    """Any node, of a subgraph or function too."""
    nodes = list(model.graph.node)
    for function in model.functions:
        nodes.extend(function.node)
    for node in list(nodes):
        for attribute in node.attribute:
            nodes.extend(attribute.g.node)
    return random.choice(nodes) if nodes else None


def _names(model: onnx.ModelProto) -> Sequence[str]:
    names = ["", "nowhere"]
    for node in model.graph.node:
        names.extend(node.output)
    for values in (model.graph.input, model.graph.initializer):
        names.extend(item.name for item in values)
    return names


def _change_dimension(model: onnx.ModelProto, random: Random) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    dims = value.type.tensor_type.shape.dim
    if not dims or random.random() < 0.2:
        dims.add(dim_value=random.choice(SIZES))
    elif random.random() < 0.2:
        del dims[random.randrange(len(dims))]
    elif random.random() < 0.3:
        dims[random.randrange(len(dims))].dim_param = random.choice(TEXTS[:-1])
    else:
        dims[random.randrange(len(dims))].dim_value = random.choice(SIZES)


def _change_element(model: onnx.ModelProto, random: Random) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = random.choice(ELEMENTS)


def _change_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is None or not node.attribute:
        return
    attribute = random.choice(node.attribute)
    kind = random.randrange(5)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        types: Any = AttributeProto.AttributeType.values()
        attribute.type = random.choice(types)
    elif attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(SIZES)
    elif attribute.HasField("i"):
        attribute.i = random.choice(SIZES)
    elif attribute.HasField("f"):
        attribute.f = random.choice(NUMBERS)
    elif attribute.HasField("t"):
        _spoil_tensor(attribute.t, random)


def _add_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is None:
        return
    names = ("pads", "strides", "dilations", "kernel_shape", "axes", "group", "axis")
    name = random.choice(names)
    value: Any = [random.choice(SIZES) for _ in range(random.randrange(5))]
    if random.random() < 0.3:
        value = random.choice(SIZES)
    kind = AttributeProto.INTS if isinstance(value, list) else AttributeProto.INT
    node.attribute.append(helper.make_attribute(name, value, attr_type=kind))


def _change_operator(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is not None:
        node.op_type = random.choice(OPERATORS)


def _rewire(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is None:
        return
    name = random.choice(_names(model))
    if node.input and random.random() < 0.7:
        node.input[random.randrange(len(node.input))] = name
    elif random.random() < 0.5:
        node.input.append(name)
    elif node.output:
        node.output[0] = name


def _drop_node(model: onnx.ModelProto, random: Random) -> None:
    if model.graph.node:
        del model.graph.node[random.randrange(len(model.graph.node))]


def _reorder(model: onnx.ModelProto, random: Random) -> None:
    nodes = list(model.graph.node)
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _repeat_node(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is not None:
        model.graph.node.add().CopyFrom(node)


def _change_weight(model: onnx.ModelProto, random: Random) -> None:
    if model.graph.initializer:
        _spoil_tensor(random.choice(model.graph.initializer), random)


def _spoil_tensor(tensor: TensorProto, random: Random) -> None:
    kind = random.randrange(6)
    if kind == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(SIZES)
    elif kind == 1:
        tensor.data_type = random.choice(ELEMENTS)
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: random.randrange(8)]
    elif kind == 3:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=random.choice(["../x", "x", ""]))
    elif kind == 4:
        tensor.name = random.choice(["", "y", "data", "p"])
    elif len(tensor.raw_data) >= 4:
        whole = tensor.raw_data[: len(tensor.raw_data) // 4 * 4]
        values = np.frombuffer(whole, np.float32).copy()
        values[random.randrange(values.size)] = random.choice(NUMBERS)
        tensor.raw_data = values.tobytes()


def _change_header(model: onnx.ModelProto, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        model.ir_version = random.choice((0, 1, 3, 7, 10, 13, 99))
    elif kind == 1 and model.opset_import:
        model.opset_import[0].version = random.choice((0, 1, 7, 11, 13, 22, 99))
    elif kind == 2:
        model.opset_import.add(domain=random.choice(TEXTS[:-1]), version=1)
    else:
        del model.opset_import[:]


def _change_metadata(model: onnx.ModelProto, random: Random) -> None:
    key = random.choice(("preprocess", "labels", "steps", "certificate"))
    text = json.dumps(random.choice(DOCUMENTS))
    if random.random() < 0.1:
        text = random.choice(("", "{", "[" * 5000, '"\\ud800"', "[1, 2", "NaN"))
    set_metadata(model, f"repzoo.{key}", text)


def _change_outputs(model: onnx.ModelProto, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        model.graph.output[0].name = random.choice(_names(model))
    elif kind == 1:
        model.graph.output.add().CopyFrom(model.graph.output[0])
    elif kind == 2:
        model.graph.input.add().CopyFrom(model.graph.input[0])
    else:
        model.graph.input[0].name = random.choice(_names(model))


def _grow(model: onnx.ModelProto, random: Random) -> None:
    """Read a tensor that is as large as the graph says."""
    sizes = [random.choice(SIZES) for _ in range(random.randrange(1, 4))]
    shape = numpy_helper.from_array(np.array(sizes, np.int64), "grown_shape")
    model.graph.initializer.append(shape)
    grown = helper.make_node("ConstantOfShape", ["grown_shape"], ["grown"])
    total = helper.make_node("ReduceSum", ["grown"], ["grown_sum"], keepdims=0)
    model.graph.node.insert(0, total)
    model.graph.node.insert(0, grown)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Add"
            node.input.append("grown_sum")
            return


MUTATIONS: tuple[Mutation, ...] = (
    _change_dimension,
    _change_element,
    _change_attribute,
    _add_attribute,
    _change_operator,
    _rewire,
    _drop_node,
    _reorder,
    _repeat_node,
    _change_weight,
    _change_header,
    _change_metadata,
    _change_outputs,
    _grow,
)
