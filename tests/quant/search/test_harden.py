"""`repzoo harden`: an ordinary float file in which a vendor's tool finds the integers chosen here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import add, few_digits, sets, small

import repzoo
from repzoo.artifact import Artifact
from repzoo.console import hardened as views
from repzoo.engines import engine
from repzoo.errors import GateError, InputError
from repzoo.quant.network.scheme import QuantScheme, load_scheme
from repzoo.quant.rewrites.stages import Stage
from repzoo.quant.search import grid_proof, ladder
from repzoo.quant.search import harden as hardening
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import Evaluator
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.on_grid import put_on_grid
from repzoo.quant.search.tool_judge import ToolFigures
from repzoo.quant.search.tool_search import GRID_STAGES, NEAREST
from repzoo.quant.search.verdict import Budget, Verdict
from repzoo.verbs import pack_model
from repzoo.verbs.public_artifact import Artifact as PublicArtifact

Run = Callable[..., Any]
Weights = npt.NDArray[np.float32]

# Dense, depthwise, 1x1 whose weight two layers share, grouped, a linear layer, and two that a
# target leaves as they are: a MatMul and a ConvTranspose.
KINDS = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 16, 16] data) => (float[N, 10] output) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, dense)
    b = HardSwish (a)
    c = Conv <pads = [1, 1, 1, 1], group = 12> (b, deep, shift)
    d = Relu (c)
    e = Conv (d, point)
    f = Relu (e)
    i = Conv (f, point)
    s = Conv <group = 3> (i, grouped)
    u = ConvTranspose (s, up)
    j = ReduceMean <axes = [2, 3], keepdims = 0> (u)
    k = Gemm (j, linear, offsets)
    output = MatMul (k, last) }"""


@functools.cache
def kinds() -> Artifact:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(KINDS)
    tensors = {
        "dense": random.standard_normal((12, 3, 3, 3)),
        "deep": random.standard_normal((12, 1, 3, 3)),
        "shift": random.standard_normal(12),
        "point": random.standard_normal((12, 12, 1, 1)) / 3,
        "grouped": random.standard_normal((12, 4, 1, 1)) / 2,
        "up": random.standard_normal((12, 12, 1, 1)) / 3,
        "linear": random.standard_normal((12, 10)),
        "offsets": random.standard_normal(10),
        "last": random.standard_normal((10, 10)),
    }
    tensors["dense"][3] = 0
    tensors["deep"] *= np.exp(2 * random.standard_normal((12, 1, 1, 1)))
    add(model, tensors)
    return replace(small(), model=model, name="kinds")


def target(name: str) -> ladder.Target:
    return ladder.Target(engine("onnxruntime"), load_scheme(name))


@functools.cache
def hardened(name: str) -> tuple[Artifact, hardening.HardenReport]:
    budget = Budget(max_drop=100.0)
    return hardening.harden(kinds(), sets(), target(name), budget)


def layers(model: onnx.ModelProto) -> dict[str, Weights]:
    """The weights of each Conv and Gemm with a row for each output channel, by output name."""
    values = {
        item.name: numpy_helper.to_array(item) for item in model.graph.initializer
    }
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = values[node.input[1]]
            transposed = any(item.name == "transB" for item in node.attribute)
            if node.op_type == "Gemm" and not transposed:
                weight = weight.T
            found[node.output[0]] = weight.reshape(len(weight), -1)
    return found


def tool_integers(weights: Weights, scheme: QuantScheme) -> tuple[Weights, Weights]:
    """(integers, weights that they stand for), written from the rules of the vendors' tools alone.

    weights  of one output channel or of one tensor
    """
    steps = {8: 127, 7: 64}[scheme.weight_bits]
    if scheme.weight_rule == "minmax":
        low, high = min(weights.min(), 0), max(weights.max(), 0)
        step = np.float32(high - low) / np.float32(2**scheme.weight_bits - 1)
        return np.round(weights / step), np.round(weights / step) * step
    step = np.abs(weights).max() / np.float32(steps)
    if scheme.weight_rule == "power-of-two":
        step = np.exp2(np.ceil(np.log2(step)))
    integers = np.clip(np.round(weights / step), -steps, steps)
    return integers, integers * step


def require_on_grid(weights: Weights, scheme: QuantScheme) -> Weights:
    """Require that the tool's rounding returns these weights; its integers."""
    if not weights.any():
        return weights
    integers, returned = tool_integers(weights, scheme)
    np.testing.assert_array_equal(returned, weights)
    return integers


