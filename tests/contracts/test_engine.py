"""What every engine keeps to, the package's own and anyone's: the suite runs against all that
ENGINES knows.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.conftest import PROCESS_SECONDS
from tests.tolerance import relative

from repzoo import engines
from repzoo.engines import ENGINES, Array, Engine, engine, options
from repzoo.errors import InputError, MissingExtra, RepzooError
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.search.node_costs import NodeCosts

FLOAT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    {
        stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, w0, b0)
        live = Relu (stem)
        wise = Conv <group = 6, pads = [1, 1, 1, 1]> (live, w1)
        sum = Add (wise, live)
        pooled = GlobalAveragePool (sum)
        flat = Flatten (pooled)
        output = Gemm <transB = 1> (flat, w2, b2)
    }"""
QDQ = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    <float sx = {0.03}, uint8 zx = {128}, float ss = {0.02}, uint8 zs = {0}>
    {
        qx = QuantizeLinear (data, sx, zx)
        x = DequantizeLinear (qx, sx, zx)
        k = DequantizeLinear <axis = 0> (w8, sw, zw)
        stem = Conv <pads = [1, 1, 1, 1]> (x, k)
        live = Relu (stem)
        qs = QuantizeLinear (live, ss, zs)
        s = DequantizeLinear (qs, ss, zs)
        pooled = GlobalAveragePool (s)
        flat = Flatten (pooled)
        output = Gemm <transB = 1> (flat, w2, b2)
    }"""


def model(text: str, opset: int = 17, reach: int = 127) -> onnx.ModelProto:
    """`text` with seeded weights; `reach` is the largest INT8 weight (63: nothing saturates on
    a CPU without VNNI).
    """
    rng = np.random.default_rng(0)
    shapes = {
        "w0": (6, 3, 3, 3),
        "b0": (6,),
        "w1": (6, 1, 3, 3),
        "w2": (5, 6),
        "b2": (5,),
    }
    values: dict[str, Any] = {
        name: (0.4 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    values["w8"] = rng.integers(-reach, reach + 1, (6, 3, 3, 3)).astype(np.int8)
    values["sw"], values["zw"] = (
        rng.uniform(0.001, 0.004, 6).astype(np.float32),
        np.zeros(6, np.int8),
    )
    proto = onnx.parser.parse_model(text.replace('"" : 17', f'"" : {opset}'))
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in values.items()
        if name in read
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def images(count: int, seed: int = 1) -> Array:
    return (
        np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    )


def reference_outputs(model: onnx.ModelProto, inputs: Array) -> list[Array]:
    outputs: Any = ReferenceEvaluator(model).run(None, {"data": inputs})
    return list(outputs)


@pytest.fixture(params=[*ENGINES.names(), "onnxruntime:CPU", "openvino:cpu"])
def runner(request: pytest.FixtureRequest) -> Engine:
    try:
        runner = engine(request.param)
    except MissingExtra as error:
        pytest.skip(str(error))
    if hasattr(runner, "open_pack"):
        pytest.skip("it runs what a vendor's tool chain compiled, and no ONNX")
    return runner


def test_it_names_itself_and_its_version(runner: Engine) -> None:
    base, _, option = runner.name.partition(":")
    assert base in ENGINES.names()
    assert not option or option in options(base)
    assert runner.version().strip()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("text", [FLOAT, QDQ], ids=["float", "qdq"])
def test_logits_are_the_reference_evaluators(
    runner: Engine, text: str, exact: bool
) -> None:
    reach = 127 if exact else 63
    network, inputs = model(text, reach=reach), images(6)
    (expected,) = reference_outputs(
        model(text, opset=19, reach=reach), inputs
    )  # the evaluator's Q/DQ begin with opset 19
    logits = runner.open(network, 2, exact=exact).run(inputs)
    assert logits.dtype == np.float32
    assert logits.shape == (6, 5)
    # A quantized value on the border between two steps may fall either way, which moves one
    # pixel of one channel by a step.
    tolerance = 1e-4 if text is FLOAT else 1e-3
    if not exact:
        tolerance = relative(runner, tolerance)
    assert np.abs(logits - expected).max() <= tolerance * np.ptp(expected)


def test_any_batch_gives_the_same_rows(runner: Engine) -> None:
    session, inputs = runner.open(model(FLOAT)), images(5)
    together = session.run(inputs)
    apart = np.concatenate([session.run(inputs[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(apart, together, rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # the rows do differ


def test_two_threads_may_run_one_session(runner: Engine) -> None:
    session, line = (
        runner.open(model(FLOAT)),
        threading.Barrier(2, timeout=PROCESS_SECONDS),
    )
    groups = [images(3, seed) for seed in (1, 2)]
    expected = [session.run(group) for group in groups]

    def repeat(group: Array) -> list[Array]:
        line.wait()
        return [session.run(group) for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(repeat, groups))
    for outputs, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(outputs, np.stack([wanted] * 20), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((1, 4, 8, 8), np.float32),
        np.zeros((1, 3, 7, 8), np.float32),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 3, 8, 8), np.float64),
    ],
    ids=["channels", "height", "rank", "type"],
)
def test_inputs_that_do_not_fit_are_an_input_error(
    runner: Engine, inputs: Array
) -> None:
    session = runner.open(model(FLOAT))
    with pytest.raises(InputError, match="float"):
        session.run(inputs)
    assert session.run(images(1)).shape == (1, 5)  # and the session lives on


def test_a_model_it_cannot_run_is_an_input_error_of_one_line(runner: Engine) -> None:
    unknown = model(FLOAT)
    unknown.graph.node[1].op_type = "Unheard"
    dangling = model(FLOAT)
    dangling.graph.node[1].input[0] = "nowhere"
    for broken in (unknown, onnx.ModelProto(), dangling):
        with pytest.raises(InputError, match="cannot") as caught:
            runner.open(broken).run(images(1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_right_or_refused(runner: Engine, kind: str) -> None:
    half = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({kind}[N, 3, 8, 8] data) '
        f"=> ({kind}[N, 3, 8, 8] output) {{ output = Relu (data) }}"
    )
    inputs = np.full((2, 3, 8, 8), 1.5, np.float32)
    try:
        outputs = runner.open(half).run(inputs)
    except InputError:
        return
    np.testing.assert_array_equal(outputs, inputs)


def test_run_all_keeps_the_models_order(runner: Engine) -> None:
    probed = model(FLOAT)
    del probed.graph.output[:]
    names = ["output", "live", "sum", "stem"]
    probed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
    )
    outputs = runner.open(probed).run_all(images(2))
    expected = reference_outputs(probed, images(2))
    assert [output.shape for output in outputs] == [output.shape for output in expected]
    for output, wanted in zip(outputs, expected, strict=True):
        limit = relative(runner, 1e-5) * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(output, wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("text", [FLOAT, QDQ], ids=["float", "qdq"])
def test_a_profile_names_the_nodes_of_every_layer(runner: Engine, text: str) -> None:
    """Whatever was fused into them: the convolutions and the Gemm take time, each once."""
    profiler = engines.profiler(runner, model(text, reach=63), images(1))
    if profiler is None:
        assert not runner.name.startswith(("onnxruntime", "openvino"))
        pytest.skip(f"{runner.name} has no profiles")
    operators = profiler.run(3)
    parsed = onnx.parser.parse_model(text).graph
    layers = {
        node.output[0] for node in parsed.node if node.op_type in ("Conv", "Gemm")
    }
    costs = NodeCosts(PlacementSpace(qdq_writer.prepare_for_qdq(model(FLOAT))))
    if text == FLOAT:
        costs.add(None, operators)
        assert all(costs.cost(name, int8=False) is not None for name in layers)
    named = [name for operator in operators for name in operator.nodes]
    assert {"stem", "live"}.intersection(named)
    assert "output" in named
    assert len(set(named)) == len(named)
    # OpenVINO counts whole microseconds, and this model's operators take about one
    assert min(operator.microseconds for operator in operators) >= 0


def test_initializers_among_the_inputs_are_no_inputs(runner: Engine) -> None:
    old = model(FLOAT)
    old.ir_version = 3
    listed = [
        onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in old.graph.initializer
    ]
    inputs = [*listed, *old.graph.input]
    del old.graph.input[:]
    old.graph.input.extend(inputs)
    np.testing.assert_allclose(
        runner.open(old).run(images(2)),
        runner.open(model(FLOAT)).run(images(2)),
        rtol=0,
        atol=1e-6,
    )


def test_exact_turns_onnxruntimes_optimizations_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked of ONNX Runtime itself: the graph it would run, written out, is the one given, or a
    fused one.
    """
    import onnxruntime as ort

    make_options = ort.SessionOptions
    paths = [tmp_path / "exact.onnx", tmp_path / "fast.onnx"]
    for path in paths:

        def writing(path: Path = path) -> ort.SessionOptions:
            options = make_options()
            options.optimized_model_filepath = str(path)
            return options

        monkeypatch.setattr(ort, "SessionOptions", writing)
        engine("onnxruntime").open(model(FLOAT), exact="exact" in path.name)
    kinds = [[node.op_type for node in onnx.load(path).graph.node] for path in paths]
    assert kinds[0] == [node.op_type for node in model(FLOAT).graph.node]
    assert "Relu" not in kinds[1]


