"""The PyTorch engine's operators, each against ONNX Runtime, and whole families of the zoo."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from repzoo import verbs
from repzoo.engines import Array, engine
from repzoo.errors import InputError

pytest.importorskip("torch", reason="the torch extra is not installed")

INPUTS = np.random.default_rng(0).standard_normal((2, 4, 7, 9)).astype(np.float32)
KERNEL = "float[6, 2, 3, 3] w, float[6] b"
# name: body over x (float[2, 4, 7, 9]) and seeded weights; the result is y
BODIES = {
    "conv, uneven pads": "y = Conv <group = 2, pads = [1, 0, 2, 1], strides = [2, 1], "
    "dilations = [1, 2]> "
    "(x, w, b)",
    "conv, same upper": 'y = Conv <group = 2, auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)',
    "conv, same lower": 'y = Conv <group = 2, auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)',
    "max pool": "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]> (x)",
    "max pool, ceil": "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
    "average pool": "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], "
    "pads = [1, 1, 1, 1]> "
    "(x)",
    "average pool, uneven": "y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 0, 1]> (x)",
    "average pool, pads counted": "y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 0, 1], "
    "count_include_pad = 1> (x)",
    "hard": "a = HardSigmoid <alpha = 0.17, beta = 0.4> (x)\n"
    " c = HardSwish (a)\n"
    " y = LeakyRelu <alpha = 0.2> (c)",
    "softmax": "y = Softmax <axis = 1> (x)",
    "clip": "low = Constant <value_float = -0.5> ()\n y = Clip (x, low)",
    "means": "y = ReduceMean <axes = [2, 3], keepdims = 0> (x)",
    "slice": "s = Constant <value_ints = [-1, 1]> ()\n e = Constant <value_ints = [-9, 100]> ()\n"
    "a = Constant <value_ints = [3, 2]> ()\n"
    " t = Constant <value_ints = [-2, 3]> ()\n"
    " y = Slice (x, s, e, a, t)",
    "split": "n = Constant <value_ints = [1, 3]> ()\n"
    " c, d = Split <axis = 1> (x, n)\n"
    " y = Concat <axis = 1> (d, c)",
    "pad, edge": "n = Constant <value_ints = [0, 0, 1, 2, 0, 0, 0, 1]> ()\n"
    ' y = Pad <mode = "edge"> (x, n)',
    "pad, constant": "n = Constant <value_ints = [0, 1, 1, 0, 0, 0, 0, 1]> ()\n"
    " v = Constant <value_float = 2.5> ()\n"
    " y = Pad (x, n, v)",
    "reshape by shape": "s = Shape (x)\n"
    " i = Constant <value_ints = [0]> ()\n"
    " n = Gather (s, i)\n"
    " m = Constant <value_ints = [-1]> ()\n"
    " t = Concat <axis = 0> (n, m)\n y = Reshape (x, t)",
    "gather": "i = Constant <value_ints = [2, -1, 0]> ()\n y = Gather <axis = 1> (x, i)",
    "gather one of a vector": "s = Shape (x)\n"
    " i = Constant <value_int = 3> ()\n"
    " n = Gather (s, i)\n"
    " f = Cast <to = 1> (n)\n y = Mul (x, f)",
    "constant of a computed shape": "s = Shape (x)\n"
    " c = ConstantOfShape <value = int64[1] {2}> (s)\n"
    " f = Cast <to = 1> (c)\n y = Mul (x, f)",
    "rank": "a = Constant <value_ints = [0, 5]> ()\n"
    " d = Unsqueeze (x, a)\n"
    " c = Squeeze (d, a)\n"
    " y = Transpose <perm = [0, 2, 3, 1]> (c)",
    "matmul": "t = Transpose <perm = [0, 1, 3, 2]> (x)\n m = MatMul (x, t)\n y = Div (m, m)",
    "round": "r = Round (x)\n e = Erf (x)\n y = Sub (r, e)",
    "per channel QDQ": "k = DequantizeLinear <axis = 1> (q, s4, z4)\n y = Add (x, k)",
    "activations in int8": "u = QuantizeLinear (x, s0, z0)\n y = DequantizeLinear (u, s0, z0)",
}


def graph(body: str) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    values: dict[str, Any] = {
        "w": rng.standard_normal((6, 2, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
        "q": rng.integers(-128, 128, (2, 4, 7, 9)).astype(np.int8),
        "s4": rng.uniform(0.01, 0.1, 4).astype(np.float32),
        "z4": rng.integers(-9, 9, 4).astype(np.int8),
        "s0": np.float32(0.013),
        "z0": np.int8(-7),
    }
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4, 7, 9] x) => (float y) '
        f"{{ {body} }}"
    )
    del proto.graph.output[:]
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    )
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in values.items()
        if name in read
    )
    return proto


def run_both(model: onnx.ModelProto, inputs: Array) -> tuple[Array, Array]:
    return engine("pytorch").open(model).run(inputs), engine("onnxruntime").open(
        model, exact=True
    ).run(inputs)


@pytest.mark.parametrize("name", BODIES)
def test_an_operator_computes_what_onnxruntime_computes(name: str) -> None:
    actual, expected = run_both(graph(BODIES[name]), INPUTS)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_a_resize_is_refused_or_right(coordinates: str, factor: int) -> None:
    runs = 0
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        model = graph(
            f"s = Constant <value_floats = [1.0, 1.0, {factor}.0, {factor}.0]> ()\n"
            f'y = Resize <coordinate_transformation_mode = "{coordinates}", '
            f'mode = "nearest", nearest_mode = "{rounding}"> (x, , s)'
        )
        try:
            actual, expected = run_both(model, INPUTS)
        except InputError:
            continue
        np.testing.assert_array_equal(actual, expected)
        runs += 1
    # What exporters write by default runs.
    assert runs or coordinates == "align_corners"


@pytest.mark.parametrize(
    "name", ["repvgg_a0", "repghostnet_050", "repvit_m0_9", "fasternet_t0"]
)
def test_a_model_of_each_family_runs(name: str) -> None:
    pytest.importorskip("timm", reason="the torch extra is not installed")
    training = verbs.export(name, num_classes=10, size=64)
    inputs = np.random.default_rng(2).standard_normal((2, 3, 64, 64)).astype(np.float32)
    actual, expected = run_both(training.model, inputs)
    assert np.abs(actual - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Hardmax (x)", "its engine knows no operator 'Hardmax'"),
        ("y = ArgMax <axis = 1> (x)", "knows no operator 'ArgMax'"),
        ("y = Sqrt (nowhere)", "nothing makes its value 'nowhere'"),
    ],
)
def test_an_unknown_operator_is_named(body: str, message: str) -> None:
    with pytest.raises(
        InputError, match=f"^pytorch cannot compile this model: .*{message}"
    ):
        engine("pytorch").open(graph(body))


def test_a_session_uses_its_own_number_of_threads() -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []
    session = engine("pytorch").open(graph("y = Relu (x)"), threads=before + 1)
    inner = session._module  # type: ignore[attr-defined]

    def count_threads(inputs: Any) -> Any:
        seen.append(torch.get_num_threads())
        return inner(inputs)

    session._module = count_threads  # type: ignore[attr-defined]
    session.run(INPUTS)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