@pytest.mark.parametrize("name", ["rdk-x5", "rknn-layer"])
def test_every_layer_lies_on_the_grid_of_the_target(name: str) -> None:
    result, report = hardened(name)
    by_layer = layers(result.model)
    assert list(by_layer) == ["a", "c", "e", "i", "s", "k"]
    scheme = load_scheme(name)
    for weights in by_layer.values():
        for unit in weights if scheme.per_channel else weights[None]:
            require_on_grid(unit, scheme)
    assert report.proof.holds
    assert report.proof.weights == sum(item.size for item in by_layer.values())
    assert [item.groups for item in report.layers] == [1, 12, 1, 1, 3, 1]
    assert report.layers[0].zero_channels == 1


def test_it_is_an_ordinary_float_file_of_the_opset_that_the_target_takes() -> None:
    result, _ = hardened("rdk-x5")
    onnx.checker.check_model(result.model, full_check=True)
    assert (result.opset, result.model.ir_version) == (11, 7)
    kinds_of = {node.op_type for node in result.model.graph.node}
    assert not kinds_of & {"QuantizeLinear", "DequantizeLinear", "HardSwish"}
    shape = result.model.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in shape] == [1, 3, 16, 16]
    assert result.form == "deploy"
    assert result.steps[-1].verb == "harden"
    assert result.preprocess == kinds().preprocess


def test_it_computes_what_the_float_model_computes_up_to_its_rounding() -> None:
    result, report = hardened("rdk-x5")
    images = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    expected = engine("onnxruntime").open(kinds().model, exact=True).run(images)
    logits = engine("onnxruntime").open(result.model, exact=True).run(images)
    difference = np.abs(logits - expected).max()
    assert 0 < difference < 0.1 * np.abs(expected).max()
    noise_db = report.in_float.values.logits_snr_db
    assert noise_db is not None
    assert noise_db > 25


def test_what_stays_in_float_is_listed() -> None:
    _, report = hardened("rdk-x5")
    kept = [(item.layer, item.op, item.reason) for item in report.kept]
    assert kept == [
        ("u", "ConvTranspose", "rdk-x5 computes ConvTranspose in float"),
        ("output", "MatMul", "rdk-x5 computes MatMul in float"),
    ]


@functools.cache
def calibrated() -> Evaluator:
    gate = Gate(FloatComparison(kinds(), sets().gate, engine("onnxruntime")), Budget())
    return ladder.calibrate(gate, sets(), target("rdk-x5"))[0]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("rule", "bits"),
    [("largest", 8), ("largest", 7), ("minmax", 8), ("power-of-two", 8)],
)
@pytest.mark.parametrize("stage", GRID_STAGES[:2], ids=lambda stage: stage.name)
def test_each_rule_of_a_tool(
    stage: Stage, rule: str, bits: int, per_channel: bool
) -> None:
    scheme = QuantScheme(
        "mine", "", weight_rule=rule, weight_bits=bits, per_channel=per_channel
    )
    builder = calibrated().builder
    placement = builder.space.starting_placements()[0]
    on_grid = put_on_grid(stage, builder.cache.get(stage), placement, scheme)
    by_layer = layers(on_grid.model)
    for item in on_grid.layers:
        weights = by_layer[item.layer]
        codes = item.codes.reshape(weights.shape)
        whole = [(weights, codes)]
        units = zip(weights, codes, strict=True) if per_channel else whole
        for unit, expected in units:
            np.testing.assert_array_equal(require_on_grid(unit, scheme), expected)


def test_rounding_to_nearest_is_what_the_tool_does_to_the_file_as_it_is() -> None:
    scheme = load_scheme("rdk-x5")
    builder = calibrated().builder
    placement = builder.space.starting_placements()[0]
    source = builder.cache.get(NEAREST)
    on_grid = put_on_grid(NEAREST, source, placement, scheme)
    before = layers(source.model)
    for name, weights in layers(on_grid.model).items():
        for row, original in zip(weights, before[name], strict=True):
            if original.any():
                integers, _ = tool_integers(original, scheme)
                found = require_on_grid(row, scheme)
                # a scale of 16 bits may move a weight that lies between two integers
                assert np.abs(found - integers).max() <= 1
                assert (found == integers).mean() >= 0.9
    assert all(item.bias_change == 0 for item in on_grid.layers)


def test_a_tool_that_searches_ranges_is_simulated_with_the_best() -> None:
    _, report = hardened("rdk-x5")
    assert report.ranges in load_scheme("rdk-x5").searched_ranges
    assert [item.stage.split(",")[0] for item in report.candidates[:2]] == [
        "nearest",
        "gptq",
    ]
    _, other = hardened("rknn-layer")
    assert other.ranges == "minmax"
    # hb_mapper compares methods on the first calibration image alone
    assert report.first_image in sets().calibration.keys
    assert other.first_image == ""