THIRD_PARTY = """
import numpy as np
class Zeros:
    name = "zeros"
    def version(self): return "9.9"
    def open(self, model, threads=1, exact=False, streams=1): return self
    def run(self, inputs): return np.zeros((len(inputs), 5), np.float32)
    def run_all(self, inputs): return [self.run(inputs)]
"""


def test_torch_compile_keeps_to_the_same() -> None:
    """One test for it all: each compilation takes seconds of g++."""
    pytest.importorskip("torch", reason="the torch extra is not installed")
    session = engine("pytorch:compile").open(model(FLOAT), 2)
    (expected,) = reference_outputs(model(FLOAT), images(3))
    with ThreadPoolExecutor(2) as pool:  # two clients, the first call of both at once
        results = list(pool.map(session.run, [images(3)] * 4))
    for logits in results:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="float32"):
        session.run(images(3)[:, :2])


def test_onnxruntime_computes_full_range_int8_weights_rightly_even_without_vnni() -> (
    None
):
    """Its AVX2 kernels add two products in 16 bits and saturate, unless told not to
    (session.x64quantprecision).
    """
    (expected,) = reference_outputs(model(QDQ, opset=19), images(6))
    assert np.abs(
        engine("onnxruntime").open(model(QDQ)).run(images(6)) - expected
    ).max() <= 1e-3 * np.ptp(expected)