def test_a_pack_puts_the_image_first_on_which_the_best_ranges_win() -> None:
    images = sets().calibration
    result, report = hardened("rdk-x5")
    artifact = PublicArtifact.wrap(result, hardening=report)
    options = repzoo.PackOptions(calibration=16)
    chosen = pack_model.calibration_images(artifact, images, options)
    assert images.keys[chosen[0]] == report.first_image
    assert len(set(chosen)) == len(chosen) == 16
    plain = PublicArtifact.wrap(result)
    usual = pack_model.calibration_images(plain, images, options)
    assert set(chosen[1:]) <= set(usual)


@functools.cache
def one_wide_channel() -> Artifact:
    """`small` with one value in its second layer's input that 8 bits cannot hold beside others."""
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name == "first":
            values[0] *= 300
        elif item.name == "second":
            values[:, 0] *= 1e-3
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    # HardSigmoid is not homogeneous: equalization cannot undo this
    model.graph.node[1].CopyFrom(
        onnx.helper.make_node("Softplus", ["a"], ["b"], name="soft")
    )
    return replace(small(), model=model, name="wide")


@pytest.mark.parametrize("name", ["rdk-x5", "rknn"])
def test_layers_that_int8_breaks_are_named(name: str) -> None:
    budget = Budget(max_drop=100.0)
    result, report = hardening.harden(one_wide_channel(), sets(), target(name), budget)
    assert report.fallback[0].layer == "c"
    assert report.fallback[0].precision == load_scheme(name).escape
    assert report.fallback[0].gain_db > 3
    node = next(node for node in result.model.graph.node if node.output[0] == "c")
    assert result.steps[-1].settings["fallback"][0] == node.name
    # The fewest: with one less it is not accurate enough.
    tried = report.candidates[-len(report.fallback) :]
    enough = [item.verdict >= Verdict.ENOUGH for item in tried]
    assert enough == [False] * (len(tried) - 1) + [True]
    shown = views.document(report)
    assert shown["fallback"][0]["node"] == node.name


def test_a_weight_that_moved_fails_the_proof() -> None:
    result, report = hardened("rdk-x5")
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    node = next(node for node in model.graph.node if node.output[0] == "c")
    item = next(item for item in model.graph.initializer if item.name == node.input[1])
    values = numpy_helper.to_array(item).copy()
    values[5] = values[5] * np.float32(0.999)
    values[5].reshape(-1)[0] *= np.float32(1.02)
    item.CopyFrom(numpy_helper.from_array(values, item.name))
    proof = grid_proof.prove(model, report.layers, report.target)
    assert proof.mismatches
    assert not proof.holds


def test_integers_that_reach_no_end_fail_the_proof() -> None:
    result, report = hardened("rdk-x5")
    scheme = replace(report.target, weight_bits=7)  # a tool of another range
    assert not grid_proof.prove(result.model, report.layers, scheme).holds


def test_the_drop_is_judged() -> None:
    with pytest.raises(GateError):
        hardening.harden(small(), sets(), target("rdk-x5"), Budget(max_drop=-90.0))


def test_the_public_function(tmp_path: Path) -> None:
    data = few_digits()
    result = repzoo.harden(small(), data, target="rdk-x5", images=500, max_drop=5)
    assert result.hardening is not None
    few = "500 calibration images were requested, 120 are available"
    assert few in result.hardening.warnings
    assert result.hardening.predicted.values.same_prediction > 90
    path = tmp_path / "hard.onnx"
    result.save(path)
    for weights in layers(onnx.load(path)).values():
        for row in weights:
            require_on_grid(row, load_scheme("rdk-x5"))
    with pytest.raises(InputError, match="no scheme is called 'rdkx5'; did you mean"):
        repzoo.harden(small(), "digits", target="rdkx5")


def test_the_command_line(
    run: Run, small_file: Path, digit_folders: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hard.onnx"
    report = tmp_path / "report.json"
    data = ("--data", digit_folders, "--images", 64, "--max-drop", 5)
    mine = tmp_path / "mine.toml"
    mine.write_text("[mine]\nweight_rule = 'power-of-two'\nopset = 13\n")
    command = ("harden", small_file, "-o", out, "--target", mine, *data)
    ran = run(*command, "--report", report, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["proof"]["holds"] is True
    assert document["proof"]["mismatches"] == 0
    assert document["proof"]["ends_reached"] == document["proof"]["channels"] == 38
    assert document["in_float"]["same_prediction"] > 97
    assert report.is_file()
    assert Artifact.read(out).opset == 13
    for weights in layers(onnx.load(out)).values():
        for row in weights:
            require_on_grid(row, load_scheme(str(mine)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "rdk-x6"}, "no scheme is called 'rdk-x6'"),
        ({"images": 0}, "is not in the range x>=1"),
        ({"data": "nowhere"}, "nowhere"),
        ({"rule": "smallest"}, "weight_rule must be one of largest, minmax"),
    ],
)
def test_bad_input(
    run: Run, small_file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    options = {"target": "rdk-x5", "images": 64, "data": "digits", **changes}
    if "rule" in options:
        mine = tmp_path / "mine.toml"
        mine.write_text(f"[mine]\nweight_rule = '{options.pop('rule')}'\n")
        options["target"] = mine
    out = tmp_path / "hard.onnx"
    flags = [part for key, value in options.items() for part in (f"--{key}", value)]
    ran = run("harden", small_file, "-o", out, *flags)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())
    assert not out.exists()


def test_an_operator_without_an_older_form_is_refused_before_the_work(
    run: Run, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 256] flat) => (float[N, 256] normal) {
        normal = LayerNormalization (flat, lengths_of_one) }"""
    node = onnx.parser.parse_model(text).graph.node[0]
    model.graph.node.insert(5, node)
    model.graph.node[6].input[0] = "normal"
    add(model, {"lengths_of_one": np.ones(256)})
    path = tmp_path / "normal.onnx"
    replace(small(), model=model).save(path)
    out = tmp_path / "hard.onnx"
    ran = run("harden", path, "-o", out, "--data", "digits", "--target", "rdk-x5")
    assert ran.code == 2
    message = "LayerNormalization normal cannot be written in ONNX opset 11"
    assert message in " ".join(ran.err.split())


def test_an_int8_model_is_refused(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 16, 16] data) => (float[N, 3] output)
        <float step = {0.1}, uint8 zero = {0}> {
        a = QuantizeLinear (data, step, zero)
        b = DequantizeLinear (a, step, zero)
        output = ReduceMean <axes = [2, 3], keepdims = 0> (b) }"""
    path = tmp_path / "int8.onnx"
    model = onnx.parser.parse_model(text)
    replace(small(), model=model, labels=()).save(path)
    ran = run("harden", path, "-o", tmp_path / "o.onnx", "--data", "digits")
    assert ran.code == 2
    assert "is quantized already" in ran.err


class Judge:
    """A tool that likes the candidates as `snr_db` says, in the order in which it gets them."""

    def __init__(self, *snr_db: float) -> None:
        self.candidates: list[Artifact] = []
        self._snr_db = snr_db

    def compare(self, candidate: Artifact, first_image: str) -> ToolFigures:
        assert first_image in {"", *sets().calibration.keys}
        snr_db = self._snr_db[len(self.candidates)]
        self.candidates.append(candidate)
        return ToolFigures(8, 90.0, snr_db)


def judged(judge: Judge) -> tuple[Artifact, hardening.HardenReport]:
    budget = Budget(max_drop=100.0)
    return hardening.harden(kinds(), sets(), target("rdk-x5"), budget, judge=judge)


def test_the_tool_itself_chooses_the_stage() -> None:
    judge = Judge(20.0, 19.0, 31.0, 30.0)
    result, report = judged(judge)
    names = [trial.stage for trial in report.trials]
    assert names == ["as it is", "nearest", "gptq", "equalized"]
    assert report.stage == "gptq"
    assert result.steps[-1].settings["stage"] == "gptq"
    chosen = layers(judge.candidates[2].model)
    for name, weights in layers(result.model).items():
        np.testing.assert_array_equal(weights, chosen[name])
    shown = views.document(report)["in_tool"]
    assert [row["figures"]["snr_db"] for row in shown] == [20, 19, 31, 30]


def test_weights_stay_where_the_tool_does_best_by_itself(tmp_path: Path) -> None:
    result, report = judged(Judge(25.0, 25.0, 24.0, 20.0))
    assert report.stage == "as it is"
    assert report.layers == ()
    before = layers(kinds().model)
    for name, weights in layers(result.model).items():
        np.testing.assert_array_equal(weights, before[name])
    text = " ".join(map(str, views.hardened(report, tmp_path / "a.onnx").shown))
    assert "does best with the weights as they are" in text


def test_a_file_keeps_what_was_predicted_of_it() -> None:
    result, report = hardened("rdk-x5")
    figures = pack_model._figures(PublicArtifact.wrap(result))
    values = report.predicted.values
    assert figures.images == values.n
    assert figures.predicted_top1 == values.top1
    assert figures.same_prediction == values.same_prediction
    step = replace(result.steps[-1], settings={"predicted": {"images": "many"}})
    damaged = replace(result, steps=(step,))
    assert pack_model._figures(PublicArtifact.wrap(damaged)).images == 0