def test_an_option_is_found_by_its_beginning_and_an_unknown_one_lists_what_there_is() -> (
    None
):
    assert engine("onnxruntime:cpu").name == "onnxruntime:CPUExecutionProvider"
    with pytest.raises(
        InputError,
        match=r"^the engine 'onnxruntime' has no option 'TPU'; this machine has .*CPUExecutionProvider",
    ):
        engine("onnxruntime:TPU")
    for name in ("reference:fast", "onnxruntime:"):
        with pytest.raises(InputError, match="has no option"):
            engine(name)


def install(folder: Path, entry: str) -> None:
    """Lay a tiny distribution down as pip would."""
    (folder / "zeros_engine.py").write_text(THIRD_PARTY)
    info = folder / "zeros_engine-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: zeros-engine\nVersion: 9.9\n"
    )
    (info / "entry_points.txt").write_text(
        f"[repzoo.engines]\n{entry} = zeros_engine:Zeros\n"
    )


def test_a_third_partys_engine_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "zeros" not in ENGINES.names()
    install(tmp_path, "zeros")
    monkeypatch.syspath_prepend(tmp_path)
    assert "zeros" in ENGINES.names()
    zeros = engine("zeros")
    assert zeros.version() == "9.9"
    assert zeros.open(model(FLOAT)).run(images(2)).shape == (2, 5)


def test_a_third_party_cannot_take_a_builtin_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RepzooError, match="two engines are called 'onnxruntime'"):
        engine("onnxruntime")


def test_an_unknown_engine_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean onnxruntime"):
        engine("onnxruntine")
